"""Which codec each crossing tensor travels with: what was asked for, the tensors at hand, what the server decodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from splitpoint.codecs import Codec, open_codec
from splitpoint.errors import InputError, ServerError, UsageError, nearest
from splitpoint.graph import Cut
from splitpoint.tensors import Array, spec_of
from splitpoint.text import listed

#: One codec for every crossing tensor that it takes (the others travel raw), or codecs by tensor name.
CodecChoice = str | Mapping[str, str]
RAW = ("", "raw")


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
