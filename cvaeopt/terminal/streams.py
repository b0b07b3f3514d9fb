"""stdout and stderr: writing never stops the work, and no control character reaches the terminal.

Output      a stream whose writes cannot fail: a reader that is gone, a full disk, a closed terminal or an alphabet
            without the character cost the text, never the command
Terminal    rich's console without the control characters of what it is given: texts come from a database that
            others can write, and an escape sequence would be obeyed by the terminal of whoever looks
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
    "[\x00-\x09\x0b-\x1f\x7f-\x9f"  # control characters, but for the end of a line
    "\u2028\u2029"  # other ends of lines
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"  # what changes the direction of the text around it
)


def shown(text: str) -> str:
    """`text` without the characters that a terminal obeys instead of showing them."""
    return _OBEYED.sub("", text)


class Terminal(Console):
    """rich's console; `shown` says which characters are removed from all that is printed."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of `renderable`; those that rich itself makes to move the cursor are kept."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(shown(segment.text), segment.style)


class Output(io.TextIOWrapper):
    """Text for `stream`, written at once; what cannot be written is dropped.

    patience_s   how long to wait for a reader that has stopped reading, seconds; None waits for ever, as a pipe does
    on_loss      called once, when the first text is lost

    A character that the stream's encoding lacks is written as \\u....
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
        """Why the first text was lost, or why the next one will be; None while everything arrives."""
        return self.raw.lost or self.raw.gone()


class _Raw(io.RawIOBase):
    """The bytes of an `Output`. Unbuffered: what a buffer keeps after an error fails again when Python ends."""

    def __init__(self, stream: TextIO | None, patience_s: float | None, on_loss: Callable[[OSError], None]) -> None:
        self.lost: OSError | None = None
        self.name = getattr(stream, "name", "")
        self._stream = stream
        self._handle: int | None = None
        self._patience_s = patience_s
        self._stuck = False
        self._notice = b""  # of what was lost, to be written first as soon as anything can be
        self._on_loss = on_loss
        if stream is not None:
            with contextlib.suppress(
                AttributeError, OSError, ValueError
            ):  # one that Python alone knows has no descriptor
                stream.flush()
                self._handle = stream.fileno()

    def gone(self) -> OSError | None:
        """That nobody reads a pipe any more, or that its terminal is closed, before anything is written."""
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
            rest = rest[os.write(self._handle, rest[: select.PIPE_BUF]) :]  # so much blocks nobody once it is ready

    def _wait(self, handle: int) -> None:
        """Return when `handle` can be written; BlockingIOError when nobody reads what is there already."""
        ready = select.poll()
        ready.register(handle, select.POLLOUT)
        limit_s = 0.0 if self._stuck else self._patience_s
        self._stuck = not ready.poll(None if limit_s is None else limit_s * 1000)
        if self._stuck:
            raise BlockingIOError(errno.EAGAIN, "nobody reads them")
