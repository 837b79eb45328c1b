"""What is sent back, whatever becomes of the connection."""

from __future__ import annotations

from typing import Any

import pytest

from splitpoint import wire
from splitpoint.errors import BusyError, InputError, ServerError
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.services import Replies
from splitpoint.transports import memory
from splitpoint.wire import Kind


def test_refusals_and_busy_are_frames_of_their_own() -> None:
    near, far = memory.pair()
    replies = Replies(far, print)
    replies.refuse(3, InputError("too many rows"))
    replies.refuse_request(4, BusyError("later", 2.5))
    assert (near.receive().header, near.receive().header) == (
        wire.Error("input", "too many rows"), wire.Busy(2.5, "later"),
    )  # fmt: skip


@pytest.mark.parametrize("exc", [ServerError("it has gone"), RuntimeError("no thread"), MemoryError()])
def test_one_that_has_gone_is_not_our_error(exc: Exception) -> None:
    class Gone:
        peer = "10.0.0.1:4000"

        def send(self, packet: wire.Packet, *, wait: bool) -> None:
            raise exc

    gone: Any = Gone()
    Replies(gone, print).send(wire.encode(Kind.BYE, 0, wire.Bye()))


def test_what_goes_wrong_inside_is_told_and_the_client_hears_no_more_than_that() -> None:
    told: list[Event] = []
    near, far = memory.pair()
    replies = Replies(far, told.append)
    hidden = replies.hide("a tail cannot be built", ValueError("/root/secret\x1b[2J"), "the tail cannot be built")
    assert str(hidden) == "the tail cannot be built; the server's log says more"
    assert "secret" in told[0].sentence
    assert "\x1b" not in told[0].sentence
    assert told[0].fields["peer"] == far.peer
    replies.give_up(7, MemoryError())
    assert "request 7 of memory:a has no answer: MemoryError()" in told[1].sentence
    with pytest.raises(ServerError):
        near.receive(timeout_s=5)
