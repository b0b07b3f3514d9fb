"""Charts that are not drawn, for tests that do not look at them: a chart costs more than a tiny training."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from PIL import Image

from cvaeopt.pictures import curves


def _blank() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(stream, "PNG")
    return stream.getvalue()


BLANK = _blank()
"""A PNG file of one white pixel, which stands for every chart."""


def leave_blank() -> Iterator[None]:
    """Until the generator is closed, every chart is composed, but neither laid out nor rendered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "_file", lambda drawing, kind: BLANK)
        yield
