"""What a run needs from the machine: device, precision, seeds, progress, and points where tests kill it."""

import contextlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from swav.errors import MachineError
from swav.files import DISK_IS_FULL
from swav.version import swav_version

_passed: dict[str, int] = {}


def fault_point(name: str) -> None:
    """Kill this process with SIGKILL at a named point, where SWAV_FAULT=name:count says so (the count-th passing).

    Free of cost otherwise. The tests of resuming need a death that no handler can soften, at a known place.
    """
    fault = os.environ.get("SWAV_FAULT")
    if fault is None:
        return
    wanted, _, count = fault.rpartition(":")  # names have colons of their own, as save:written
    if wanted != name:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] == int(count):
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def environment_errors(
    memory_advice: str = "use a smaller batch=N, smaller crops or fewer workers=N; what was saved is untouched",
) -> Iterator[None]:
    """Turn a full disk and a lack of memory, of a GPU or of this machine, into the error that says what to do.

    Args:
        memory_advice: what to do where memory is lacking. (Inside another one the inner one's advice is given.)

    Raises:
        MachineError: in place of OSError (of the system), MemoryError, torch.OutOfMemoryError and the RuntimeError of
            torch's allocator on a CPU.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "DefaultCPUAllocator" not in str(error):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MachineError(f"not enough memory ({first.partition(' GPU ')[0]})\n{memory_advice}") from error
    except OSError as error:
        if error.errno is None:
            raise
        if error.errno not in DISK_IS_FULL:
            raise MachineError(
                f"{error.filename or 'a file'}: {error.strerror}; look at the disk and --out, then rerun the same command to resume"
            ) from error
        raise MachineError(
            f"{error.filename or 'a file'}: the disk is full or a limit is reached ({error.strerror})\n"
            "what was saved is untouched: make room, then rerun the same command to resume"
        ) from error


def pick_device(wanted: str = "auto") -> torch.device:
    """The device to compute on; on CUDA the one of this process (LOCAL_RANK).

    Raises:
        MachineError: a GPU is asked for and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MachineError(
            "device=cuda: no GPU is visible to PyTorch; check the driver and CUDA_VISIBLE_DEVICES, or use device=cpu"
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """True where bfloat16 is faster than float32: units for it in the GPU or CPU.

    Elsewhere PyTorch emulates it, slower than float32. On a CPU it takes AMX, or AVX-512 with bfloat16 on one that is not
    Intel's: SwAV steps of a ResNet-18 ran at 220 images/s in bfloat16 and 247 in float32 on an Intel CPU with
    avx512_bf16 and no AMX, and 2.5 times as fast in bfloat16 on an AMD Zen 4.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = torch.cpu.get_capabilities()
    if flags.get("amx_bf16") or flags.get("bf16"):  # "bf16": on ARM
        return True
    return bool(flags.get("avx512_bf16")) and _cpu_vendor() != "GenuineIntel"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Compute in a precision of 16 bits (bf16, fp16) where that is safe; fp32 changes nothing."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _cpu_vendor() -> str:
    """As `/proc/cpuinfo` names it ("GenuineIntel", "AuthenticAMD"); elsewhere what the platform says of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "GenuineIntel" if "GenuineIntel" in platform.processor() else platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def has_compiler() -> bool:
    """True where there is a C compiler, without which torch.compile makes no kernels for a GPU."""
    return bool(os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang"))))


def seed_process(*numbers: int) -> None:
    """Seed torch's generators from several numbers, as of a run, a step and a process."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's generators, of the CPU and of the device. (Order and views have random numbers of their own.)"""
    state = {"rng/torch": torch.get_rng_state()}
    return state | {"rng/cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Set the generators whose state is there: another device, or process, may have been at work before."""
    if "rng/torch" in state:
        torch.set_rng_state(state["rng/torch"])
    if device.type == "cuda" and "rng/cuda" in state:
        torch.cuda.set_rng_state(state["rng/cuda"], device)


class Readback:
    """Values on their way from the device to the host.

    `tolist` waits until they are computed, and not for work that the device was given since: a copy that was only begun
    there would have to wait for a whole further step.
    """

    def __init__(self, values: torch.Tensor):
        self._values = values.to("cpu", non_blocking=True)
        self._there: Any = None
        if values.device.type == "cuda":
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record(torch.cuda.current_stream(values.device))

    def tolist(self) -> list[float]:
        if self._there is not None:
            self._there.synchronize()
        return self._values.tolist()


def available_cpus() -> int:
    """Cores that this process may use (not those of the whole machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cpus(processes: int) -> None:
    """Of several processes each takes its share: torchrun leaves them one thread. One alone keeps what the user set."""
    if processes > 1:
        torch.set_num_threads(max(1, available_cpus() // processes))


def available_memory(device: torch.device) -> int:
    """Bytes that may still be taken: of the GPU (what this process holds and does not use counts too); or of the machine,
    and of the control groups that a container or a scheduler puts this process into."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux: half of the machine's
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    of_machine = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return min([of_machine, *_control_group_memory()])


def _control_group_memory(process: Path = Path("/proc/self")) -> list[int]:
    """Bytes left in each control group with a limit that this process is in: its own and all above it.

    What a group uses includes the files that it has read, which the kernel gives up when memory is asked for: they count as left.

    Args:
        process: its folder in /proc.
    """
    left = []
    for folder, files in _control_groups(process):
        limits = [_number(folder / name) for name in files.limits]
        used, reclaimable = _number(folder / files.usage), _reclaimable(folder / "memory.stat", files.reclaimable)
        left += [
            max(0, limit - max(0, used - reclaimable)) for limit in limits if limit is not None and used is not None
        ]
    return left


class _GroupFiles(NamedTuple):
    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[str, ...]  # in memory.stat, of the group and all below it


_VERSION_1 = _GroupFiles(
    ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
# Above memory.high nothing is killed, but the kernel slows a group down until it hardly moves: a limit too.
_VERSION_2 = _GroupFiles(
    ("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file", "slab_reclaimable")
)


def _control_groups(process: Path) -> Iterator[tuple[Path, _GroupFiles]]:
    """Folders of the groups that hold a process's memory, innermost first, as far up as they are mounted here."""
    try:
        groups = (process / "cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        mounts = (process / "mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return
    own: dict[_GroupFiles, PurePosixPath] = {}
    for line in groups:
        _, controllers, place = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            own[_VERSION_1 if controllers else _VERSION_2] = PurePosixPath(place)
    for line in mounts:
        before, _, after = line.partition(" - ")
        root, mount = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), part) for part in before.split()[3:5])
        kind, _, options = after.split(" ", 2)
        files = {"cgroup": _VERSION_1, "cgroup2": _VERSION_2}.get(kind)
        if files not in own or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        # A container may see its own group as the root of what is mounted, or a path of the host that is not there.
        inside = own[files].is_relative_to(root) and ".." not in own[files].parts
        parts = own[files].relative_to(root).parts if inside else ()
        for depth in range(len(parts), -1, -1):
            yield Path(mount, *parts[:depth]), files


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none ("max")."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _reclaimable(file: Path, keys: Sequence[str]) -> int:
    try:
        values = dict(line.split() for line in file.read_text(encoding="ascii").splitlines())
        return sum(int(values.get(key, 0)) for key in keys)
    except (OSError, ValueError):
        return 0


def versions() -> dict[str, str]:
    """What a number depends on beside its settings."""
    return {
        "swav": swav_version(),
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def memory_gb(device: torch.device) -> float:
    """Peak memory so far: of the GPU's allocator, or resident in this process [GB]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak / 1e6
