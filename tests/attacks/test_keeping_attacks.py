"""What a server makes for one client and keeps: compiled tails and their threads, open segments, batches, profiles."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from serving import Gate, affine
from splitpoint.models.model import Model, Segment
from splitpoint.runtime import tails as tails_module
from splitpoint.runtime.tails import Tail, Tails

# --- compiling ------------------------------------------------------------------------------------------------------


class Crowded(Gate):
    """Counts how many compile at once: each waits a moment for a second one."""

    def __init__(self) -> None:
        super().__init__()
        self._lock, self._second = threading.Lock(), threading.Event()
        self.now = self.most = 0

    def compile(self, segment: Segment):  # type: ignore[no-untyped-def]
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now > 1:
                self._second.set()
        self._second.wait(0.1)
        with self._lock:
            self.now -= 1
        return super().compile(segment)


def build_at_once(tails: Tails, made: list[Tail]) -> None:
    def build(tail: Tail) -> None:
        tails.build(tail, "attacker")
        tails.release(tail)

    threads = [threading.Thread(target=build, args=(tail,)) for tail in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def tails_of(tails: Tails, model: Model, names: tuple[str, ...] = ("x", "m0", "y0", "m1", "y1", "m2")) -> list[Tail]:
    return [tails.tail(model.segment((name,), ("y3",))) for name in names]


@pytest.mark.parametrize("at_once", [1, 2])
def test_tails_are_compiled_one_by_one_where_that_leaves_a_core_to_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(tails_module, "_PATIENCE_S", 60.0)
    engine = Crowded()
    tails = Tails(engine, budget=1 << 30, at_once=at_once)
    build_at_once(tails, tails_of(tails, affine(tmp_path), ("x", "m0")))
    assert engine.most == at_once
    assert len(engine.compiled) == 2
    tails.close()


def test_a_tail_whose_compiling_does_not_end_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one whose compiling waits for another's: what is told of it may be waited for."""
    monkeypatch.setattr(tails_module, "_PATIENCE_S", 0.0)
    engine = Crowded()
    tails = Tails(engine, budget=1 << 30)
    build_at_once(tails, tails_of(tails, affine(tmp_path), ("x", "m0")))
    assert engine.most == 2
    tails.close()


# --- threads of compiled tails --------------------------------------------------------------------------------------


class Broad(Gate):
    threads = 32


@pytest.mark.parametrize(("most", "kept"), [(96, 3), (8, 2)])
def test_threads_of_compiled_tails_are_bounded_and_who_has_most_loses_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, kept: int
) -> None:
    monkeypatch.setattr(tails_module, "_MOST_THREADS", most)
    monkeypatch.setattr(tails_module, "_FEWEST", 2)
    engine, model = Broad(nbytes=1), affine(tmp_path)
    tails = Tails(engine, budget=1 << 30)
    [honest] = tails_of(tails, model, ("y2",))
    tails.build(honest, "honest")
    tails.release(honest)
    for tail in (many := tails_of(tails, model)):
        tails.build(tail, "attacker")
        tails.release(tail)
    assert len(engine.compiled) == 7
    assert len(tails._cached) == kept
    assert tails.ready(honest)
    assert [tails.ready(tail) for tail in many[-2:]] == [kept == 3, True], "the last one stays"
    tails.close()


def test_tails_that_run_keep_their_threads_and_leave_when_they_have_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails_module, "_MOST_THREADS", 64)
    monkeypatch.setattr(tails_module, "_FEWEST", 1)
    engine = Broad(nbytes=1)
    tails = Tails(engine, budget=1 << 30)
    for tail in (many := tails_of(tails, affine(tmp_path))):
        tails.build(tail, "attacker")
    assert all(map(tails.ready, many))
    for tail in many:
        tails.release(tail)
    assert len(tails._cached) == 2
    tails.close()
