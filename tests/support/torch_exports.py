"""What tests of the PyTorch export share: small modules in files, and what was written of them."""

from __future__ import annotations

import json
from typing import Any


def module(name: str) -> Any:
    import models_torch

    return getattr(models_torch, name)()[0].eval()


def properties(model: Any) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}


def layers(model: Any) -> list[str]:
    return [properties(n)["splitpoint.layer"] for n in model.graph.node]


def uncovered(model: Any, paths: list[str]) -> list[str]:
    """Module paths that are neither a node's layer, nor a prefix of one, nor an alias or a prefix of one."""
    own = properties(model)
    known = [*layers(model), *json.loads(own["splitpoint.aliases"]), *json.loads(own["splitpoint.unused"])]
    return [p for p in paths if p and not any(k == p or k.startswith(p + ".") for k in known)]


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("this ran",))
