"""One sentence of advice, why the runner-up lost, and what cannot be had where nothing keeps to the constraints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import hypot
from typing import Any

import msgspec

from splitpoint.codecs import picture
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.plans import STAGES, UNSENT, Option, value
from splitpoint.units import ms, size

#: Below this share two medians are alike, however narrow their bands: profiles repeat within 2 to 4 %.
ALIKE = 0.02
#: Objectives of which a model that is all on the edge has nothing: no other answer can be better.
_NOTHING: Mapping[str, str] = {"bytes": "no byte crosses the link", "server-time": "it takes no time of the server"}


def advise(options: Sequence[Option], best: Option, objective: str, *, limited: bool = True) -> str:
    """Whether to split, and by how much that is better than not to (or than to): one sentence.

    `limited`: whether a deadline or a memory limit is given, which may take the model off the device.
    """
    if best.kind == "device" and objective in _NOTHING:
        # That is trivially the least: say what makes it a question.
        said = f"{_opening(best)}: {_NOTHING[objective]}, which is always the least"
        if limited:
            return f"{said}, and the edge keeps to the limits."
        return f"{said}: to rule that out, give a deadline (--deadline) or a memory limit (--max-edge-memory)."
    others = [o for o in options if not o.refused and o != best]
    plain = _least([o for o in others if o.kind != "split"], objective)
    said = f"{_opening(best)}: {quantity(best, objective)}"
    hint = _picture_hint(options, best, objective)
    if plain is not None and not _told_apart(best, plain, objective):
        return (
            f"Too close to call: {best.label} ({quantity(best, objective)}) and {plain.label} "
            f"({quantity(plain, objective)}) are within the error bars{_unmeasured(best, plain)}, measure them with "
            f"splitpoint compare{hint}."
        )
    if best.kind == "split":
        if plain is None:
            return f"{said}; neither edge nor server alone keeps to the constraints{hint}."
        return f"{said}, {_less(best, plain, objective)} {plain.label}{hint}."
    split = _least([o for o in others if o.kind == "split"], objective)
    if split is None:
        why = "no split keeps to the constraints" if len(options) > 2 else "there is nothing to split"
        return f"{said}; {why}{hint}."
    where = split.label.removeprefix("split after ")
    if not _told_apart(best, split, objective):
        # No gain that anybody could measure: not splitting is simpler.
        gain = 1 - value(split, objective) / value(best, objective) if value(best, objective) > 0 else 0.0
        how = f"better by {100 * gain:.0f} %, which is within the error bars{_unmeasured(best, split)}"
        if gain < ALIKE:
            how = "no better" if gain <= 0 else f"better by less than {100 * ALIKE:.0f} %"
        return f"{said}; the best split, after {where}, is {how} ({quantity(split, objective)}){hint}."
    return f"{said}, {_less(best, split, objective)} the best split, after {where}{hint}."


def _least(options: Sequence[Option], objective: str) -> Option | None:
    return min(options, key=lambda o: (value(o, objective), o.total.ms), default=None)


def _told_apart(best: Option, other: Option, objective: str) -> bool:
    return value(other, objective) - value(best, objective) > margin(best, other, objective)


def _unmeasured(*options: Option) -> str:
    return " (modelled, not measured)" if any(o.modelled for o in options) else ""


def _opening(best: Option) -> str:
    if best.kind == "split":
        unknown = "" if best.exact or best.quality is not None else " (accuracy not measured)"
        return best.label[0].upper() + best.label[1:] + unknown
    server = f"on the server, {best.label.rpartition(', ')[2]}"
    where = {"device": "on the edge", "server": server, "jpeg": "on the server with a JPEG frame"}[best.kind]
    return f"Do not split: run it all {where}"


def _picture_hint(options: Sequence[Option], best: Option, objective: str) -> str:
    """A word about a picture that would win, but nobody knows how accurate it is, or splitpoint does not send it."""
    reasons = {"its accuracy": ", if splitpoint calibrate-codecs finds it accurate enough", UNSENT: ", but is not sent"}
    for option in options:
        if option.kind in ("jpeg", "opponent") and value(option, objective) < value(best, objective):
            for start, words in reasons.items():
                if option.refused.startswith(start):
                    name = f"a JPEG frame (q{option.codecs[0].partition(':')[2]})"
                    name = name if option.kind == "jpeg" else picture(option.codecs[0])
                    return f"; {name} to the server would need {quantity(option, objective)}{words}"
    return ""


def quantity(option: Option, objective: str) -> str:
    """What the objective is about, with its unit."""
    if objective == "throughput":
        return f"{rate(option.throughput)} requests a second"
    if objective == "energy":
        return f"{ms(value(option, objective))} mJ a request"
    if objective == "bytes":
        return f"{size(value(option, objective))} on the link"
    if objective == "server-time":
        return f"{ms(value(option, objective))} ms on the server"
    return f"{ms(option.total.ms)} ms"


def rate(throughput: float) -> str:
    """Requests a second: three digits, and whole numbers from a hundred.

    >>> rate(4.821), rate(42.41), rate(5012.3)
    ('4.82', '42.4', '5012')
    """
    return f"{throughput:.0f}" if throughput >= 100 else f"{throughput:.3g}"


def _less(best: Option, rival: Option, objective: str) -> str:
    """``28.1 ms (31 %) less than``."""
    if objective == "throughput":
        more = best.throughput - rival.throughput
        return f"{rate(more)} ({_share(more, rival.throughput)}) more than"
    low, high = value(best, objective), value(rival, objective)
    amount = size(high - low) if objective == "bytes" else f"{ms(high - low)} {'mJ' if objective == 'energy' else 'ms'}"
    return f"{amount} ({_share(high - low, high)}) less than"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole > 0 else "all"


def margin(a: Option, b: Option, objective: str) -> float:
    """How far apart two options must be for the profiles to tell them apart, in the objective's unit."""
    if objective == "bytes":
        return 0.0 if a.sized and b.sized else 0.1 * max(value(a, objective), value(b, objective))
    floor = ALIKE * min(value(a, objective), value(b, objective))
    if objective == "server-time":
        return max(floor, hypot(a.stages["server"].error, b.stages["server"].error))
    spread = hypot(*(e for stage in STAGES for e in _errors(a, b, stage)))
    if objective == "latency":
        return max(floor, spread)
    # Energy and the slowest stage are made of the same milliseconds: they are as uncertain.
    longest = max(a.total.ms, b.total.ms)
    share = spread / longest if longest > 0 else 0.0
    return max(floor, share * min(value(a, objective), value(b, objective)))


def _errors(a: Option, b: Option, stage: str) -> tuple[float, ...]:
    one, other = a.stages[stage], b.stages[stage]
    if one == other or (stage in ("up", "down") and a.up_nbytes and b.up_nbytes):
        return ()  # the same half, or the same link's jitter: it does not tell them apart
    return one.error, other.error


def explain(options: Sequence[Option], best: Option, objective: str) -> tuple[str, ...]:
    """Why the runner-up lost, stage by stage; and why what would have won may not."""
    others = [o for o in options if o != best]
    second = _least([o for o in others if not o.refused], objective)
    lines = []
    if second is not None:
        lines.append(
            f"the runner-up is {second.label}: {quantity(second, objective)} against {quantity(best, objective)}"
        )
        if value(second, objective) < value(best, objective):
            less = 1 - value(second, objective) / value(best, objective)
            close = f"below {100 * ALIKE:.0f} %" if less < ALIKE else "within the error bars"
            lines.append(f"the difference is {close}, and {best.label} is simpler")
        if objective == "throughput":
            lines.append(_pace_line(best, second))
        lines += [line for stage in STAGES if (line := _stage_line(stage, best, second))]
    for o in others:
        if o.refused and value(o, objective) < value(best, objective):
            lines.append(f"{o.label} would need {quantity(o, objective)}, but {o.refused}")
    return tuple(lines)


def _pace_line(best: Option, second: Option) -> str:
    """``slowest stage: server 9.43 ms instead of 8.89 ms``."""
    one, other = pace(best), pace(second)
    was = "" if one == other else f"{one} "
    return f"slowest stage: {other} {ms(1000 / second.throughput)} ms instead of {was}{ms(1000 / best.throughput)} ms"


def pace(option: Option) -> str:
    """The stage that sets the pace of a stream of requests: ``edge``, ``link`` or ``server``."""
    slowest = 1000 / option.throughput * (1 - 1e-9)
    if option.stages["edge"].ms + option.stages["encode"].ms >= slowest:
        return "edge"
    return "server" if option.stages["server"].ms >= slowest else "link"


def _stage_line(stage: str, best: Option, second: Option) -> str:
    one, other = best.stages[stage].ms, second.stages[stage].ms
    if abs(other - one) < 0.005:
        return ""
    sign = "+" if other > one else "−"
    nbytes = {"up": (best.up_nbytes, second.up_nbytes), "down": (best.down_nbytes, second.down_nbytes)}.get(stage)
    why = f", {size(nbytes[1])} instead of {size(nbytes[0])}" if nbytes and nbytes[0] != nbytes[1] else ""
    return f"{stage}: {sign}{ms(abs(other - one))} ms ({ms(other)} instead of {ms(one)} ms{why})"


#: A constraint → its value when it is not set. The first ones are given up first.
_UNSET: Mapping[str, Any] = {
    "deadline_ms": None, "max_edge_memory": None, "max_drop": None, "agreement": None, "keep_input_local": False,
    "max_bytes": None,
}  # fmt: skip


def contradiction(limits: Constraints, nearest: Callable[[Constraints], Option | None]) -> str:
    """The sentence: what of `limits` cannot be met, beside what, and the nearest plan.

    `nearest` gives the best option under what is left when some constraints are given up; None if there is none.
    """
    asked = [name for name, unset in _UNSET.items() if getattr(limits, name) != unset]
    for count in range(1, len(asked) + 1):
        for given_up in combinations(asked, count):
            option = nearest(msgspec.structs.replace(limits, **{name: _UNSET[name] for name in given_up}))
            if option is not None:
                return _sentence(limits, asked, given_up, option)
    return "no plan keeps to the constraints"


def _sentence(limits: Constraints, asked: Sequence[str], given_up: Sequence[str], nearest: Option) -> str:
    words = {
        "deadline_ms": f"an answer within {ms(limits.deadline_ms or 0)} ms",
        "max_edge_memory": f"at most {size(limits.max_edge_memory or 0)} on the edge",
        "max_drop": "the accuracy budget",
        "agreement": "the agreement",
        "keep_input_local": "keeping the input on the edge",
    }
    what = " and ".join(words[name] for name in given_up)
    kept = [words[name] for name in asked if name not in given_up]
    beside = f" together with {' and '.join(kept)}" if kept else ""
    costs = [f"takes {ms(nearest.total.ms)} ms (nine in ten within {ms(nearest.total.high)})"]
    if "max_edge_memory" in given_up:
        costs.insert(0, f"holds {size(nearest.edge_memory)} on the edge")
    return f"{what} cannot be had{beside}: the nearest plan is {nearest.label}, which {' and '.join(costs)}"
