"""What a figure was measured on, for the results kept in bench/results."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import platform
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cvaeopt.files import write_bytes

RESULTS = Path(__file__).parent / "results"


def facts(device: str = "cpu") -> dict[str, Any]:
    """Processor, device, versions, commit and date."""
    import torch

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    return {
        "processor": of_kernel("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or "unknown",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of repeats."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": len(values)}


def keep(name: str, result: dict[str, Any]) -> Path:
    """Write bench/results/NAME.json; its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON line by one write, and flush it; a line before it that was cut short is closed first.

    Others may append to the same file at the same time.
    """
    line = json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        closed = not size or os.pread(handle, 1, size - 1) == b"\n"
        data = (line if closed else "\n" + line).encode()
        if os.write(handle, data) != len(data):
            raise OSError(f"{path}: a line was written in part. Expected: room for it. It counts as missing.")
        os.fsync(handle)
    finally:
        os.close(handle)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The JSON lines in the file and in the packed one beside it, without lines that were cut short."""
    lines = path.read_text().splitlines() if path.exists() else []
    packed = path.with_name(path.name + ".gz")
    if packed.exists():
        lines = [*gzip.decompress(packed.read_bytes()).decode().splitlines(), *lines]
    found = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def pack(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows into the packed file beside `path`, the same bytes for the same rows."""
    lines = [json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n" for row in rows]
    write_bytes(path.with_name(path.name + ".gz"), gzip.compress("".join(lines).encode(), mtime=0))


def of_kernel(path: str, key: str) -> str:
    """The value of `key` in a file of /proc, without its unit; "" where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].removesuffix("kB").strip()
    return ""
