"""What a placement costs on every host and every hop, and how far to trust the number."""

from __future__ import annotations

from collections.abc import Iterable
from math import isclose, sqrt
from typing import Any

import msgspec
import numpy as np
import pytest
from planning_cases import EFFICIENT, pair, planned
from plans import CODECS as CODEC_COSTS
from plans import FOUR_G, calibration, model_of, profiles
from split_cases import (
    CODECS,
    chosen_of,
    graph_of,
    split_of,
)

from splitpoint.calibration.calibrations import Calibration, CalibrationRow, Quality
from splitpoint.errors import InputError
from splitpoint.graph import Graph
from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.cost_model import high
from splitpoint.planning.objectives import weights_of
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option, value
from splitpoint.planning.scoring import uniform
from splitpoint.profile.profiles import Profile, Stat


def test_bands_are_the_root_of_the_stages_squares_and_hold_the_links_jitter() -> None:
    edge, cloud = pair()
    link = Link(5.85, 20, 40, 8)
    found = planned(link)
    split = next(o for o in found.options if o.kind == "split")
    cut = edge.graph.cut_of(split.on_edge)
    head, tail = edge.head(cut), cloud.tail(cut)
    sent = (0.05 * link.up_ms(split.up_nbytes)) ** 2 + (0.05 * link.down_ms(split.down_nbytes)) ** 2
    above = sqrt((head.p90 - head.median) ** 2 + (tail.p90 - tail.median) ** 2 + 8**2 + sent)
    assert isclose(split.total.high - split.total.ms, above)
    below = sqrt((head.median - head.p10) ** 2 + (tail.median - tail.p10) ** 2 + sent)
    assert isclose(split.total.ms - split.total.low, below)
    device = found.option("device")
    assert device is not None
    assert isclose(device.total.high, edge.whole.p90)
    assert device.up_nbytes == device.down_nbytes == 0


def test_every_option_that_uses_the_server_pays_for_software_and_no_other() -> None:
    plain, with_it = Link(50, 50, 1), Link(50, 50, 1, software_ms=0.6)
    before, after = planned(plain), planned(with_it)
    for option in before.options:
        more = Planner(None, pair()).price(option.on_edge, option.codecs, with_it)
        assert isclose(more.total.ms - option.total.ms, 0.0 if option.kind == "device" else 0.6, abs_tol=1e-9)
        assert isclose(more.stages["up"].ms - option.stages["up"].ms, 0.0 if option.kind == "device" else 0.3)
        assert isclose(more.throughput, option.throughput), "it keeps no stage busy"
    # The search pays the same: a round trip that is as much longer gives the same best, and the same bound.
    longer = planned(Link(50, 50, 1.6))
    assert after.best.on_edge == longer.best.on_edge
    assert isclose(after.best.total.ms, longer.best.total.ms)
    assert isclose(after.bound, longer.bound)


def test_the_round_trip_is_paid_half_on_each_way() -> None:
    near, far = planned(Link(5, 5, 0)).option("server"), planned(Link(5, 5, 40)).option("server")
    assert near is not None
    assert far is not None
    assert isclose(far.stages["up"].ms - near.stages["up"].ms, 20)
    assert isclose(far.stages["down"].ms - near.stages["down"].ms, 20)


def test_energy_is_watts_times_milliseconds() -> None:
    found = planned(Link(10, 10, 20), objective="energy").option("server")
    assert found is not None
    sending = (found.up_nbytes + found.down_nbytes) * 8e-4
    assert isclose(found.energy_mj or 0, 2.0 * sending + 1.0 * (20 + found.stages["server"].ms))


EXACT, VARYING = Link(6.0, 20.0, 40.0), Link(6.0, 20.0, 40.0, 1e-6)


def priced(codec: str, link: Link = EXACT, rows: Any = None, prefix: int = 0) -> Option:
    """One placement between machines whose own times have no spread."""
    sure = [profile_without_spread(p) for p in profiles(EFFICIENT, 90.0, 4.0)]
    known = calibration(model_of(EFFICIENT), rows) if rows else None
    planner = Planner(None, (sure[0], sure[1]), constraints=Constraints(codecs=(codec,)), calibration=known)
    cut = planner.graph.prefixes()[prefix]
    return planner._scorer.option(cut, uniform(cut, codec), link)


def profile_without_spread(made: Profile) -> Profile:
    def sure(stat: Stat | None) -> Stat | None:
        return stat and Stat(stat.median, stat.median, stat.median, stat.count)

    segments = tuple(msgspec.structs.replace(s, head=sure(s.head), tail=sure(s.tail)) for s in made.segments)
    return msgspec.structs.replace(made, segments=segments)


def test_an_estimated_jpeg_is_not_known_to_a_hair() -> None:
    found = priced("jpeg:90")
    assert not found.sized
    sent = EXACT.up_ms(found.crossing[0].nbytes)
    assert found.stages["up"].error == pytest.approx(0.25 * sent, rel=1e-6)
    assert found.total.error > 0.2 * sent
    calibrated = priced("jpeg:90", rows={(0, "jpeg:90"): 1.0})
    assert calibrated.sized
    assert calibrated.stages["up"].error == 0


def test_times_of_codecs_have_a_width() -> None:
    found = priced("int8", prefix=6)
    assert len(found.crossing) == 1
    encode, nbytes = found.stages["encode"], model_of(EFFICIENT).graph.prefixes()[6].nbytes
    assert encode.ms == pytest.approx(0.02 + 2.0 * nbytes / 1e6)
    assert (encode.low, encode.high) == (pytest.approx(0.75 * encode.ms), pytest.approx(1.25 * encode.ms))
    assert found.stages["server"].error == pytest.approx(0.25 * (0.02 + 1.5 * nbytes / 1e6))
    assert priced("raw", prefix=6).total.error == 0


def test_the_rate_of_a_link_that_varies_has_a_width() -> None:
    found = priced("raw", VARYING)
    assert found.stages["up"].error == pytest.approx(0.05 * VARYING.up_ms(found.up_nbytes), rel=1e-3)
    assert found.stages["down"].error == pytest.approx(0.05 * VARYING.down_ms(found.down_nbytes), rel=1e-3)
    assert priced("raw", EXACT).total.error == 0


@pytest.mark.parametrize("link", [EXACT, VARYING, FOUR_G])
def test_a_deadline_means_the_same_to_the_search_and_to_the_table(link: Link) -> None:
    codecs = ("int8", "int8+zstd", "jpeg:90")
    more = {"int8+zstd": CODEC_COSTS["int8"]}
    edge, cloud = (msgspec.structs.replace(p, codecs={**p.codecs, **more}) for p in profiles(EFFICIENT, 90.0, 4.0))
    planner = Planner(None, (edge, cloud), constraints=Constraints(codecs=codecs))
    work = planner.costs.grid
    latest = high(work, [link], work.value([link], weights_of("latency", planner.hosts)))
    cuts = planner.graph.prefixes()
    for p in range(0, len(cuts), 17):
        for c, codec in enumerate(planner.costs.codecs):
            option = planner._scorer.option(cuts[p], uniform(cuts[p], codec), link)
            assert option.total.high == pytest.approx(latest[p, c], rel=1e-9)


@pytest.mark.parametrize("objective", ["latency", "energy", "bytes", "server-time", "throughput"])
@pytest.mark.parametrize("link", [EXACT, VARYING, FOUR_G])
def test_all_prefixes_at_once_cost_what_each_costs_by_itself(objective: str, link: Link) -> None:
    """The grid of prefixes and codecs is the same model as one row: parts, sums and the busy times of all."""
    planner = Planner(None, pair(EFFICIENT), objective=objective, constraints=Constraints(codecs=("int8", "jpeg:90")))
    costs, weights = planner.costs, weights_of(objective, planner.hosts)
    values, busy = costs.grid.value([link], weights), np.stack(np.broadcast_arrays(*costs.grid.busy([link])))
    for p in range(0, len(planner.graph.prefixes()), 13):
        cut = planner.graph.prefixes()[p]
        for c, codec in enumerate(costs.codecs):
            work = costs.work(costs.parts([cut]), [[costs.coded(0, t, codec) for t in cut.crossing]])
            assert work.value([link], weights) == pytest.approx(values[p, c], rel=1e-12)
            assert work.busy([link]) == pytest.approx(busy[:, p, c], rel=1e-12)
            option = planner.price(cut, [codec] * len(cut.crossing), link)
            assert value(option, objective) == pytest.approx(
                max(work.busy([link])) if objective == "throughput" else work.value([link], weights), rel=1e-12
            )


def test_a_codec_that_does_not_take_a_tensor_leaves_it_raw() -> None:
    costs = Planner(None, pair(EFFICIENT), constraints=Constraints(codecs=("jpeg:90",))).costs
    features = costs.graph.prefixes()[20].crossing[0]
    assert costs.coded(0, features, "jpeg:90") == costs.coded(0, features, "raw")
    place = costs.steps.place[features.name]
    assert costs.tables[0].accepts[place].tolist() == [True, False]
    assert len(set(costs.tables[0].nbytes[place].tolist())) == 1


def calibration_of(graph: Graph, rows: Iterable[CalibrationRow]) -> Calibration:
    return Calibration(
        model=graph.name, fingerprint="f" * 64, inputs=1000, classifier=True, output="logits", rows=tuple(rows)
    )


class Shown(Quality, frozen=True):
    """A quality whose bound is given: how it is made is the calibration's own affair."""

    @property
    def bound(self) -> float:
        return 1 - self.cosine


def shown(bound: float) -> Quality:
    return Shown(inputs=1000, agreement=1.0, cosine=1 - bound, error=0.0)


def test_codecs_within_a_budget_are_those_that_are_shown_to_be() -> None:
    """int8 is shown to keep within 1 % at one tensor, not at another, and never measured at the rest."""
    graph = graph_of("zoo:lenet5")
    good, bad = graph.prefixes()[7], graph.prefixes()[9]
    rows = [CalibrationRow(7, "int8", (1000,), 1000, shown(0.004)), CalibrationRow(9, "int8", (300,), 300, shown(0.02))]
    split = split_of(graph, codecs=("raw", "int8"), calibration=calibration_of(graph, rows), max_drop=0.01)
    slow = Link(0.001, 0.001, 1)
    chosen = chosen_of(split, slow)
    assert {t for t, c in chosen.items() if c == "int8"} == {good.crossing[0].name}
    assert chosen[bad.crossing[0].name] == "raw"
    free = chosen_of(split_of(graph, codecs=("raw", "int8"), calibration=calibration_of(graph, rows)), slow)
    assert free[bad.crossing[0].name] == "int8"


def test_without_a_calibration_a_budget_leaves_only_exact_codecs() -> None:
    split = split_of(graph_of("zoo:lenet5"), codecs=CODECS, max_drop=0.01)
    assert set(chosen_of(split, Link(0.001, 0.001, 1)).values()) == {"raw"}


def test_measured_bytes_count_instead_of_estimated_ones() -> None:
    graph = graph_of("zoo:lenet5")
    rows = [CalibrationRow(0, "jpeg:90", (321,), 400, shown(0.001))]
    split = split_of(graph, codecs=("jpeg:90",), calibration=calibration_of(graph, rows))
    assert chosen_of(split, Link(0.01, 1, 1))["image"] == "jpeg:90"
    sent = split.costs.coded(0, graph.tensors["image"], "jpeg:90")
    assert (sent.codec, sent.nbytes, sent.sized) == ("jpeg:90", 321, True)


def test_rows_that_do_not_fit_the_graph_are_refused() -> None:
    graph = graph_of("zoo:lenet5")
    for row in (CalibrationRow(99, "int8", (1,), 1, shown(0.1)), CalibrationRow(3, "int8", (1, 2), 3, shown(0.1))):
        with pytest.raises(InputError, match="another model"):
            split_of(graph, calibration=calibration_of(graph, [row]))


def test_a_codec_that_no_profile_times_takes_what_the_calibration_saw_on_this_machines_scale() -> None:
    """Both hosts have int8's times and none of raw+zstd; the calibration has both at one cut, int8 alone at another."""
    model = model_of(EFFICIENT)
    edge, cloud = pair()
    place = {c.name: k for k, c in enumerate(model.graph.prefixes())}
    at, other = (model.graph.cut(f"blocks.{k}.project.norm") for k in (5, 3))
    good = Quality(100, 0.99, 0.99, 0.01)
    rows = (
        CalibrationRow(place[at.name], "int8", (16320,), 16320, good, 0.2, 0.1),
        CalibrationRow(place[at.name], "int4+zstd", (7000,), 7100, good, 0.3, 0.5),
        CalibrationRow(place[other.name], "int8", (31680,), 31680, good, 0.2, 0.1),
    )
    known = msgspec.structs.replace(calibration(model, {(0, "int8"): 1.0}), inputs=100, rows=rows)
    planner = Planner(None, (edge, cloud), constraints=Constraints(agreement=0.95), calibration=known)
    int8, zstd = (planner.price(at, [codec], FOUR_G) for codec in ("int8", "int4+zstd"))
    assert zstd.codecs == ("int4+zstd",)
    assert zstd.crossing[0].nbytes == 7000
    assert zstd.stages["encode"].ms == pytest.approx(int8.stages["encode"].ms * 0.3 / 0.2)
    cost, nbytes = cloud.codecs["int8"], at.crossing[0].nbytes / 1e6
    slower = (cost.encode_fixed_ms + cost.encode_ms_per_mb * nbytes) / 0.2
    took = cost.decode_fixed_ms + cost.decode_ms_per_mb * nbytes
    assert zstd.stages["server"].ms - int8.stages["server"].ms == pytest.approx(0.5 * slower - took)
    # Where it was not calibrated nobody knows what it takes: the tensor goes raw.
    assert planner.price(other, ["int4+zstd"], FOUR_G).codecs == ("raw",)
    slow = Link(0.5, 20.0, 10.0)
    assert {o.codecs for o in planner.plan(slow, sensitivity=False).options if o.cut == at.name} == {("int4+zstd",)}
    with pytest.raises(InputError, match="no times for the codec int4"):
        Planner(None, (edge, cloud), constraints=Constraints(codecs=("int4+zstd",)))
