"""Tables on the device: of the very tensor, such as the server has too, or another codec, which is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from calibration_cases import ENGINE
from serving import affine, nothing_leaks, until
from tabled import AT, TENSOR, answers, calibration, digits, lenet, other_calibration, rated, tables_for

from splitpoint.calibration.calibrations import Calibration, TensorTables
from splitpoint.codecs.klt import learn
from splitpoint.errors import InputError, OverBudgetError, UsageError
from splitpoint.models.model import Model
from splitpoint.runtime.client.blob_cache import BlobCache
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.codec_choice import FrameBudget
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server

#: The most that a logit moves with steps of level 100, as a share of the logits' range (measured: 0.004 at the most).
BOUND = 0.01
QUICK = Patience(pause_s=0.01, longest_pause_s=0.05)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    digits(), answers(), calibration(), other_calibration()  # what they hold is kept
    with nothing_leaks():
        yield


def server_of(
    *calibrations: Calibration, share: str = "model", port: int = 0, models: tuple[Model, ...] = ()
) -> Server:  # fmt: skip
    return Server(models or [lenet()], engine=ENGINE, port=port, share=share, calibrations=calibrations)


def sentences(told: list[Event], kind: str = "notice") -> list[str]:
    return [event.sentence for event in told if event.kind == kind]


def test_the_answers_are_the_whole_models_at_a_fine_level_and_tables_are_fetched_once(tmp_path: Path) -> None:
    told: list[Event] = []
    with server_of(calibration()) as server:
        for _ in range(2):
            with Edge(server.address, at=AT, codec="klt:100", cache=tmp_path, on_event=told.append) as edge:
                assert edge.codecs == {TENSOR: "klt:100"}
                for one, expected in zip(digits()[10:20], answers(), strict=True):
                    result = edge.infer(one)
                    assert result.codecs == {TENSOR: "klt:100"}
                    assert result.outputs["logits"].argmax() == expected.argmax()
                    error = np.abs(result.outputs["logits"] - expected).max()
                    assert 0 < error <= BOUND * np.ptp(expected)
    assert sentences(told, "fetched")[1:] == [f"fetched the tables for {TENSOR} (3.6 kB)"]
    assert tables_for(calibration()).hash in BlobCache(tmp_path)
    assert not sentences(told)


def test_a_coarser_level_takes_fewer_bytes_and_both_are_on_one_connection(tmp_path: Path) -> None:
    one = digits()[10]
    with server_of(calibration()) as server, Edge(server.address, at=AT, cache=tmp_path) as edge:
        sizes = [edge.infer(one, at=AT, codec={TENSOR: f"klt:{level}"}).up_nbytes for level in (30, 50, 70)]
        assert sizes == sorted(sizes)
        assert sizes[-1] < edge.infer(one, at=AT, codec="int8").up_nbytes


@pytest.mark.parametrize(("share", "fetched"), [("head:pool1", True), ("none", False)])
def test_tables_leave_with_the_head_that_makes_their_tensor(share: str, fetched: bool, tmp_path: Path) -> None:
    told: list[Event] = []
    model = lenet() if share == "none" else None
    with (
        server_of(calibration(), share=share) as server,
        Edge(server.address, model, at=AT, codec="klt:60", cache=tmp_path, on_event=told.append) as edge,
    ):
        assert edge.codecs == {TENSOR: "klt:60" if fetched else "int8"}
        assert edge.infer(digits()[10]).outputs["logits"].shape == (1, 10)
        (info,) = edge.served
        hash = tables_for(calibration()).hash
        if fetched:  # of the deeper one nothing is told: no tail begins there
            assert [(name, its) for name, its, _ in info.tables] == [(TENSOR, hash)]
        else:
            assert ("", hash) in [(name, its) for name, its, _ in info.tables]
            assert sentences(told) == [
                f"{TENSOR} travels as int8 instead of klt:60: the server hands out none (--calibration FILE gives them)"
            ]


def test_ones_own_are_used_where_the_server_has_the_same_whatever_it_shares(tmp_path: Path) -> None:
    told: list[Event] = []
    with (
        server_of(calibration(), share="none") as server,
        Edge(server.address, lenet(), at=AT, codec={TENSOR: "klt:100"}, cache=tmp_path, calibration=calibration(),
             on_event=told.append) as edge,
    ):  # fmt: skip
        assert edge.codecs == {TENSOR: "klt:100"}
        assert edge.infer(digits()[10]).outputs["logits"].argmax() == answers()[0].argmax()
    assert not told


def test_ones_own_that_the_server_does_not_have_are_said_and_not_used(tmp_path: Path) -> None:
    told: list[Event] = []
    mine, theirs = (tables_for(c).hash[:12] for c in (other_calibration(), calibration()))
    mismatched: dict[str, Any] = {"at": AT, "codec": "klt:100", "calibration": other_calibration(), "cache": tmp_path}
    mismatched["on_event"] = told.append
    with server_of(calibration()) as server, Edge(server.address, lenet(), **mismatched) as edge:
        assert edge.codecs == {TENSOR: "klt:100"}
        assert edge.infer(digits()[10]).outputs["logits"].argmax() == answers()[0].argmax()
    assert sentences(told) == [
        f"the calibration given here has tables {mine} for {TENSOR}, and the server {theirs}: the server's are used"
    ]
    told.clear()
    with server_of() as server, Edge(server.address, lenet(), **mismatched) as edge:
        assert edge.codecs == {TENSOR: "int8"}
        assert edge.infer(digits()[10]).codecs == {TENSOR: "int8"}
    assert sentences(told) == [
        f"{TENSOR} travels as int8 instead of klt:100: the calibration given here has tables {mine} for {TENSOR}, "
        "which the server does not have"
    ]


def test_a_server_without_tables_gets_int8_and_that_is_said_once(tmp_path: Path) -> None:
    told: list[Event] = []
    with (
        server_of() as server,
        Edge(server.address, at=AT, codec="klt:60", cache=tmp_path, on_event=told.append) as edge,
    ):
        for level in (60, 60):
            edge.infer(digits()[10], at=AT, codec=f"klt:{level}")
        assert edge.codecs == {TENSOR: "int8"}
    assert sentences(told) == [f"{TENSOR} travels as int8 instead of klt:60: the server has no tables for it"]


def test_a_calibration_of_another_model_is_refused_at_once(tmp_path: Path) -> None:
    other = affine(tmp_path)
    with (
        server_of(models=(other,)) as server,
        pytest.raises(InputError, match=r"given here is of lenet5 .*not of affine"),
    ):
        Edge(server.address, other, at="add1", cache=tmp_path, calibration=calibration())
    with pytest.raises(InputError, match="the calibration is of lenet5"):
        server_of(calibration(), models=(other,))
    with (
        server_of() as server,
        Edge(server.address, at=AT, cache=tmp_path) as edge,
        pytest.raises(UsageError, match="needs a quality from 1 to 100"),
    ):
        edge.switch(AT, "klt:101")


def test_a_server_that_comes_back_with_other_tables_is_sent_those(tmp_path: Path) -> None:
    told: list[Event] = []
    with server_of(calibration()) as server:
        address = server.address
        with Edge(address, lenet(), at=AT, codec="klt:100", cache=tmp_path, fallback="wait", patience=QUICK,
                  on_event=told.append) as edge:  # fmt: skip
            ask = lambda: edge.infer(digits()[10]).outputs["logits"].argmax() == answers()[0].argmax()  # noqa: E731
            assert ask()
            server.close()
            port = int(address.rpartition(":")[2])
            with server_of(other_calibration(), port=port):
                assert ask()
                assert edge.codecs == {TENSOR: "klt:100"}
                assert [e.fields["nbytes"] for e in told if "tables" in e.sentence] == [
                    len(tables_for(c).to_bytes()) for c in (calibration(), other_calibration())
                ]
            with server_of(port=port):
                assert ask()
                assert until(lambda: edge.codecs == {TENSOR: "int8"})
            assert any("travels as int8" in text for text in sentences(told))


def test_a_device_that_begins_without_the_server_takes_its_tables_when_it_comes(tmp_path: Path) -> None:
    with server_of(calibration()) as server:
        address = server.address
    told: list[Event] = []
    with Edge(address, lenet(), at=AT, codec="klt:100", cache=tmp_path, fallback="local", patience=QUICK,
              on_event=told.append) as edge:  # fmt: skip
        assert edge.infer(digits()[10]).outputs["logits"].argmax() == answers()[0].argmax()
        assert edge.codecs == {TENSOR: "int8"}
        with server_of(calibration(), port=int(address.rpartition(":")[2])):
            assert until(lambda: edge.codecs == {TENSOR: "klt:100"})
            assert until(lambda: edge.infer(digits()[10]).codecs == {TENSOR: "klt:100"})


def shrunken(factor: float) -> Calibration:
    """A calibration of a tensor that was so many times as large as it is now."""
    session = ENGINE.compile(lenet().head(lenet().graph.cut(AT)))
    try:
        samples = [np.float32(factor) * session.run(one)[TENSOR] for one in digits()[:10]]
    finally:
        session.close()
    return msgspec.structs.replace(calibration(), tables=(TensorTables(TENSOR, learn(samples).to_bytes()),))


@pytest.mark.parametrize(("factor", "travels"), [(0.1, "klt:50"), (1e-4, "int8")])
def test_that_the_calibration_no_longer_fits_is_counted_and_said_once(
    factor: float, travels: str, tmp_path: Path
) -> None:  # fmt: skip
    told: list[Event] = []
    with (
        server_of(shrunken(factor)) as server,
        Edge(server.address, at=AT, codec="klt:50", cache=tmp_path, on_event=told.append) as edge,
    ):
        for k, (one, expected) in enumerate(zip(digits()[10:16], answers(), strict=False)):
            result = edge.infer(one)
            assert result.codecs == {TENSOR: travels}, "where it would take more bytes than int8, it is that"
            assert result.outputs["logits"].argmax() == expected.argmax(), "what is outside is never cut off"
            assert edge.stats().outside == k + 1
            assert len(sentences(told)) == (k >= 2)
    assert sentences(told) == [
        f"the calibration no longer fits {TENSOR}: 3 inputs in a row had values far outside of what it has seen; "
        "calibrate again with inputs like these, or use another codec"
    ]


def test_a_calibration_that_fits_counts_nothing(tmp_path: Path) -> None:
    with server_of(calibration()) as server, Edge(server.address, at=AT, codec="klt:50", cache=tmp_path) as edge:
        for one in digits()[10:15]:
            edge.infer(one)
        assert edge.stats().outside == 0


# --- budgets ---------------------------------------------------------------------------------------------------------


def sizes(address: str, cache: Path) -> tuple[int, int, int]:
    """Bytes of the frames of a digit at levels 1, 40 and 100."""
    with Edge(address, at=AT, cache=cache) as edge:
        frames = [edge.infer(digits()[10], at=AT, codec={TENSOR: f"klt:{level}"}).up_nbytes for level in (1, 40, 100)]
    return frames[0], frames[1], frames[2]


def test_a_budget_is_never_exceeded_and_it_is_said_how_coarse_that_was(tmp_path: Path) -> None:
    with server_of(calibration()) as server:
        coarse, middle, fine = sizes(server.address, tmp_path)
        for most in (coarse + 20, (coarse + middle) // 2, middle, (middle + fine) // 2, 2 * fine):
            with Edge(server.address, at=AT, codec="klt:100", cache=tmp_path, budget=FrameBudget(most)) as edge:
                for one in digits()[10:20]:
                    result = edge.infer(one)
                    assert 0 < result.up_nbytes <= most
                    (codec,) = result.codecs.values()
                    assert (codec == "klt:100") == (most == 2 * fine)
                    assert result.outputs["logits"].shape == (1, 10)


def test_what_fits_at_no_step_is_refused_or_finished_here(tmp_path: Path) -> None:
    said = r"the request has .* as klt:1, and may have 60 B: allow more, another cut or codec, or a larger drop"
    with server_of(calibration()) as server:
        with Edge(server.address, at=AT, codec="klt:100", cache=tmp_path, budget=FrameBudget(60)) as edge:
            for _ in range(2):
                with pytest.raises(OverBudgetError, match=said):
                    edge.infer(digits()[10])
        with (
            Edge(server.address, at=AT, codec="int8", cache=tmp_path, budget=FrameBudget(600)) as edge,
            pytest.raises(OverBudgetError, match="as int8, and may have 600 B"),
        ):
            edge.infer(digits()[10])
        with Edge(server.address, lenet(), at=AT, codec="klt:100", cache=tmp_path, budget=FrameBudget(60),
                  fallback="local") as edge:  # fmt: skip
            result = edge.infer(digits()[10])
            assert result.fallback.startswith("the request has")
            assert result.outputs["logits"].argmax() == answers()[0].argmax()
            assert edge.link_state == "up"


def test_no_frame_is_coarser_than_what_is_shown_to_keep_the_answers(tmp_path: Path) -> None:
    known = rated(klt_20=0.9, klt_40=0.99, klt_60=0.999)
    with server_of(calibration()) as server:
        coarse, middle, _ = sizes(server.address, tmp_path)
        options: dict[str, Any] = {"at": AT, "codec": "klt:100", "cache": tmp_path, "calibration": known}
        with Edge(server.address, lenet(), **options, budget=FrameBudget(middle + 100, 0.05)) as edge:
            (codec,) = edge.infer(digits()[10]).codecs.values()
            assert 40 <= int(codec.partition(":")[2]) < 100
        with (
            Edge(server.address, lenet(), **options, budget=FrameBudget((coarse + middle) // 2, 0.05)) as edge,
            pytest.raises(OverBudgetError, match="as klt:40,"),
        ):
            edge.infer(digits()[10])
        with (  # no level is shown to keep so much
            Edge(server.address, lenet(), **options, budget=FrameBudget(middle, 0.001)) as edge,
            pytest.raises(OverBudgetError, match="as klt:100,"),
        ):
            edge.infer(digits()[10])


class Slow:
    """In place of who adapts: a link on which so many bytes a second go up."""

    switches = ()

    def __init__(self, bytes_a_second: float) -> None:
        self.rate = bytes_a_second

    def fits(self, left_s: float) -> float:
        return left_s * self.rate

    def close(self) -> None:
        pass


def test_a_frame_under_a_deadline_is_as_coarse_as_it_may_be_to_be_in_time(tmp_path: Path) -> None:
    with (
        server_of(calibration()) as server,
        Edge(server.address, lenet(), at=AT, codec="klt:100", cache=tmp_path, budget=FrameBudget(None, 0.05),
             calibration=rated(klt_40=0.99)) as edge,
    ):  # fmt: skip
        edge.adaptive = Slow(0.001)  # type: ignore[assignment]
        assert edge.infer(digits()[10]).codecs == {TENSOR: "klt:100"}, "there is no deadline"
        assert edge.infer(digits()[10], deadline_s=60).codecs == {TENSOR: "klt:40"}, "never coarser; it may be late"
        edge.adaptive = Slow(1e9)  # type: ignore[assignment]
        assert edge.infer(digits()[10], deadline_s=60).codecs == {TENSOR: "klt:100"}
        edge.adaptive = None


def test_values_outside_are_counted_within_a_budget_too(tmp_path: Path) -> None:
    with (
        server_of(shrunken(0.1)) as server,
        Edge(server.address, at=AT, codec="klt:50", cache=tmp_path, budget=FrameBudget(100_000)) as edge,
    ):
        for k, one in enumerate(digits()[10:13]):
            assert edge.infer(one).codecs == {TENSOR: "klt:50"}
            assert edge.stats().outside == k + 1


def test_what_was_measured_with_other_tables_says_nothing(tmp_path: Path) -> None:
    told: list[Event] = []
    known = rated(int8=1.0, klt_40=0.99)
    with server_of(calibration()) as server, Edge(server.address, lenet(), at=AT, cache=tmp_path, calibration=known,
                                                  on_event=told.append) as edge:  # fmt: skip
        assert edge.calibration == known
        assert not told
    with server_of(other_calibration()) as server, Edge(server.address, lenet(), at=AT, cache=tmp_path,
                                                        calibration=known, on_event=told.append) as edge:  # fmt: skip
        for _ in range(2):
            assert edge.calibration is not None
            assert [row.codec for row in edge.calibration.rows] == ["int8"]
        assert [text for text in sentences(told) if "the server has no such tables" in text] == [
            f"the server has no such tables as the calibration given here for {TENSOR}, pool2: what klt keeps there is "
            "not known (serve --calibration FILE gives it the same)"
        ]
