"""Real workers that wait after the first epoch that they train of a trial, until a file is there.

What a test does to a worker between two epochs is then no race against the worker's speed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HOOK = """
import importlib.abc, importlib.util, os, sys, time
from pathlib import Path

HERE = Path(__file__).parent


def held(run):
    def waiting(self, *arguments, **options):
        for trained, result in enumerate(run(self, *arguments, **options)):
            yield result
            if trained == 0:
                (HERE / f"held-{os.getpid()}").touch()
                while not (HERE / "go").exists():
                    time.sleep(0.02)
    return waiting


def noted(stop):
    def noting(self, *arguments, **options):
        stop(self, *arguments, **options)
        (HERE / f"asked-{os.getpid()}").touch()
    return noting


class Finder(importlib.abc.MetaPathFinder):
    changes = {"cvaeopt.vae.trainer": ("Trainer", "run", held), "cvaeopt.run.worker": ("Worker", "stop", noted)}

    def find_spec(self, name, path, target=None):
        if name not in self.changes:
            return None
        kind, method, change = self.changes.pop(name)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_changed(module):
            load(module)
            setattr(getattr(module, kind), method, change(getattr(getattr(module, kind), method)))

        spec.loader.exec_module = load_changed
        return spec


for name in [name for name in Finder.changes if name in sys.modules]:  # in a fork, see tests/support/warm.py
    kind, method, change = Finder.changes.pop(name)
    owner = getattr(sys.modules[name], kind)
    setattr(owner, method, change(getattr(owner, method)))
sys.meta_path.insert(0, Finder())
"""


@dataclass(frozen=True)
class Gate:
    """A folder whose `sitecustomize` every Python process reads that has `environment`."""

    folder: Path

    @classmethod
    def new(cls, folder: Path) -> Gate:
        """A closed gate, in a new folder."""
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(HOOK)
        return cls(folder)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to wait at the gate."""
        return {"PYTHONPATH": os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}

    def held(self) -> list[int]:
        """The processes that have trained an epoch of a trial and wait."""
        return self._pids("held")

    def asked(self) -> list[int]:
        """The processes whose worker was asked to stop by the process that started it."""
        return self._pids("asked")

    def open(self) -> None:
        """Let everybody go on."""
        (self.folder / "go").touch()

    def _pids(self, what: str) -> list[int]:
        return sorted(int(path.name.partition("-")[2]) for path in self.folder.glob(f"{what}-*"))
