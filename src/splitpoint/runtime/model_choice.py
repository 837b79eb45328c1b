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
    meant = _named(served, model, model_hash)
    if model_hash is not None:
        meant = _with_prefix(meant, model_hash)
        if not meant:
            raise ModelError(
                f"the server's model is not the pinned one, {model_hash[:12]}: it has {_listed(served)}; "
                "use another --model-hash only if you know why it changed"
            )
    if not meant:
        raise ModelError("the server has no model")
    # A fleet moves to a new version edge by edge: which one is never a guess.
    if len({m.fingerprint for m in meant}) > 1:
        called = f"called {meant[0].name}" if len({m.name for m in meant}) == 1 else "that fit"
        raise UsageError(
            f"the server has {len(meant)} models {called}: {_listed(meant)}; "
            "name one by its fingerprint or pin it with --model-hash"
        )
    return meant[0]


def _named(served: Sequence[ModelInfo], model: Model | str | None, model_hash: str | None) -> Sequence[ModelInfo]:
    """Those that `model` may be; ModelError if there is none, UsageError if it says nothing and several are there."""
    if isinstance(model, Model):
        same = [m for m in served if m.fingerprint == model.fingerprint]
        if not same:
            raise ModelError(missing(served, model))
        return sorted(same, key=lambda m: m.name != model.name)
    if model is None:
        if len({m.name for m in served}) > 1 and len({m.fingerprint for m in served}) > 1 and not model_hash:
            raise UsageError(f"the server has several models, so name one: {_listed(served)}")
        return served
    # What a name is short for comes after what it is.
    names = {m.name: None for m in served}
    wanted = next((name for name in names_of(model) if name in names), model)
    named = [m for m in served if m.name == wanted] or _with_prefix(served, model)
    if not named:
        raise ModelError(f"the server has no model {model}{nearest(model, names)} (it has {_listed(served)})")
    return named


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
    """What a server's WELCOME says of `model`: its input spec only if it is not the graph's own."""
    spec = model.input_spec
    if spec is not None and spec == InputSpec.from_metadata(metadata(model.skeleton)):
        spec = None
    return ModelInfo(
        model.name,
        model.fingerprint,
        model.nbytes,
        tuple(map(TensorInfo.of, model.inputs)),
        tuple(map(TensorInfo.of, model.outputs)),
        "" if spec is None else spec.to_json(),
    )
