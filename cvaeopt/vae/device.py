"""The device of a process: which GPU it may see, how many threads it may use."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import sys
import tempfile
from pathlib import Path

from cvaeopt.errors import DeviceError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc


def use(gpu: str | None, threads: int | None = None) -> str:
    """The torch device ('cuda:0' or 'cpu') of this process after it was told which one to use.

    gpu      an index, 'cpu', or None for the first GPU if there is one
    threads  CPU threads of this process; None: OMP_NUM_THREADS if it is set, else a fair share of the cores, see
             `threads`

    An index counts within CUDA_VISIBLE_DEVICES, if a scheduler has set it. Call it before torch is imported: inside
    the process the chosen GPU is then the only one, `cuda:0`. DeviceError when it does not exist.
    """
    if gpu is not None and gpu != "cpu" and not gpu.isdecimal():
        raise DeviceError(f"--gpu {gpu!r}.", "Expected: an index such as 0, or cpu.")
    given: str | None = None
    if gpu == "cpu":
        _keep_freed_memory()
    elif gpu is not None:
        given = _hide_others(int(gpu))
    # Threads that wait for each other sleep instead of spinning: on a processor that others use too, two spinning
    # threads took over 100 s for a step that two sleeping ones do in 2 s. Read by OpenMP when torch is loaded.
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
    """CPU threads that training may use now: what was asked for, or this process's share of the cores.

    Processes that train on the CPUs of one machine know of each other (same user, same temporary folder) and divide
    the cores, so two workers never run more threads than there are cores. Results do not depend on it (`vae.cpu_step`),
    so it may change from one epoch to the next.
    """
    if _share is None:
        import torch

        return torch.get_num_threads()
    return max(1, cores() // _share.processes())


def cores() -> int:
    """CPU cores that this process may use: its affinity, and the quota of its control group (containers)."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(available, int(quota) // int(period)))
    return available


class CpuShare:
    """One process among those that divide the cores of a machine: a locked file each, in a common folder.

    The lock ends with the process, however it ends; files without one are swept away by the next to count.
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
            os.close(self._descriptor)  # swept away by somebody who counted between the two calls

    def processes(self) -> int:
        """Processes that train on the CPUs of this machine now, this one included; at least 1."""
        alive = 1
        for path in self.folder.iterdir():
            if path != self._own and _is_locked(path):
                alive += 1
        return alive

    def leave(self) -> None:
        """Take part no longer."""
        self._own.unlink(missing_ok=True)
        os.close(self._descriptor)


_share: CpuShare | None = None


def _join(threads: int | None) -> None:
    """Take a share of the cores, unless the number of threads is given or the folder cannot be used."""
    global _share
    if _share is not None:
        _share.leave()
        _share = None
    if threads is not None or "OMP_NUM_THREADS" in os.environ:
        return
    with contextlib.suppress(OSError):
        _share = CpuShare(Path(tempfile.gettempdir()) / f"cvaeopt-cpu-{os.getuid()}")


def _is_locked(path: Path) -> bool:
    """True if a living process holds the file; one that nobody holds is deleted."""
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
    """Make GPU `index` the only visible one; what CUDA_VISIBLE_DEVICES was before."""
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
    """Let glibc keep large freed blocks instead of returning each to the kernel.

    A training step frees and takes blocks of 10-100 MB hundreds of times; getting them back costs page faults.
    Measured on one CPU thread: a forced step at F_dim 32 in 0.93 s instead of 1.13 s, the fusion module at the
    default widths in 100 ms a frame instead of 157. Elsewhere (macOS, musl) nothing is changed.
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
