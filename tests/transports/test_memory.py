"""Connections inside one process."""

from __future__ import annotations

import pytest

from splitpoint.errors import ServerError, UnreachableError
from splitpoint.security import OPEN, ServerSecurity
from splitpoint.transports import Ended, memory
from splitpoint.wire import Limits


def test_where_nobody_listens_nobody_answers() -> None:
    with pytest.raises(UnreachableError, match="memory://attic in this process"):
        memory.connect("attic", Limits(), 1.0, OPEN)
    listener = memory.listen("attic", 0, Limits(), ServerSecurity())
    with pytest.raises(ServerError, match="take another name"):
        memory.listen("attic", 0, Limits(), ServerSecurity())
    listener.close()
    memory.listen("attic", 0, Limits(), ServerSecurity()).close()


def test_peers_have_names_and_the_server_holds_them_to_its_limits() -> None:
    listener = memory.listen("attic", 0, Limits(tensors=7), ServerSecurity())
    names = set()
    for _ in range(2):
        near = memory.connect("attic", Limits(tensors=9), 1.0, OPEN)
        far = listener.accept()
        assert far is not None
        names.add(far.peer)
        assert (near.peer, near.limits.tensors, far.limits.tensors) == ("memory://attic", 9, 7)
        assert (near.identity, near.moved_nbytes()) == ("", 0)
        near.close()
        far.close()
    assert names == {"memory:1", "memory:2"}
    listener.close()


def test_who_is_not_accepted_any_more_hears_it() -> None:
    listener = memory.listen("attic", 0, Limits(), ServerSecurity())
    near = memory.connect("attic", Limits(), 1.0, OPEN)
    listener.close()
    with pytest.raises(Ended):
        near.receive(timeout_s=5.0)
    near.close()
