"""The errors of this program. The number is the exit code of the command that ends with the error.

    CvaeoptError             1
    ├── UserError            2    the input is wrong: settings, study, data, checkpoint, device, URL
    │   ├── SettingsError         a setting or a study definition is not valid
    │   ├── StudyError            the study does not exist, was made from another definition, or is damaged
    │   │   ├── StudyGone         the study was deleted while a worker trained a trial of it
    │   │   └── StudyDamaged      the database has a row of the study with invalid content
    │   ├── DataError             a data folder or a file in it cannot be used
    │   ├── CheckpointError       a checkpoint cannot be used
    │   ├── DeviceError           the device does not exist
    │   ├── SchemaError           the database has tables of another version of this program
    │   └── StorageRefused        the database refused a request: user, password, rights, options
    ├── StorageUnreachable   3    the database cannot be reached, or its disk is full
    ├── TryAgain            75    a device fault made the process unusable; a supervisor starts a new process
    ├── Interrupted        130    a second signal stopped the process at once
    ├── Diverged                  a loss, a gradient or a PSNR is NaN or infinite (a worker catches this error)
    └── LeaseLost                 another worker has the trial now (a worker catches this error)

A message has three parts: what was found, what was expected, what to do.
"""

from __future__ import annotations

from typing import ClassVar


class CvaeoptError(Exception):
    """The base class of this program's errors. The message is for the user who typed the command."""

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
    """A setting or a study definition is not valid."""


class StudyError(UserError):
    """The study does not exist, was created from another definition, or is damaged."""


class StudyGone(StudyError):  # noqa: N818 - the name describes a state
    """The study was deleted while this process worked for it."""


class StudyDamaged(StudyError):  # noqa: N818
    """The database has a row of the study with invalid content."""


class DataError(UserError):
    """The data folder or a file in it cannot be used."""


class CheckpointError(UserError):
    """The checkpoint cannot be read, or belongs to another network."""


class DeviceError(UserError):
    """The requested device does not exist on this machine."""


class SchemaError(UserError):
    """The database holds tables of another version of this program."""


class StorageRefused(UserError):  # noqa: N818 - the name describes a state
    """The database refused a request: the user is wrong, rights are missing, or an option is not accepted."""


class StorageUnreachable(CvaeoptError):  # noqa: N818 - the name describes a state
    """The database did not answer within the time limit, or its disk is full.

    reason   the cause alone, without the database's name and the time, for a sentence that states these itself
    """

    exit_code = 3

    def __init__(self, found: str, expected: str = "", todo: str = "", reason: str = "") -> None:
        super().__init__(found, expected, todo)
        self.reason = reason or found.rstrip(".")

    def __reduce__(self) -> tuple[type[StorageUnreachable], tuple[str, str, str, str]]:  # type: ignore[override]
        return (type(self), (self.found, self.expected, self.todo, self.reason))


class TryAgain(CvaeoptError):  # noqa: N818
    """A device fault made this process unusable; a new process may succeed."""

    exit_code = 75


class Interrupted(CvaeoptError):  # noqa: N818
    """A second signal asked the process to stop at once."""

    exit_code = 130


class Diverged(CvaeoptError):  # noqa: N818
    """A loss, a gradient or a PSNR of this run is not finite.

    epoch      the number of epochs that were finished before the run diverged
    """

    def __init__(self, quantity: str, value: float, epoch: int) -> None:
        self.quantity = quantity
        self.value = value
        self.epoch = epoch
        super().__init__(f"{quantity} became {value} in epoch {epoch + 1}.")

    def __reduce__(self) -> tuple[type[Diverged], tuple[str, float, int]]:  # type: ignore[override]
        return (type(self), (self.quantity, self.value, self.epoch))


class LeaseLost(CvaeoptError):  # noqa: N818
    """The lease of the running trial expired, and another worker holds the trial now."""
