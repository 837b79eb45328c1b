"""The models of a server, and what it hands out of them: everything, a head up to a cut that the operator names, or
nothing.

Which weights leave is settled when the server is made: nothing that a client asks for adds to them, and none is handed
out or compiled once its file has changed. Where a head is shared, tails are run from tensors that this head knows to
the model's own outputs, and no others: what a client can ask of them it could ask of the one tail behind that head,
too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from splitpoint import wire
from splitpoint.calibration.calibrations import Calibration
from splitpoint.calibration.tables import tables_of
from splitpoint.codecs.klt_tables import KltTables
from splitpoint.errors import ChangedError, CutError, ModelError, RefusedError, UsageError, nearest
from splitpoint.graph import Cut
from splitpoint.models.model import Model, Segment
from splitpoint.models.withheld_graph import inline_weights, weights_in_attributes, without_tail_weights
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.model_choice import info_of
from splitpoint.text import listed
from splitpoint.units import size

#: What a device can do where nothing is handed out.
_OWN_FILE = "give the model's own file (splitpoint run model.onnx …)"


class Catalogue:
    """`models` by fingerprint, several versions of one name among them. `tell` hears of each file that has changed.

    `infos` is what WELCOME says about each model, in the order given: once for each of its names. `tables` are those of
    `calibrations`, by fingerprint and tensor. InputError for one of another model, or that does not fit.
    """

    def __init__(self, models: Sequence[Model], tell: OnEvent, calibrations: Sequence[Calibration] = ()) -> None:
        by_fingerprint: dict[str, Model] = {}
        infos: dict[tuple[str, str], wire.ModelInfo] = {}
        told: dict[Path, object] = {}
        for model in models:  # the same one given twice is one model, under each of its names
            by_fingerprint.setdefault(model.fingerprint, replace(model, weights=_ServedWeights(model, tell, told)))
            infos.setdefault((model.name, model.fingerprint), info_of(model))
        self.models: Mapping[str, Model] = by_fingerprint
        self.tables: dict[str, dict[str, KltTables]] = {}
        for calibration in calibrations:
            model = by_fingerprint.get(calibration.fingerprint) or next(iter(by_fingerprint.values()))
            self.tables.setdefault(model.fingerprint, {}).update(tables_of(calibration, model))
        self.infos = tuple(infos.values())

    def __getitem__(self, fingerprint: str) -> Model:
        """ModelError says which ones there are."""
        model = self.models.get(fingerprint)
        if model is None:
            known = listed(f"{m.name} {m.fingerprint[:12]}" for m in self.models.values())
            near = nearest(fingerprint, {m.name: None for m in self.models.values()})
            raise ModelError(f"the server has no model {wire.plain(fingerprint, 64)}; it has {known}{near}")
        return model

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        """Fingerprint → what it is called."""
        names: dict[str, list[str]] = {}
        for info in self.infos:
            names.setdefault(info.fingerprint, []).append(info.name)
        return names


class _ServedWeights:
    """The weights of `model` as this server hands them out and compiles them: none that is no longer the one in its
    fingerprint. A client gets a RefusedError then, since asking again is of no use. `told`: of which files it is."""

    def __init__(self, model: Model, tell: OnEvent, told: dict[Path, object]) -> None:
        self._weights, self._name, self._tell, self._told = model.weights, model.name, tell, told

    def open(self, hash: str) -> memoryview:
        try:
            return self._weights.open(hash)
        except ChangedError as exc:
            name, path, mark = self._name, exc.path, object()
            if self._told.setdefault(path, mark) is mark:
                text = f"{exc}. Until then nothing new is made of {name}'s weights in it; what is compiled is served on"
                self._tell(Event("failed", text, {"model": name, "path": str(path)}))
            raise RefusedError(
                f"{path.name}, the server's file of {name}, has changed while it was served: start that server again"
            ) from exc


@dataclass(frozen=True)
class _SharedHead:
    """Of one model: all up to `cut`."""

    model: Model
    cut: Cut

    @cached_property
    def tensors(self) -> frozenset[str]:
        """What a tail may be fed."""
        return self.model.graph.before(self.cut)

    @cached_property
    def segment(self) -> Segment:
        return self.model.head(self.cut)

    @cached_property
    def _inline(self) -> Mapping[str, bytes]:
        return inline_weights(self.segment.proto.graph)

    @cached_property
    def weights(self) -> frozenset[str]:
        """Hashes of the weights that are handed out, those in the graph among them."""
        return frozenset((*self.segment.blobs, *self._inline))

    @cached_property
    def graph(self) -> bytes:
        """The model's graph without the tail's weights."""
        told = without_tail_weights(self.model.skeleton, self.segment.proto)
        return bytes(told.SerializeToString(deterministic=True))

    @property
    def nbytes(self) -> int:
        return self.segment.nbytes + sum(map(len, self._inline.values()))


class Sharing:
    """What of `models` (by fingerprint) is handed out; `names` are what each is called, `tables` those of its tensors.

    `share` is ``model``, ``none``, ``head:CUT``, or for some models ``head:MODEL=CUT``, also several of these.
    UsageError for what makes no sense, and where a head cannot be handed out without the rest.
    """

    def __init__(
        self, share: str | Sequence[str], models: Mapping[str, Model], names: Mapping[str, Sequence[str]],
        tables: Mapping[str, Mapping[str, KltTables]] = {},
    ) -> None:  # fmt: skip
        texts = [share] if isinstance(share, str) else list(share)
        kinds = {text.partition(":")[0] for text in texts}
        if len(kinds) != 1 or kinds - {"model", "head", "none"} or (kinds != {"head"} and texts != [*kinds]):
            raise UsageError(f"what is shared is model, head:CUT or none, not {' and '.join(texts) or 'nothing'}")
        #: As WELCOME says it: ``model``, ``head`` or ``none``.
        self.kind = kinds.pop()
        self._small: dict[str, Mapping[str, bytes]] = {}
        self._heads: dict[str, _SharedHead] = {}
        if self.kind == "head":
            self._heads = _heads([text.partition(":")[2] for text in texts], models, names)
        #: By fingerprint, (tensor, hash, bytes) of tables for tensors that are sent here: of a shared head's only.
        self._tables: dict[str, list[tuple[str, str, memoryview]]] = {}
        for fingerprint, of_model in tables.items():
            head = self._heads.get(fingerprint)
            told = [(n, t.hash, memoryview(t.to_bytes())) for n, t in of_model.items() if not head or n in head.tensors]
            self._tables[fingerprint] = told

    @property
    def heads(self) -> dict[str, str]:
        """Fingerprint → the deepest cut, where heads are shared."""
        return {fingerprint: head.cut.name for fingerprint, head in self._heads.items()}

    @property
    def said(self) -> Sequence[str]:
        """What leaves of each model of which a head is shared, for people."""
        return [
            f"{h.model.name}: the head up to {h.cut.name} may leave, {size(h.nbytes)} of its weights; the rest stays"
            for h in self._heads.values()
        ]

    def tables(self, fingerprint: str) -> tuple[tuple[str, str, int], ...]:
        """Which tables WELCOME says there are: all that what may be sent here is decoded with. Where nothing leaves,
        not even the tensors' names do: who has tables knows whose they are."""
        none = self.kind == "none"
        told = self._tables.get(fingerprint, ())
        return tuple(("" if none else name, hash, data.nbytes) for name, hash, data in told)

    # --- what is asked ----------------------------------------------------------------------------------------------

    def check_tail(self, model: Model, request: wire.OpenRequest) -> None:
        """RefusedError for a tail that would tell more than the one behind the shared head does."""
        if self.kind == "model":
            return
        if not {t.name for t in model.outputs}.issuperset(request.outputs):
            raise RefusedError(
                f"{model.name} is not shared as a whole: tails of it end at its own outputs, not at a tensor inside"
            )
        head = self._heads.get(model.fingerprint)
        if head is not None and not head.tensors.issuperset((*request.inputs, *request.vectors)):
            raise RefusedError(
                f"of {model.name} the head up to {head.cut.name} is shared (--share head:{head.cut.name}): "
                "cut there or before it, not deeper"
            )

    def graph(self, model: Model) -> tuple[bytes, Mapping[str, int]]:
        """The graph as it is handed out, and the bytes of all the model's weights by hash. RefusedError."""
        if self.kind == "none":
            raise RefusedError(f"the server hands out no models: {_OWN_FILE}")
        head = self._heads.get(model.fingerprint)
        return head.graph if head else model.graph_bytes(), {b.hash: b.nbytes for b in model.blobs.values()}

    def nbytes_of(self, model: Model, hash: str) -> int:
        """The bytes of a weight, or of tables, that may leave. RefusedError for one that may not, ModelError for one
        that is not."""
        if self.kind == "none":
            raise RefusedError(f"the server hands out no weights: {_OWN_FILE}")
        head = self._heads.get(model.fingerprint)
        if (tables := self._tables_called(model, hash)) is not None:
            return tables.nbytes
        if head is not None and hash not in head.weights:
            raise RefusedError(
                f"weight {hash[:12]} is not of the head that is shared (--share head:{head.cut.name}): cut at "
                f"{head.cut.name} or before it"
            )
        blob = model.blobs.get(hash)
        if blob is not None:
            return blob.nbytes
        small = self._inline(model).get(hash)
        if small is None:
            raise ModelError(f"{model.name} has no weight {hash[:64]}")
        return len(small)

    def open(self, model: Model, hash: str) -> memoryview:
        """Its bytes, after `nbytes_of` has said that it may leave."""
        if (tables := self._tables_called(model, hash)) is not None:
            return tables
        return model.blob(hash) if hash in model.blobs else memoryview(self._inline(model)[hash])

    def _tables_called(self, model: Model, hash: str) -> memoryview | None:
        return next((data for _, its, data in self._tables.get(model.fingerprint, ()) if its == hash), None)

    def _inline(self, model: Model) -> Mapping[str, bytes]:
        """A device may have the graph from where less of it was shared: what it then lacks is asked for by hash."""
        if model.fingerprint not in self._small:
            self._small[model.fingerprint] = inline_weights(model.skeleton.graph)
        return self._small[model.fingerprint]


def _heads(
    cuts: Sequence[str], models: Mapping[str, Model], names: Mapping[str, Sequence[str]]
) -> dict[str, _SharedHead]:
    """The head of each model that the texts behind ``head:`` name. UsageError."""
    example = next(iter(models.values()))
    if not all(cuts):
        raise UsageError(
            "--share head needs the deepest cut whose weights may leave, such as "
            f"--share head:{example.graph.middle().name} (splitpoint inspect {example.name} lists them)"
        )
    called = {name for known in names.values() for name in known}
    general: list[str] = []
    own: dict[str, str] = {}
    for text in cuts:
        name, equals, cut = text.partition("=")
        if equals and name in called:
            given = [f for f, known in names.items() if name in known]  # versions of one name
            if twice := next((f for f in given if own.get(f, cut) != cut), None):
                raise UsageError(f"--share names two cuts for {name}: {own[twice]} and {cut}")
            own.update(dict.fromkeys(given, cut))
        else:
            general.append(text)
    if len(general) > 1:
        raise UsageError(
            f"--share names {len(general)} cuts ({', '.join(general)}): say whose each is, as in "
            f"--share head:{example.name}={general[0]}"
        )
    heads = {}
    for fingerprint, model in models.items():
        cut = own.get(fingerprint, general[0] if general else "")
        if not cut:
            raise UsageError(f"--share says nothing of {model.name}: add --share head:{model.name}=CUT")
        heads[fingerprint] = _head(model, cut)
    return heads


def _head(model: Model, name: str) -> _SharedHead:
    try:
        cut = model.graph.cut(name)
    except CutError as exc:
        raise UsageError(f"--share head:{name}: {exc}") from exc
    # By a name that means the same wherever this graph is, and not "middle" or a number.
    head = _SharedHead(model, model.graph.cut_of(cut.nodes, model.graph.name_of(cut.nodes)))
    if set(model.blobs) <= head.weights and without_tail_weights(model.skeleton, head.segment.proto) == model.skeleton:
        raise UsageError(
            f"--share head:{name} would hand out all the weights of {model.name}: name a cut before the last of them, "
            "or say --share model"
        )
    if where := weights_in_attributes(model.skeleton, head.segment.proto):
        raise UsageError(
            f"--share head:{name} cannot keep the weights of {model.name}: the settings of node {where}, are part of "
            "the graph; share none, or cut behind that node"
        )
    return head
