"""What `--help` shows: a verb's options by group, and examples to paste; verbs by task. Written with click's own means:
another library for it would be imported at every start, on the smallest device too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from splitpoint import install
from splitpoint.cli.options import OWN, SECTIONS, section_of

#: What an example shows, and its words after `splitpoint`.
Example = tuple[str, str]
G = TypeVar("G", bound=click.Command)


class Verb(click.Command):
    """A command whose help has its options by group, and `examples`."""

    def __init__(self, *args: Any, examples: Sequence[Example] = (), **more: Any) -> None:
        super().__init__(*args, **more)
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        write_examples(self.examples, formatter)


def verb(*examples: Example, **more: Any) -> Callable[[Callable[..., Any]], Verb]:
    """Makes the function below it a verb with these examples."""
    return click.command(cls=Verb, examples=examples, **more)


class Verbs(click.Group):
    """Verbs under a verb (``lab run``)."""

    command_class = Verb

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """A list for each group of options that `command` has any of."""
    records: dict[str, list[tuple[str, str]]] = {title: [] for title in SECTIONS}
    for param in command.get_params(ctx):
        if (record := param.get_help_record(ctx)) is not None:
            records[section_of(param)].append(record)
    for title, listed in records.items():
        if listed:
            with formatter.section(title if title == OWN else f"{title} options"):
                formatter.write_dl(listed)


def write_examples(examples: Sequence[Example], formatter: click.HelpFormatter) -> None:
    """Each as a comment and the line to paste here, which is never broken."""
    if not examples:
        return
    call = install.command()
    with formatter.section("Examples"):
        for about, words in examples:
            formatter.write(f"{'':>{formatter.current_indent}}# {about}\n")
            formatter.write(f"{'':>{formatter.current_indent}}{call} {words}\n")


def write_verbs(groups: Mapping[str, Mapping[str, str]], formatter: click.HelpFormatter) -> None:
    """The verbs by task, with one column of names for all."""
    width = max(len(name) for listed in groups.values() for name in listed)
    for title, listed in groups.items():
        with formatter.section(title):
            formatter.write_dl([(f"{name:<{width}}", about) for name, about in listed.items()])
