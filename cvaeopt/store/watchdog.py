"""PostgreSQL connections that are closed when the server stays silent for too long.

If the server is frozen, or if a proxy has lost its server, a connection may stay open for ever. The network still
acknowledges every packet. So neither keepalives nor TCP time-outs detect the failure, and the server's own time-outs do
not work. Therefore this module limits each wait for an answer. The time counts from the last byte that arrived, so that
a long answer is never cut off while it arrives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

from sqlalchemy.engine import URL

SILENCE_S = 60.0
"""How long the server may send nothing while a statement runs, seconds. A statement waits at most 30 s for a lock. In a
measurement with 1,000 workers on two cores, the slowest statement took 11 s."""

HURRY_SILENCE_S = 5.0
"""How long the server may send nothing after the process was asked to stop, seconds."""


def connector(
    target: URL,
    arguments: dict[str, Any],
    *,
    silence_s: float = SILENCE_S,
    hurry: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], Any]:
    """A function that connects to `target` with psycopg; it is used as SQLAlchemy's `creator`.

    arguments   keyword arguments of `psycopg.connect`, which replace those of `target`
    silence_s   how long the server may be silent during one statement, seconds; then psycopg.OperationalError
    hurry       returns True if the process was asked to stop; the limit is then at most `HURRY_SILENCE_S`
    """
    import psycopg

    class Watched(psycopg.Connection[Any]):
        """A connection that is closed if the server is silent for too long, or if a signal interrupts a statement."""

        def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
            try:
                return super().wait(self._limited(gen), *args, **kwargs)
            except Exception:
                raise
            except BaseException:
                # The statement is not finished. So nothing can be sent on this connection, not even a rollback.
                self.close()
                raise

        def _limited(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
            heard_at = clock()
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    silent_s = 0.0 if ready else clock() - heard_at
                    if ready:
                        heard_at = clock()
                    elif silent_s >= silence_s or (silent_s >= HURRY_SILENCE_S and hurry()):
                        gen.close()
                        self.close()
                        raise psycopg.OperationalError(f"no answer to a statement for {silent_s:.0f} s")
                    wanted = gen.send(ready)
            except StopIteration as end:
                return end.value

    words, options = target.get_dialect()().create_connect_args(target)
    return lambda: Watched.connect(*words, **{**options, **arguments})
