"""Run by tests/integration/test_fork.py: an edge and a server that a process has when it forks, used on both sides.

usage: forking.py FALLBACK fork|multiprocessing|nested [CA CERTIFICATE KEY]
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

import splitpoint as sp
from splitpoint.lifetime import foreign
from splitpoint.security import Security, ServerSecurity
from splitpoint.transports import connect

warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads: that is what is tested
warnings.simplefilter("error", ResourceWarning)

model = sp.load("zoo:lenet5")
rng = np.random.default_rng(1)
digits = [rng.integers(0, 255, (1, 32, 32, 1), dtype=np.uint8) for _ in range(50)]


def error_of(use: Callable[[], object]) -> str:
    try:
        return str(use())
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"


def right(edge: sp.Edge, order: range) -> bool:
    return all(np.allclose(edge.infer(digits[k]).outputs["logits"], wants[k], atol=1e-3) for k in order)


def in_child() -> None:
    """Every use is an error, and one of its own works."""
    uses: dict[str, Callable[[], object]] = {
        "infer": lambda: edge.infer(digits[0]),
        "infer at": lambda: edge.infer(digits[0], at="input"),
        "stream": lambda: list(edge.stream(digits[:2])),
        "begun": lambda: next(begun, foreign("stream")),
        "switch": lambda: edge.switch("input"),
        "warm": lambda: edge.warm("input"),
        "forget": lambda: edge.forget(),
        "ping": lambda: edge.ping(),
        "link": lambda: edge.measure_link(0.3),
        "profile": lambda: edge.profile_server(0.1),
        "pull": lambda: edge.pull(),
        "address": lambda: server.address,
        "start": lambda: server.start(),
        "local": lambda: whole.infer(digits[0]),
        "send": lambda: plain.send(None),  # type: ignore[arg-type]
        "receive": lambda: plain.receive(timeout_s=1.0),
    }
    wrong = {name: said for name, use in uses.items() if "before the process forked" not in (said := error_of(use))}
    edge.close()
    server.close()
    whole.close()
    plain.close()
    gc.collect()
    with sp.Edge(address, model, at="pool1", engine=sp.open_engine(threads=1), security=security) as own:
        served = right(own, range(20))
    print(f"child: wrong {wrong}, an edge of its own: {served}", flush=True)


def forks(depth: int) -> int:
    """The exit status of a child, which forks itself `depth` times."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    in_child()
    sys.exit(forks(depth - 1) if depth else 0)  # with all that an interpreter does at its end


if __name__ == "__main__":
    fallback, how, *files = sys.argv[1:]
    security, ours = Security(), ServerSecurity()
    if files:
        ca, certificate, key = map(Path, files)
        security, ours = Security(ca=ca), ServerSecurity(certificate=certificate, key=key)
    server = sp.Server([model], engine=sp.open_engine(threads=2), port=0, security=ours)
    server.start()
    address = server.address
    edge = sp.Edge(address, model, at="pool1", fallback=fallback, engine=sp.open_engine(threads=2), security=security)
    whole = sp.Local(model, sp.open_engine(threads=2))
    plain = connect(address, security=security)
    wants = [whole.infer(digit).outputs["logits"] for digit in digits]
    assert right(edge, range(50))
    begun = edge.stream(iter(digits * 100), window=2)
    next(begun)

    stop, failed = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            if not right(edge, range(50)):
                failed.append(1)

    asking = [threading.Thread(target=ask) for _ in range(2)]  # so that locks are held and answers are under way
    for thread in asking:
        thread.start()
    statuses = []
    for _ in range(3):
        if how == "multiprocessing":
            process = multiprocessing.get_context("fork").Process(target=in_child)
            process.start()
            process.join()
            statuses.append(process.exitcode)
        else:
            statuses.append(forks(2 if how == "nested" else 0))
    stop.set()
    for thread in asking:
        thread.join()
    begun.close()  # type: ignore[attr-defined]
    answered, ended = right(edge, range(50)), edge.link_state
    edge.close()
    whole.close()
    plain.close()
    server.close()
    server.start()  # the port is free: no child holds it
    server.close()
    print(f"parent: children {statuses}, failed {failed}, answered {answered}, {ended}", flush=True)
