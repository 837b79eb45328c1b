"""Do these profiles, this graph and this calibration belong together?"""

from __future__ import annotations

from collections.abc import Sequence

from splitpoint.calibration.calibrations import Calibration
from splitpoint.documents import require_model
from splitpoint.errors import InputError
from splitpoint.graph import Graph
from splitpoint.planning.hosts import Host
from splitpoint.profile.profiles import Profile


def check(graph: Graph, hosts: Sequence[Host], calibration: Calibration | None) -> None:
    """InputError says what does not belong to what."""
    first = hosts[0].profile
    model = (first.graph.name, first.fingerprint)
    for host in hosts[1:]:
        theirs = (host.profile.graph.name, host.profile.fingerprint)
        require_model(
            f"the {host.name}'s profile", theirs, model, "both must be of one model, profile it on every machine"
        )
    for host in hosts:
        _check_nodes(graph, host.profile, host.name)
    if calibration is not None:
        require_model(
            "the calibration", (calibration.model, calibration.fingerprint), model, "calibrate this model"
        )  # fmt: skip
        last = len(graph.prefixes()) - 1
        for row in calibration.rows:
            if not 0 <= row.prefix <= last:
                raise InputError(f"the calibration has a row for prefix {row.prefix}, and {graph.name} has 0…{last}")


def _check_nodes(graph: Graph, profile: Profile, side: str) -> None:
    if profile.graph is not graph:
        known = {n.name for n in profile.graph.nodes}
        missing = [n.name for n in graph.nodes if n.name not in known]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"the {side}'s profile lacks node {missing[0]}{more} of {graph.name}: it is of another model or "
                "version of it, profile again"
            )
        if _wiring(profile.graph) != _wiring(graph):
            raise InputError(
                f"the {side}'s profile is of {profile.graph.name} wired otherwise than {graph.name} here: profile again"
            )
    if len(profile.nodes) != len(graph.nodes):
        raise InputError(
            f"the {side}'s profile has times for {len(profile.nodes)} nodes, and {graph.name} has {len(graph.nodes)}: "
            "profile again"
        )
    last = len(graph.prefixes()) - 1
    for segment in profile.segments:
        if not 0 <= segment.prefix <= last:
            raise InputError(
                f"the {side}'s profile has a cut at prefix {segment.prefix}, and {graph.name} has 0…{last}"
            )


def _wiring(graph: Graph) -> list[tuple[str, tuple[str, ...], tuple[str, ...], bool]]:
    return [(n.op, n.inputs, n.outputs, n.placed) for n in graph.nodes]
