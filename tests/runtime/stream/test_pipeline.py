"""Steps in threads: in order, bounded, and ended whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from serving import until

from splitpoint.errors import (
    InputError,
    ServerError,
)
from splitpoint.runtime.stream.pipeline import stream


class Hold:
    """A step that waits for the test, and tells what came to it."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.gate = threading.Semaphore(0)

    def __call__(self, value: int) -> int:
        self.came.append(value)
        assert self.gate.acquire(timeout=10)
        return value


def test_a_slow_link_does_not_hold_up_the_next_head() -> None:
    send, heads, read = Hold(), [], []

    def items() -> Iterator[int]:
        for k in range(1, 9):
            read.append(k)
            yield k

    def head(value: int) -> int:
        heads.append(value)
        return value

    results = stream(items(), (head, send, lambda value: value), lambda value: None, 5)
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.extend(results))
    reader.start()
    assert until(lambda: len(heads) == 5), "heads of a whole window compute while the first is being sent"
    assert until(lambda: send.came == [1])
    for _ in range(8):
        send.gate.release()
    reader.join(10)
    assert got == list(range(1, 9))


def test_every_step_is_busy_at_once() -> None:
    head, send, finish = steps = [Hold(), Hold(), Hold()]
    results = stream(range(1, 100), steps, lambda value: None, 4)
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.extend(results))
    reader.start()
    head.gate.release(2)
    send.gate.release()
    assert until(lambda: [step.came[-1:] for step in steps] == [[3], [2], [1]])
    assert finish.came == [1]
    for step in steps:
        step.gate.release(200)
    reader.join(10)
    assert got == list(range(1, 100))


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_failure_comes_in_its_place_and_what_follows_is_abandoned(bad: int) -> None:
    begun: list[int] = []
    abandoned: list[int] = []

    def step(k: int) -> Callable[[int], int]:
        def work(value: int) -> int:
            if k == 0:
                begun.append(value)
            if k == bad and value == 5:
                raise InputError("the fifth")
            return value

        return work

    results = stream(range(1, 100), [step(k) for k in range(3)], abandoned.append, 3)
    assert [next(results) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(InputError, match="the fifth"):
        next(results)
    assert until(lambda: set(begun) - set(range(1, 6)) == set(abandoned))
    assert len(begun) <= 7, "nothing is begun behind it but what was under way"


def test_leaving_early_abandons_what_has_begun() -> None:
    send, abandoned = Hold(), []
    results = stream(range(1, 100), (lambda v: v, send, lambda v: v), abandoned.append, 4)
    send.gate.release()
    assert next(results) == 1
    assert until(lambda: send.came == [1, 2])
    send.gate.release(100)
    results.close()
    assert until(lambda: set(range(3, 5)) <= {*abandoned, *send.came})


pytestmark = pytest.mark.usefixtures("no_leaks")


def test_the_pipeline_delivers_before_it_fails() -> None:
    def finish(n: int) -> int:
        if n == 3:
            raise ServerError("gone")
        return n

    abandoned: list[int] = []
    results = stream(range(10), (lambda n: n, finish), abandoned.append, 4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ServerError, match="gone"):
        next(results)
    assert set(abandoned) <= set(range(4, 10))
