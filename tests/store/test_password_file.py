"""The password in a file: read as the PostgreSQL image reads it, behind every other way to state one."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from cvaeopt.errors import UserError
from cvaeopt.store import password_file, urls


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that PGPASSWORD_FILE names."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv(password_file.VARIABLE, str(tmp_path / "password"))
    return tmp_path / "password"


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_the_file_holds_the_password_and_perhaps_line_ends(file: Path, end: str) -> None:
    secret = " p@ss:w/?#% 'd$ä\\ "
    file.write_text(secret + end, encoding="utf-8")
    assert password_file.from_file() == secret


def test_what_states_a_password_more_closely_counts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(url: str) -> str | None:
        found: str | None = urls._psycopg_arguments(make_url(url)).get("password")
        return found

    file.write_text("from the file")
    assert sent("postgresql+psycopg://lab@db/x") == "from the file"
    assert sent("postgresql+psycopg://lab:in-the-url@db/x") is None
    monkeypatch.setenv("PGPASSWORD", "from the environment")
    assert sent("postgresql+psycopg://lab@db/x") is None
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv(password_file.VARIABLE, "")
    assert sent("postgresql+psycopg://lab@db/x") is None


def test_a_file_without_a_password_is_named_and_its_content_is_not_shown(file: Path) -> None:
    for content, says in (
        (None, "does not exist.*or write the password into the file"),
        (b"\n", "is empty"),
        (b"geheim\xff", "is not UTF-8"),
    ):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=says) as caught:
            password_file.from_file()
        assert str(file) in str(caught.value) and "geheim" not in str(caught.value)
