"""Several devices that ask one server for its profile, at once and later."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import numpy as np
import pytest
from profile_asking import Asking, askers
from serving import Gate, until

from splitpoint import wire
from splitpoint.errors import BusyError, RefusedError, ServerError
from splitpoint.models.model import Model
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server import accounts
from splitpoint.runtime.server import profile_jobs as profiling
from splitpoint.runtime.server.server import Server
from splitpoint.wire import Kind, Limits

pytestmark = pytest.mark.usefixtures("budgets")


def test_devices_that_ask_at_once_share_one_profile(models: list[Model], budgets: list[float]) -> None:
    gate = Gate(is_open=False)
    with Server(models, engine=gate, port=0) as server:
        asking = [Asking(server, models[0], budget_s) for budget_s in (20.0, 10.0, 20.0)]
        assert until(lambda: askers(server) == 3)
        gate.open.set()
        got = [one.end() for one in asking]
    assert isinstance(got[0], Profile)
    assert got[0].fingerprint == models[0].fingerprint
    assert got[0] == got[1] == got[2]
    assert budgets == [20.0]


def test_other_models_wait_for_their_turn(models: list[Model]) -> None:
    gate = Gate(is_open=False)
    with Server(models, engine=gate, port=0) as server:
        asking = [Asking(server, model, 10.0) for model in models]
        assert until(lambda: askers(server) == 3)
        gate.open.set()
        got = [one.end() for one in asking]
    for profile, model in zip(got, models, strict=True):
        assert isinstance(profile, Profile)
        assert profile.fingerprint == model.fingerprint


def test_who_needs_more_time_gets_it_after_who_was_first(models: list[Model], budgets: list[float]) -> None:
    gate = Gate(is_open=False)
    with Server(models, engine=gate, port=0) as server:
        first = Asking(server, models[0], 2.0)
        assert until(lambda: bool(budgets))
        second = Asking(server, models[0], 10.0)
        assert until(lambda: askers(server) == 2)
        gate.open.set()
        got = first.end(), second.end()
        assert [isinstance(one, Profile) and one.complete for one in got] == [False, True]
        assert budgets == [2.0, 10.0]
        assert Asking(server, models[0], 20.0).end() == got[1], "more time would not help"
        assert budgets == [2.0, 10.0]


def test_one_that_is_kept_is_made_again_if_it_must_be_fresh(models: list[Model], budgets: list[float]) -> None:
    with Server(models, engine=Gate(), port=0) as server:
        first = Asking(server, models[0], 10.0).end()
        assert Asking(server, models[0], 10.0).end() == first
        assert budgets == [10.0]
        second = Asking(server, models[0], 10.0, fresh=True).end()
        assert budgets == [10.0, 10.0]
        assert isinstance(second, Profile)
        assert Asking(server, models[0], 10.0).end() == second, "the new one is kept"


def test_a_profile_says_that_requests_ran_beside_it(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    made, begun, go = profiling.profile_model, threading.Event(), threading.Event()

    def slowly(*args: object, **options: object) -> Profile:
        begun.set()
        assert go.wait(10)
        return made(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(profiling, "profile_model", slowly)
    with Server(models, engine=Gate(), port=0) as server:
        asking = Asking(server, models[0], 10.0)
        assert begun.wait(5)
        with Edge(server.address, models[0], at="input", engine=Gate()) as other:
            for _ in range(2):
                other.infer(np.zeros((1, 1024), np.float32))
            assert until(lambda: server.ledger.answered() == 2)
        go.set()
        profile = asking.end()
        assert isinstance(profile, Profile)
        assert profile.note == "2 requests were served meanwhile"
        quiet = Asking(server, models[0], 10.0, fresh=True).end()
        assert isinstance(quiet, Profile)
        assert quiet.note == ""


def test_who_waits_for_a_profile_hands_over_no_answers(models: list[Model]) -> None:
    """It sleeps between two looks, with a low priority maybe: requests on its connection are read by who made them."""
    gate, looked, look = Gate(is_open=False), threading.Event(), threading.Event()
    got: list[int] = []

    def pause(seconds: float) -> bool:
        looked.set()
        return not look.wait(20)

    with (
        Server(models, engine=gate, port=0) as server,
        Edge(server.address, models[0], at="input", engine=Gate()) as edge,
    ):

        def ask() -> None:
            request = wire.ProfileRequest(models[0].fingerprint, 10.0, False)
            _, frame = edge._channel.ask(Kind.PROFILE, request, wire.Profiled, 60.0, most=1 << 20, pause=pause)
            got.append(frame.nbytes)

        thread = threading.Thread(target=ask)
        thread.start()
        assert looked.wait(20)
        gate.open.set()
        for _ in range(3):
            edge.infer(np.zeros((1, 1024), np.float32))
        assert not got
        look.set()
        thread.join(20)
    assert len(got) == 1


def test_requests_that_leave_no_time_are_the_reason_for_none(
    models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **options: object) -> Profile:
        raise profiling.Enough

    monkeypatch.setattr(profiling, "profile_model", never)
    with Server(models, engine=Gate(), port=0) as server:
        edge = Edge(server.address, models[0], at="input", engine=Gate())
        with edge, pytest.raises(BusyError, match="requests leave this server no time to measure itself"):
            edge.profile_server(10.0, within_s=20.0)
        assert askers(server) == 0


def test_one_address_cannot_pile_up_requests_for_profiles(models: list[Model]) -> None:
    gate = Gate(is_open=False)
    with Server(models, engine=gate, port=0) as server, Edge(server.address, models[0], at="input") as edge:
        channel, most = edge._channel, accounts.MOST_PROFILES
        request = wire.ProfileRequest(models[0].fingerprint, 20.0)
        ids = [channel.reserve(most=1 << 20) for _ in range(most + 1)]
        for id in ids:
            channel.send(id, wire.encode(Kind.PROFILE, id, request))
        with pytest.raises(BusyError, match="by this address already"):
            channel.wait(ids[-1])
        gate.open.set()
        for id in ids[:-1]:
            assert channel.wait(id).kind == Kind.PROFILED
        assert until(lambda: not any(p.account.unanswered or p.account.origin.profiles for p in server._peers))


def test_the_end_of_the_server_answers_who_waits_for_a_turn(
    models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = threading.Event()

    def measured(model: Model, engine: Gate, *, proceed: Callable[[], None], **more: object) -> Profile:
        assert ending.wait(20)
        proceed()
        raise AssertionError("it is not measured to the end")

    monkeypatch.setattr(profiling, "profile_model", measured)
    server = Server(models, engine=Gate(), port=0)
    server.start()
    asking = [Asking(server, model, 20.0) for model in models]
    assert until(lambda: askers(server) == 3)
    closing = threading.Thread(target=server.close, args=(10.0,))
    closing.start()
    assert until(server.services.profiling._closed.is_set)
    ending.set()
    closing.join(10)
    assert not closing.is_alive()
    for one in asking:
        assert "ending" in str(one.end())


@pytest.mark.parametrize(("share", "limit"), [("model", 0.0), ("none", 60.0)])
def test_a_refusal_is_told_from_trouble(models: list[Model], share: str, limit: float) -> None:
    with Server(models, engine=Gate(), port=0, share=share, limits=Limits(profile_s=limit)) as server:
        assert isinstance(Asking(server, models[0], 5.0).end(), RefusedError)


def test_what_profiles_does_not_speak_of_answers_that_are_kept(models: list[Model]) -> None:
    gate = Gate(is_open=False)
    with Server(models, engine=gate, port=0) as server:
        asking = Asking(server, models[0], 20.0)
        assert until(lambda: askers(server) == 1)
        for peer in list(server._peers):  # the network fails
            peer.connection._sock.shutdown(socket.SHUT_RDWR)
        failed = asking.end()
        gate.open.set()
    assert isinstance(failed, ServerError)
    assert "answer" not in str(failed)
    assert "kept" not in str(failed)
