"""splitpoint link: what it measures, prints and refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Gate, affine, nothing_leaks

from splitpoint.cli import link, main
from splitpoint.link import Link
from splitpoint.link.files import load_link, load_trace, save_link
from splitpoint.link.presets import PRESETS
from splitpoint.runtime.probe.link_probe import LinkMeasurement
from splitpoint.runtime.server.server import Server


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = affine(tmp_path_factory.mktemp("model"), size=64)
    with nothing_leaks(), Server([model], engine=Gate(), port=0) as server:
        yield server


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = main(["link", *args])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_measures_and_writes(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "here.link.json"
    status, said, err = run(capsys, "--cloud", server.address, "--budget", "500ms", "-o", str(path))
    assert status == 0
    assert [line.split("  ")[0] for line in said.splitlines()][:3] == ["up", "down", "round trip"]
    assert "150.5 kB up" in said
    assert "measured    in " in said
    assert f"wrote {path}" in err
    assert load_link(path).name == server.address
    status, said, _ = run(capsys, "--link", str(path), "--json")
    assert json.loads(said)["name"] == server.address


def test_with_a_model_it_measures_what_software_adds(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # As fast as a link can be, so that what is beside it shows on a busy machine, too.
    known = LinkMeasurement(Link(1e6, 1e6, 0.0), 0.1, 3, 1000, 1000)
    monkeypatch.setattr(link, "measure_link", lambda channel, budget_s, name: known)
    [info] = server.catalogue.infos
    status, said, err = run(capsys, info.name, "--cloud", server.address, "--json")
    assert status == 0, err
    assert json.loads(said)["link"]["software_ms"] > 0
    status, said, _ = run(capsys, info.name, "--cloud", server.address)
    assert "ms a request, of the runtime at both ends" in said
    known = LinkMeasurement(Link(1.0, 1e-3, 0.0), 0.1, 3, 1000, 1000)
    status, said, _ = run(capsys, info.name, "--cloud", server.address)
    assert "software    does not show" in said
    status, _, err = run(capsys, info.name, "--link", "4g")
    assert status == 2
    assert f"requests of {info.name} need a server: name it with --cloud HOST" in err


def test_the_command_measures_as_json(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    status, said, _ = run(capsys, "--cloud", server.address, "--budget", "0.5s", "--json")
    answer = json.loads(said)
    assert status == 0
    assert set(answer) == {"link", "seconds", "pings", "up_nbytes", "down_nbytes", "nearest_preset"}
    assert answer["link"]["up_mbps"] > 0


def test_the_command_says_what_a_link_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said, _ = run(capsys, "--link", "4g")
    assert status == 0
    assert "5.85 Mbit/s" in said
    assert "246 ms for 150.5 kB" in said
    assert "nearest" not in said
    assert "software" not in said, "not measured is not said to be 0"
    known = tmp_path / "known.link.json"
    save_link(known, Link(900, 900, 0.5, 0.1, "here", 0.57))
    _, said, _ = run(capsys, "--link", str(known))
    assert "software    0.57 ms a request" in said
    trace = tmp_path / "t.csv"
    trace.write_text("time,up,down,rtt\n0,10,20,40\n5,2,4,60\n")
    _, said, _ = run(capsys, "--link", str(trace))
    assert "2 rows over 10 s; then its last row holds" in said
    assert "up          3.333 Mbit/s" in said
    _, said, _ = run(capsys, "--link", str(trace), "--json")
    assert json.loads(said)["mean"]["up_mbps"] == pytest.approx(10 / 3)


def test_the_command_lists_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    status, said, _ = run(capsys)
    assert status == 0
    assert all(name in said for name in PRESETS)
    _, said, _ = run(capsys, "--json")
    assert list(json.loads(said)) == list(PRESETS)


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--link", "4gg"], 2, "did you mean 4g?"),
        (["--link", "0mbit,40ms"], 2, "up_mbps must be"),
        (["--link", "no.csv"], 4, "there is no file no.csv"),
        (["--link", "4g", "--cloud", "x"], 2, "one of the two"),
        (["--link", "4g", "-o", "/no/such/x.json"], 7, "there is no folder"),
        (["-o", "x.json"], 2, "measure one with --cloud"),
        (["--cloud", "127.0.0.1:1"], 6, "nothing listens at 127.0.0.1:1"),
        (["--cloud", "127.0.0.1:1", "--budget", "soon"], 2, "--budget is a time like 60s"),
        (["--cloud", "127.0.0.1:1", "--budget", "100ms"], 2, "0.2 to 600 seconds"),
    ],
)
def test_mistakes_are_one_sentence(
    capsys: pytest.CaptureFixture[str], args: list[str], status: int, words: str
) -> None:
    code, said, err = run(capsys, *args)
    assert (code, said) == (status, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_watching_goes_on_and_its_csv_is_a_trace(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "watch.csv"
    words = ["--cloud", server.address, "--watch", "300ms", "--budget", "600ms"]
    status, said, err = run(capsys, *words, "--csv", str(path))
    assert status == 0, err
    title, *lines = said.splitlines()
    assert "up Mbit/s" in title
    assert 1 <= len(lines) <= 2  # on a busy machine a turn is left out
    assert load_trace(path).times[0] == 0
    assert len(load_trace(path).links) == len(lines)
    status, said, _ = run(capsys, *words, "--json")
    assert status == 0
    assert json.loads(said.splitlines()[0])["up"] > 0
    for wrong in (["--watch", "1s"], ["--cloud", "x", "--csv", str(path)], ["m", "--cloud", "x", "--watch", "1s"]):
        status, _, err = run(capsys, *wrong)
        assert status == 2
        assert "--cloud HOST --watch 1s" in err
    status, _, err = run(capsys, "--cloud", server.address, "--watch", "100ms")
    assert status == 2
    assert "too often" in err


def test_what_is_watched_goes_to_standard_output_row_by_row(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert main(["link", "--cloud", server.address, "--watch", "300ms", "--budget", "600ms", "--csv", "-"]) == 0
    header, *rows = capfd.readouterr().out.splitlines()
    assert header == "time,up,down,rtt,jitter"
    assert all(len(row.split(",")) == 5 for row in rows)
    assert rows
