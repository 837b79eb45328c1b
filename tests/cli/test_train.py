"""splitpoint predict train: what reaches learning, and which rows are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import fails
from latencies import kind_model, latency

from splitpoint.cli import main
from splitpoint.predict.learn.files import load_latency
from splitpoint.predict.learn.latency_model import Latency


def test_train_learns_from_tables_and_names_the_rows_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is learned is `tests/predict/learn/test_training.py`'s matter; here, what reaches it and what is said."""
    asked: dict[str, object] = {}

    def train(tables: object, **identity: object) -> Latency:
        asked.update(identity, tables=tables)
        return latency(name=str(identity["name"]), kinds={"linear": kind_model("linear")})

    monkeypatch.setattr("splitpoint.predict.learn.training.train", train)
    folder, path = tmp_path / "board", tmp_path / "board.latency.json"
    folder.mkdir()
    (folder / "linear_lat.csv").write_text(
        "in_features,out_features,FLOPs,latency\n10,10,190,0.005\n10,20,380,nan\n10,20,380,-1\n10,20,380,x\n8,8,120,0\n"
    )
    status = main(["predict", "train", str(folder), "-o", str(path), "--threads", "4", "--seed-flops", "--note", "N"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    for said in ("(line 3): a latency that is not a number", "zero or negative", "text where a number should be"):
        assert said in captured.err
    assert "linear 100 5.0% 60% 90% 100% 80%" in " ".join(captured.out.split())
    assert f"next: splitpoint predict MODEL --on {path}" in captured.out
    assert load_latency(path).name == "board"
    assert (asked["name"], asked["threads"], asked["convention"], asked["note"]) == ("board", 4, "seed", "N")
    assert len(asked["tables"]["linear"]) == 1  # type: ignore[index]
    (folder / "linear_lat.csv").write_text("in_features,latency\n10,0.005\n")
    assert "has no column out_features" in fails(capsys, 4, "predict", "train", folder, "-o", path)
    assert "there is no folder" in fails(capsys, 4, "predict", "train", tmp_path / "none", "-o", path)
