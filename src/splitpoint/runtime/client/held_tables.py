"""Tables of codecs on this device: of its own calibration, or the server's, which are fetched by hash and kept with the
weights. They are always those of the very tensor, and such as the server has, too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import msgspec

from splitpoint.calibration.calibrations import Calibration
from splitpoint.calibration.tables import fits, levels_within, tables_of
from splitpoint.codecs import Codec, needs_tables, open_codec
from splitpoint.codecs.klt import LEVELS, Klt, outside_of_range
from splitpoint.codecs.klt_tables import MAX_TABLES_BYTES, KltTables
from splitpoint.codecs.untabled import Untabled
from splitpoint.errors import InputError, ModelError, SplitpointError, StorageError
from splitpoint.runtime.client import Remote
from splitpoint.runtime.client.held_weights import Holding, fetch, most_piece
from splitpoint.runtime.codec_choice import UNBOUNDED, FrameBudget
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.tensors import Array
from splitpoint.text import listed
from splitpoint.units import size

#: A tensor is outside of what was calibrated where more than this share of its values are. Of EfficientNet-Lite0's
#: blocks.5 with tables from 24 crops of four photos, at most 0.8 % are for other crops of them; for four times the
#: values, 1.2 %.
_FEW = 0.01
#: So many inputs in a row with values far outside of what was calibrated, and it is told.
_MISFITS = 3
#: What a tensor travels as where there are no tables for it that both sides have.
INSTEAD = "int8"


class HeldTables:
    """For `holding`'s model; `calibration` is this device's own, if it has one, and says how coarse `budget` lets a
    frame be. InputError if that is of another model."""

    def __init__(
        self, holding: Holding, calibration: Calibration | None, on_event: OnEvent, budget: FrameBudget = UNBOUNDED
    ) -> None:  # fmt: skip
        self._holding, self._tell = holding, on_event
        self._calibration, self._budget = calibration, budget
        self._own = {} if calibration is None else tables_of(calibration, holding.model, "the calibration given here")
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], KltTables] = {}
        self._codecs: dict[tuple[str, str, str], Codec] = {}
        self._said: set[str] = set()
        self._misfits: dict[str, int] = {}
        #: Tensors that were encoded although some of their values were far outside of what was calibrated.
        self.outside = 0

    def usable(self, remote: Remote) -> Calibration | None:
        """This device's own calibration without what was measured with other tables than `remote` has: that says
        nothing of what would be sent. What is left out is told."""
        known, info = self._calibration, self._holding.info
        offer = next((m.tables for m in remote.offer.models if m.fingerprint == info.fingerprint), None)
        if known is None or offer is None:
            return known
        theirs = {hash for _, hash, _ in offer}
        lacking = {name for name, own in self._own.items() if own.hash not in theirs}
        if not lacking:
            return known
        self._say(
            f"the server has no such tables as the calibration given here for {listed(sorted(lacking))}: "
            "what klt keeps there is not known (serve --calibration FILE gives it the same)", "",
        )  # fmt: skip
        names = [{t.name for t in cut.crossing} for cut in self._holding.model.graph.prefixes()]
        rows = [r for r in known.rows if not needs_tables(r.codec) or lacking.isdisjoint(names[r.prefix])]
        return msgspec.structs.replace(known, rows=tuple(rows)) if rows else None

    def bind(self, asked: Mapping[str, Codec], remote: Remote) -> Mapping[str, Codec]:
        """`asked`, codecs by tensor, with the tables that they need and `remote` has too. Where there are none for a
        tensor it gets `INSTEAD`, and it is told why."""
        if not any(isinstance(codec, Untabled) for codec in asked.values()):
            return asked
        with self._lock:
            return {n: self._bound(n, c, remote) if isinstance(c, Untabled) else c for n, c in asked.items()}

    def _bound(self, name: str, codec: Untabled, remote: Remote) -> Codec:
        try:
            tables = self._tables(name, remote)
        except SplitpointError as exc:  # of a server that is gone, too: it is asked again when it is back
            self._say(f"{name} travels as {INSTEAD} instead of {codec.name}: {exc}", name)
            return open_codec(INSTEAD)
        key = (codec.name, name, tables.hash)
        if key not in self._codecs:
            coarsest = self._coarsest(name, tables)
            self._codecs[key] = _Watched(codec.name, tables, partial(self._encoded, name), coarsest)
        return self._codecs[key]

    def _coarsest(self, name: str, tables: KltTables) -> int:
        """The level that no frame is encoded coarser than; a codec's own may be coarser still."""
        most, own = self._budget.max_drop, self._own.get(name)
        if most is None:
            return LEVELS[0]
        if self._calibration is None or own is None or own.hash != tables.hash:
            return LEVELS[-1]  # nothing is known of the tables that are used
        shown = levels_within(self._calibration, self._holding.model.graph, name, most)
        return min(shown, default=LEVELS[-1])

    def _tables(self, name: str, remote: Remote) -> KltTables:
        """Those that both sides have for the tensor `name`. SplitpointError says why there are none."""
        own, info = self._own.get(name), self._holding.info
        offer = next((m.tables for m in remote.offer.models if m.fingerprint == info.fingerprint), None)
        if offer is None:
            if own is None:
                raise ModelError("the server, which may have tables for it, is not there yet")
            return own
        if own is not None and own.hash in {hash for _, hash, _ in offer}:
            return own
        theirs = next(((hash, nbytes) for tensor, hash, nbytes in offer if tensor == name), None)
        mine = f"the calibration given here has tables {own.hash[:12]} for {name}, " if own is not None else ""
        if theirs is None:
            theirs_are = "hands out none (--calibration FILE gives them)" if any(offer) else "has no tables for it"
            raise ModelError(f"{mine}which the server does not have" if mine else f"the server {theirs_are}")
        if mine:
            self._say(f"{mine}and the server {theirs[0][:12]}: the server's are used", name)
        return self._fetched(name, *theirs, remote)

    def _fetched(self, name: str, hash: str, nbytes: int, remote: Remote) -> KltTables:
        if (name, hash) in self._held:
            return self._held[name, hash]
        if nbytes > MAX_TABLES_BYTES:
            raise StorageError(
                f"its tables have {size(nbytes)} at the server, and {size(MAX_TABLES_BYTES)} are the most"
            )
        tables = KltTables.from_bytes(self._bytes(name, hash, nbytes, remote))
        if not fits(self._holding.model.specs[name], tables):
            shape = ",".join(map(str, tables.shape))
            raise InputError(f"the server's tables for it are of another tensor, [batch,{shape}]")
        self._held[name, hash] = tables
        return tables

    def _bytes(self, name: str, hash: str, nbytes: int, remote: Remote) -> bytes:
        """The bytes with that hash; what is missing in the cache, or has rotted there, is fetched."""
        info, cache = self._holding.info, self._holding.cache
        with suppress(StorageError):
            if hash in cache:
                return bytes(cache.open(hash, nbytes))
        channel = remote.channel()
        fetch(channel, info.fingerprint, [(hash, nbytes)], cache, most_piece(channel))
        fields = {"model": info.name, "tensor": name, "nbytes": nbytes}
        self._tell(Event("fetched", f"fetched the tables for {name} ({size(nbytes)})", fields))
        return bytes(cache.open(hash, nbytes))

    def _encoded(self, name: str, outside: int) -> None:
        """The tensor was encoded; so many of its values were `outside`. They are exact, but take their bytes; where it
        is too many the tensor travels as `INSTEAD`."""
        if not outside:
            self._misfits[name] = 0
            return
        self.outside += 1
        self._misfits[name] = misfits = self._misfits.get(name, 0) + 1
        if misfits == _MISFITS:
            self._say(
                f"the calibration no longer fits {name}: {misfits} inputs in a row had values far outside of what it "
                "has seen; calibrate again with inputs like these, or use another codec",
                name,
            )

    def _say(self, text: str, tensor: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._tell(Event("notice", text, {"tensor": tensor}))


def without_tables(codecs: Mapping[str, Codec]) -> Mapping[str, Codec]:
    """`codecs` with `INSTEAD` for each that has tables: for values that these cannot express."""
    return {name: open_codec(INSTEAD) if isinstance(codec, Klt) else codec for name, codec in codecs.items()}


class _Watched(Klt):
    """Tells after each encoding how many values were outside of what was calibrated. It is never coarser than the level
    `coarsest`, or its own."""

    def __init__(self, name: str, tables: KltTables, encoded: Callable[[int], None], coarsest: int) -> None:
        super().__init__(name, tables)
        self._encoded, self.coarsest = encoded, coarsest

    def encode(self, array: Array) -> Array:
        return self._told(array, lambda: (super(_Watched, self).encode(array), ""))[0]

    def fit(self, array: Array, max_bytes: int) -> tuple[Array, str]:
        return self._told(array, lambda: super(_Watched, self).fit(array, max_bytes))

    def _told(self, array: Array, make: Callable[[], tuple[Array, str]]) -> tuple[Array, str]:
        try:
            made = make()
        except InputError:
            self._encoded(array.size)
            raise
        if len(array):
            outside = outside_of_range(made[0], len(array))
            self._encoded(outside if outside > _FEW * array.size else 0)
        return made
