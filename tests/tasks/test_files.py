"""A queue as a file: what it says, and every mistake in it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitpoint.errors import InputError
from splitpoint.tasks.files import load_tasks
from splitpoint.tasks.task import Task

FILE = """\
# two of one, one of the other
[[tasks]]
model = "lenet5"
count = 2
deadline = "200ms"

[[tasks]]
model = "mobilenet_v2"
weights = "random:3"
priority = 2
arrival = "1.5s"
"""


def test_a_file_has_tasks(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text(FILE)
    assert load_tasks(path) == [
        Task(name="lenet5-1", model="lenet5", deadline_s=0.2),
        Task(name="lenet5-2", model="lenet5", deadline_s=0.2),
        Task(name="mobilenet_v2-1", model="mobilenet_v2", weights="random:3", priority=2, arrival_s=1.5),
    ]


WRONG = '''\
title = "x"
[[tasks]]
modle = "lenet5"
[[tasks]]
model = "lenet6"
deadline = "0ms"
note = """
[[tasks]]
count = 5
"""
[[tasks]]
model = "lenet6"
arrival = "-1s"
count = 0
priority = "high"
input = "nowhere.png"
[[tasks]]
model = "resnet"
deadline = 200
[[tasks]]
model = "lenet7"
'''


def test_all_mistakes_of_a_file_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text(WRONG)
    with pytest.raises(InputError) as told:
        load_tasks(path, lambda entry: "" if entry.source[0] == "resnet" else f"no model is called {entry.source[0]}")
    lines = str(told.value).splitlines()
    assert lines[0] == f"{path} has 13 mistakes:"
    found = {int(line.split(":")[0].removeprefix("  line ")): line for line in lines[1:]}
    assert sorted(int(line.split(":")[0].removeprefix("  line ")) for line in lines[1:]) == [
        1, 2, 3, 5, 6, 7, 12, 13, 14, 15, 16, 19, 21,
    ]  # fmt: skip
    assert "unknown field title" in found[1]
    assert "a task needs a model" in found[2]
    assert "did you mean model?" in found[3]
    assert "deadline must be a time" in found[6]
    assert "above zero" in found[6]
    assert "unknown field note" in found[7]
    assert '"200ms"' in found[13]
    assert '"200ms"' in found[19]
    assert "no model is called lenet6" in found[5], "though its deadline is wrong, too"
    assert "no model is called lenet7" in found[21]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[tasks]\n", "is not TOML.*line 1"),
        ("", "there is no"),
        ("tasks = 3", "written as tables"),
        ("tasks = [{model = 3}]", "line 1: model must be a text"),
        ('[[tasks]]\nmodel="a"\ndeadline="-1s"', "line 3: deadline must be a time"),
        ('[[tasks]]\nmodel="a"\ndeadline="nan"', "line 3: deadline must be a time"),
        ('[[tasks]]\nmodel="a"\ncount=99999999', "line 3: count must be"),
    ],
)
def test_broken_files_are_mistakes(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        load_tasks(path)


def test_a_file_that_is_not_there_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        load_tasks(tmp_path / "tasks.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        load_tasks(tmp_path / "b.toml")


def test_weights_may_stand_behind_a_model_but_not_lie_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text('[[tasks]]\nmodel = "alexnet@random:3"\n')
    assert load_tasks(path) == [Task(name="alexnet-1", model="alexnet", weights="random:3")]
    path.write_text('[[tasks]]\nmodel = "alexnet@../own.pth"\n')
    (tmp_path.parent / "own.pth").write_bytes(b"")
    with pytest.raises(InputError, match="outside its folder"):
        load_tasks(path)
