"""A file that names another may name what is in its own folder or below, and nothing else of this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacking import Attacker
from serving import nothing_leaks

from splitpoint.cli.verbs import main
from splitpoint.engines import open_engine
from splitpoint.errors import InputError, SplitpointError
from splitpoint.files import named
from splitpoint.images import InputSpec
from splitpoint.lab.scenario import load_scenario
from splitpoint.lab.scenario_device import inputs_of
from splitpoint.models import load
from splitpoint.runtime.server.server import Server
from splitpoint.tasks.files import load_tasks

SPEC: dict[str, Any] = {"dtype": "uint8", "layout": "NHWC", "size": [32, 32], "color": "GRAY"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stranger's archive, unpacked: with links to a secret file beside it, and to devices."""
    made = tmp_path / "archive"
    (made / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("s3cret\ntwo\n")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/secret.txt").write_text("s3cret\ntwo\n")
    for link, target in (
        ("link.txt", "../secret.txt"), ("absolute.txt", str(tmp_path / "secret.txt")), ("down", "../secret"),
        ("twice.txt", "link.txt"), ("zero.txt", "/dev/zero"), ("loop.txt", "loop.txt"), ("up", ".."),
    ):  # fmt: skip
        os.symlink(target, made / link)
    os.mkfifo(made / "pipe.txt")
    for name in ("own.txt", "sub/own.txt"):
        (made / name).write_text("cat\ndog\n")
    os.symlink("sub/own.txt", made / "inside.txt")
    return made


OUTSIDE = [
    "../secret.txt", "sub/../../secret.txt", "./../secret.txt", "link.txt", "absolute.txt", "twice.txt",
    "down/secret.txt", "up/secret.txt", "zero.txt", "loop.txt", "pipe.txt", "/etc/passwd", "/dev/stdin", "a\0b",
    "/proc/self/environ",
]  # fmt: skip


def as_labels(folder: Path, name: str, suffix: str = "json") -> None:
    path = folder / f"spec.{suffix}"
    text = json.dumps({**SPEC, "labels": name})
    if suffix == "toml":
        text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in json.loads(text).items())
    path.write_text(text)
    InputSpec.from_file(path)


def as_toml_labels(folder: Path, name: str) -> None:
    as_labels(folder, name, "toml")


def as_task(key: str) -> Callable[[Path, str], None]:
    def read(folder: Path, name: str) -> None:
        model = "" if key == "model" else 'model = "alexnet"\n'
        weights = 'weights = "random"\n' if key == "model" else ""
        (folder / "tasks.toml").write_text(f"[[tasks]]\n{model}{weights}{key} = {json.dumps(name)}\n")
        load_tasks(folder / "tasks.toml")

    return read


def as_scenario(key: str) -> Callable[[Path, str], None]:
    def read(folder: Path, name: str) -> None:
        fields = {"model": "zoo:lenet5", "link": "4g", **({} if key == "plan" else {"at": ["input"]}), key: name}
        fields = {k: [v] if k == "inputs" else v for k, v in fields.items()}
        (folder / "s.toml").write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in fields.items()))
        load_scenario(folder / "s.toml")

    return read


READERS = {
    "input spec": as_labels,
    "input spec, TOML": as_toml_labels,
    **{f"task's {key}": as_task(key) for key in ("model", "weights", "input")},
    **{f"scenario's {key}": as_scenario(key) for key in ("model", "plan", "inputs")},
}


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_its_folder_is_read(folder: Path, what: str, name: str) -> None:
    with pytest.raises(
        InputError, match=r"outside its folder|no path|no regular file|not TOML|control|or an .onnx or .pt2 file"
    ) as caught:
        READERS[what](folder, name)
    assert "s3cret" not in str(caught.value), "nor shown"


@pytest.mark.parametrize("what", [w for w in READERS if w != "scenario's model"])
@pytest.mark.parametrize("name", ["own.txt", "sub/own.txt", "inside.txt"])
def test_what_is_inside_is_read(folder: Path, what: str, name: str) -> None:
    READERS[what](folder, name)


@pytest.mark.parametrize("name", ["../x.onnx", "/tmp/x.onnx", "link.onnx", "os:abort", "my.nets:make", "passwd"])
def test_a_scenario_names_a_model_beside_it_and_runs_no_code_of_its_choice(folder: Path, name: str) -> None:
    os.symlink("../secret.txt", folder / "link.onnx")
    with pytest.raises(InputError, match=r"outside its folder|or an .onnx or .pt2 file beside"):
        as_scenario("model")(folder, name)


@pytest.mark.parametrize("name", ["../x.csv", "/tmp/x.link.json", "link.csv"])
def test_a_scenario_s_links_and_those_of_its_events_are_beside_it(folder: Path, name: str) -> None:
    os.symlink("../secret.txt", folder / "link.csv")
    with pytest.raises(InputError, match="outside its folder"):
        as_scenario("link")(folder, name)
    (folder / "s.toml").write_text(
        'model = "zoo:lenet5"\nat = ["input"]\nlink = "4g"\n'
        f'[[events]]\nat_s = 1.0\ndo = "link"\nlink = {json.dumps(name)}\n'
    )
    with pytest.raises(InputError, match="outside its folder"):
        load_scenario(folder / "s.toml")


def test_tasks_run_no_code_of_their_choice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights a model is loaded here, and package.module:function would be called for it."""
    (folder / "evil.py").write_text("def make():\n    open('ran', 'w').close()\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (folder / "tasks.toml").write_text('[[tasks]]\nmodel = "evil:make"\nweights = "random"\n')
    assert main(["tasks", "tasks.toml", "--cloud", "127.0.0.1:1"]) == 4
    assert not (folder / "ran").exists()


def test_a_scenario_that_was_changed_after_it_was_read_reads_no_more(folder: Path) -> None:
    (folder / "s.toml").write_text(
        'model = "zoo:lenet5"\nat = ["input"]\nlink = "4g"\nrequests = 1\ninputs = ["own.txt"]\n'
    )
    it = load_scenario(folder / "s.toml")
    (folder / "own.txt").unlink()
    os.symlink("../secret.txt", folder / "own.txt")
    with pytest.raises(InputError, match="outside its folder"):
        inputs_of(it, load("zoo:lenet5"))


def test_no_local_file_goes_to_the_clients_of_a_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = folder / "spec.json"
    for name in ("/etc/passwd", "link.txt", "../secret.txt"):
        spec.write_text(json.dumps({**SPEC, "labels": name}))
        assert main(["serve", "zoo:lenet5", "--port", "0", "--input-spec", str(spec)]) == 4
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "outside its folder" in said
    spec.write_text(json.dumps({**SPEC, "labels": "own.txt"}))
    model = load("zoo:lenet5", input_spec=spec)
    with nothing_leaks(), Server([model], engine=open_engine(threads=1), port=0) as server:
        attacker = Attacker(server.address, hello=False)
        attacker.send(2, 0, {"version": [1, 0]})
        assert json.loads(attacker.receive()[2]["models"][0]["input_spec"])["labels"] == ["cat", "dog"]
        attacker.close()


@pytest.mark.parametrize("labels", ["/etc/passwd", "own.txt", "../own.txt"])
def test_a_server_names_no_file_of_the_device_at_all(folder: Path, labels: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="labels must be a list here"):
        InputSpec.from_json(json.dumps({**SPEC, "labels": labels}))
    with pytest.raises(SplitpointError, match="labels must be a list here"):
        InputSpec.from_metadata({"splitpoint.input_spec": json.dumps({**SPEC, "labels": labels})})


def test_a_spec_that_is_a_link_has_its_labels_beside_the_link_or_the_file(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "here").mkdir()
    (folder / "spec.json").write_text(json.dumps({**SPEC, "labels": "own.txt"}))
    os.symlink("../archive/spec.json", tmp_path / "here/spec.json")
    assert InputSpec.from_file(tmp_path / "here/spec.json").labels == ("cat", "dog")
    (tmp_path / "here/own.txt").write_text("owl\n")
    assert InputSpec.from_file(tmp_path / "here/spec.json").labels == ("owl",)


def test_a_name_is_what_is_there_or_nothing_yet(folder: Path) -> None:
    assert named("gone/new.txt", folder) == folder.resolve() / "gone/new.txt"
    assert named("sub", folder) == folder.resolve() / "sub"
