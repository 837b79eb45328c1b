"""A server in every state that hypothesis finds: a few hundred steps here, as many as STEPS says with `make fuzz`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import certificates
import pytest
import states
import steps
from bench.vitals import vitals
from serving import nothing_leaks
from states import LIMITS, Attack, Books, Target, attacked, books, serving
from steps import STEPS

from splitpoint.lab.process import PIPES, Process

#: What a server may take beyond what it took at first: what its limits add up to, and the allocator's own.
_SLACK_NBYTES = LIMITS.memory_bytes + LIMITS.connections * LIMITS.backlog_bytes + (64 << 20)


@contextmanager
def here(guarded: bool, cache: Path) -> Iterator[Target]:
    who = certificates.server(token=certificates.TOKEN) if guarded else None
    with (
        nothing_leaks(),
        serving(who) as (server, told),
        attacked(server.address, lambda: books(server, told), cache, guarded=guarded) as target,
    ):
        yield target


@contextmanager
def elsewhere(guarded: bool, cache: Path) -> Iterator[Target]:
    """In a process of its own, whose memory is looked at."""
    keys = certificates.keys()
    command = [sys.executable, "-u", states.__file__, *([str(keys.server), str(keys.server_key)] if guarded else [])]
    server = Process(subprocess.Popen(command, **PIPES), "server under attack")

    def look() -> Books:
        server.say()
        return Books.parse(server.line(states.STUCK_S))

    try:
        address = server.line(60)
        with attacked(address, look, cache, guarded=guarded) as target:
            first = vitals(server.process.pid)
            yield target
            last = vitals(server.process.pid)
            print(f"\n{first} at first, {last} at the end, peak {last.peak_nbytes >> 20} MB; {dict(target.answers)}")
            assert last.peak_nbytes < first.rss_nbytes + _SLACK_NBYTES
    finally:
        server.close()


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "guarded"])
def test_a_server_in_every_state(guarded: bool, tmp_path: Path) -> None:
    with (elsewhere if STEPS else here)(guarded, tmp_path) as target:
        steps.run(partial(Attack, target), examples=5 if guarded else 8)
    # Not all of it was refused at the door.
    for kind in ("WELCOME", "OPENED", "RESULT", "ERROR"):
        assert target.answers[kind] > STEPS // 100, (kind, target.answers)
