"""Groups of options: one decorator, one parameter."""

from __future__ import annotations

import click
from click.testing import CliRunner

from splitpoint.cli.options import gathered, given, together


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
