"""Requests of an edge whose model may change meanwhile, over bindings that say what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from splitpoint.errors import BusyError, ServerError, UsageError
from splitpoint.runtime.client.edge_requests import Inference
from splitpoint.runtime.result import Marks, Request, Result

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


def test_what_became_of_each_request_is_counted() -> None:
    inference, followed = over(Bound())
    assert inference.ask(Request(np.zeros(1), tag="a"), None, None, 0.0, False) is ANSWER
    followed.binding.fails = BusyError("no room", 0.1)
    with pytest.raises(BusyError):
        inference.ask(np.zeros(1), None, None, 0.0, False)
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
    assert inference.ask(Request(np.zeros(1), tag=7), "pool1", None, 1.0, False) is ANSWER
    assert new.asked == [(7, 0.25)]
    assert followed.routed == ["pool1", "pool1"]


def test_a_cut_that_was_forgotten_meanwhile_is_said_and_a_closed_edge_says_that_first() -> None:
    inference, _ = over(Bound(forgotten=True))
    with pytest.raises(UsageError, match="pool1 was forgotten while a request was to use it"):
        inference.ask(np.zeros(1), "pool1", None, 0.0, False)

    def closed() -> None:
        raise ServerError("the connection is closed")

    inference, _ = over(Bound(BusyError("no room", 0.1)), closed)
    with pytest.raises(ServerError, match="closed"):
        inference.ask(np.zeros(1), None, None, 0.0, False)
