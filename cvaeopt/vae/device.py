"""The device of a process: which GPU it may see, how many threads it may use."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

from cvaeopt.errors import DeviceError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc


def use(gpu: str | None, threads: int | None = None) -> str:
    """The torch device ('cuda:0' or 'cpu') of this process after it was told which one to use.

    gpu      an index, 'cpu', or None for the first GPU if there is one
    threads  CPU threads of this process; None leaves them to torch (all cores, or OMP_NUM_THREADS)

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
        return "cpu"
    if torch.cuda.is_available():
        return "cuda:0"
    if gpu is None:
        _keep_freed_memory()
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
