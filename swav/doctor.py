"""`swav doctor`: what this machine has for training, what it lacks, and what to do about it. Changes nothing.

torch is imported by the checks that need it: where it is broken, that is what is said.
"""

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from swav.data.sources.open import check_images
from swav.errors import MachineError, SwavError, counted, printable
from swav.files import FileLock, check_writable, sync_file, sync_folder
from swav.output import deliver, say
from swav.version import swav_version

LOADER_SECONDS = 3.0  # of batches that are timed, after the first ones
MEET_SECONDS = 60
LITTLE_MEMORY, LITTLE_SHARED, LITTLE_DISK, FEW_FILES = 4e9, 1e9, 5e9, 1024
SLOW_SYNC = 0.1  # seconds for a small file: a save has a dozen of them
PACKAGES = ("torchvision", "numpy", "pillow", "opencv-python-headless", "timm", "safetensors")

State = Literal["ok", "warning", "fails"]

_MEETING = """
import datetime, sys, torch, torch.distributed as dist
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=30))
x = torch.full((4,), float(rank + 1))
dist.all_reduce(x)
assert x.tolist() == [3.0] * 4, x
dist.destroy_process_group()
"""


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        name: of what was looked at.
        state: fails: swav cannot run so.
        text: what is there, and what to do where it is not well.
    """

    name: str
    state: State
    text: str


def doctor(data: str | Path | None = None, out: str | Path | None = None) -> list[Finding]:
    """Check versions, devices, memory, disk and limits, and print a line for each.

    Args:
        data: images; how fast they are made ready for training is measured.
        out: folder in which a run would be; files are written, synced, locked and removed there.

    Raises:
        DataError: there are no images.
        MachineError: swav cannot run here; everything else was printed before.
    """
    if data is not None:
        check_images(data)
    found: list[Finding] = []
    checks = list(_checks(data, out))
    say(f"looking at this machine, in some seconds: {', '.join(name for name, _ in checks)}")
    for name, check in checks:
        try:
            found += check()
        except SwavError as error:
            found.append(Finding(name, "fails", str(error)))
        if found[-1].name == "torch" and found[-1].state == "fails":
            break  # the rest needs it
    deliver(format_findings(found))
    broken = [finding.name for finding in found if finding.state == "fails"]
    if broken:
        raise MachineError(f"doctor: expected a machine that swav can run on, found faults: {', '.join(broken)}")
    return found


def format_findings(found: list[Finding]) -> str:
    """A line per finding, and how many need something."""
    width = max(len(finding.name) for finding in found)
    lines = [f"swav {swav_version()}", ""]
    lines += [f"{finding.state:<8} {finding.name:<{width}}  {printable(finding.text)}" for finding in found]
    warnings = sum(finding.state == "warning" for finding in found)
    faults = sum(finding.state == "fails" for finding in found)
    return "\n".join([*lines, "", f"{counted(faults, 'fault')}, {counted(warnings, 'warning')}"])


def _checks(data: str | Path | None, out: str | Path | None) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
    yield "python", _python
    yield "torch", _torch
    yield "packages", _packages
    yield "devices", _devices
    yield "memory", _memory
    yield "limits", _limits
    yield "two processes", _two_processes
    if out is not None:
        yield "out", lambda: _out(Path(out).expanduser())
    if data is not None:
        yield "data", lambda: _data(data)


# -- software


def _python() -> list[Finding]:
    return [Finding("python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")]


def _torch() -> list[Finding]:
    """Whether torch can be imported and computes. Anything may be raised by a broken installation."""
    began = time.monotonic()
    try:
        import torch

        right = float((torch.ones(8, 8) @ torch.ones(8, 8)).sum()) == 512
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        text = f"cannot be used ({type(error).__name__}: {reason}); install it again: pip install --force-reinstall torch torchvision"
        return [Finding("torch", "fails", text)]
    if not right:
        return [Finding("torch", "fails", "computes a wrong product of two matrices; install it again")]
    return [Finding("torch", "ok", f"{torch.__version__}, ready after {time.monotonic() - began:.1f} s")]


def _packages() -> list[Finding]:
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        text = f"not installed: {', '.join(missing)}; install swav again, which brings them"
        return [Finding("packages", "warning", text)]
    return [Finding("packages", "ok", ", ".join(versions))]


# -- machine


def _devices() -> list[Finding]:
    import torch

    from swav.system import available_cpus, computes_in_bf16

    cpus, cpu = available_cpus(), torch.device("cpu")
    halves = "bfloat16" if computes_in_bf16(cpu) else "float32 (no units for bfloat16)"
    found = [Finding("CPU", "ok", f"{cpus} of {os.cpu_count()} cores for this process, computes in {halves}")]
    if not torch.cuda.is_available():
        why = (
            "this torch is built without CUDA"
            if torch.version.cuda is None
            else "check the driver and CUDA_VISIBLE_DEVICES"
        )
        text = f"none is visible to torch: training runs on the CPU, for small sets. If there is one: {why}"
        return [*found, Finding("GPU", "warning", text)]
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        text = f"{torch.cuda.get_device_name(i)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        full = free < LITTLE_MEMORY
        found.append(
            Finding(f"GPU {i}", "warning" if full else "ok", text + ("; end what else runs on it" if full else ""))
        )
    return found


def _memory() -> list[Finding]:
    import torch

    from swav.system import available_memory

    free = available_memory(torch.device("cpu"))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = f"{free / 1e9:.1f} GB may be taken, limits of control groups counted, of {total / 1e9:.1f} GB"
    if free < LITTLE_MEMORY:
        found = [
            Finding("memory", "warning", f"{text}: a small batch only; close other programs, or use micro_batch=N")
        ]
    else:
        found = [Finding("memory", "ok", text)]
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = shutil.disk_usage(shared).free
        text = f"{room / 1e9:.1f} GB in /dev/shm, where loader processes leave batches"
        if room < LITTLE_SHARED:
            text += "; a container has little of it: docker run --ipc=host or --shm-size=8g, or use workers=0"
        found.append(Finding("shared memory", "warning" if room < LITTLE_SHARED else "ok", text))
    return found


def _limits() -> list[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = soft == resource.RLIM_INFINITY or soft >= FEW_FILES
    count = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    advice = "" if many else f"; raise it: ulimit -n {4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)}"
    return [Finding("open files", "ok" if many else "warning", f"{count} at a time{advice}")]


def _two_processes() -> list[Finding]:
    """Whether two processes on this machine can add up a tensor, as those of torchrun do."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")}
        command = [sys.executable, "-c", _MEETING]
        both = [
            subprocess.Popen(
                [*command, str(rank), f"{folder}/meeting"], stderr=subprocess.PIPE, text=True, env=environment
            )
            for rank in range(2)
        ]
        try:
            ends = [process.communicate(timeout=MEET_SECONDS)[1] for process in both]
        except subprocess.TimeoutExpired:
            ends = [f"no answer within {MEET_SECONDS} s"]
        finally:
            for process in both:
                process.kill()
                with process:  # waits, and closes its pipe
                    pass
    if len(ends) == 2 and not any(process.returncode for process in both):
        return [Finding("two processes", "ok", f"add up a tensor over gloo ({time.monotonic() - began:.1f} s)")]
    reason = next((end.strip().splitlines()[-1] for end in ends if end.strip()), "no reason was given")
    text = f"cannot speak with each other ({reason}): torchrun would fail; look at GLOO_SOCKET_IFNAME and the firewall"
    return [Finding("two processes", "warning", text)]


# -- what is given


def _out(out: Path) -> list[Finding]:
    check_writable(out)
    place = next(path for path in (out, *out.parents) if path.exists())
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as folder:
            file = Path(folder) / "file"
            with FileLock(Path(folder) / "lock"):
                file.write_bytes(bytes(4096))
                sync_file(file)
                sync_folder(Path(folder))
    except OSError as error:
        raise MachineError(
            f"{out}: a file cannot be written, synced and locked there ({error.strerror}); choose another --out"
        ) from None
    seconds, room = time.monotonic() - began, shutil.disk_usage(place).free
    text = f"{out}: a file is written, synced and locked in {1e3 * seconds:.0f} ms; {room / 1e9:.1f} GB free"
    slow = "; a slow disk: save less often (checkpoint_every_minutes)" if seconds > SLOW_SYNC else ""
    full = (
        "; make room: a ResNet-50 run takes 2 GB, and features of its benchmarks as much" if room < LITTLE_DISK else ""
    )
    return [Finding("out", "warning" if slow or full else "ok", text + slow + full)]


def _data(data: str | Path) -> list[Finding]:
    """How many images a second the loader makes ready, beside none that uses them."""
    from swav.data.loader import Loader
    from swav.recipe_files import load_recipe
    from swav.system import pick_device
    from swav.training.setup import prepare
    from swav.views import view_spec

    device = pick_device()
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(load_recipe("auto", {"data": str(data)}), Path(folder) / "run", device, dry_run=True)
    recipe, skipped = run.recipe, run.recipe.workers + 1
    loader = Loader(
        run.images,
        view_spec(recipe),
        batch=recipe.batch,
        workers=recipe.workers,
        rank=0,
        world_size=1,
        start_step=0,
        total_steps=1_000_000,
        steps_per_epoch=run.steps_per_epoch,
        on_device=device.type == "cuda",
    )
    ends: list[float] = []
    try:
        for _ in loader:
            ends.append(time.monotonic())
            if len(ends) > skipped + 1 and ends[-1] - ends[skipped] > LOADER_SECONDS:
                break
    finally:
        loader.close()
    speed = recipe.batch * (len(ends) - 1 - skipped) / (ends[-1] - ends[skipped])
    crops = " + ".join(f"{crop.count}x{crop.size}" for crop in recipe.crops)
    text = f"{len(run.images):,} images; the loader makes {speed:,.0f} a second ready ({crops} pixels, workers={recipe.workers})"
    found = [Finding("data", "ok", text)]
    return found + [Finding("data", "warning", text) for text in run.warnings]
