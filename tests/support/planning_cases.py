"""Plans of hand-made profiles, and the parts of a request added up without the code under test."""

from __future__ import annotations

from functools import cache
from typing import Any

from plans import FOUR_G, calibration, model_of, profiles

from splitpoint.codecs import open_codec
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Plan
from splitpoint.profile.profiles import Profile, Watts

EFFICIENT = "zoo:efficientnet_lite0"


LENET = "zoo:lenet5"


WATTS = Watts(5.0, 2.0, 1.0)


@cache
def pair(name: str = EFFICIENT, edge_ms: float = 90.0, cloud_ms: float = 6.0) -> tuple[Profile, Profile]:
    return profiles(name, edge_ms, cloud_ms, watts=WATTS)


def planned(link: Link = FOUR_G, *, name: str = EFFICIENT, **more: Any) -> Plan:
    limits = {k: more.pop(k) for k in tuple(more) if k in Constraints.__struct_fields__}
    planner = Planner(None, pair(name), constraints=Constraints(**limits), **more)
    return planner.plan(link, sensitivity=False)


def parts(edge: Profile, cloud: Profile, cut: Cut, codecs: tuple[str, ...], link: Link) -> dict[str, float]:
    """The parts of one request, added up here and not by the code under test; bytes without frames."""
    graph = edge.graph
    remote = len(cut.nodes) < len(graph.placed)
    sizes = [open_codec(c).nbytes(t) for c, t in zip(codecs, cut.crossing, strict=True)]
    down = sum(graph.tensors[t.name].nbytes for t in graph.outputs if t.name not in cut.results) if remote else 0
    encode = sum(
        c.encode_fixed_ms + c.encode_ms_per_mb * t.nbytes / 1e6
        for name, t in zip(codecs, cut.crossing, strict=True)
        if name != "raw" and (c := edge.codecs[name])
    )
    decode = sum(
        c.decode_fixed_ms + c.decode_ms_per_mb * t.nbytes / 1e6
        for name, t in zip(codecs, cut.crossing, strict=True)
        if name != "raw" and (c := cloud.codecs[name])
    )
    return {
        "device": edge.head(cut).median + encode,
        "network": sum(sizes) * 8e-3 / link.up_mbps + down * 8e-3 / link.down_mbps,
        "round": link.rtt_ms if remote else 0.0,
        "server": cloud.tail(cut).median + decode,
        "bytes": float(sum(sizes) + down),
    }


def worth(found: dict[str, float], objective: str) -> float:
    if objective == "throughput":
        return max(found["device"], found["network"], found["server"])
    if objective == "energy":
        waiting = found["round"] + found["server"]
        return WATTS.compute * found["device"] + WATTS.tx * found["network"] + WATTS.idle * waiting
    if objective == "server-time":
        return found["server"]
    if objective == "bytes":
        return found["bytes"]
    return found["device"] + found["network"] + found["round"] + found["server"]


def calibrated(rows: dict[tuple[str, str], float], inputs: int = 1000, share: float = 0.1) -> Any:
    model = model_of(EFFICIENT)
    places = {c.name: p for p, c in enumerate(model.graph.prefixes())}
    return calibration(model, {(places[cut], codec): a for (cut, codec), a in rows.items()}, inputs, share)


EFFICIENT, LENET = "zoo:efficientnet_lite0", "zoo:lenet5"


def live_bytes(graph: Graph, cut: Cut) -> int:
    """The most that the tensors of a head take at once, node by node from the definition."""
    order = [i for step in graph.order for i in step if i in cut.nodes]
    kept = {t.name for t in cut.crossing} | {t for out in cut.results for t in graph.answer(out)[0]}
    most = 0
    for k, i in enumerate(order):
        made = {t for j in order[:k] for t in graph.nodes[j].outputs} | {t.name for t in graph.inputs}
        needed = {t for j in order[k:] for t in graph.sources(j)} | kept
        alive = (made & needed) | set(graph.nodes[i].outputs)
        most = max(most, sum(graph.tensors[t].nbytes for t in alive))
    return most
