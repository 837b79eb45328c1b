"""Where no placement keeps to the constraints: which one cannot be met, and the nearest plan that exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import msgspec

from splitpoint.planning.constraints import Constraints
from splitpoint.planning.plans import Option
from splitpoint.units import ms, size

#: A constraint → its value when it is not set. The first ones are given up first.
_UNSET: Mapping[str, Any] = {"deadline_ms": None, "max_edge_memory": None, "max_drop": None, "keep_input_local": False}


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
        "max_edge_memory": f"at most {size(limits.max_edge_memory or 0)} on the device",
        "max_drop": "the accuracy budget",
        "keep_input_local": "keeping the input on the device",
    }
    what = " and ".join(words[name] for name in given_up)
    kept = [words[name] for name in asked if name not in given_up]
    beside = f" together with {' and '.join(kept)}" if kept else ""
    costs = [f"takes {ms(nearest.total.ms)} ms (nine in ten within {ms(nearest.total.high)})"]
    if "max_edge_memory" in given_up:
        costs.insert(0, f"holds {size(nearest.edge_memory)} on the device")
    return f"{what} cannot be had{beside}: the nearest plan is {nearest.label}, which {' and '.join(costs)}"
