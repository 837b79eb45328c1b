"""The models of a server, by fingerprint; none of their weights is handed out or compiled once its file has changed."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from splitpoint import wire
from splitpoint.errors import ChangedError, ModelError, RefusedError, nearest
from splitpoint.models.model import Model
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.model_choice import info_of
from splitpoint.text import listed


class Catalogue:
    """`models` by fingerprint, several versions of one name among them. `tell` hears of files that have changed."""

    def __init__(self, models: Sequence[Model], tell: OnEvent) -> None:
        self._models: dict[str, Model] = {}
        self._infos: dict[tuple[str, str], wire.ModelInfo] = {}
        changed = _ChangedFiles(tell)
        for model in models:  # the same one given twice is one model, under each of its names
            self._models.setdefault(model.fingerprint, replace(model, weights=_ServedWeights(model, changed)))
            self._infos.setdefault((model.name, model.fingerprint), info_of(model))

    def __getitem__(self, fingerprint: str) -> Model:
        """ModelError says which ones there are."""
        model = self._models.get(fingerprint)
        if model is None:
            known = listed(f"{m.name} {m.fingerprint[:12]}" for m in self._models.values())
            near = nearest(fingerprint, {m.name: None for m in self._models.values()})
            raise ModelError(f"the server has no model {wire.plain(fingerprint, 64)}; it has {known}{near}")
        return model

    @property
    def models(self) -> Mapping[str, Model]:
        """Fingerprint → model."""
        return self._models

    @property
    def names(self) -> Mapping[str, Sequence[str]]:
        """Fingerprint → what it is called."""
        names: dict[str, list[str]] = {}
        for name, fingerprint in self._infos:
            names.setdefault(fingerprint, []).append(name)
        return names

    @property
    def infos(self) -> tuple[wire.ModelInfo, ...]:
        """What WELCOME says about each model, in the order given: once for each of its names."""
        return tuple(self._infos.values())


class _ChangedFiles:
    """Tells once of each file that is no longer what it was."""

    def __init__(self, tell: OnEvent) -> None:
        self._tell, self._lock = tell, threading.Lock()
        self._told: set[Path] = set()

    def tell(self, model: str, exc: ChangedError) -> None:
        with self._lock:
            if exc.path in self._told:
                return
            self._told.add(exc.path)
        text = f"{exc}. Until then nothing new is made of {model}'s weights in it; what is compiled is served on"
        self._tell(Event("failed", text, {"model": model, "path": str(exc.path)}))


class _ServedWeights:
    """The weights of `model` as this server hands them out and compiles them: none that is no longer the one in its
    fingerprint. A client gets a RefusedError then, since asking again is of no use."""

    def __init__(self, model: Model, changed: _ChangedFiles) -> None:
        self._weights, self._name, self._changed = model.weights, model.name, changed

    def open(self, hash: str) -> memoryview:
        try:
            return self._weights.open(hash)
        except ChangedError as exc:
            self._changed.tell(self._name, exc)
            raise RefusedError(
                f"{exc.path.name}, the server's file of {self._name}, has changed while it was served: "
                "start that server again"
            ) from exc
