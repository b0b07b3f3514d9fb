"""Optuna's own tests of a storage, on every database that the program supports."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
from optuna.testing.pytest_storages import StorageTestCase

from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage


class TestStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, ready_url: str) -> Iterator[Storage]:
        with open_storage(ready_url) as opened:
            yield opened

    def test_pickle_storage(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        """Optuna's test leaves the connections of the copies open, which is an error here."""
        load, copies = pickle.loads, []

        def recorded(text: bytes) -> Storage:
            copies.append(load(text))
            return copies[-1]

        monkeypatch.setattr(pickle, "loads", recorded)
        super().test_pickle_storage(storage)
        assert copies
        for copy in copies:
            copy.close()
