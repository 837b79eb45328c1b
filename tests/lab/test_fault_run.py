"""Requests through faults, and the report of what became of them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from splitpoint.engines import open_engine
from splitpoint.lab import fault_run as ordeal
from splitpoint.lab.fault_run import Answer, Report
from splitpoint.lab.faults import KINDS, Fault, schedule
from splitpoint.models import load
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.result import Marks, Result
from splitpoint.segments import samples_for


def _answer(request: int, at_s: float, fallback: str = "", *, equal: bool = True) -> Answer:
    return Answer(request, at_s, fallback, 0.0, 0.0, equal)


def test_a_report_counts_what_is_lost_doubled_wrong_and_whose_it_was() -> None:
    planned = (Fault(2, "cut"), Fault(4, "kill"), Fault(6, "cut"))
    good = [_answer(k, 0.1 * k + 0.1, "gone" * (k in (2, 4, 5))) for k in range(8)]

    def report(answers: list[Answer], **more: object) -> Report:
        known = {"out_of_order": 0, "failures": (), "recovered_s": 0.5, "changed_nbytes": 3, "seconds": 1.0}
        return Report(count=8, faults=planned, answers=tuple(answers), **{**known, **more})  # type: ignore[arg-type]

    sound = report(good)
    assert sound.complaints == []
    assert [(t.kind, t.times, t.by_server, t.here) for t in sound.tolls()] == [
        ("", 0, 2, 0),
        ("kill", 1, 0, 2),
        ("cut", 2, 3, 1),
    ]
    assert "5 from the server, 3 finished here; 0 lost" in sound.summary
    late = report([*good[:4], _answer(4, 0.9), *good[5:]])
    assert max(t.longest_gap_ms for t in late.tolls()) == pytest.approx(200)  # between 3 and 5, and once at the end
    for bad, said in (
        (report(good[1:]), "1 of 8 requests were not answered"),
        (report([*good, good[3]]), "1 of 8 requests were answered twice"),
        (report([*good[1:], _answer(0, 0.1, equal=False)]), "1 of 8 requests were answered wrong"),
        (report(good, out_of_order=1), "1 of 8 requests came out of order"),
        (report(good, failures=("3: it raised",)), "3: it raised"),
    ):
        assert bad.complaints == [said]


def test_the_judge_knows_another_inputs_answer() -> None:
    model = load("zoo:lenet5")
    samples = samples_for(model, 8)
    whole = open_engine(threads=1).compile(model.whole())
    expected = [{**sample, **whole.run(sample)} for sample in samples]
    cut = model.graph.cut("pool1")
    marks = Marks(0.0, 0.0, 0.0, 0.0)
    for request, k, equal in ((3, 3, True), (11, 3, True), (3, 4, False), (0, 7, False)):
        result = Result({t.name: expected[k][t.name] for t in model.outputs}, "pool1", marks)
        assert ordeal._judged(model, cut, expected, request, 0.0, result).equal == equal


pytestmark = pytest.mark.usefixtures("no_leaks")


def test_hundreds_of_requests_through_everything_that_can_go_wrong() -> None:
    """The seeded schedule, in small; `python -m bench.faults` is the large one."""
    planned = [replace(f, seconds=min(f.seconds, 0.4)) for f in schedule(3, 260, gap=(12, 24))]
    assert {f.do for f in planned} == set(KINDS)
    quick = Patience(pong_s=0.5, longest_pause_s=0.5)
    report = ordeal.run("zoo:lenet5", planned, count=260, at="pool1", rate=60.0, seed=3, patience=quick)
    assert report.complaints == []
    assert report.changed_nbytes > 0
    here = sum(bool(a.fallback) for a in report.answers)
    assert 0 < here < 260  # both took part
    assert max(a.error for a in report.answers) < 1e-3
