"""Every error a user can meet, each with its exit code.

    CvaeoptError
    ├── UserError            2    the input is wrong: settings, study, data, checkpoint, device, URL
    │   ├── SettingsError         a setting or a definition
    │   ├── StudyError            a study that does not exist, was made from another definition, or is damaged
    │   │   ├── StudyGone         it was deleted while a worker trained it
    │   │   └── StudyDamaged      a row of it in the database is not what was written there
    │   ├── DataError             a data folder or a file in it
    │   ├── CheckpointError       a checkpoint that cannot be used
    │   ├── DeviceError           a GPU that does not exist
    │   ├── SchemaError           tables of another version of this program
    │   └── StorageRefused        the database answered, and said no: user, password, rights, options
    ├── StorageUnreachable   3    the database cannot be reached, or its disk is full
    ├── TryAgain            75    a device fault that poisons the process; a supervisor restarts it
    ├── Interrupted        130    stopped at once by a second signal
    ├── Diverged                  one trial's loss is NaN or infinite (never leaves the worker)
    └── LeaseLost                 another worker owns the trial now (never leaves the worker)

A message has three parts: what was found, what was expected, what to do.
"""

from __future__ import annotations

from typing import ClassVar


class CvaeoptError(Exception):
    """An error with a message made for the person who types the command."""

    exit_code: ClassVar[int] = 1

    def __init__(self, found: str, expected: str = "", todo: str = "") -> None:
        self.found = found
        self.expected = expected
        self.todo = todo
        super().__init__(" ".join(part for part in (found, expected, todo) if part))

    def __reduce__(self) -> tuple[type[CvaeoptError], tuple[str, str, str]]:
        return (type(self), (self.found, self.expected, self.todo))


class UserError(CvaeoptError):
    """The user's input is wrong."""

    exit_code = 2


class SettingsError(UserError):
    """A setting, or a study definition, is not what it should be."""


class StudyError(UserError):
    """The study does not exist or was created from another definition."""


class StudyGone(StudyError):  # noqa: N818 - reads as a state, which it is
    """The study was deleted while this process worked for it."""


class StudyDamaged(StudyError):  # noqa: N818
    """A row of the study in the database does not hold what belongs there."""


class DataError(UserError):
    """The data folder, or a file in it, cannot be used."""


class CheckpointError(UserError):
    """The checkpoint cannot be read, or belongs to another network."""


class DeviceError(UserError):
    """The device that was asked for does not exist here."""


class SchemaError(UserError):
    """The database holds tables of another version of this program."""


class StorageRefused(UserError):  # noqa: N818 - reads as a state, which it is
    """The database answered, and will not do what was asked: wrong user, missing rights, an option it refuses."""


class StorageUnreachable(CvaeoptError):  # noqa: N818 - reads as a state, which it is
    """The database did not answer within the stated limit, or has no room to be written."""

    exit_code = 3


class TryAgain(CvaeoptError):  # noqa: N818
    """A device fault left this process unusable; a fresh process may succeed."""

    exit_code = 75


class Interrupted(CvaeoptError):  # noqa: N818
    """A second signal asked to stop at once."""

    exit_code = 130


class Diverged(CvaeoptError):  # noqa: N818
    """A loss or a PSNR of this run is not finite.

    epoch      epochs finished before the one that diverged
    """

    def __init__(self, quantity: str, value: float, epoch: int) -> None:
        self.quantity = quantity
        self.value = value
        self.epoch = epoch
        super().__init__(f"{quantity} became {value} in epoch {epoch + 1}.")

    def __reduce__(self) -> tuple[type[Diverged], tuple[str, float, int]]:  # type: ignore[override]
        return (type(self), (self.quantity, self.value, self.epoch))


class LeaseLost(CvaeoptError):  # noqa: N818
    """The lease of the running trial expired and another worker holds it now."""
