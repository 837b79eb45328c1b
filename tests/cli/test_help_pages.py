"""Every verb as one hand wrote it: a table over all commands, so that a new verb cannot come without."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping

import click
import pytest
from commands import commands, fails, ok

from splitpoint.cli.help_pages import Verb
from splitpoint.cli.options import OUTPUT, OWN, PLANNING, SECTIONS, section_of
from splitpoint.cli.options.quantities import Quantity
from splitpoint.cli.verbs import ALIASES, TASKS, VERBS

COMMANDS: Mapping[str, click.Command] = {name: command for name, command in commands() if not command.hidden}
ALL = pytest.mark.parametrize("name", COMMANDS)
#: What runs until it is ended, or is a show: it prints no result that a program would read.
NO_RESULT = {"demo", "serve", "completion", "lab link", "lab slow"}
#: What prints lines, not a table; `predict evaluate` writes a CSV of each of its tables into -o DIR.
NO_TABLE = {
    *NO_RESULT, "quickstart", "doctor", "cache", "split", "export", "pull", "keys", "predict evaluate",
}  # fmt: skip
#: What opens no engine of its own.
ENGINES = {
    "demo", "verify", "profile", "serve", "run", "tasks", "calibrate-codecs", "calibrate-kernels", "plan", "compare",
    "sweep", "lab faults", "predict train",
}  # fmt: skip


#: Where --cloud, --engine or --shape mean something else.
OF_THEIR_OWN = {"plan", "quickstart", "export", "predict train", "predict MODEL"}


def options(name: str) -> dict[str, click.Option]:
    """By every spelling."""
    return {spelt: p for p in COMMANDS[name].params if isinstance(p, click.Option) for spelt in p.opts}


def test_the_tables_name_what_there_is() -> None:
    assert set(COMMANDS) >= (NO_TABLE | ENGINES)
    assert set(ALIASES.values()) <= set(VERBS)
    assert not set(ALIASES) & set(VERBS)
    assert list(TASKS) == ["Look", "Know", "Do", "Serve", "Learn", "Lab"]


@ALL
def test_every_verb_has_two_examples_that_are_its_own_and_have_only_its_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = COMMANDS[name]
    assert isinstance(command, Verb)
    assert len(command.examples) == 2
    words = name.removesuffix(" MODEL").split()
    text = ok(capsys, *words, "--help")
    for about, line in command.examples:
        typed = shlex.split(line.partition(" >")[0])
        assert typed[: len(words)] == words
        assert f"# {about}\n" in text
        assert f"splitpoint {line}\n" in text
        for word in typed[: typed.index("--") if "--" in typed else None]:
            assert not word.startswith("-") or word in options(name), f"{word} is no option of {name}"


@ALL
def test_every_verb_that_prints_results_has_json_and_output(name: str) -> None:
    has = options(name)
    if name not in NO_RESULT:
        assert "--json" in has, name
        assert has["-o"] is has["--output"] is has["--out"], name
    assert "-o" not in has or "--output" in has


@ALL
def test_every_verb_that_prints_a_table_has_csv(name: str) -> None:
    assert ("--csv" in options(name)) == (name not in NO_TABLE), name


@ALL
def test_one_spelling_for_one_thing(name: str) -> None:
    has = options(name)
    assert ("--engine" in has) == (name in ENGINES | {"predict MODEL"}), name
    for short, long in {"-d": "--device", "-p": "--port", "-o": "--output"}.items():
        assert has.get(short) is has.get(long), f"{name}: {short} is not {long}"


@ALL
def test_options_that_verbs_share_stand_in_the_same_section_of_each(name: str) -> None:
    for spelt, option in options(name).items():
        assert section_of(option) in SECTIONS
        if spelt in ("--json", "--csv", "-o", "--png", "--xlsx") and option.name != "csv_folder":
            assert section_of(option) == OUTPUT, f"{name} {spelt}"
        if spelt in ("--budget", "--agreement", "--calibration", "--codec") and name != "calibrate-codecs":
            assert section_of(option) == PLANNING, f"{name} {spelt}"
        if spelt in ("--cloud", "--engine", "--shape"):
            assert section_of(option) != OWN or name in (
                "plan",
                "quickstart",
                "export",
                "predict train",
                "predict MODEL",
            ), f"{name} {spelt}"


@ALL
def test_what_takes_a_time_or_a_size_takes_it_with_its_unit(name: str) -> None:
    for spelt, option in options(name).items():
        if option.metavar in ("TIME", "SIZE"):
            assert isinstance(option.type, Quantity), f"{name} {spelt}"
        assert option.metavar not in ("SECONDS", "MS", "BYTES"), f"{name} {spelt}"


@pytest.mark.parametrize("words", [[], ["lab"]])
def test_a_command_alone_prints_its_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ok(capsys, *words).startswith("Usage: ")


def test_help_has_the_verbs_by_task(capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "--help")
    places = [text.index(f"\n{title}:\n") for title in TASKS]
    assert places == sorted(places)
    for listed in TASKS.values():
        for verb in listed:
            assert f"\n  {verb} " in text


def test_the_sections_of_a_verbs_help_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "run", "--help")
    titles = [title if title == OWN else f"{title} options" for title in SECTIONS]
    places = [text.index(f"\n{title}:\n") for title in (*titles, "Examples")]
    assert places == sorted(places)


@pytest.mark.parametrize(("old", "new"), ALIASES.items())
def test_what_a_verb_was_called_goes_on(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"splitpoint {new} " in ok(capsys, old, "--help").partition("\n")[0]
    assert old not in [word for line in ok(capsys, "--help").splitlines() for word in line.split()[:1]]


def test_a_verb_that_is_not_there_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "calibrate-codecs" in fails(capsys, 2, "calibrat-codecs")


def test_help_imports_neither_numpy_nor_rich() -> None:
    """They take longer than all of the help, on the smallest device too."""
    code = "import sys; from splitpoint.cli import main; main(['--help']); print(*{'numpy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == ""
