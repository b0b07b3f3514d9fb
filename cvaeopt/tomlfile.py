"""TOML files as editors write them: read, or named as what they are instead."""

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
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark is the first half of this one
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_YAML_LINE = re.compile(r"""(?:---|- |["']?[\w.-]+["']?\s*:(?:\s|$))""")


def read(path: Path) -> dict[str, Any]:
    """The tables in `path`; a byte order mark before them is passed over.

    OSError if it cannot be read; SettingsError says what it is instead of TOML, or which line is wrong.
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
    except ValueError as error:  # TOMLDecodeError is one; so is what a number of 5,000 digits raises
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
    """How these bytes, which are no UTF-8 text, are encoded, as far as that can be seen."""
    for mark, name in _WIDE.items():
        if data.startswith(mark):
            return f"it is {name} text, not UTF-8"
    if b"\0" in data:
        # Every second byte of UTF-16 text is 0 where the text is mostly ASCII.
        wide = len(data) % 2 == 0 and max(data[::2].count(0), data[1::2].count(0)) > len(data) // 4
        return "it is UTF-16 text, not UTF-8" if wide else "it is not text: it has bytes that are 0"
    return f"byte {error.start if isinstance(error, UnicodeDecodeError) else 0} is not UTF-8 text"


def _other_format(text: str) -> str | None:
    """What this text, which is no TOML, is instead: JSON, YAML, or None for neither."""
    start = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    if start.startswith("{"):  # as no TOML does
        return "JSON"
    if start.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(text)
            return "JSON"
    return "YAML" if _YAML_LINE.match(start) or start.startswith("%YAML") else None
