"""stdout and stderr. A failed write never stops the work, and no control character reaches the terminal.

Output      a stream whose writes raise no error. If the reader has gone, the disk is full or the terminal is closed,
            the text is lost, and the command continues.
Terminal    rich's console, which removes control characters from all texts. Other people can write texts into the
            database, and the user's terminal would execute the escape sequences in them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import select
from collections.abc import Callable, Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_OBEYED = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f"  # control characters, except the newline
    "\u2028\u2029"  # other line separators
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"  # characters that change the direction of the text
)


def shown(text: str) -> str:
    """`text` without the characters that a terminal executes as commands, and those that change the text direction."""
    return _OBEYED.sub("", text)


class Terminal(Console):
    """rich's console. The function `shown` removes characters from every text that is printed."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The cleaned segments of `renderable`. Segments with which rich itself moves the cursor stay unchanged."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(shown(segment.text), segment.style)


class Output(io.TextIOWrapper):
    """Writes text to `stream` without a buffer. Text that cannot be written is dropped.

    patience_s   how long to wait for a reader that has stopped reading, seconds; None: without a limit
    on_loss      called with the error when the first text is lost, and only then

    If the stream's encoding lacks a character, the character is written as an escape sequence such as \\u20ac.
    """

    def __init__(
        self,
        stream: TextIO | None,
        patience_s: float | None = None,
        on_loss: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        self.raw = _Raw(stream, patience_s, on_loss)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        super().__init__(self.raw, encoding=encoding, errors="backslashreplace", newline="", write_through=True)

    @property
    def lost(self) -> OSError | None:
        """The error of the first lost text, or the error that the next write will meet; None if there is neither."""
        return self.raw.lost or self.raw.gone()


class _Raw(io.RawIOBase):
    """Writes the bytes of an `Output`.

    It has no buffer, because a buffer would keep the bytes after an error and write them again when Python ends.
    """

    def __init__(self, stream: TextIO | None, patience_s: float | None, on_loss: Callable[[OSError], None]) -> None:
        self.lost: OSError | None = None
        self.name = getattr(stream, "name", "")
        self._stream = stream
        self._handle: int | None = None
        self._patience_s = patience_s
        self._stuck = False
        self._notice = b""  # about lost text; written before the next text that can be written
        self._on_loss = on_loss
        if stream is not None:
            with contextlib.suppress(
                AttributeError, OSError, ValueError
            ):  # a stream that exists only in Python has no file descriptor
                stream.flush()
                self._handle = stream.fileno()

    def gone(self) -> OSError | None:
        """An error if the reader of the pipe has gone or the terminal is closed; None otherwise. Writes nothing."""
        poll = select.poll()
        if self._handle is not None:
            poll.register(self._handle, 0)
        return BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) if poll.poll(0) else None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._handle is None:
            raise io.UnsupportedOperation("fileno")
        return self._handle

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            self._write(self._notice + bytes(data))
            self._notice = b""
        except (OSError, ValueError) as error:
            lost = error if isinstance(error, OSError) else OSError(errno.EBADF, os.strerror(errno.EBADF))
            first, self.lost = self.lost is None, self.lost or lost
            if first:
                self._notice = f"\nWarning: some lines are missing here ({lost.strerror or lost}).\n".encode()
                self._on_loss(lost)
        return len(data)

    def _write(self, data: bytes) -> None:
        if self._stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._handle is None:
            self._stream.write(data.decode(self._stream.encoding or "utf-8"))
            self._stream.flush()
            return
        rest = memoryview(data)
        while rest:
            self._wait(self._handle)
            rest = rest[os.write(self._handle, rest[: select.PIPE_BUF]) :]  # a ready pipe takes PIPE_BUF bytes at once

    def _wait(self, handle: int) -> None:
        """Wait until `handle` can be written; BlockingIOError if it cannot be written within `patience_s`."""
        ready = select.poll()
        ready.register(handle, select.POLLOUT)
        limit_s = 0.0 if self._stuck else self._patience_s
        self._stuck = not ready.poll(None if limit_s is None else limit_s * 1000)
        if self._stuck:
            raise BlockingIOError(errno.EAGAIN, "nobody reads them")
