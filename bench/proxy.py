"""What Optuna's gRPC storage proxy changes: reports a second, their latency, and connections, with and without it.

    python -m bench.proxy                  # 1, 10, 50 and 200 clients, directly and through one proxy; about 3 minutes
    python -m bench.proxy --quick

C clients report as fast as they can (a value, then the trial read back, as a pruner needs it), through
`optuna.storages` alone: first each with connections of its own, then all through one `run_grpc_proxy_server`. Leases,
fenced reports and budgets are SQL transactions beside Optuna's tables, which the proxy does not carry: this is what it
would do for programs that only read and report. Results are kept in bench/results/proxy.json.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import socket
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import optuna
import psycopg
from optuna.storages import BaseStorage, GrpcStorageProxy, get_storage, run_grpc_proxy_server
from optuna.trial import TrialState, create_trial

from bench import machine
from bench.storage import _Connections, _quantile
from cvaeopt.search.storage import open_storage
from tests.search.postgres import Postgres

PROCESSES = 4
NAME = "proxy"

_context = multiprocessing.get_context("forkserver")


def serve(url: str, port: int) -> None:
    """The proxy, in a process of its own, until that is ended."""
    warnings.simplefilter("ignore")
    run_grpc_proxy_server(get_storage(open_storage(url)), host="127.0.0.1", port=port)


def client(url: str, port: int | None) -> BaseStorage:
    """A storage: through the proxy at `port`, or of its own."""
    if port is None:
        return open_storage(url, start_limit_s=120.0)
    proxy = GrpcStorageProxy(host="127.0.0.1", port=port)
    proxy.wait_server_ready(timeout=60)
    return proxy


def report(url: str, port: int | None, trials: list[int], seconds: float, gate: Any, answers: Any) -> None:
    """One client for each of `trials`, in threads of this process; the latencies go to `answers`, seconds."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storages = [client(url, port) for _ in trials]
    found: list[list[float]] = [[] for _ in trials]
    errors: list[str] = []
    gate.wait(timeout=300)
    end = time.monotonic() + seconds

    def work(storage: BaseStorage, trial: int, latencies: list[float]) -> None:
        step = 0
        try:
            while time.monotonic() < end:
                step += 1
                asked_at = time.monotonic()
                storage.set_trial_intermediate_value(trial, step, float(step))
                storage.get_trial(trial)
                latencies.append(time.monotonic() - asked_at)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}"[:200])

    threads = [threading.Thread(target=work, args=entry) for entry in zip(storages, trials, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for storage in storages:
        storage.close() if hasattr(storage, "close") else storage.remove_session()
    answers.put(([latency for one in found for latency in one], errors))


@contextlib.contextmanager
def proxy(url: str, wanted: bool) -> Iterator[int | None]:
    """The port of a proxy that runs within the block, or None."""
    if not wanted:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = _context.Process(target=serve, args=(url, port), daemon=True)
    server.start()
    try:
        yield port
    finally:
        server.terminate()
        server.join()


def row(url: str, clients: int, seconds: float, through_proxy: bool) -> dict[str, Any]:
    """One line of the table, on a fresh database at `url`."""
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name=NAME)
    study.add_trials([create_trial(state=TrialState.RUNNING) for _ in range(clients)])
    trials = [trial._trial_id for trial in study.get_trials(deepcopy=False)]
    processes = min(PROCESSES, clients)
    gate, answers = _context.Barrier(processes), _context.Queue()
    with proxy(url, through_proxy) as port, _Connections(url) as connections:
        running = [
            _context.Process(target=report, args=(url, port, trials[index::processes], seconds, gate, answers))
            for index in range(processes)
        ]
        for process in running:
            process.start()
        answered = [answers.get(timeout=seconds + 300) for _ in running]
        for process in running:
            process.join()
    answers.close()
    answers.join_thread()
    latencies = sorted(latency for some, _ in answered for latency in some)
    stored = sum(len(trial.intermediate_values) for trial in study.get_trials(deepcopy=False))
    storage.close()
    return {
        "way": "proxy" if through_proxy else "direct",
        "clients": clients,
        "reports": len(latencies),
        "reports_s": round(len(latencies) / seconds, 1),
        "mean_s": round(statistics.fmean(latencies), 4) if latencies else None,
        "p95_s": _quantile(latencies, 0.95),
        "max_s": _quantile(latencies, 1.0),
        "connections": connections.most,
        "lost": len(latencies) - stored,
        "errors": [error for _, errors in answered for error in errors],
    }


def measure(counts: list[int], seconds: float) -> dict[str, Any]:
    """Both ways for every number of clients, on a server of our own."""
    facts = {**machine.facts(), "busy": os.getloadavg()[0]}
    result: dict[str, Any] = {"machine": facts, "seconds": seconds, "rows": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = Postgres.launch()
    try:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET max_connections = {max(100, 3 * max(counts) + 50)}")
            connection.execute("ALTER SYSTEM SET fsync = on")
        server.stop()
        server.start()
        for count in counts:
            for through_proxy in (False, True):
                name = f"proxy_{count}_{'proxy' if through_proxy else 'direct'}"
                result["rows"].append(row(server.new_database(name), count, seconds, through_proxy))
                print(_line(result["rows"][-1]), flush=True)
    finally:
        server.remove()
    facts["busy_after"] = os.getloadavg()[0]
    return result


NAMES = ("way", "clients", "reports_s", "mean_s", "p95_s", "max_s", "connections", "lost")


def _line(one: dict[str, Any]) -> str:
    return "| " + " | ".join([*(str(one[name]) for name in NAMES), str(len(one["errors"]))]) + " |"


def table(result: dict[str, Any]) -> str:
    """All rows as a Markdown table."""
    head = "| way | clients | reports a second | mean s | p95 s | max s | connections | lost | errors |"
    return "\n".join([head, "|---" * 9 + "|", *map(_line, result["rows"])])


def main(words: list[str] | None = None) -> int:
    """0 if no report was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 50, 200])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each run")
    parser.add_argument("--quick", action="store_true", help="2 clients, 1 s; nothing is kept")
    options = parser.parse_args(words)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    counts, seconds = ([2], 1.0) if options.quick else (options.clients, options.seconds)
    result = measure(counts, seconds)
    result["command"] = " ".join(["python -m bench.proxy", *(sys.argv[1:] if words is None else words)])
    if not options.quick:
        machine.keep("proxy", result)
    print(table(result))
    return 1 if any(one["lost"] or one["errors"] for one in result["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
