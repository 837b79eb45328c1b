"""One connected client as the server sees it: a thread that receives, which frame goes where, and what is answered
right there: graphs, weights, this machine's profile, and bytes to measure the link.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from time import perf_counter, sleep, thread_time

import msgspec

from splitpoint import wire
from splitpoint.errors import BusyError, InputError, ProtocolError, RefusedError, ServerError, SplitpointError
from splitpoint.models.model import Model
from splitpoint.runtime.events import Event, software
from splitpoint.runtime.probe.link_probe import MOST_NBYTES, noise
from splitpoint.runtime.server.accounts import MOST_PROFILES, Account
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
#: What a client has agreed on that can use tables.
_TABLED = wire.codec_feature("klt")
#: Weights that one address may ask for in turns, a piece of each, without having them read anew.
_GIVING = 4


class Peer:
    """A client that has been let in, and the thread that receives from it: the one that makes this object."""

    def __init__(
        self, services: Services, connection: Connection, account: Account, hello: Frame, left: Callable[[Peer], None]
    ) -> None:
        """`left` is told when nothing is left of its connection."""
        self.account, self.connection, self.name = account, connection, account.name
        self.bytes_in = 0
        self._services, self._left, self._hello_id = services, left, hello.id
        assert isinstance(hello.header, wire.Hello)
        self._hello = hello.header
        self._features = tuple(f for f in (*wire.features(), wire.CRC32) if f in set(self._hello.features))
        self._replies = Replies(connection, services.tell)
        self.requests = Requests(services, account, self._replies, batch=wire.BATCH in self._features)
        self._most_probe = min(services.limits.blob_chunk, MOST_NBYTES)
        self._handlers: dict[int, Callable[[Frame], None]] = {
            Kind.PING: self._ping,
            Kind.PROBE: self._probe,
            Kind.GRAPH: self._graph,
            Kind.BLOB: self._blob,
            Kind.PROFILE: self._profile,
            Kind.OPEN: self.requests.open,
            Kind.CLOSE: self.requests.close,
        }
        self.thread = threading.current_thread()

    # --- the conversation ---------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answers HELLO and whatever comes then, until the connection ends."""
        why = ""
        began = perf_counter()
        try:
            self._welcome()
            self._converse()
        except Exception as exc:
            why = self._replies.last_word(exc)
        finally:
            self._leave(why, perf_counter() - began)

    def _welcome(self) -> None:
        services, limits = self._services, self._services.limits
        told = {f.name: getattr(limits, f.name) for f in dataclasses.fields(limits) if f.type == "int"}
        self.connection.agree(self._features)
        welcome = wire.Welcome(
            software=software(),
            features=self._features,
            models=self._models(),
            share=services.sharing.kind,
            limits=dict(sorted(told.items())),
            heads=services.sharing.heads,
        )
        if identity := self.connection.identity:
            self.account.identify(identity)
        self.connection.share(self.account.origin.backlog)
        self._replies.send(wire.encode(Kind.WELCOME, self._hello_id, welcome))
        who = self._hello.software or "a client"
        if identity:
            who = f"{who}, with the certificate of {wire.plain(identity, 80)}"
        fields = {"peer": self.name, "software": self._hello.software, "identity": identity}
        services.tell(Event("connected", f"{self.name} connected ({who})", fields))

    def _models(self) -> tuple[wire.ModelInfo, ...]:
        """What WELCOME says of the models: with the tables of codecs, if the client knows those codecs."""
        services, infos = self._services, self._services.catalogue.infos
        if _TABLED not in self._features:
            return infos
        told = services.sharing.tables
        return tuple(msgspec.structs.replace(info, tables=told(info.fingerprint)) for info in infos)

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
            return self._admit_probe(frame) if type(header) is wire.Probe else None

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

    # --- what it asks for besides computing -----------------------------------------------------------------------

    def _ping(self, frame: Frame) -> None:
        assert isinstance(frame.header, wire.Ping)
        pong = wire.Pong(frame.header.clock_s, frame.started, perf_counter())
        self._replies.send(wire.encode(Kind.PONG, frame.id, pong))

    def _admit_probe(self, frame: Frame) -> InputError | None:
        """Why a PROBE's body is not received."""
        if frame.nbytes > self._most_probe:
            return InputError(f"a PROBE of {frame.nbytes} bytes is over the limit, {self._most_probe}")
        return None

    def _probe(self, frame: Frame) -> None:
        """Sends as many bytes as are asked for, and when the PROBE's own were here."""
        assert isinstance(frame.header, wire.Probe)
        nbytes = frame.header.reply_nbytes
        if nbytes > self._most_probe:
            raise InputError(f"a PROBE that asks for {nbytes} bytes is over the limit, {self._most_probe}")
        if nbytes and (wait_s := self.account.may_probe(nbytes)):
            raise BusyError("links of this address are measured too often", wait_s)
        probed = wire.Probed(frame.started, frame.received, perf_counter())
        body = (noise(nbytes),) if nbytes else ()
        # Waits, like a blob: who asks for more than it reads is not read from.
        self._replies.send(wire.encode(Kind.PROBED, frame.id, probed, body, nbytes), wait=True)

    def _graph(self, frame: Frame) -> None:
        assert isinstance(frame.header, wire.GraphRequest)
        model = self._services.catalogue[frame.header.fingerprint]
        data, blobs = self._services.sharing.graph(model)
        reply = wire.GraphData(model.fingerprint, model.name, tuple(blobs.items()))
        self._replies.send(wire.encode(Kind.GRAPH_DATA, frame.id, reply, (data,), len(data)))

    def _blob(self, frame: Frame) -> None:
        request = frame.header
        assert isinstance(request, wire.BlobRequest)
        model = self._services.catalogue[request.fingerprint]
        nbytes = self._services.sharing.nbytes_of(model, request.hash)
        if request.offset > nbytes:
            raise InputError(f"weight {request.hash[:12]}… has {nbytes} bytes: {request.offset} is past its end")
        length = min(request.length or nbytes, self._services.limits.blob_chunk)
        part = self._piece(model, request.hash, request.offset, length)
        reply = wire.BlobData(request.hash, request.offset, nbytes)
        body = (part,) if part.nbytes else ()
        self._replies.send(wire.encode(Kind.BLOB_DATA, frame.id, reply, body, part.nbytes), wait=True)

    def _piece(self, model: Model, hash: str, offset: int, length: int) -> memoryview:
        """That much of a weight. It is asked for piece by piece, and must not be read and hashed anew for each."""
        origin = self.account.origin
        giving = origin.giving
        with origin.reading:
            blob = giving.pop(hash, None)
            if blob is None:
                blob = self._services.sharing.open(model, hash).cast("B")
            if offset + length < blob.nbytes:
                giving[hash] = blob
                if len(giving) > _GIVING:
                    del giving[next(iter(giving))]
        return blob[offset : offset + length]

    def _profile(self, frame: Frame) -> None:
        request = frame.header
        assert isinstance(request, wire.ProfileRequest)
        services, account, replies = self._services, self.account, self._replies
        model = services.catalogue[request.fingerprint]
        profiling = services.profiling
        if profiling is None:
            raise RefusedError("the tails of this server are computed elsewhere: it has no profile of that")
        if services.sharing.kind == "none":
            raise RefusedError(
                "the server hands out no models, and a profile has the model's graph in it: make it on the server "
                "itself (splitpoint profile MODEL -o cloud.profile.json)"
            )

        def answer(profile: bytes | SplitpointError) -> None:
            account.end_profiles()
            if isinstance(profile, SplitpointError):
                replies.refuse_request(frame.id, profile)
            else:
                header = wire.Profiled(model.fingerprint)
                replies.send(wire.encode(Kind.PROFILED, frame.id, header, (profile,), len(profile)))

        if not account.ask_profile():
            busy = BusyError(f"{MOST_PROFILES} profiles are asked for by this address already", 1.0)
            replies.refuse_request(frame.id, busy)
            return
        try:
            profiling.ask(model, request.budget_s, answer, account, account.origin, fresh=request.fresh)
        except SplitpointError as exc:
            answer(exc)

    # --- the end ------------------------------------------------------------------------------------------------

    def say_bye(self, reason: str = "the server is ending") -> None:
        """Tells the client that no new requests are taken, and why."""
        self._replies.send(wire.encode(Kind.BYE, 0, wire.Bye(reason)))

    def _leave(self, why: str, seconds: float) -> None:
        self.connection.close(1.0 if why else 0.2)
        self.account.end()
        self.requests.leave()
        if self._services.profiling is not None:  # none is made for it any more
            self.account.end_profiles(self._services.profiling.forget(self.account))
        self.account.leave()
        self._left(self)
        self._handlers.clear()  # they know this object
        answers, sent = self.account.answers, self.connection.sent_nbytes
        fields = {"peer": self.name, "answers": answers, "bytes_in": self.bytes_in, "bytes_out": sent}
        if why:
            why = wire.plain(why)
            self._services.tell(Event("refused", f"{self.name} disconnected: {why}", {**fields, "why": why}))
        else:
            text = f"{counted(answers, 'request')}, {size(self.bytes_in)} in, {size(sent)} out, {seconds:.1f} s"
            self._services.tell(Event("left", f"{self.name} left: {text}", {**fields, "seconds": seconds}))
