"""What a plan says in words: one sentence, and why the runner-up lost."""

from __future__ import annotations

from math import isclose
from typing import Any

import pytest
from msgspec.structs import replace
from planning_cases import LENET, pair, planned
from plans import FOUR_G, profiles

from splitpoint.errors import UsageError
from splitpoint.link import Link
from splitpoint.planning.advice import advise, pace
from splitpoint.planning.planner import plan
from splitpoint.planning.plans import STAGES, Band
from splitpoint.profile.profiles import Profile


def test_a_split_that_is_no_better_is_not_worth_it() -> None:
    edge, cloud = profiles(LENET, 60.0, 2.0)
    found = plan(None, (edge, cloud), FOUR_G)
    assert found.best.kind == "server"
    assert found.advice.startswith("Do not split: run it all on the server, raw input: ")
    assert "the best split, after normalize.transpose, is no better" in found.advice


@pytest.mark.parametrize("objective", ["bytes", "server-time"])
def test_that_a_device_alone_sends_nothing_is_no_news(objective: str) -> None:
    found = planned(objective=objective)
    assert found.best.kind == "device"
    assert "which is always the least: to rule that out, give a deadline (--deadline) or a memory" in found.advice
    limited = planned(objective=objective, deadline_ms=1000.0)
    assert limited.advice.endswith("which is always the least, and the edge keeps to the limits.")


def test_do_not_split_is_an_answer_with_its_number() -> None:
    found = planned(Link(0.13, 0.13, 100))
    assert found.best.kind == "device"
    assert found.advice.startswith("Do not split: run it all on the edge: 90.0 ms, ")
    assert " less than the best split, after " in found.advice


def test_a_split_says_by_how_much_it_wins() -> None:
    found = planned(codecs=("int8",), keep_input_local=True, link=Link(20, 20, 5))
    assert found.best.kind == "split"
    device = found.option("device")
    assert device is not None
    percent = round(100 * (1 - found.best.total.ms / device.total.ms))
    assert f"({percent} %) less than all on the edge" in found.advice
    assert "(accuracy not measured)" in found.advice


def test_a_gain_that_was_modelled_and_not_measured_is_too_close_to_call_within_its_band() -> None:
    found = planned(codecs=("int8",), keep_input_local=True, link=Link(20, 20, 5))
    device, head = found.option("device"), found.best.hosts[0]
    assert device is not None
    gain = device.total.ms - found.best.total.ms

    def said(error: float) -> str:
        band = Band(head.compute.ms, 0.0, head.compute.ms + error)
        hosts = (replace(head, compute=band, modelled=True), found.best.hosts[1])
        best = replace(found.best, hosts=hosts)
        return advise((device, best), best, "latency")

    assert said(2 * gain).startswith("Too close to call: split after ")
    assert "are within the error bars (modelled, not measured), measure them with splitpoint compare" in said(2 * gain)
    assert said(0.5 * gain).startswith("Split after ")


def test_two_that_do_not_split_and_are_within_the_error_bars_are_too_close_to_call() -> None:
    edge, cloud = pair(LENET, 3.0, 0.2)
    ways = {rate: plan(None, (edge, cloud), Link(rate, 18000, 0.06)) for rate in (0.5, 1000.0)}
    close = plan(None, (edge, cloud), _even(edge, cloud))
    assert close.advice.startswith("Too close to call: all on the ")
    assert "splitpoint compare" in close.advice
    assert all("Too close" not in found.advice for found in ways.values())


def _even(edge: Profile, cloud: Profile) -> Link:
    """The link on which device and server take the same time."""
    low, high = 0.1, 1000.0
    for _ in range(20):
        middle = (low * high) ** 0.5
        found = plan(None, (edge, cloud), Link(middle, 18000, 0.06))
        device, server = found.option("device"), found.option("server")
        assert device is not None
        assert server is not None
        low, high = (middle, high) if server.total.ms > device.total.ms else (low, middle)
    return Link(high, 18000, 0.06)


def test_explain_says_stage_by_stage_why_the_runner_up_lost() -> None:
    found = planned(codecs=("int8",), link=Link(20, 20, 5))
    second = min((o for o in found.options if not o.refused and o != found.best), key=lambda o: o.total.ms)
    assert found.why[0].startswith(f"the runner-up is {second.label}: ")
    differences = sum(second.stages[s].ms - found.best.stages[s].ms for s in STAGES)
    assert isclose(differences, second.total.ms - found.best.total.ms)
    assert any(line.startswith("edge: ") for line in found.why)
    assert any("but its accuracy is not measured" in line for line in found.why)


def test_explain_names_the_slowest_stages_of_a_stream() -> None:
    found = planned(codecs=("int4",), objective="throughput")
    assert found.why[1] == "slowest stage: edge 27.2 ms instead of link 23.6 ms"
    for option in found.options:
        busy = {
            "edge": option.stages["edge"].ms + option.stages["encode"].ms,
            "link": FOUR_G.up_ms(option.up_nbytes) + FOUR_G.down_ms(option.down_nbytes),
            "server": option.stages["server"].ms,
        }
        assert busy[pace(option)] == max(busy.values())


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"deadline_ms": 20.0}, ("an answer within 20.0 ms cannot be had:", "all on the edge, which takes 90.0 ms")),
        (
            {"deadline_ms": 60.0, "keep_input_local": True, "codecs": ("jpeg:90",)},
            ("an answer within 60.0 ms cannot be had together with keeping the input on the edge",),
        ),
        (
            {"max_edge_memory": 1.0, "keep_input_local": True},
            ("at most 1 B on the edge cannot be had together with", "which holds "),
        ),
    ],
)  # fmt: skip
def test_contradictory_constraints_name_the_one_and_the_nearest_plan(
    limits: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as refused:
        planned(**limits)
    assert all(w in str(refused.value) for w in words)
    assert "the nearest plan is " in str(refused.value)
