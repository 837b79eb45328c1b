"""What an `Edge` may be told beside the cut: each with defaults that are good, so that most need none of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import Literal

import msgspec

from splitpoint.calibration.calibrations import Calibration
from splitpoint.errors import UsageError
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Constraints
from splitpoint.runtime.adapt.controller import Watching
from splitpoint.runtime.result import Request
from splitpoint.tensors import Array

At = str | int | Cut
"""A cut, its name, or its number."""
Inputs = Mapping[str, Array] | Array | Request
"""An array if the model has one input, else arrays by name; or either with what it brings along."""
Objective = Literal["latency", "throughput"]
FindCalibration = Callable[[Model], Calibration | None]
"""The calibration of a model that may be the server's, so that it is known only when that is reached."""


class AutoPlan(msgspec.Struct, frozen=True):
    """How an edge plans by itself (`auto_planning`): by a guess at first, then by profiles of both sides.

    They take `budget_s` in all, half of it each, beside requests and after the first answer (what an earlier run kept
    counts); with 0 the guess stays. `objective`, if given, is what it plans for; else latency, or what keeps up with a
    stream (`Watching.rate`). With `profile_first` that is done before the first request, and `fresh` takes nothing that
    was kept. `constraints` are what the plan keeps to, `watching` says how the edge adapts; without `adapt` it
    does not, but for going over from the guess.
    """

    budget_s: float = 20.0
    constraints: Constraints | None = None
    watching: Watching | None = None
    objective: Objective | None = None
    profile_first: bool = False
    fresh: bool = False
    adapt: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.budget_s < inf:
            raise UsageError(f"profiling takes so many seconds in all, from 0, not {self.budget_s:g}")
        if self.profile_first and not self.budget_s:
            raise UsageError("with a budget of 0 nothing is profiled: give one, or do without profile_first")

    @property
    def watches(self) -> Watching:
        """How it adapts: with the rate that keeps to the `objective`, whatever arrives."""
        watching = self.watching or Watching()
        rate = {"latency": 0.0, "throughput": inf}.get(self.objective or "", watching.rate)
        return msgspec.structs.replace(watching, rate=rate)


class ModelPolicy(msgspec.Struct, frozen=True):
    """Which model of a server is taken. `pinned` is its fingerprint (the first digits suffice): another one is refused.

    With `follow` a newer model of the same name is fetched and taken, between two requests, if it takes and gives the
    same; without, the edge only tells of it. A graph with operators that are not run (`models.operators`) is refused,
    but for those of `allow_domains`.
    """

    pinned: str | None = None
    follow: bool = False
    allow_domains: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.follow and self.pinned is not None:
            raise UsageError("a model that is pinned by its fingerprint cannot be followed: drop one of the two")
