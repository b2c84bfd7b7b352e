"""Attacks: what a machine is believed to be able to do.

Run: pytest tests/test_runtime.py
"""

from pathlib import Path

import pytest
import torch

from swav import system
from swav.system import available_memory, computes_in_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "vendor", "fast"),
    [
        ({"avx512_bf16": True}, "GenuineIntel", False),  # measured: slower than float32
        ({"avx512_bf16": True, "amx_bf16": True}, "GenuineIntel", True),
        ({"avx512_bf16": True}, "AuthenticAMD", True),  # measured: 2.5 times as fast
        ({"avx512_bf16": False, "amx_bf16": False}, "AuthenticAMD", False),
        ({"bf16": True}, "", True),  # ARM
        ({}, "", False),
    ],
)
def test_bfloat16_is_used_where_it_is_fast(monkeypatch, flags, vendor, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.setattr(system, "_cpu_vendor", lambda: vendor)
    assert computes_in_bf16(CPU) is fast


def test_available_memory_is_bounded_by_the_control_group(monkeypatch):
    of_machine = available_memory(CPU)
    assert 10**7 < of_machine < 10**14
    monkeypatch.setattr(system, "_control_group_memory", lambda: [12345])
    assert available_memory(CPU) == 12345


GIGA = 10**9
MOUNT = "31 23 0:28 {root} {mount} rw,relatime shared:9 - {kind} {kind} {options}\n"


def process_in(
    tmp_path: Path, groups: str, kind: str, options: str, root: str = "/", mount: str = "fs/group"
) -> tuple[Path, Path]:
    """Folders of a process in /proc, and of where its control groups are mounted."""
    process, groups_folder = tmp_path / "self", tmp_path / mount
    process.mkdir()
    groups_folder.mkdir(parents=True)
    (process / "cgroup").write_text(groups)
    shown = str(groups_folder).replace(" ", r"\040")
    other = MOUNT.format(root="/", mount=tmp_path / "elsewhere", kind="tmpfs", options="rw")
    (process / "mountinfo").write_text(other + MOUNT.format(root=root, mount=shown, kind=kind, options=options))
    return process, groups_folder


def put(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(f"{content}\n")


def test_a_group_of_version_2_is_bounded_by_every_limit_above_it(tmp_path):
    process, mount = process_in(tmp_path, "0::/slice/job/step\n", "cgroup2", "rw", mount="a folder/unified")
    put(mount)  # the root has no limit
    put(mount / "slice", max=10 * GIGA, high="max", current=4 * GIGA, stat="anon 5\ninactive_file 0")
    put(mount / "slice/job", max="max", high=8 * GIGA, current=3 * GIGA)
    put(mount / "slice/job/step", max=9 * GIGA, high="max", current=2 * GIGA)
    assert sorted(system._control_group_memory(process)) == [5 * GIGA, 6 * GIGA, 7 * GIGA]
    put(mount / "slice/job/step", current=11 * GIGA)
    assert min(system._control_group_memory(process)) == 0  # above its limit, as it may be for a moment


def test_files_that_a_group_has_read_are_given_up_for_memory(tmp_path):
    process, mount = process_in(tmp_path, "0::/job\n", "cgroup2", "rw")
    stat = f"anon {GIGA}\ninactive_file {3 * GIGA}\nactive_file {2 * GIGA}\nslab_reclaimable {GIGA}\nshmem {GIGA}"
    put(mount / "job", max=10 * GIGA, current=9 * GIGA, stat=stat)
    assert system._control_group_memory(process) == [7 * GIGA]
    (mount / "job/memory.stat").write_text("not what it was")
    assert system._control_group_memory(process) == [GIGA]


def test_a_group_of_version_1_is_bounded_by_those_above_it_too(tmp_path):
    groups = "9:name=systemd:/\n8:cpu,cpuacct:/busy\n4:memory:/user/job\n0::/unlimited\n"
    process, mount = process_in(tmp_path, groups, "cgroup", "rw,memory")
    stat = f"inactive_file 7\ntotal_inactive_file {GIGA}\ntotal_active_file {GIGA}"
    put(mount, limit_in_bytes=9223372036854771712, usage_in_bytes=0)
    put(mount / "user", limit_in_bytes=6 * GIGA, usage_in_bytes=5 * GIGA, stat=stat)
    put(mount / "user/job", limit_in_bytes=9223372036854771712, usage_in_bytes=GIGA, stat="")
    put(mount / "busy", limit_in_bytes=1, usage_in_bytes=0)  # of another controller
    assert min(system._control_group_memory(process)) == 3 * GIGA


@pytest.mark.parametrize("root", ["/docker/abc", "/docker/other"])
def test_a_container_sees_its_own_group_where_the_groups_are_mounted(root, tmp_path):
    process, mount = process_in(tmp_path, "4:memory:/docker/abc\n", "cgroup", "rw,memory", root=root)
    put(mount, limit_in_bytes=5 * GIGA, usage_in_bytes=GIGA)
    assert system._control_group_memory(process) == [4 * GIGA]


def test_where_there_are_no_control_groups_there_is_no_limit(tmp_path):
    assert system._control_group_memory(tmp_path) == []
    process, mount = process_in(tmp_path, "0::/../above\n", "cgroup2", "rw")  # of a namespace that it has left
    put(mount, max=GIGA, high="max", current=0)
    put(mount.parent / "above", max=1, high="max", current=0)
    assert system._control_group_memory(process) == [GIGA]
