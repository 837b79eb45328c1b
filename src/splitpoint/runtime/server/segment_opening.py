"""OPEN and CLOSE on one connection: its tails by number, planned and compiled by the server's builders."""

from __future__ import annotations

import itertools
import threading
from contextlib import suppress
from functools import partial

from splitpoint import wire
from splitpoint.errors import BusyError, ModelError, ServerError, SplitpointError
from splitpoint.models.model import Model
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.accounts import Account
from splitpoint.runtime.server.fair_queue import WaitingJob
from splitpoint.runtime.server.requests import OpenedTail
from splitpoint.runtime.server.services import Replies, Services
from splitpoint.units import size
from splitpoint.wire import Frame, Kind

#: Tails that one connection may wait for.
_MOST_WAITING = 16


class SegmentOpener:
    """The tails of one connection, and those that it waits for. `batch`: whether answers say which ran as one."""

    def __init__(self, services: Services, account: Account, replies: Replies, *, batch: bool) -> None:
        self._services, self._account, self._replies, self._batch = services, account, replies, batch
        #: The open ones.
        self.tails: dict[int, OpenedTail] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """How many it waits for."""
        return self._waiting

    def open(self, frame: Frame) -> None:
        """Has a tail made, which is then said by OPENED or ERROR. SplitpointError if that is not even tried."""
        request = frame.header
        assert isinstance(request, wire.OpenRequest)
        services, builds = self._services, self._account.builds
        model = services.catalogue[request.fingerprint]
        named = (*request.inputs, *request.vectors, *request.outputs)
        if len(named) > 2 * len(model.specs):
            raise ModelError(f"{model.name} has {len(model.specs)} tensors: a segment between {len(named)} is none")
        model.check_names(named)
        if len(self.tails) + self._waiting >= services.limits.segments or self._waiting >= _MOST_WAITING:
            raise BusyError("too many segments are open on this connection: close some", 0.1)
        if services.ledger.draining:
            raise ServerError("the server is ending")
        make = partial(self._make, frame.id, model, request)
        self._wait(1)
        if not services.builders.submit(WaitingJob(builds, make, line=self._account, dropped=partial(self._wait, -1))):
            self._wait(-1)
            retry_s = services.builders.retry_after_s(builds)
            raise BusyError("the server has no room for more tails to compile: try again later", retry_s)

    def _wait(self, by: int) -> None:
        """It waits for so many more tails; fewer, if it is negative."""
        with self._lock:
            self._waiting += by

    def _make(self, id: int, model: Model, request: wire.OpenRequest, waited: float) -> None:
        try:
            self._answer(id, model, request)
        except Exception as exc:
            self._replies.give_up(id, exc)
        finally:
            self._wait(-1)
            if self._account.gone:  # it left meanwhile
                self.leave()

    def _answer(self, id: int, model: Model, request: wire.OpenRequest) -> None:
        try:
            with self._account.building():
                opened = self._build(model, request)
            number = next(self._numbers)
            self.tails[number] = opened
            reply = wire.Opened(
                number,
                tuple(map(wire.TensorInfo.of, (*opened.specs, *opened.vectors))),
                tuple(map(wire.TensorInfo.of, opened.tail.segment.outputs)),
                opened.tail.nbytes,
                opened.tail.compile_s,
            )
            self._replies.send(wire.encode(Kind.OPENED, id, reply))
        except SplitpointError as exc:
            self._replies.refuse(id, exc)
        except Exception as exc:  # the knife and the engine meet whatever a client names
            what = f"a tail for {self._account.name} cannot be built"
            self._replies.refuse(id, self._replies.hide(what, exc, "the tail cannot be built"))

    def _build(self, model: Model, request: wire.OpenRequest) -> OpenedTail:
        account = self._account
        boundary = (*request.inputs, *request.vectors)
        self._services.sharing.check_tail(model, request)
        segment = model.segment(boundary, request.outputs)
        if not segment.outputs:
            raise ModelError("a segment without outputs has nothing to compute")
        tail = self._services.runner.open(segment, account)
        text = f"{account.name} opened {model.name} from {wire.plain(', '.join(boundary), 80)}"
        fields = {"peer": account.name, "model": model.name, "nbytes": tail.nbytes, "compile_s": tail.compile_s}
        self._services.tell(Event("opened", f"{text} ({size(tail.nbytes)}, {tail.compile_s * 1e3:.0f} ms)", fields))
        return OpenedTail(tail, request.vectors, self._services.limits, batch=self._batch)

    def close(self, frame: Frame) -> None:
        """The client is done with a tail."""
        assert isinstance(frame.header, wire.Close)
        opened = self.tails.pop(frame.header.segment, None)
        if opened is not None:
            opened.tail.close(drop=True)

    def leave(self) -> None:
        """The connection has ended: nobody waits for what is to be made, or needs what is open."""
        self._services.builders.drop(self._account.builds, self._account)
        while self.tails:
            with suppress(KeyError):
                self.tails.popitem()[1].tail.close()
