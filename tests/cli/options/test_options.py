"""Groups of options: one decorator, one parameter; and every verb's names for the same things."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner
from commands import fails, ok

from splitpoint.cli.options import gathered, given, together
from splitpoint.cli.options.codecs import parse_codecs
from splitpoint.cli.options.engine import DEFAULT, EngineChoice, engine_of
from splitpoint.cli.options.model import Opening, is_local, parse_shapes, parse_values
from splitpoint.cli.verbs import Verbs, group
from splitpoint.engines import ENGINES
from splitpoint.errors import UsageError

#: Verbs that open an engine. Those of `lab` that take a scenario find it there.
RUN_MODELS = {
    "demo", "verify", "profile", "serve", "run", "tasks", "calibrate", "calibrate-device", "plan", "compare", "sweep",
    "lab faults",
}  # fmt: skip


def commands(command: click.Command = group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    with click.Context(command) as ctx:
        for inner in command.list_commands(ctx):
            found = command.get_command(ctx, inner)
            assert found is not None
            yield from commands(found, f"{name} {inner}".strip())


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_is_one_parameter_in_the_order_of_its_options() -> None:
    said: list[object] = []

    @click.command()
    @gathered("pair", lambda left, right: (left, right), click.option("--left"), click.option("--right"))
    @click.option("--other")
    def command(pair: object, other: str) -> None:
        said.extend((pair, other, given("left"), given("other")))

    assert [p.name for p in command.params] == ["left", "right", "other"]
    CliRunner().invoke(command, ["--left", "1", "--right", "2"], catch_exceptions=False)
    assert said == [("1", "2"), None, True, False]


def test_options_stand_together_in_their_order() -> None:
    @click.command()
    @together(click.option("--first"), click.option("--second"))
    def command(first: str, second: str) -> None: ...

    assert [p.name for p in command.params] == ["first", "second"]


# --- all verbs --------------------------------------------------------------------------------------------------------


def test_every_verb_that_runs_a_model_takes_an_engine_of_the_table() -> None:
    assert isinstance(group, Verbs)
    takes = {}
    for name, command in commands():
        for param in command.params:
            if "--engine" in param.opts and isinstance(param.type, click.Choice):
                takes[name] = tuple(param.type.choices)
    assert set(takes) == RUN_MODELS
    assert set(takes.values()) == {tuple(ENGINES)}


def test_an_engine_that_a_file_names_is_not_imported() -> None:
    assert engine_of("os:system", "cpu", 1).name == EngineChoice(DEFAULT, "cpu", 1).open().name


def test_o_is_output_everywhere_and_out_still_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    short = {name: param.opts for name, command in commands() for param in command.params if "-o" in param.opts}
    assert len(short) >= 10
    assert {tuple(opts) for opts in short.values()} == {("-o", "--output")}
    assert ok(capsys, "link", "--link", "wifi", "--out", "-") == ok(capsys, "link", "--link", "wifi", "-o", "-")
    assert "No such option" in fails(capsys, 2, "link", "--outp", "-")


# --- parsing ----------------------------------------------------------------------------------------------------------


def test_codecs_for_all_or_by_tensor() -> None:
    assert parse_codecs(()) == "raw"
    assert parse_codecs(("int8",)) == "int8"
    assert parse_codecs(("h=int8", "a=b=jpeg:90")) == {"h": "int8", "a=b": "jpeg:90"}
    for wrong in (("int8", "fp16"), ("x=",), ("=int8",), ("x=int8", "x=fp16")):
        with pytest.raises(UsageError, match="--codec"):
            parse_codecs(wrong)


def test_shapes_and_values() -> None:
    assert parse_shapes(("images=1,3,640,640", "mask=1x8")) == {"images": (1, 3, 640, 640), "mask": (1, 8)}
    assert parse_values(("sr=16000", "sizes=1,16", "on=true", "x=0.5")) == {
        "sr": 16000, "sizes": [1, 16], "on": True, "x": 0.5,
    }  # fmt: skip
    for parse, wrong in ((parse_shapes, "images"), (parse_shapes, "=1"), (parse_values, "x=y"), (parse_values, "=1")):
        with pytest.raises(UsageError, match="NAME="):
            parse((wrong,))  # type: ignore[operator]


def test_a_model_is_here_or_the_servers() -> None:
    assert is_local("zoo:lenet5")
    assert is_local("net.onnx")
    assert not is_local("lenet5")
    assert Opening().here("lenet5") is None
    assert Opening().here(None) is None
    with pytest.raises(UsageError, match="the server's"):
        Opening(weights="random").here("lenet5")
    here = Opening().here("zoo:lenet5")
    assert here is not None
    assert here.name == "lenet5"
