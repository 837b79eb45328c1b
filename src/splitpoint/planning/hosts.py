"""The machines that a model is shared out to, in the order a request passes them: the first is the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from splitpoint.calibration.calibrations import Calibration
from splitpoint.codecs import PRICED, needs_tables, picture
from splitpoint.documents import require_model
from splitpoint.errors import InputError
from splitpoint.graph import Graph
from splitpoint.profile.profiles import CodecCost, Profile
from splitpoint.text import listed

#: Uncoded: it may always be used, and takes no time.
RAW = "raw"
_FREE = CodecCost(0.0, 0.0, 0.0, 0.0)
_JPEG, _PHOTO_MB = "jpeg:90", 0.15


@dataclass(frozen=True)
class Host:
    """A machine that may run a part of the model, as fast as `profile` says. `name` is what messages call it.

    `most_memory` is how many bytes its part of the model may hold; None: any.
    """

    name: str
    profile: Profile
    most_memory: float | None = None

    def knows(self, codec: str) -> bool:
        """Whether the profile has times for this codec."""
        return self._timed(codec) is not None

    def codec(self, codec: str) -> CodecCost:
        """What a codec takes on this machine; InputError if the profile has no times for it."""
        cost = self._timed(codec)
        if cost is None and needs_tables(codec):
            raise InputError(
                f"nothing says what {codec} takes: give a calibration that has it (splitpoint calibrate-codecs)"
            )
        if cost is None:
            known = listed(self.profile.codecs)
            raise InputError(
                f"the {self.name}'s profile has no times for the codec {codec} (it has: {known}): profile again, "
                "with this version of splitpoint"
            )
        return cost

    def _timed(self, name: str) -> CodecCost | None:
        """JPEG's times hardly depend on the quality: the nearest quality that was measured stands for another. Pictures
        that no profile measures (it would take longer than all else) take as many times JPEG's as in the table."""
        codecs: Mapping[str, CodecCost] = self.profile.codecs
        if name == RAW:
            return _FREE
        if name in codecs:
            return codecs[name]
        kind, wanted = name.partition(":")[0], quality_of(name) or 0
        near = {n: q for n in codecs if n.partition(":")[0] == kind and (q := quality_of(n)) is not None}
        if near:
            return codecs[min(near, key=lambda n: abs(near[n] - wanted))]
        jpeg = self._timed(_JPEG) if picture(name) and kind != _JPEG.partition(":")[0] else None
        if jpeg is None:
            return None
        times, ours, table = msgspec.structs.astuple(jpeg), PRICED[kind].cost, PRICED["jpeg"].cost
        # By what a photo of 224 x 224 takes: the two parts of another codec need not be alike.
        encode, decode = ((times[k] + _PHOTO_MB * times[k + 1]) / (table[k] + _PHOTO_MB * table[k + 1]) for k in (0, 2))
        return CodecCost(encode * ours[0], encode * ours[1], decode * ours[2], decode * ours[3])


def quality_of(codec: str) -> int | None:
    """The number behind the colon of a codec's name; None if there is none.

    >>> quality_of("jpeg:75"), quality_of("int8")
    (75, None)
    """
    number = codec.partition(":")[2].partition("+")[0]
    return int(number) if number.isdecimal() else None


def check_same_model(graph: Graph, hosts: Sequence[Host], calibration: Calibration | None) -> None:
    """InputError unless these profiles, this graph and this calibration belong together."""
    first = hosts[0].profile
    model = (first.graph.name, first.fingerprint)
    for host in hosts:
        theirs = (host.profile.graph.name, host.profile.fingerprint)
        way_out = "both must be of one model, profile it on every machine"
        require_model(f"the {host.name}'s profile", theirs, model, way_out)
    for host in hosts:
        _check_nodes(graph, host.profile, host.name)
    if calibration is not None:
        theirs = (calibration.model, calibration.fingerprint)
        require_model("the calibration", theirs, model, "calibrate this model")


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
