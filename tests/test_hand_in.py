"""`cvaeopt hand-in`: the check of a submission."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import Shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A folder with a small data set and a submission of its true frames."""
    import numpy as np

    from cvaeopt.vae.sequences import test_sequences as sequences

    shop = Shop.new(tmp_path_factory.mktemp("hand") / "here")
    (sequence,) = sequences(shop.data)
    assert sequence.truth is not None
    rows = np.concatenate([np.arange(4)[:, None], sequence.truth.reshape(4, -1)], 1)
    header = ",".join(["id", *map(str, range(6144))])
    lines = [header, *(",".join(map(str, row)) for row in rows.tolist())]
    (shop.root / "right.csv").write_text("\n".join(lines) + "\n")
    lines[3] = lines[3].replace(",", ",999,", 1).rpartition(",")[0]
    (shop.root / "wrong.csv").write_text("\n".join(lines) + "\n")
    return shop


def test_a_right_submission_passes_and_a_wrong_one_ends_with_exit_code_2(shop: Shop) -> None:
    said = shop.run("hand-in", "--check", "right.csv")
    assert (said.code, said.err) == (0, "")
    assert "right.csv: 4 rows of 1 sequence, compared with the given frames. It has the format." in said.text
    said = shop.run("hand-in", "--check", "wrong.csv")
    assert said.code == 2
    assert "row 2 (line 4), column 0: '999'. Expected: an integer 0-255." in said.text


def test_the_check_as_json_names_row_and_column(shop: Shop) -> None:
    said = shop.run("hand-in", "--check", "wrong.csv", "--json")
    assert said.code == 2
    found = json.loads(said.out)
    assert (found["ok"], found["fault_count"]) == (False, 1)
    assert [(fault["row"], fault["line"], fault["column"]) for fault in found["faults"]] == [(2, 4, "0")]


def test_without_data_the_labs_number_of_rows_is_expected(shop: Shop) -> None:
    said = shop.run("hand-in", "--check", "right.csv", DATA="")
    assert said.code == 2
    assert "has 4 rows. Expected: 5 sequences of 630 or 6 sequences of 630." in said.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["none.csv"], "none.csv cannot be read"), (["right.csv", "--data", "nowhere"], "nowhere is no folder")],
)
def test_wrong_paths_are_the_users_error(shop: Shop, arguments: list[str | Path], message: str) -> None:
    said = shop.run("hand-in", "--check", *arguments)
    assert said.code == 2
    assert message in said.text
