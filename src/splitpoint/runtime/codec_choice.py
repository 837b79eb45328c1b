"""Which codec each crossing tensor travels with: what was asked for, the tensors at hand, what the server decodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import inf, isfinite
from typing import NamedTuple

import msgspec

from splitpoint.codecs import Codec, open_codec
from splitpoint.errors import InputError, OverBudgetError, ServerError, UsageError, nearest
from splitpoint.graph import Cut
from splitpoint.planning.frame_bytes import REQUEST_NBYTES, VECTOR_NBYTES, frame_entry
from splitpoint.tensors import Array, spec_of
from splitpoint.text import listed
from splitpoint.units import size

#: One codec for every crossing tensor that it takes (the others travel raw), or codecs by tensor name.
CodecChoice = str | Mapping[str, str]
RAW = ("", "raw")

#: A header's numbers may take so many bytes more than the usual ones: a segment's from 128 on.
_SLACK_NBYTES = 8


class FrameBudget(msgspec.Struct, frozen=True):
    """What a request may send, and how coarse that may be. UsageError for what makes no sense.

    `max_bytes` is the most that its frame has, header and all (None: as many as there are). A codec with steps (klt)
    takes a coarser one for a frame that has more; any other that has is not sent. `max_drop`: never one that
    the calibration does not show to lose fewer of the answers, with 95 % confidence; with it a frame may also be
    encoded coarser to keep its deadline.
    """

    max_bytes: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.max_bytes is not None and not (isfinite(self.max_bytes) and self.max_bytes > 0):
            raise UsageError(f"a frame has a number of bytes above zero, not {self.max_bytes}")


UNBOUNDED = FrameBudget()


class FrameRoom(NamedTuple):
    """Bytes that one frame may have at `most`, and has if it is to be in time (`aim`)."""

    most: float = inf
    aim: float = inf


class FittingCoder:
    """Encodes a request's tensors so that its frame keeps to `room`; `vectors` of shapes go with them. `names`: what
    each tensor travels as, in order."""

    def __init__(self, room: FrameRoom, vectors: int) -> None:
        self._room, self._vectors = room, vectors
        self.names: Sequence[str] = ()

    def __call__(self, arrays: Sequence[Array], codecs: Sequence[Codec | None]) -> Sequence[Array]:
        specs = [spec_of("", a) for a in arrays]
        stepped = {k: c for k, c in enumerate(codecs) if c is not None and c.stepped and arrays[k].size}
        done = {
            k: (array, "") if codec is None else (codec.encode(array), codec.name)
            for k, (array, codec) in enumerate(zip(arrays, codecs, strict=True))
            if k not in stepped
        }
        around = REQUEST_NBYTES + _SLACK_NBYTES + VECTOR_NBYTES * self._vectors
        around += sum(
            frame_entry(spec, codec.sent_as if codec else "raw", array.nbytes)
            for spec, codec, array in zip(specs, codecs, arrays, strict=True)
        )
        left = min(self._room) - around - sum(data.nbytes for data, _ in done.values())
        usual = {k: codec.nbytes(specs[k]) for k, codec in stepped.items()}
        for k, codec in stepped.items():
            share = max(0.0, left * usual[k] / sum(usual.values()))
            done[k] = codec.fit(arrays[k], int(min(share, arrays[k].nbytes)))
        self.names = [done[k][1] for k in range(len(arrays))]
        return [done[k][0] for k in range(len(arrays))]

    def check(self, nbytes: int) -> None:
        """OverBudgetError if a frame of `nbytes` has more than it may have."""
        if nbytes > self._room.most:
            how = " + ".join(dict.fromkeys(name or "raw" for name in self.names)) or "raw"
            raise OverBudgetError(
                f"the request has {size(nbytes)} as {how}, and may have {size(round(self._room.most))}: allow more, "
                "another cut or codec, or a larger drop"
            )


def choose(cut: Cut, asked: CodecChoice) -> dict[str, Codec]:
    """The codecs of what crosses at `cut`, by tensor name; what travels raw is not in it. UsageError for an unknown
    codec, a tensor that does not cross, and a named one that its codec does not take."""
    if isinstance(asked, str):
        if asked in RAW:
            return {}
        codec = open_codec(asked)
        return {t.name: codec for t in cut.crossing if codec.accepts(t)}
    crossing = {t.name: t for t in cut.crossing}
    chosen: dict[str, Codec] = {}
    for name, codec_name in asked.items():
        spec = crossing.get(name)
        if spec is None:
            what = listed(crossing) if crossing else "nothing"
            raise UsageError(f"tensor {name} does not cross at {cut.name}{nearest(name, crossing)} (what does: {what})")
        if codec_name in RAW:
            continue
        codec = open_codec(codec_name)
        if not codec.accepts(spec):
            raise UsageError(f"codec {codec_name} does not take tensor {spec}: name another codec for it, or raw")
        chosen[name] = codec
    return chosen


def codecs_in(features: Iterable[str]) -> frozenset[str]:
    """The names of the codecs among the features of a HELLO or WELCOME."""
    return frozenset(f.removeprefix("codec:") for f in features if f.startswith("codec:"))


def check_decodable(codecs: Mapping[str, Codec], known: Collection[str]) -> None:
    """ServerError if a server that knows the codecs `known` (names without parameters) cannot decode what is sent."""
    for codec in codecs.values():
        if codec.name.partition(":")[0] not in known:
            raise ServerError(
                f"the server cannot decode {codec.name} (it knows {listed(sorted(known)) if known else 'no codec'}): "
                "use another codec or raw, or install a newer splitpoint on the server"
            )


def chooser(
    names: Sequence[str], codecs: Mapping[str, Codec], *, strict: bool
) -> Callable[[Sequence[Array]], Sequence[Codec | None]]:
    """A function from arrays, called `names` in order, to the codec of each (None: raw). Shapes are known only now (a
    batch of several): what its codec does not take after all travels raw, or is an InputError if `strict`."""

    def chosen(arrays: Sequence[Array]) -> Sequence[Codec | None]:
        choices: list[Codec | None] = []
        for name, array in zip(names, arrays, strict=True):
            codec, spec = codecs.get(name), spec_of(name, array)
            if codec is not None and not codec.accepts(spec):
                if strict:
                    raise InputError(f"codec {codec.name} does not take tensor {spec}, which this input leads to")
                codec = None
            choices.append(codec)
        return choices

    return chosen
