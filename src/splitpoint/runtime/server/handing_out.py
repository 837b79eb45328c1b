"""What a client asks for besides computing: graphs, weights, this machine's profile, and bytes to measure the link."""

from __future__ import annotations

from time import perf_counter

from splitpoint import wire
from splitpoint.errors import BusyError, InputError, RefusedError, SplitpointError
from splitpoint.models.model import Model
from splitpoint.runtime.probe.link_probe import MOST_NBYTES, noise
from splitpoint.runtime.server.accounts import MOST_PROFILES, Account
from splitpoint.runtime.server.services import Replies, Services
from splitpoint.wire import Frame, Kind

#: Weights that one address may ask for in turns, a piece of each, without having them read anew.
_GIVING = 4


class HandingOut:
    """Answers GRAPH, BLOB, PROFILE, PROBE and PING of one connection."""

    def __init__(self, services: Services, account: Account, replies: Replies) -> None:
        self._services, self._account, self._replies = services, account, replies
        self._most_probe = min(services.limits.blob_chunk, MOST_NBYTES)

    def ping(self, frame: Frame) -> None:
        assert isinstance(frame.header, wire.Ping)
        pong = wire.Pong(frame.header.clock_s, frame.started, perf_counter())
        self._replies.send(wire.encode(Kind.PONG, frame.id, pong))

    def admit_probe(self, frame: Frame) -> InputError | None:
        """Why a PROBE's body is not received."""
        if frame.nbytes > self._most_probe:
            return InputError(f"a PROBE of {frame.nbytes} bytes is over the limit, {self._most_probe}")
        return None

    def probe(self, frame: Frame) -> None:
        """Sends as many bytes as are asked for, and when the PROBE's own were here."""
        assert isinstance(frame.header, wire.Probe)
        nbytes = frame.header.reply_nbytes
        if nbytes > self._most_probe:
            raise InputError(f"a PROBE that asks for {nbytes} bytes is over the limit, {self._most_probe}")
        if nbytes and (wait_s := self._account.may_probe(nbytes)):
            raise BusyError("links of this address are measured too often", wait_s)
        probed = wire.Probed(frame.started, frame.received, perf_counter())
        body = (noise(nbytes),) if nbytes else ()
        # Waits, like a blob: who asks for more than it reads is not read from.
        self._replies.send(wire.encode(Kind.PROBED, frame.id, probed, body, nbytes), wait=True)

    def graph(self, frame: Frame) -> None:
        assert isinstance(frame.header, wire.GraphRequest)
        model = self._services.catalogue[frame.header.fingerprint]
        data, blobs = self._services.sharing.graph(model)
        reply = wire.GraphData(model.fingerprint, model.name, tuple(blobs.items()))
        self._replies.send(wire.encode(Kind.GRAPH_DATA, frame.id, reply, (data,), len(data)))

    def blob(self, frame: Frame) -> None:
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
        origin = self._account.origin
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

    def profile(self, frame: Frame) -> None:
        request = frame.header
        assert isinstance(request, wire.ProfileRequest)
        services, account, replies = self._services, self._account, self._replies
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

    def leave(self) -> None:
        """The connection has ended: no profile is made for it any more."""
        if self._services.profiling is not None:
            self._account.end_profiles(self._services.profiling.forget(self._account))
