"""Errors carry three parts and an exit code, through processes too."""

from __future__ import annotations

import pickle

import pytest

from cvaeopt import errors

LEAVES = [
    (errors.SettingsError, 2),
    (errors.StudyError, 2),
    (errors.DataError, 2),
    (errors.CheckpointError, 2),
    (errors.DeviceError, 2),
    (errors.SchemaError, 2),
    (errors.StorageUnreachable, 3),
    (errors.TryAgain, 75),
    (errors.Interrupted, 130),
]


@pytest.mark.parametrize(("kind", "code"), LEAVES)
def test_every_error_owns_its_exit_code(kind: type[errors.CvaeoptError], code: int) -> None:
    assert kind.exit_code == code


def test_a_message_is_what_was_found_what_was_expected_and_what_to_do() -> None:
    error = errors.DataError("a is missing.", "Expected: a.", "Add a.")
    assert (error.found, error.expected, error.todo) == ("a is missing.", "Expected: a.", "Add a.")
    assert str(error) == "a is missing. Expected: a. Add a."
    assert str(errors.DataError("a is missing.", todo="Add a.")) == "a is missing. Add a."


def test_errors_survive_pickling_whole() -> None:
    error = pickle.loads(pickle.dumps(errors.StudyError("found", "expected", "todo")))
    assert type(error) is errors.StudyError
    assert (error.found, error.expected, error.todo) == ("found", "expected", "todo")
    diverged = pickle.loads(pickle.dumps(errors.Diverged("the loss", float("inf"), 3)))
    assert (diverged.quantity, diverged.value, diverged.epoch) == ("the loss", float("inf"), 3)
    assert str(diverged) == "the loss became inf in epoch 4."
