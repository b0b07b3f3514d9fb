"""Choose the device of this process: the GPU or the CPU, and the number of CPU threads."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import sys
import tempfile
from pathlib import Path

from cvaeopt.errors import DeviceError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # constants of glibc's malloc.h


def use(gpu: str | None, threads: int | None = None) -> str:
    """Choose the device of this process, and return its name in torch: 'cuda:0' or 'cpu'.

    gpu      an index, 'cpu', or None for the first GPU if there is one
    threads  number of CPU threads. None: OMP_NUM_THREADS if it is set, else a share of the cores (see `threads`)

    If CUDA_VISIBLE_DEVICES is set, for example by a scheduler, the index is a position in this variable's list. Call
    this function before torch is imported. Then the process sees only the chosen GPU, as `cuda:0`. DeviceError if `gpu`
    is not valid or the GPU does not exist.
    """
    if gpu is not None and gpu != "cpu" and not gpu.isdecimal():
        raise DeviceError(f"--gpu {gpu!r}.", "Expected: an index such as 0, or cpu.")
    given: str | None = None
    if gpu == "cpu":
        _keep_freed_memory()
    elif gpu is not None:
        given = _hide_others(int(gpu))
    # With this setting, threads that wait for each other sleep instead of spinning. On a processor that other programs
    # used too, two spinning threads took over 100 s for a step, and two sleeping threads took 2 s. OpenMP reads the
    # variable when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if gpu == "cpu":
        _join(threads)
        return "cpu"
    if torch.cuda.is_available():
        return "cuda:0"
    if gpu is None:
        _keep_freed_memory()
        _join(threads)
        return "cpu"
    if torch.version.cuda is None and torch.version.hip is None:
        raise DeviceError(
            f"There is no GPU {gpu} for this torch: {torch.__version__} was built without CUDA support.",
            "Expected: a CUDA build of torch.",
            "Install one (pytorch.org names the command). Use --gpu cpu to train on the processor.",
        )
    raise DeviceError(
        f"There is no GPU {gpu} here.",
        "Expected: an index that `nvidia-smi -L` lists "
        f"(CUDA_VISIBLE_DEVICES={'not set' if given is None else repr(given)}, torch {torch.__version__}).",
        "Use --gpu cpu to train on the processor.",
    )


def threads() -> int:
    """The number of CPU threads for training now: the requested number, or this process's share of the cores.

    All processes of one user that train on the CPUs of a machine divide the cores. So together they do not run more
    threads than there are cores, but each process runs at least one thread. The number may change from one epoch to the
    next, because results do not depend on the number of threads (see `vae.cpu_step`).
    """
    if _share is None:
        import torch

        return torch.get_num_threads()
    return max(1, cores() // _share.processes())


def cores() -> int:
    """The number of CPU cores that this process may use, according to its affinity and its container's quota."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(available, int(quota) // int(period)))
    return available


class CpuShare:
    """The membership of this process in the group of processes that divide the cores of a machine.

    Each process of the group holds a locked file in the folder `folder`. When a process ends, the operating system
    releases its lock. When another process counts the locked files, it deletes the files without a lock.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        while True:
            self._own = folder / f"{os.getpid()}.{os.urandom(4).hex()}"
            self._descriptor = os.open(self._own, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if self._own.exists():
                return
            os.close(self._descriptor)  # before the lock, another process counted and deleted the file

    def processes(self) -> int:
        """The number of processes in the group now, including this process."""
        alive = 1
        for path in self.folder.iterdir():
            if path != self._own and _is_locked(path):
                alive += 1
        return alive

    def leave(self) -> None:
        """Remove this process from the group."""
        self._own.unlink(missing_ok=True)
        os.close(self._descriptor)


_share: CpuShare | None = None


def _join(threads: int | None) -> None:
    """Add this process to the group of processes that divide the cores.

    The process is not added if the number of threads is given, or if the common folder cannot be used.
    """
    global _share
    if _share is not None:
        _share.leave()
        _share = None
    if threads is not None or "OMP_NUM_THREADS" in os.environ:
        return
    with contextlib.suppress(OSError):
        _share = CpuShare(Path(tempfile.gettempdir()) / f"cvaeopt-cpu-{os.getuid()}")


def _is_locked(path: Path) -> bool:
    """Whether a running process has locked the file. A file without a lock is deleted."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)


def _hide_others(index: int) -> str | None:
    """Make GPU `index` the only visible GPU. Return the previous value of CUDA_VISIBLE_DEVICES, None if it was not set.

    DeviceError if CUDA_VISIBLE_DEVICES lists too few GPUs.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        chosen = str(index)
    else:
        visible = [name.strip() for name in given.split(",") if name.strip()]
        if index >= len(visible):
            raise DeviceError(
                f"There is no GPU {index}: CUDA_VISIBLE_DEVICES={given!r} names {len(visible)}.",
                f"Expected: an index below {len(visible)}." if visible else "Expected: at least one visible GPU.",
                "Choose another index, or --gpu cpu.",
            )
        chosen = visible[index]
    os.environ["CUDA_VISIBLE_DEVICES"] = chosen
    return given


def _keep_freed_memory() -> None:
    """Make glibc keep large freed blocks of memory instead of returning them to the kernel.

    A training step frees and allocates blocks of 10-100 MB hundreds of times, and each new block costs page faults.
    Measured on one CPU thread: a step with teacher forcing at F_dim 32 took 0.93 s instead of 1.13 s. The fusion module
    at the default widths took 100 ms per frame instead of 157 ms. Without glibc (macOS, musl) nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in (
            (_M_MMAP_THRESHOLD, 2**31 - 1),
            (_M_TRIM_THRESHOLD, 2**31 - 1),
            (_M_TOP_PAD, 2**26),
        ):
            libc.mallopt(parameter, value)


def free_memory() -> None:
    """Free the host and device memory of a finished or failed run; does nothing if torch is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
