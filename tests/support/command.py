"""The command line, run within the test's own process: fast, and with everything it says caught."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from cvaeopt import cli
from cvaeopt.demo_data import writer

STUDY = """
[study]
description = "for tests"
seed = 1

[budget]
trials = 2
epochs = 1

[fixed]
F_dim = 8
L_dim = 4
N_dim = 4
D_out_dim = 8
tfr_sde = 0

[search]
lr = { type = "float", low = 1e-4, high = 1e-2, log = true }

[service]
keep_best = 1
"""


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All of it, folded lines joined."""
        return " ".join((self.out + self.err).split())


@dataclass(frozen=True)
class Shop:
    """A folder to work in; `data` is a tiny data set."""

    root: Path
    data: Path

    @classmethod
    def new(cls, root: Path, data: Path | None = None) -> Shop:
        """`root` with studies/tiny.toml; the data are drawn unless they are given."""
        (root / "studies").mkdir(parents=True)
        (root / "studies" / "tiny.toml").write_text(STUDY)
        if data is None:
            data = root / "data"
            writer.write(data, clips=2, val_frames=6, sequences=1, sequence_frames=4)
        return cls(root, data)

    def run(self, *arguments: str | Path, **environment: str) -> Said:
        """`cvaeopt ARGUMENTS` in the folder; `environment` without the prefix CVAEOPT_, data and device given."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("CVAEOPT_")}
        given = {"DATA": str(self.data), "GPU": "cpu", **environment}
        clean |= {f"CVAEOPT_{key}": value for key, value in given.items() if value}
        out, err = io.StringIO(), io.StringIO()
        code = -1
        with (
            mock.patch.dict(os.environ, clean, clear=True),
            mock.patch.object(sys, "argv", ["cvaeopt", *map(str, arguments)]),
            contextlib.chdir(self.root),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                cli.main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        return Said(code, out.getvalue(), err.getvalue())

    def files(self) -> dict[str, int]:
        """Every file in the folder with its size, but for caches and what SQLite keeps beside a database."""
        return {
            str(path.relative_to(self.root)): path.stat().st_size
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and ".cvaeopt-cache" not in path.parts and not path.name.endswith(("-wal", "-shm"))
        }
