"""Read a TOML file. If the file has another format, the error names that format."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from cvaeopt.errors import SettingsError

_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",  # tested before UTF-16, because it begins with UTF-16's mark
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_YAML_LINE = re.compile(r"""(?:---|- |["']?[\w.-]+["']?\s*:(?:\s|$))""")


def read(path: Path) -> dict[str, Any]:
    """The tables in `path`. A byte order mark at the start of the file is ignored.

    OSError if the file cannot be read. SettingsError if the file is not TOML. The message of the SettingsError names
    the format of the file or the wrong line.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
        if "\0" in text:
            raise UnicodeError
    except UnicodeError as error:
        raise SettingsError(f"{path}: {_encoding(data, error)}.", todo="Save the file as UTF-8.") from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise SettingsError(f"{path} nests its values too deeply.", "Expected: tables of settings.") from None
    except ValueError as error:  # TOMLDecodeError, or Python's error for a number of 5,000 digits
        other = _other_format(text)
        if other:
            raise SettingsError(
                f"{path} is {other}, not TOML.",
                "Expected: lines such as `lr = 0.001` below names of tables such as `[fixed]`.",
                "Write it as TOML.",
            ) from None
        raise SettingsError(
            f"{path} is not TOML: {str(error).rstrip('.')}.",
            todo="Correct the line.",
        ) from None


def _encoding(data: bytes, error: UnicodeError) -> str:
    """Why `data` is not UTF-8 text, as the end of an error message. It names the encoding if possible."""
    for mark, name in _WIDE.items():
        if data.startswith(mark):
            return f"it is {name} text, not UTF-8"
    if b"\0" in data:
        # In UTF-16 text that is mostly ASCII, about every second byte is 0.
        wide = len(data) % 2 == 0 and max(data[::2].count(0), data[1::2].count(0)) > len(data) // 4
        return "it is UTF-16 text, not UTF-8" if wide else "it is not text: it has bytes that are 0"
    return f"byte {error.start if isinstance(error, UnicodeDecodeError) else 0} is not UTF-8 text"


def _other_format(text: str) -> str | None:
    """The format of a text that is not TOML: "JSON", "YAML", or None if it is neither."""
    start = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    if start.startswith("{"):  # no TOML file starts with a brace
        return "JSON"
    if start.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(text)
            return "JSON"
    return "YAML" if _YAML_LINE.match(start) or start.startswith("%YAML") else None
