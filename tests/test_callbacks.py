"""What is told must not break what tells: callbacks, watchers and logs that raise, block or call back."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import until

import splitpoint
from splitpoint import callbacks
from splitpoint.calibration.codec_trials import calibrate
from splitpoint.engines import open_engine
from splitpoint.errors import ServerError, UsageError
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.profile.measure import profile_model
from splitpoint.runtime.adapt.controller import Watching
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import AutoPlan
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.segments import samples_for

Reported = set[tuple[str, type[BaseException]]]
DIGIT = np.zeros((1, 32, 32, 1), np.uint8)
SRC = Path(splitpoint.__file__).parent
QUICK = Patience(pause_s=0.01, longest_pause_s=0.05)


@pytest.fixture(scope="module")
def lenet() -> Model:
    return load("zoo:lenet5")


@pytest.fixture
def server(lenet: Model) -> Iterator[Server]:
    with Server([lenet], engine=open_engine(threads=1), port=0) as server:
        yield server


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


# --- the guard ------------------------------------------------------------------------------------------------------


def test_what_a_callback_raises_is_reported_once(reported: Reported, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0, "splitpoint")
    with pytest.warns(RuntimeWarning, match="full raised OSError.*No space"):
        callbacks.call(full)
    with warnings.catch_warnings(record=True) as again:
        callbacks.call(full)
    assert not again
    assert [(r.levelname, r.name) for r in caplog.records] == [("ERROR", "splitpoint")]
    assert reported == {("full", OSError)}


def test_neither_a_warning_that_is_an_error_nor_a_log_that_fails_gets_through(reported: Reported) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError(28, "the log is full, too")

    handler = Broken()
    callbacks.log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            callbacks.call(full)
    finally:
        callbacks.log.removeHandler(handler)
    assert reported


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_who_ends_the_program_does_in_the_main_thread_and_ends_no_other(
    reported: Reported, kind: type[BaseException]
) -> None:
    def end() -> None:
        raise kind

    with pytest.raises(kind):
        callbacks.call(end)
    came: list[str] = []
    thread = threading.Thread(target=lambda: (callbacks.call(end), came.append("goes on")))
    thread.start()
    thread.join()
    assert came == ["goes on"]
    assert len(reported) == 1


#: Names of what others give us to call and be told.
TELLS = re.compile(r"_?on_(event|result|progress|step|note|row|answer|steps)$|_?progress$")


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_every_callback_is_called_under_the_guard(path: Path) -> None:
    """``on_event(...)`` in our own code would let its error through: ``call(on_event, ...)`` does not."""
    if path.parent.name == "cli":  # whose functions of these names are its own
        return
    found = [
        f"{path.name}:{entry.lineno} {ast.unparse(entry.func)}"
        for entry in ast.walk(ast.parse(path.read_text()))
        if isinstance(entry, ast.Call) and TELLS.search(ast.unparse(entry.func))
    ]
    #: A `Teller`, and one that minds what it catches.
    known = {"controller.py on_event", "queue_run.py self.on_answer"}
    assert [f for f in found if re.sub(r":\d+", "", f) not in known] == []


# --- a server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True])
def test_a_server_whose_events_cannot_be_told_serves(lenet: Model, reported: Reported, later: bool) -> None:
    server = Server([lenet], engine=open_engine(threads=1), port=0, on_event=(lambda _: None) if later else full)
    server.start()
    if later:
        server.tell.redirect(full)
    try:
        for _ in range(3):
            with Edge(server.address, lenet, at="pool1", patience=Patience(answer_s=10)) as edge:
                assert edge.infer(DIGIT).outputs["logits"].shape == (1, 10)
    finally:
        server.close()
    assert reported == {("full", OSError)}


def test_what_a_server_is_told_to_tell_later_hears_of_evictions_too(lenet: Model) -> None:
    kinds: list[str] = []
    with Server([lenet], engine=open_engine(threads=1), port=0, tail_cache_bytes=1) as server:
        server.tell.redirect(lambda event: kinds.append(event.kind))
        with Edge(server.address, lenet, at="pool1") as edge:
            edge.infer(DIGIT)
            edge.switch("pool2")
            edge.infer(DIGIT)
        assert until(lambda: "left" in kinds)
    assert {"connected", "opened", "evicted", "left"} <= set(kinds)


def test_a_server_may_be_asked_by_who_it_tells(lenet: Model) -> None:
    """`on_event` that itself uses the server neither waits for ever nor is waited for."""
    answers: list[tuple[int, ...]] = []

    def ask(event: Event) -> None:
        if event.kind == "opened" and not answers:
            answers.append(())
            with Edge(server.address, lenet, at="pool1", patience=Patience(answer_s=20)) as edge:
                answers.append(edge.infer(DIGIT).outputs["logits"].shape)

    with (
        Server([lenet], engine=open_engine(threads=1), port=0, on_event=ask) as server,
        Edge(server.address, lenet, at="pool1", patience=Patience(answer_s=20)) as edge,
    ):
        edge.infer(DIGIT)
        assert until(lambda: len(answers) == 2)
    assert answers[1] == (1, 10)


@pytest.mark.parametrize("when", ["connected", "opened"])
def test_a_server_may_be_closed_by_who_it_tells(lenet: Model, reported: Reported, when: str) -> None:
    """Also by a thread that closing waits for: all of its threads end, and it can be started again."""
    said: list[str] = []

    def close(event: Event) -> None:
        if event.kind == when:
            server.close()
            try:
                server.start()
            except UsageError as exc:
                said.append(str(exc))

    before = set(threading.enumerate())
    server = Server([lenet], engine=open_engine(threads=1), port=0, on_event=close)
    server.start()
    with suppress(ServerError), Edge(server.address, lenet, at="pool1", patience=Patience(answer_s=20)) as edge:
        edge.infer(DIGIT)
    assert until(lambda: set(threading.enumerate()) <= before)
    assert all(text.startswith("on_event cannot start") for text in said)
    server.tell.redirect(lambda _: None)
    server.start()
    with Edge(server.address, lenet, at="pool1", patience=Patience(answer_s=20)) as edge:
        assert edge.infer(DIGIT).outputs["logits"].shape == (1, 10)
    server.close()
    assert not reported


# --- an edge --------------------------------------------------------------------------------------------------------


def test_an_edge_whose_events_cannot_be_told_answers_and_comes_back(lenet: Model, reported: Reported) -> None:
    server = Server([lenet], engine=open_engine(threads=1), port=0)
    server.start()
    port = int(server.address.rsplit(":")[-1])
    with Edge(server.address, lenet, at="pool1", fallback="local", on_event=full, patience=QUICK) as edge:
        whole = edge.infer(DIGIT).outputs["logits"]
        server.close()
        for _ in range(4):
            result = edge.infer(DIGIT)
            assert result.fallback
            np.testing.assert_allclose(result.outputs["logits"], whole, rtol=1e-5, atol=1e-6)
        with Server([lenet], engine=open_engine(threads=1), port=port):
            assert until(lambda: not edge.infer(DIGIT).fallback)
    assert reported == {("full", OSError)}


def test_results_progress_and_watchers_that_raise_cost_no_request(
    server: Server, reported: Reported, tmp_path: Path
) -> None:
    class Watching:
        """Hears of answers, and does not even have the other methods."""

        def answered(self, *_: object) -> None:
            raise ZeroDivisionError

        def delivered(self, *_: object) -> None:
            raise LookupError

    with (
        Edge(server.address, "lenet5", at="pool1", on_progress=full, cache=tmp_path) as edge,
    ):
        edge.pull()
        alone = edge.infer(DIGIT).outputs["logits"]
        edge.watchers.append(Watching())  # type: ignore[arg-type]
        results = [edge.infer(DIGIT), *edge.stream([DIGIT] * 5)]
    assert len(results) == 6
    for result in results:
        np.testing.assert_array_equal(result.outputs["logits"], alone)
    kinds = {kind for _, kind in reported}
    assert kinds == {OSError, ZeroDivisionError, LookupError, AttributeError}, "on_progress and three of a watcher"


def test_an_edge_may_be_used_by_who_it_tells(server: Server, tmp_path: Path) -> None:
    """A cut that is being made ready is told of with no lock held: who hears of it may make another one ready."""
    seen: list[Any] = []

    def use(event: Event) -> None:
        if event.kind == "fetched" and "weight" in event.sentence and not seen:
            seen.append(event)
            seen.append(edge.switch("pool1").name)
            seen.append(edge.infer(DIGIT).outputs["logits"].shape)

    def work() -> None:
        nonlocal edge
        edge.switch("pool2")
        seen.append(edge.infer(DIGIT).outputs["logits"].shape)

    edge = Edge(server.address, "lenet5", at="input", cache=tmp_path, on_event=use)
    with edge:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
    assert seen[1:] == ["pool1", (1, 10), (1, 10)]


def test_an_edge_may_be_closed_by_who_it_tells(lenet: Model) -> None:
    closed = threading.Event()

    def close(event: Event) -> None:
        if event.sentence.startswith("not asking"):
            edge.close()
            closed.set()

    server = Server([lenet], engine=open_engine(threads=1), port=0)
    server.start()
    edge = Edge(server.address, lenet, at="pool1", fallback="local", on_event=close, patience=QUICK)
    try:
        edge.infer(DIGIT)
        server.close()
        assert closed.wait(20)
    finally:
        edge.close()


def test_an_edge_that_adapts_goes_on_whatever_hears_of_it(
    server: Server, lenet: Model, reported: Reported, tmp_path: Path
) -> None:
    with (
        Edge(
            server.address,
            lenet,
            plan=AutoPlan(budget_s=0.5, watching=Watching(probe_every_s=0.01)),
            cache=tmp_path,
            on_event=full,
        ) as edge,
    ):
        for _ in range(20):
            assert edge.infer(DIGIT).outputs["logits"].shape == (1, 10)
    assert reported == {("full", OSError)}


# --- what takes long ------------------------------------------------------------------------------------------------


def test_measurements_do_not_end_for_a_bar_that_cannot_be_drawn(lenet: Model, reported: Reported) -> None:
    assert profile_model(lenet, open_engine(threads=1), budget_s=0.3, on_progress=full).measured
    samples = samples_for(lenet, 2)
    found = calibrate(lenet, open_engine(threads=1), samples, codecs=["int8"], on_progress=full, on_note=full)
    assert found.rows
    assert reported


def test_a_measurement_ends_when_it_may_not_proceed(lenet: Model) -> None:
    def stop() -> None:
        raise ServerError("nobody waits for it")

    with pytest.raises(ServerError, match="nobody waits"):
        profile_model(lenet, open_engine(threads=1), budget_s=60, proceed=stop)


# --- the logger -----------------------------------------------------------------------------------------------------


def test_events_go_to_the_logger_too(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "splitpoint"):
        with Edge(server.address, "lenet5", at="pool1", cache=tmp_path) as edge:
            edge.infer(DIGIT)
        assert until(lambda: any(r.kind == "left" for r in caplog.records))  # type: ignore[attr-defined]
    of = {r.kind: r for r in caplog.records}  # type: ignore[attr-defined]
    assert {"connected", "opened", "fetched", "left"} <= set(of)
    assert {r.name for r in caplog.records} == {"splitpoint"}
    assert of["connected"].levelname == "INFO"
    assert of["opened"].levelname == "DEBUG"


def test_the_logger_is_silent_by_default() -> None:
    code = (
        "import logging, splitpoint as sp\n"
        "from splitpoint.runtime.events import Event, Teller\n"
        "Teller()(Event('failed', 'nobody asked'))\n"
        "logging.basicConfig(format='%(name)s %(levelname)s %(message)s')\n"
        "Teller()(Event('failed', 'somebody\\x1b[31m asked'))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "splitpoint ERROR somebody [31m asked\n")
