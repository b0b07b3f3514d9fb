"""The URL of the database: check it, mask its password, and make the driver's arguments from it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

import sqlalchemy
from sqlalchemy.engine import URL, make_url

from cvaeopt.errors import UserError
from cvaeopt.store import password_file, watchdog

_SECRET_KEY = r"[\w.-]*(?:pass|pwd|secret|token)[\w.-]*"

PSYCOPG = "postgresql+psycopg"

_EXPECTED = "Expected: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE."


# ---- masking the password


def mask(url: str) -> str:
    """The URL with `***` in place of its password, also in the query string; any text is accepted.

    If the text is not a correct URL, a longer part than the password may be masked, such as a part of the host. The
    whole password is always masked.
    """
    masked = re.sub(r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token)[^=&;]*=)[^&;#]*", r"\1***", url)
    scheme, separator, rest = masked.partition("://")
    if not separator:  # perhaps a misspelt URL: mask the text from the first colon to the last @
        start, end = masked.find(":"), masked.rfind("@")
        return f"{masked[:start]}:***{masked[end:]}" if 0 <= start < end else masked
    before_query = rest.partition("?")[0]
    end = before_query.rfind("@") if "@" in before_query else rest.find("@")
    if end < 0:
        return masked
    user, colon, password = rest[:end].partition(":")
    if not colon or not password:
        return masked
    return f"{scheme}://{user}:***{rest[end:]}"


def as_typed(url: str, target: URL) -> str:
    """`target`, which `parse` made of `url`, for messages: with the driver as the user typed it, without a password."""
    typed = make_url(url).drivername
    return mask(target.set(drivername=typed).render_as_string(hide_password=False))


def scrub(text: str, url: str) -> str:
    """`text` with the password of `url` masked, in every spelling that URLs and drivers use.

    A password may be an ordinary word ("not", "host") or a number. Such a password is masked only where the text writes
    it as a password or as a quoted value. If every such word were masked, the text would be unreadable and would reveal
    the password.
    """
    text = text.replace(url, mask(url))
    with contextlib.suppress(sqlalchemy.exc.ArgumentError, ValueError):
        target = make_url(url)
        public = {str(part) for part in (target.username, target.host, target.port, target.database) if part}
        secrets = {str(target.password or "")}
        typed = re.match(r"[^:/]+://[^:@/]*:(.*)@", url.partition("?")[0])
        secrets |= {typed[1]} if typed else set()
        secrets |= {str(v) for k, v in target.query.items() if re.fullmatch(f"(?i){_SECRET_KEY}", k)}
        spellings = {spelling for secret in secrets - {""} for spelling in _spellings(secret)}
        if spellings:
            text = _hide(text, spellings, public)
    return text


def _spellings(secret: str) -> set[str]:
    """The spellings of the secret in URLs, in connection strings and in quoted texts."""
    words = {secret, unquote(secret)}
    for safe in ("", "/", " +"):
        words |= {quote(word, safe=safe) for word in words}
    words |= {quote_plus(secret), *(re.sub("%..", lambda code: code[0].lower(), word) for word in words)}
    words |= {word.replace("\\", "\\\\").replace("'", "\\'") for word in words}
    return words | {repr(word)[1:-1] for word in words} | {json.dumps(word)[1:-1] for word in words}


def _hide(text: str, spellings: set[str], public: set[str]) -> str:
    """`text` with `***` in place of each spelling that is used as a password. Quoted words in `public` are kept."""

    def one_of(words: set[str]) -> str:
        ordered = sorted(words, key=len, reverse=True)
        return f"(?:{'|'.join(map(re.escape, ordered))})" if ordered else r"(?!)"

    quotable = spellings - public
    distinct = {word for word in quotable if len(word) >= 6 and not word.isalpha() and not word.isdigit()}
    places = [
        rf"(?P<user>:/{{0,2}}){one_of(spellings)}(?=@)",
        # password=..., 'password': '...', password "..."
        rf"(?P<key>(?i:{_SECRET_KEY}['\"]?\s*(?:[=:]\s*['\"]?|['\"]))){one_of(spellings)}(?!\w)",
        rf"(?P<quote>['\"`]){one_of(quotable)}(?P=quote)(?!\s*[:=])",  # a quoted value, not a quoted name
        one_of(distinct),  # not an ordinary word
    ]

    def hidden(match: re.Match[str]) -> str:
        before = match["user"] or match["key"] or match["quote"] or ""
        return f"{before}***{match['quote'] or ''}"

    # One pass for all patterns, so that replaced text is not searched again.
    return re.sub("|".join(places), hidden, text)


# ---- checking the URL


def parse(url: str) -> URL:
    """The URL after its options were checked; UserError if the URL cannot work.

    A PostgreSQL URL without a driver gets psycopg. A SQLite file is named by its plain path: `~` becomes the home
    folder, and a `file:` URI becomes its path.
    """
    try:
        target = make_url(url)
        backend = target.get_backend_name()
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UserError(f"{mask(url)!r} is not a database URL.", _EXPECTED, "Change --storage.") from None
    if (
        backend == "postgresql" and url.partition("?")[0].count("@") > 1
    ):  # the message does not show the host, because the parsed host contains a part of the password
        raise UserError(
            f"{mask(url)!r} has an '@' in its password.",
            "Expected: it is written %40 in a URL (and : / ? # as %3A %2F %3F %23).",
            "Change --storage, or leave the password out and set PGPASSWORD.",
        )
    if target.drivername in ("postgres", "postgresql"):
        target = target.set(drivername=PSYCOPG)
    if backend not in ("sqlite", "postgresql"):
        raise UserError(f"{mask(url)!r} names a database that is not supported.", _EXPECTED, "Change --storage.")
    if backend == "sqlite":
        return _sqlite_target(target, mask(url))
    if target.drivername == PSYCOPG:
        _psycopg_query(target, mask(url))
    return target


def _sqlite_target(target: URL, shown: str) -> URL:
    """The SQLite target with a plain path and without URI parameters.

    UserError for a database in memory, or for an option that is not supported.
    """
    query = {key: value if isinstance(value, str) else value[-1] for key, value in target.query.items()}
    path = target.database or ""
    if query.pop("uri", "false").lower() in ("true", "1", "yes", "on", "y", "t"):
        if path.startswith("file:"):
            path = unquote(re.sub(r"^(?://(?:localhost)?(?=/))?", "", path.removeprefix("file:")))
        if query.get("mode") == "rwc":
            del query["mode"]
    if not path or path == ":memory:" or query.get("mode") == "memory":
        raise UserError(
            f"{shown!r} lives in the memory of one process.",
            "Expected a file that workers can share: sqlite:///FILE.",
            "Change --storage.",
        )
    unknown = sorted(set(query) - {"timeout"})
    if unknown:
        raise UserError(
            f"{shown!r} has the option {unknown[0]!r}, which is not supported for a SQLite file.",
            "Expected: the plain path of a file that can be read and written, sqlite:///FILE (and ?timeout=SECONDS).",
            "Change --storage.",
        )
    _number(query.get("timeout", "1"), "timeout", shown, float)
    if path.startswith("~"):
        path = _at_home(path, shown)
    return target.set(database=path, query=query)


def _at_home(path: str, shown: str) -> str:
    try:
        expanded = str(Path(path).expanduser())
    except RuntimeError:
        raise UserError(
            f"{shown!r} names the home folder of a user who is not known.", todo="Change --storage."
        ) from None
    if Path(path).exists() and not Path(expanded).exists():  # earlier versions did not expand `~`
        raise UserError(
            f"{shown!r} means {expanded}, which is not there; there is {Path(path).absolute()}.",
            "Expected: '~' to be the home folder.",
            f"Move the file there, or name it with --storage sqlite:///./{path}.",
        )
    return expanded


# libpq reads these options as whole numbers. Its message about a wrong value does not name the option.
_NUMBERS = {
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "sslcompression",
    "sslsni",
}
_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "gssencmode": ("disable", "prefer", "require"),
    "channel_binding": ("disable", "prefer", "require"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}


def _psycopg_query(target: URL, shown: str) -> dict[str, Any]:
    """The options of the URL that psycopg needs as int or None, converted; UserError for an unknown option or value."""
    try:
        from psycopg.pq import Conninfo
    except ImportError:
        return {}  # SQLAlchemy raises the error when it loads the driver
    known = {option.keyword.decode() for option in Conninfo.get_defaults()} | {"prepare_threshold"}
    typed: dict[str, Any] = {}
    for key, given in target.query.items():
        if key not in known:
            raise UserError(
                f"{shown!r} has the option {key!r}, which the driver does not know.",
                "Expected: options of libpq such as sslmode or connect_timeout, or prepare_threshold.",
                "Change --storage.",
            )
        value = given if isinstance(given, str) else given[-1]
        if key == "prepare_threshold":
            off = value.lower() in ("none", "null", "off")
            typed[key] = None if off else _number(value, key, shown, int)
        elif key in _NUMBERS:
            typed[key] = _number(value, key, shown, int)
        elif value not in _CHOICES.get(key, (value,)):
            raise UserError(
                f"{shown!r} has {key}={value}.", f"Expected one of: {', '.join(_CHOICES[key])}.", "Change --storage."
            )
    return typed


def _number(value: str, key: str, shown: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(value)
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise UserError(f"{shown!r} has {key}={value}.", f"Expected {whole}.", "Change --storage.") from None


# ---- arguments for Optuna and the driver


def libpq_url(target: URL) -> URL:
    """The URL for Optuna's migrations and for pg_dump: without options that only psycopg knows."""
    return target.difference_update_query(["prepare_threshold"])


def template(target: URL) -> str:
    """The URL with its password, for RDBStorage, which formats the URL as a template. So its braces are doubled."""
    return libpq_url(target).render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")


def engine_options(
    target: URL, busy_s: float, silence_s: float = watchdog.SILENCE_S, hurry: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """The keyword arguments of `create_engine` for a URL that `parse` has returned.

    busy_s   SQLite: how long one attempt waits for another process' lock, seconds; a `timeout` in the URL replaces it
    silence_s, hurry   PostgreSQL: arguments of `watchdog.connector`
    """
    if target.get_backend_name() == "sqlite":
        return {"connect_args": {} if "timeout" in target.query else {"timeout": busy_s}}
    options: dict[str, Any] = {
        "pool_pre_ping": True,
        "pool_recycle": 300,
        "pool_size": 3,
        "max_overflow": 2,
        "pool_timeout": 30,
    }
    if target.drivername == PSYCOPG:
        arguments = _psycopg_arguments(target)
        with contextlib.suppress(ImportError):  # SQLAlchemy raises the error when it makes the engine
            options["creator"] = watchdog.connector(target, arguments, silence_s=silence_s, hurry=hurry)
    return options


def _psycopg_arguments(target: URL) -> dict[str, Any]:
    """The arguments for psycopg: default values, or the values in the URL."""
    given = target.query.get("options", "")
    # Time limits: a frozen worker must not keep a lock for ever, and a worker must not wait for a dead network.
    words = [
        "-c timezone=UTC",
        "-c lock_timeout=30000",
        "-c idle_in_transaction_session_timeout=60000",
        *([given] if isinstance(given, str) else given),  # last, because the last value of a setting is used
    ]
    defaults: dict[str, Any] = {
        "connect_timeout": 5,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30000,
        "application_name": "cvaeopt",
        # PgBouncer may give each transaction another connection, which lacks statements that were prepared earlier.
        "prepare_threshold": None,
    }
    if target.password is None and (secret := password_file.from_file()) is not None:
        defaults["password"] = secret
    mine = {key: value for key, value in defaults.items() if key not in target.query}
    return {**mine, **_psycopg_query(target, ""), "options": " ".join(word for word in words if word)}
