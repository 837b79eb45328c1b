"""Requests of an edge whose model may change meanwhile, over bindings that say what becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nearby import Nearby
from serving import affine, nothing_leaks, until

from splitpoint.engines import open_engine
from splitpoint.errors import BusyError, InputError, ServerError, UsageError
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_requests import Inference, RequestCounts, RequestTally
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.result import Marks, Request, Result
from splitpoint.tensors import Array

ANSWER = Result({"y": np.zeros(1, np.float32)}, "a", Marks(0.0, 0.0, 0.0, 0.002), up_nbytes=10)


class Bound:
    """A binding: its cut is there or `forgotten`, and requests are answered or raise `fails`."""

    def __init__(self, fails: Exception | None = None, *, forgotten: bool = False) -> None:
        self.fails, self.forgotten, self.replaced = fails, forgotten, False
        self.asked: list[tuple[object, float]] = []
        placement = SimpleNamespace(hold=lambda: not self.forgotten, cut=SimpleNamespace(name="pool1"))
        self.cuts = SimpleNamespace(current=SimpleNamespace(placement=placement))
        self.requests = self

    def begin(self, route: object, request: Request, deadline_s: float, more: bool) -> Any:
        self.asked.append((request.tag, deadline_s))
        return SimpleNamespace(requests=self, request=request, deadline_s=deadline_s, more=more, left_s=lambda: 0.25)

    def send(self, ticket: Any) -> Any:
        return ticket

    def finish(self, ticket: Any) -> Result:
        if self.fails is not None:
            raise self.fails
        return ANSWER


class Follows:
    def __init__(self, binding: Bound) -> None:
        self.binding = binding
        self.routed: list[object] = []

    def route(self, binding: Bound, at: object, codec: object, *, hurry: bool = False) -> Any:
        assert hurry, "whoever asks does not wait for a tail if there is another way"
        self.routed.append(at)
        return binding.cuts.current


def over(binding: Bound, check: Callable[[], None] = lambda: None) -> tuple[Inference, Follows]:
    followed = Follows(binding)
    return Inference(followed, check, []), followed  # type: ignore[arg-type]


def ask(inference: Inference, inputs: Any, at: str | None = None, deadline_s: float = 0.0) -> Result:
    return inference.finish(inference.send(inference.begin(inputs, deadline_s, False, at)), at)


def test_what_became_of_each_request_is_counted() -> None:
    inference, followed = over(Bound())
    assert ask(inference, Request(np.zeros(1), tag="a")) is ANSWER
    followed.binding.fails = BusyError("no room", 0.1)
    with pytest.raises(BusyError):
        ask(inference, np.zeros(1))
    counts = inference.tally.counts(under_way=0)
    assert (counts.asked, counts.answered_remotely, counts.failed) == (2, 1, {"BusyError": 1})
    assert followed.binding.asked[0] == ("a", 0.0)


def test_a_request_whose_model_is_gone_begins_again_with_the_next_one_and_what_is_left_of_its_time() -> None:
    old, new = Bound(ServerError("the edge has gone over to another model")), Bound()
    inference, followed = over(old)
    old.replaced = True
    followed.binding = old

    def goes_over(ticket: Any) -> Result:
        followed.binding = new
        raise ServerError("gone")

    old.finish = goes_over  # type: ignore[method-assign]
    assert ask(inference, Request(np.zeros(1), tag=7), "pool1", 1.0) is ANSWER
    assert new.asked == [(7, 0.25)]
    assert followed.routed == ["pool1", "pool1"]


def test_a_cut_that_was_forgotten_meanwhile_is_said_and_a_closed_edge_says_that_first() -> None:
    inference, _ = over(Bound(forgotten=True))
    with pytest.raises(UsageError, match="pool1 was forgotten while a request was to use it"):
        ask(inference, np.zeros(1), "pool1")

    def closed() -> None:
        raise ServerError("the connection is closed")

    inference, _ = over(Bound(BusyError("no room", 0.1)), closed)
    with pytest.raises(ServerError, match="closed"):
        ask(inference, np.zeros(1))


QUICK = Patience(first_s=0.2, least_s=0.1, pause_s=0.01, longest_pause_s=0.05, seed=1)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Nearby]:
    with nothing_leaks():
        yield Nearby(affine(tmp_path), open_engine(threads=1))


def x() -> Array:
    return np.zeros((1, 1024), np.float32)


def add_up(counts: RequestCounts) -> bool:
    ended = counts.answered_remotely + counts.answered_here + sum(counts.failed.values())
    return counts.asked == ended + counts.in_flight and counts.remote.count == counts.answered_remotely


def test_every_request_is_counted_once_whatever_becomes_of_it(place: Nearby) -> None:
    hold = threading.Event()
    with Edge(place, place.model, at="add1", fallback="local", engine=open_engine(threads=1), patience=QUICK) as edge:
        for _ in range(3):
            edge.infer(x())
        list(edge.stream([x()] * 4, window=2))
        with pytest.raises(InputError):
            edge.infer(np.zeros((1, 7), np.float32))
        edge.infer(x(), at="output")
        place.answers = lambda outputs: (hold.wait(10), outputs)[1]
        assert edge.infer(x()).fallback
        hold.set()
        stats = edge.stats()
        counts = stats.requests
        assert (counts.asked, counts.answered_remotely, counts.answered_here) == (10, 7, 2)
        assert counts.failed == {"InputError": 1}
        assert counts.in_flight == 0
        assert add_up(counts)
        assert counts.up_nbytes >= 7 * 4096
        assert counts.down_nbytes == 7 * 4096
        assert counts.here.count == 2
        assert counts.here.quantile(1.0) >= 0.1, "one of them waited for the server"
        assert (stats.cut, stats.link_state, stats.connections, stats.switches) == ("add1", "up", 1, 0)
        assert stats.believed is None


def test_what_is_under_way_and_what_is_abandoned_is_counted_too(place: Nearby) -> None:
    hold = threading.Event()
    place.answers = lambda outputs: (hold.wait(10), outputs)[1]
    with Edge(place, place.model, at="add1", engine=open_engine(threads=1)) as edge:
        thread = threading.Thread(target=edge.infer, args=(x(),))
        thread.start()
        assert until(lambda: edge.stats().requests.in_flight == 1)
        assert add_up(edge.stats().requests)
        hold.set()
        thread.join()
        results = edge.stream([x()] * 50, window=3)
        next(results)
        results.close()
        counts = edge.stats().requests
        assert counts.in_flight == 0
        assert add_up(counts)
        busy = BusyError("no room", 0.01)

        def refuses(outputs: dict[str, Array]) -> dict[str, Array]:
            raise busy

        place.answers = refuses
        with pytest.raises(BusyError):
            edge.infer(x())
        assert edge.stats().requests.failed["BusyError"] == 1


def test_threads_are_all_counted_and_a_snapshot_is_cheap() -> None:
    tally = RequestTally()

    def work() -> None:
        for k in range(1000):
            if k % 10:
                tally.answered(Result({}, "a", Marks(0.0, 0.0, 0.0, 1e-3 * k), up_nbytes=k % 3, down_nbytes=1))
            else:
                tally.failed("ServerError")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(t.is_alive() for t in threads):
        assert add_up(tally.counts(under_way=2))
    for thread in threads:
        thread.join()
    counts = tally.counts(under_way=0)
    assert (counts.asked - counts.in_flight, counts.failed) == (4000, {"ServerError": 400})
    began = perf_counter()
    for _ in range(100):
        tally.counts(under_way=0)
    assert perf_counter() - began < 5, "a hundred of them; once a second is nothing"
