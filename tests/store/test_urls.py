"""What may stand in the database's URL, and that its password stays secret."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvaeopt.errors import UserError
from cvaeopt.store import urls
from cvaeopt.store.opening import open_storage
from testbed.postgres import Postgres

# ---- the password

MESSAGES = [
    "connection refused: could not connect to server",
    'FATAL: password authentication failed for user "cvaeopt"',
    'connection to server at "db" (10.0.0.7), port 5432 failed: timeout expired after 30 s',
    'database "trials" does not exist',
    "SSL error: certificate verify failed",
]
WORDS = sorted({word for message in MESSAGES for word in message.replace('"', " ").replace(":", " ").split()})
passwords = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
    | st.sampled_from([*WORDS, "abc", "a", "c", "no", "not", "'", '"', "\\", "%41", "p%20w", "a b", "s3cr/t:x@y"])
    | st.text("ab'\"\\%@: ", min_size=1, max_size=6)
)


def url_with(password: str) -> str:
    return f"postgresql://cvaeopt:{quote(password, safe='')}@db/trials"


@settings(deadline=None)
@given(password=passwords, message=st.sampled_from(MESSAGES))
def test_a_text_that_has_no_password_in_it_stays_as_it_is(password: str, message: str) -> None:
    hidden = urls.scrub(message, url_with(password))
    if len(password) < 6 or password.isalpha() or password.isdigit() or password not in message:
        # A quoted text that is the password by chance is hidden; nothing else is.
        assert hidden == message or f'"{password}"' in message


@settings(deadline=None)
@given(password=passwords, message=st.sampled_from(MESSAGES))
def test_a_password_that_is_written_as_one_is_hidden_and_the_text_around_it_stays(password: str, message: str) -> None:
    url = url_with(password)
    escaped = password.replace("\\", "\\\\").replace("'", "\\'")
    credentials = {
        url: "postgresql://cvaeopt:***@db/trials",
        f"cvaeopt:{password}@db": "cvaeopt:***@db",
        f"cvaeopt:{quote(password)}@db": "cvaeopt:***@db",
        f"host=db password='{escaped}' user=u": "host=db password='***' user=u",
        f"password={quote_plus(password)}&a=b": "password=***&a=b",
        json.dumps({"host": "db", "password": password}): '{"host": "db", "password": "***"}',
        repr({"password": password, "host": "db"}): None,
    }
    for written, expected in credentials.items():
        hidden = urls.scrub(f"{written}", url)
        around = expected or "{'password': '***', 'host': 'db'}"
        if password in around and not password.isalnum():
            continue  # a password such as ': ' is hidden wherever it stands, also between other words
        if expected is not None:
            assert hidden == expected
        else:
            assert hidden in ("{'password': '***', 'host': 'db'}", "{'password': \"***\", 'host': 'db'}")


@settings(deadline=None)
@given(password=st.text("abc'\"%@ 123XYZ", min_size=6).filter(lambda word: not (word.isalpha() or word.isdigit())))
def test_a_password_that_is_no_word_is_hidden_wherever_it_stands(password: str) -> None:
    for spelling in (password, quote(password, safe="")):
        assert spelling not in urls.scrub(f"odd thing <{spelling}> found", url_with(password))


def test_a_password_in_the_query_is_hidden_too() -> None:
    url = "postgresql://me@db/x?password=abc&sslmode=require"
    assert urls.scrub(f"{url}: could not connect, password=abc", url) == (
        "postgresql://me@db/x?password=***&sslmode=require: could not connect, password=***"
    )


# ---- the options


@pytest.mark.parametrize(
    ("query", "typed"),
    [
        ("prepare_threshold=0", {"prepare_threshold": 0}),
        ("prepare_threshold=None", {"prepare_threshold": None}),
        ("", {"prepare_threshold": None, "connect_timeout": 5}),
        ("connect_timeout=7&keepalives_idle=9", {"connect_timeout": 7, "keepalives_idle": 9}),
        ("application_name=me", {}),
    ],
)
def test_options_reach_the_driver_as_their_types(query: str, typed: dict[str, Any]) -> None:
    arguments = urls._psycopg_arguments(urls.parse(f"postgresql://me@h/d?{query}"))
    assert {key: arguments[key] for key in typed} == typed
    assert ("application_name" in arguments) != ("application_name" in query)


@pytest.mark.postgres
def test_what_the_url_says_counts_over_our_defaults(postgres: Postgres, template_database: str) -> None:
    extra = "prepare_threshold=0&connect_timeout=9&sslmode=disable&options=-c%20lock_timeout%3D7s"
    url = f"{postgres.url(postgres_name(postgres, template_database))}&{extra}"
    try:
        with closing(open_storage(url)) as storage, storage.reading() as connection:
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "7s"
            assert connection.exec_driver_sql("SHOW timezone").scalar_one() == "UTC"
            raw: Any = connection.connection.driver_connection
            assert raw.prepare_threshold == 0
    finally:
        postgres.drop_database("with_options")


def postgres_name(postgres: Postgres, template: str) -> str:
    postgres.new_database("with_options", template)
    return "with_options"


@pytest.mark.postgres
def test_an_option_of_psycopg_alone_does_not_disturb_the_making_of_tables(postgres: Postgres) -> None:
    try:
        open_storage(f"{postgres.new_database('with_options')}&prepare_threshold=0").close()
    finally:
        postgres.drop_database("with_options")


@pytest.mark.parametrize(
    "query",
    [
        "prepare_threshold=many",
        "prepare_treshold=0",
        "connect_timeout=soon",
        "keepalives_idle=1.5",
        "sslmode=on",
        "autocommit=true",
        "row_factory=x",
        "target_session_attrs=fast",
    ],
)
def test_an_option_that_cannot_work_is_the_users_error_and_named(query: str) -> None:
    with pytest.raises(UserError, match=query.partition("=")[0]) as caught:
        open_storage(f"postgresql://me:hunter7@h/d?{query}", start_limit_s=1e9)
    assert caught.value.exit_code == 2
    assert caught.value.todo
    assert "hunter7" not in str(caught.value)


# ---- SQLite files


@pytest.mark.parametrize("written", ["sqlite:///~/folder/x.db", "sqlite:///file:~/folder/x.db?uri=true"])
def test_a_tilde_is_the_home_folder(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    open_storage(written).close()
    assert (tmp_path / "home" / "folder" / "x.db").exists()
    assert not (tmp_path / "~").exists()
    open_storage(written, create=False).close()


def test_a_database_that_an_earlier_version_put_into_a_folder_named_tilde_is_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template_file: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "x.db").write_bytes(template_file.read_bytes())
    with pytest.raises(UserError, match=r"Move the file there, or .*sqlite:///\./~/x\.db"):
        open_storage("sqlite:///~/x.db")
    open_storage("sqlite:///./~/x.db", create=False).close()


@pytest.mark.parametrize(
    "written", ["file:{}?uri=true", "file://{}?uri=true", "file://localhost{}?uri=1", "file:{}?mode=rwc&uri=true", "{}"]
)
def test_a_file_uri_and_its_plain_path_are_the_same_database_and_lock(written: str, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "x.db"
    for spelled in (str(path), quote(str(path))) if "file:" in written else (str(path),):
        open_storage(f"sqlite:///{written.format(spelled)}").close()
        assert {entry.name for entry in tmp_path.iterdir()} == {"new folder"}
        assert path.exists()
        with closing(open_storage(f"sqlite:///{path}", create=False)) as storage:
            assert storage.engine.url.database == str(path)


def test_a_relative_file_uri_is_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_storage("sqlite:///file:x.db?uri=true").close()
    assert (tmp_path / "x.db").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("file:")]


@pytest.mark.parametrize(
    "query", ["uri=true&mode=ro", "uri=true&mode=rw", "uri=true&immutable=1", "uri=true&cache=shared", "nonsense=1"]
)
@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_could_only_be_read_is_refused_by_every_command(query: str, create: bool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"option .* not supported.*sqlite:///FILE"):
        open_storage(f"sqlite:///file:{tmp_path}/x.db?{query}", create=create)
    assert list(tmp_path.iterdir()) == []


def test_a_time_limit_in_the_url_is_taken(tmp_path: Path) -> None:
    target = urls.parse(f"sqlite:///{tmp_path}/x.db?timeout=2.5")
    assert urls.engine_options(target, 10.0)["connect_args"] == {}
    with pytest.raises(UserError, match="timeout=long"):
        urls.parse("sqlite:///x.db?timeout=long")
