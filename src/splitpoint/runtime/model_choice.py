"""Which of a server's models is meant: by name, by fingerprint, by a model that is here, or the only one there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from splitpoint.errors import ModelError, UsageError, nearest
from splitpoint.images import InputSpec
from splitpoint.models.layer_names import metadata
from splitpoint.models.model import Model
from splitpoint.models.names import names_of
from splitpoint.text import listed
from splitpoint.wire import ModelInfo, TensorInfo


def choose_model(served: Sequence[ModelInfo], model: Model | str | None, model_hash: str | None) -> ModelInfo:
    """The one that is meant; ModelError if the server does not have it, UsageError if it could be several."""
    served = list({(m.name, m.fingerprint): m for m in served}.values())
    found = _named(served, model, model_hash)
    if model_hash is not None:
        found = _pinned(served, found, model_hash)
    if not found:
        raise ModelError("the server has no model")
    if (
        len({m.fingerprint for m in found}) > 1
    ):  # a fleet moves to a new version edge by edge: which one is never a guess
        names = {m.name for m in found}
        called = f"called {found[0].name}" if len(names) == 1 else "that fit"
        raise UsageError(
            f"the server has {len(found)} models {called}: {_listed(found)}; "
            "name one by its fingerprint or pin it with --model-hash"
        )
    return found[0]


def _named(served: Sequence[ModelInfo], model: Model | str | None, model_hash: str | None) -> Sequence[ModelInfo]:
    if isinstance(model, Model):
        same = (m for m in served if m.fingerprint == model.fingerprint)
        found = sorted(same, key=lambda m: m.name != model.name)
        if not found:
            raise ModelError(missing(served, model))
        return found
    if model is None:
        if len({m.name for m in served}) > 1 and len({m.fingerprint for m in served}) > 1 and not model_hash:
            raise UsageError(f"the server has several models, so name one: {_listed(served)}")
        return served
    named = _called(served, model) or _with_prefix(served, model)
    if not named:
        close = nearest(model, {m.name: None for m in served})
        raise ModelError(f"the server has no model {model}{close} (it has {_listed(served)})")
    return named


def _called(served: Sequence[ModelInfo], model: str) -> Sequence[ModelInfo]:
    """Those of the first name of `model` that is served: what it is short for comes after what it is."""
    wanted = next((name for name in names_of(model) if any(m.name == name for m in served)), model)
    return [m for m in served if m.name == wanted]


def _pinned(served: Sequence[ModelInfo], found: Iterable[ModelInfo], model_hash: str) -> Sequence[ModelInfo]:
    pinned = _with_prefix(found, model_hash)
    if not pinned:
        raise ModelError(
            f"the server's model is not the pinned one, {model_hash[:12]}: it has {_listed(served)}; "
            "use another --model-hash only if you know why it changed"
        )
    return pinned


def missing(served: Iterable[ModelInfo], model: Model) -> str:
    """What to say of a server that has others, and not this one."""
    return f"the server does not have this {model.name} ({model.fingerprint[:12]}); it has {_listed(served)}"


def _listed(models: Iterable[ModelInfo]) -> str:
    """Names and fingerprints for a message."""
    return listed(f"{m.name} {m.fingerprint[:12]}" for m in models)


def _with_prefix(models: Iterable[ModelInfo], digits: str) -> list[ModelInfo]:
    wanted = digits.lower()
    with suppress(ValueError):
        int(wanted, 16)
        return [m for m in models if len(wanted) >= 6 and m.fingerprint.startswith(wanted)]
    return []


def info_of(model: Model) -> ModelInfo:
    """What a server's WELCOME says of `model`."""
    return ModelInfo(
        model.name,
        model.fingerprint,
        model.nbytes,
        tuple(map(TensorInfo.of, model.inputs)),
        tuple(map(TensorInfo.of, model.outputs)),
        _own_spec(model),
    )


def _own_spec(model: Model) -> str:
    """The input spec that this model was given here, as JSON; empty if it is the graph's own."""
    if model.input_spec is None or model.input_spec == InputSpec.from_metadata(metadata(model.skeleton)):
        return ""
    return model.input_spec.to_json()
