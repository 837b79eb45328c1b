"""What the answers of a run are worth."""

from __future__ import annotations

import virtual
from plans import model_of

from splitpoint.calibration.calibrations import Calibration
from splitpoint.cli.fidelity import Fidelity
from splitpoint.runtime.result import Marks, Result

GRAPH = model_of("zoo:efficientnet_lite0").graph
CUT = "blocks.5.project.norm"
(TENSOR,) = (t.name for t in GRAPH.cut(CUT).crossing)


def result(codec: str, up_nbytes: int = 4000, cut: str = CUT) -> Result:
    return Result({}, cut, Marks(0, 0, 0, 1), up_nbytes=up_nbytes, codecs={TENSOR: codec} if codec else {})


def said_of(*results: Result, calibration: Calibration | None) -> list[str]:
    fidelity = Fidelity(lambda: calibration, lambda: GRAPH)
    for one in results:
        fidelity.add(one)
    return list(fidelity.lines())


def test_each_way_is_a_sentence_with_its_median_and_what_was_measured_of_it() -> None:
    told = said_of(
        result("klt:48"), result("klt:48", 6000), result("klt:48", 5000), result("int8"), calibration=virtual.front()
    )
    assert told == [
        f"3 answers as klt:48 at {CUT}, 5.0 kB up: 96.5% of 1000 answers stayed in the calibration with klt:48, at "
        "least 95.4% do with 95 % confidence",
        f"1 answer as int8 at {CUT}, 4.0 kB up: 99.9% of 1000 answers stayed in the calibration with int8, at least "
        "99.5% do with 95 % confidence",
    ]


def test_a_level_between_two_is_worth_what_the_coarser_one_is() -> None:
    fidelity = Fidelity(virtual.front, lambda: GRAPH)
    measured = {level: fidelity.of(result(f"klt:{level}")) for level in (35, 36, 47, 59, 100)}
    assert [None if kept is None else kept.measured for kept in measured.values()] == [
        None, "klt:36", "klt:42", "klt:48", "klt:72"
    ]  # fmt: skip


def test_what_loses_nothing_or_was_named_without_a_calibration_is_not_spoken_of() -> None:
    assert said_of(result(""), result("raw+zstd"), calibration=virtual.front()) == []
    assert said_of(result("int8"), calibration=None) == []
    (told,) = said_of(result("klt:48"), calibration=None)
    assert told.endswith("what that keeps of the answers was not measured (splitpoint calibrate-codecs)")
    (told,) = said_of(result("int8", cut="blocks.6"), calibration=virtual.front())
    assert "was not measured" in told
