"""One connected client as the server sees it: a thread that receives, and which frame goes where."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from time import perf_counter, sleep, thread_time

from splitpoint import wire
from splitpoint.errors import BusyError, ProtocolError, ServerError, SplitpointError
from splitpoint.runtime.events import Event, software
from splitpoint.runtime.server.accounts import Account
from splitpoint.runtime.server.handing_out import HandingOut
from splitpoint.runtime.server.requests import REFUSED_S, Requests, outcome_of
from splitpoint.runtime.server.services import Replies, Services
from splitpoint.transports import Connection
from splitpoint.units import counted, size
from splitpoint.wire import Frame, Kind

_INFER = int(Kind.INFER)
#: What a frame that is no request costs before anything is done with it (seconds of the processor), and a byte of its
#: header: what has been read and decoded when its kind is known.
_FRAME_S, _BYTE_S = 50e-6, 5e-9
#: A request whose header is larger than any of our own pays for it too.
_PLAIN_HEADER = 4096
#: The longest that a connection is not read from because its address has talked too much.
_PAUSE_S = 10.0


class Peer:
    """A client that has been let in, and the thread that receives from it: the one that makes this object."""

    def __init__(
        self,
        services: Services,
        connection: Connection,
        account: Account,
        hello: wire.Hello,
        left: Callable[[Peer], None],
    ) -> None:
        """`left` is told when nothing is left of its connection."""
        self.account, self.connection, self.name = account, connection, account.name
        self.bytes_in = 0
        self._services, self._left = services, left
        self._features = tuple(f for f in (*wire.features(), wire.CRC32) if f in set(hello.features))
        self._replies = Replies(connection, services.tell)
        self.requests = Requests(services, account, self._replies, batch=wire.BATCH in self._features)
        self._out = HandingOut(services, account, self._replies)
        self._handlers: Mapping[int, Callable[[Frame], None]] = {
            Kind.PING: self._out.ping,
            Kind.PROBE: self._out.probe,
            Kind.GRAPH: self._out.graph,
            Kind.BLOB: self._out.blob,
            Kind.PROFILE: self._out.profile,
            Kind.OPEN: self.requests.open,
            Kind.CLOSE: self.requests.close,
        }
        self.thread = threading.current_thread()

    # --- the conversation ---------------------------------------------------------------------------------------

    def serve(self, hello: Frame) -> None:
        """Answers HELLO and whatever comes then, until the connection ends."""
        why = ""
        began = perf_counter()
        try:
            self._welcome(hello)
            self._converse()
        except Exception as exc:
            why = self._replies.last_word(exc)
        finally:
            self._leave(why, perf_counter() - began)

    def _welcome(self, hello: Frame) -> None:
        header, services = hello.header, self._services
        assert isinstance(header, wire.Hello)
        limits = services.limits
        told = {f.name: getattr(limits, f.name) for f in dataclasses.fields(limits) if f.type == "int"}
        self.connection.agree(self._features)
        welcome = wire.Welcome(
            software=software(),
            features=self._features,
            models=services.catalogue.infos,
            share=services.sharing.kind,
            limits=dict(sorted(told.items())),
            heads=services.sharing.heads,
        )
        if identity := self.connection.identity:
            self.account.identify(identity)
        self.connection.share(self.account.origin.backlog)
        self._replies.send(wire.encode(Kind.WELCOME, hello.id, welcome))
        who = header.software or "a client"
        if identity:
            who = f"{who}, with the certificate of {wire.plain(identity, 80)}"
        fields = {"peer": self.name, "software": header.software, "identity": identity}
        services.tell(Event("connected", f"{self.name} connected ({who})", fields))

    def _converse(self) -> None:
        limits = self._services.limits
        receive, admit, infer = self.connection.receive, self._admit, self.requests.infer
        idle = limits.idle_s or None
        while True:
            try:
                frame = receive(timeout_s=idle, admit=admit)
            except TimeoutError:
                if self.account.unanswered:
                    continue
                self.say_bye(f"nothing was asked for {limits.idle_s:g} s")
                return
            self.bytes_in += frame.nbytes
            if frame.refused is None and frame.kind == _INFER:
                infer(frame)
                if frame.header_nbytes > _PLAIN_HEADER:
                    self._pay(frame.header_nbytes * _BYTE_S)
            elif frame.kind == Kind.BYE:
                return
            else:
                began_s = thread_time()
                self._answer(frame)
                self._pay(_FRAME_S + frame.header_nbytes * _BYTE_S + thread_time() - began_s)
            # Before the next one's memory is allocated: so that it is the same, and still in the processor's cache.
            del frame

    def _admit(self, frame: Frame) -> SplitpointError | None:
        """Whether a frame's body is worth receiving; looked at for one connection of an address at a time.

        The others sleep meanwhile, and do not ask for the interpreter: else a hundred connections that all have
        something to say are a hundred threads before everybody else's.
        """
        with self.account.origin.turn:
            header = frame.header
            if type(header) is wire.Infer:
                return self.requests.admit(frame, header)
            return self._out.admit_probe(frame) if type(header) is wire.Probe else None

    def _answer(self, frame: Frame) -> None:
        """Does what a frame asks for that is no request, or is refused."""
        if frame.refused is not None:
            if frame.kind == _INFER:
                self.account.refused(outcome_of(frame.refused))
            self._replies.refuse_request(frame.id, frame.refused)
            if isinstance(frame.refused, BusyError):
                # Whoever asks again before that waits for it here: refusing must cost less than asking.
                sleep(min(frame.refused.retry_after_s, REFUSED_S))
        elif (handler := self._handlers.get(frame.kind)) is not None:
            try:
                handler(frame)
            except ProtocolError:
                raise
            except SplitpointError as exc:
                self._replies.refuse(frame.id, exc)
        elif frame.header is not None:
            raise ProtocolError(f"a client does not send {wire.describe(frame.kind)}")
        else:
            self._replies.refuse(frame.id, ServerError(f"{wire.describe(frame.kind)} is not known here"))

    def _pay(self, seconds: float) -> None:
        """Counts `seconds` of the processor to its account, and stops reading for a while if that is overdrawn."""
        if pause_s := self.account.charge(seconds):
            self._services.pause(min(pause_s, _PAUSE_S))

    # --- the end ------------------------------------------------------------------------------------------------

    def say_bye(self, reason: str = "the server is ending") -> None:
        """Tells the client that no new requests are taken, and why."""
        self._replies.send(wire.encode(Kind.BYE, 0, wire.Bye(reason)))

    def _leave(self, why: str, seconds: float) -> None:
        self.connection.close(1.0 if why else 0.2)
        self.account.end()
        self.requests.leave()
        self._out.leave()
        self.account.leave()
        self._left(self)
        answers, sent = self.account.answers, self.connection.sent_nbytes
        fields = {"peer": self.name, "answers": answers, "bytes_in": self.bytes_in, "bytes_out": sent}
        if why:
            why = wire.plain(why)
            self._services.tell(Event("refused", f"{self.name} disconnected: {why}", {**fields, "why": why}))
        else:
            text = f"{counted(answers, 'request')}, {size(self.bytes_in)} in, {size(sent)} out, {seconds:.1f} s"
            self._services.tell(Event("left", f"{self.name} left: {text}", {**fields, "seconds": seconds}))
