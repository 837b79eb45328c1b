"""How good predictions are: of kernels, of whole networks, and of the plans that are made from them.

Nothing here measures: a `Truth` has what the networks take. None of them was in what the latency was learned from,
which is made of random strips of kernels (`random_networks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splitpoint.link.presets import PRESETS
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.predict.calibrate.ground_truth import Truth
from splitpoint.predict.calibrate.reference import ReferenceSpeed, speed_of
from splitpoint.predict.learn.latency_model import TELLING_MS, Latency
from splitpoint.predict.price.prediction import Prediction, kernel_times, linear_ms, predict_latency
from splitpoint.profile.kernel_times import is_estimated
from splitpoint.profile.profiles import Profile, SegmentCost, Stat

#: What plans are judged on: every preset but the slowest, on which nothing but the device is ever worth it, with a
#: server of this speed and devices that compute so many times slower; tensors may cross as int8.
LINKS: Sequence[str] = ("3g", "4g", "wifi", "wifi5", "lan")
SLOWDOWNS: Sequence[float] = (2.0, 8.0, 32.0)
CODECS = ("int8",)
#: Cuts whose heads and tails correct a prediction, to see what a few seconds of measuring are worth.
FEW = 3


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean absolute error, shares within ±5, 10, 20 % and in the interval, and linear regression's mean error."""

    count: int
    mape: float
    within5: float
    within10: float
    within20: float
    covered: float
    linear: float


@dataclass(frozen=True, slots=True)
class AccuracyRow:
    """A whole network (`kind` is "whole"; "same speed" with each visit as it would have been at the speed
    of the calibration), one of its kernels, or the network corrected by a few measured cuts.
    """

    network: str
    layer: str
    kind: str
    measured_ms: float
    predicted_ms: float
    low_ms: float
    high_ms: float
    linear_ms: float
    calibrated: bool = True

    @property
    def error(self) -> float:
        """By how much the prediction is too long, as a share of what was measured."""
        return self.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One plan made from predictions, priced with what was measured, beside the best one there is."""

    network: str
    link: str
    slowdown: float
    best: str
    chosen: str
    best_ms: float
    chosen_ms: float

    @property
    def regret(self) -> float:
        """How much longer the chosen plan takes than the best one, as a share; a tie that it won is none."""
        return max(0.0, self.chosen_ms / self.best_ms - 1)


@dataclass(frozen=True)
class Judgement:
    """All of it: `wholes`, the same `corrected` by a few measured cuts, `kernels`, and `plans`.

    Where reference networks were measured beside them, the `speed` that they say the device has now, and the wholes at
    the `same_speed` as in the calibration.
    """

    wholes: tuple[AccuracyRow, ...]
    corrected: tuple[AccuracyRow, ...]
    kernels: tuple[AccuracyRow, ...]
    plans: tuple[PlanRow, ...]
    same_speed: tuple[AccuracyRow, ...] = ()
    speed: ReferenceSpeed | None = None

    def kinds(self) -> Mapping[str, Errors]:
        """The errors of each kind of kernel, the commonest first; last, of all of them."""
        names = sorted({r.kind for r in self.kernels}, key=lambda k: -sum(r.kind == k for r in self.kernels))
        errors = {name: errors_of([r for r in self.kernels if r.kind == name]) for name in names}
        return errors | ({"all kernels": errors_of(self.kernels)} if self.kernels else {})


def judge(truth: Truth, latency: Latency) -> Judgement:
    """How well `latency` predicts the networks of `truth` that were measured."""
    wholes, corrected, kernels, plans, same_speed = [], [], [], [], []
    speed = speed_of(latency.reference, truth.wholes.references)
    for name, model in truth.models.items():
        measured, profile = truth.whole(name), truth.profiles.get(name)
        prediction = predict_latency(model, latency)
        line = linear_ms([k.kernel for k in prediction.kernels], latency)
        if measured is not None and measured.median > 0:
            linear = latency.whole_ms(float(line.sum()))
            wholes.append(AccuracyRow(name, "", "whole", measured.median, *_range(prediction.whole), linear))
            if speed is not None and (then := truth.whole(name, speed.rounds)) is not None:
                same_speed.append(AccuracyRow(name, "", "same speed", then.median, *_range(prediction.whole), linear))
        if profile is not None:
            kernels += _kernel_rows(name, prediction, line.tolist(), profile, latency)
            plans += plan_rows(name, profile, prediction.profile(profile.codecs))
            few = few_segments(profile)
            if measured is not None and measured.median > 0 and few:
                better = predict_latency(model, latency, few).whole
                corrected.append(AccuracyRow(name, "", "corrected", measured.median, *_range(better), linear))
    return Judgement(tuple(wholes), tuple(corrected), tuple(kernels), tuple(plans), tuple(same_speed), speed)


def errors_of(rows: Sequence[AccuracyRow]) -> Errors:
    """The errors of all `rows` together; zeros if there are none."""
    if not rows:
        return Errors(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    error = np.abs([r.error for r in rows])
    within5, within10, within20 = (float((error <= share).mean()) for share in (0.05, 0.1, 0.2))
    covered = float(np.mean([r.low_ms <= r.measured_ms <= r.high_ms for r in rows]))
    linear = float(np.mean([abs(r.linear_ms / r.measured_ms - 1) for r in rows]))
    return Errors(len(rows), float(error.mean()), within5, within10, within20, covered, linear)


def few_segments(profile: Profile) -> list[SegmentCost]:
    """Heads and tails of `FEW` cuts spread over a profile, without the ends: what two seconds of measuring give."""
    last = len(profile.graph.order)
    inner = [s for s in profile.segments if 0 < s.prefix < last and (s.head is not None or s.tail is not None)]
    if not inner:
        return []
    share = [profile.head(s.prefix).median / max(profile.whole.median, 1e-9) for s in inner]
    wanted = [(k + 1) / (FEW + 1) for k in range(FEW)]
    chosen = {min(range(len(inner)), key=lambda i: abs(share[i] - at)) for at in wanted}
    return [inner[i] for i in sorted(chosen)]


def _range(stat: Stat) -> tuple[float, float, float]:
    return stat.median, stat.p10, stat.p90


def _kernel_rows(
    name: str, prediction: Prediction, line: Sequence[float], profile: Profile, latency: Latency
) -> list[AccuracyRow]:
    """Every kernel against the engine's own timer; none where the profile's budget left no time to read it."""
    if is_estimated(profile.graph, profile.nodes):
        return []
    nodes = np.array(profile.nodes)
    alone = kernel_times([k.kernel for k in prediction.kernels], latency).stats()
    rows = []
    for k, cost in enumerate(prediction.kernels):
        measured = float(nodes[list(cost.kernel.nodes)].sum())
        if measured >= TELLING_MS:
            row = AccuracyRow(name, cost.layer, cost.kind, measured, *_range(alone[k]), line[k], cost.calibrated)
            rows.append(row)
    return rows


def plan_rows(
    name: str, truth: Profile, predicted: Profile, links: Sequence[str] = LINKS, slowdowns: Sequence[float] = SLOWDOWNS
) -> list[PlanRow]:
    """The plans for every link and device, made from `predicted` and priced by `truth`."""
    rows = []
    for slowdown in slowdowns:
        known, guessed = (
            Planner(None, (p.slowed(slowdown), p), constraints=Constraints(codecs=CODECS)) for p in (truth, predicted)
        )
        for link in (PRESETS[text] for text in links):
            best, chosen = known.best(link), guessed.best(link)
            if best is not None and chosen is not None:
                ms = known.price(chosen.on_edge, chosen.codecs, link).total.ms
                rows.append(PlanRow(name, link.name, slowdown, best.label, chosen.label, best.total.ms, ms))
    return rows


def regrets(rows: Sequence[PlanRow]) -> tuple[float, float, float]:
    """Median, 90th percentile and mean regret."""
    shares = [r.regret for r in rows] or [0.0]
    middle, high = np.percentile(shares, (50, 90))
    return float(middle), float(high), float(np.mean(shares))
