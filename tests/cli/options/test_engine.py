"""--engine: on every verb that runs a model, with the choices of the table of engines."""

from __future__ import annotations

import click
from commands import commands

from splitpoint.cli.options.engine import DEFAULT, EngineChoice, engine_of
from splitpoint.cli.verbs import Verbs, group
from splitpoint.engines import ENGINES

#: Verbs that open an engine. Those of `lab` that take a scenario find it there.
RUN_MODELS = {
    "demo", "verify", "profile", "serve", "run", "tasks", "calibrate-codecs", "calibrate-kernels", "plan", "compare",
    "sweep",
    "lab faults",
}  # fmt: skip


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
