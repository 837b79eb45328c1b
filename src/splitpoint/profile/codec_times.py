"""What each codec costs on this machine."""

from __future__ import annotations

from splitpoint.codecs import CODECS, open_codec, usual_name
from splitpoint.codecs.speed import measure
from splitpoint.models.model import Model
from splitpoint.profile.profiles import CodecCost
from splitpoint.tensors import TensorSpec


def codec_costs(model: Model, budget_s: float) -> dict[str, CodecCost]:
    """Codec → its cost for tensors like those that cross in `model`, measured in about `budget_s` seconds."""
    costs = {}
    for codec in (open_codec(usual_name(kind)) for kind in CODECS):
        spec = next((s for s in _specs(model) if codec.accepts(s)), None)
        if spec is not None:
            cost = measure(codec, spec, budget_s / len(CODECS))
            costs[codec.name] = CodecCost(*(getattr(cost, field) for field in CodecCost.__struct_fields__))
    return costs


def _specs(model: Model) -> tuple[TensorSpec, ...]:
    """A tensor of the middle size among those that cross one by one, then a photo."""
    crossing = {c.crossing[0].name: c.crossing[0] for c in model.graph.chain() if len(c.crossing) == 1}
    floats = sorted((t for t in crossing.values() if t.dtype in ("float32", "float16")), key=lambda t: t.nbytes)
    usual = floats[len(floats) // 2] if floats else TensorSpec("features", "float32", (1, 64, 28, 28))
    photos = [t for t in crossing.values() if t.dtype == "uint8"]
    return (usual, *photos, TensorSpec("photo", "uint8", (1, 224, 224, 3)))
