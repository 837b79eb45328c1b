"""The verbs by name, and what becomes of what they raise.

Exit codes are those of the error tree (splitpoint.errors); 130 is Ctrl-C, 143 is SIGTERM.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata

import click

from splitpoint import install
from splitpoint.cli import signals
from splitpoint.cli.help_pages import Example, Verbs, write_examples, write_verbs
from splitpoint.cli.stdio import ReaderGone
from splitpoint.errors import SplitpointError, nearest

#: Verbs by task, each with what `splitpoint --help` says of it. Each is `splitpoint.cli.<verb>:command` (a - becomes
#: _), imported when asked for.
TASKS: Mapping[str, Mapping[str, str]] = {
    "Look": {
        "quickstart": "Print the lines to paste on server and edge, for this machine.",
        "demo": "See it work: a server, an edge, four photos, one minute.",
        "doctor": "Say what this machine and a server can do.",
        "inspect": "List a model's layers and what would cross the link at each.",
        "cache": "Show or clear what this machine has fetched and exported.",
        "completion": "Print what makes your shell complete these commands.",
    },
    "Know": {
        "profile": "Measure what a model costs on this machine, or on a server.",
        "link": "Measure the network to a server, or say what a link means.",
        "plan": "Say whether and where to split: the honest table.",
        "compare": "Run the plan's table for real: predicted beside measured.",
        "sweep": "Measure every split point between an edge and a server.",
    },
    "Do": {
        "run": "Run the edge: images in, answers and milliseconds out.",
        "tasks": "Run a queue of requests for different models, planned together.",
        "split": "Write the two halves of a model as ONNX files.",
        "verify": "Prove that cut models give the whole model's answer.",
        "export": "Turn a PyTorch model into an ONNX file.",
        "pull": "Fetch what an edge needs of a model, before it is needed.",
    },
    "Serve": {
        "serve": "Run the server side of models.",
        "keys": "Make certificates and a token for a lab.",
    },
    "Learn": {
        "calibrate-codecs": "Measure what codecs do to a model's answers, with real inputs.",
        "calibrate-kernels": "Learn what kernels cost on this machine, to price any network.",
        "predict": "Say what a model would take on a machine it never ran on.",
    },
    "Lab": {
        "lab": "Experiments on one machine: a shaped link, a slowed edge, scenarios.",
    },
}
VERBS: Mapping[str, str] = {name: about for listed in TASKS.values() for name, about in listed.items()}
#: What verbs were called before: typed, they go on.
ALIASES: Mapping[str, str] = {"calibrate": "calibrate-codecs", "calibrate-device": "calibrate-kernels"}
#: What a shell that completes asks by (splitpoint completion).
COMPLETE = "_SPLITPOINT_COMPLETE"
_EXAMPLES: Sequence[Example] = (
    ("what to type on the two machines", "quickstart"),
    ("what a verb does, its options, and examples", "plan --help"),
)

#: In backticks it is typed on another machine.
_COMMAND = re.compile(rf"(?<![\w/.`-])splitpoint(?= (?:{'|'.join(sorted({*VERBS, *ALIASES}, reverse=True))})\b)")


class AllVerbs(Verbs):
    """Commands by name; only the one that runs is imported, so that `--help` stays instant on a small device."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"splitpoint.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        signals.begin()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in ALIASES:
            args = [ALIASES[args[0]], *args[1:]]
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            hint = nearest(args[0], VERBS) or f" (there are: {', '.join(VERBS)})"
            raise click.UsageError(f"no command is called {args[0]}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_verbs(TASKS, formatter)
        write_examples(_EXAMPLES, formatter)


def _version() -> str:
    try:
        return metadata.version("splitpoint")
    except metadata.PackageNotFoundError:
        return "(run from its source, not installed)"


@click.group(cls=AllVerbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(_version(), prog_name="splitpoint")
def group() -> None:
    """Split inference: the first part of a neural network on the edge (this machine, mostly), the rest on a server.

    MODEL is an .onnx file, zoo:NAME, torchvision:NAME, timm:NAME, hf:NAME, package.module:function or a .pt2 file.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; every foreseen failure is one line on standard error."""
    try:
        status = _run(list(sys.argv[1:] if args is None else args))
        sys.stdout.flush()  # not when Python ends: a disk that is full must be told of
        return status
    except SplitpointError as exc:
        if signals.came:  # an import that was interrupted passes for a package that is not there
            return fail(*signals.said(signals.came))
        return fail(str(exc), exc.exit_code)
    except click.ClickException as exc:
        if type(exc).__name__ == "NoArgsIsHelpError":  # click 8.2 and later: the message is the help
            click.echo(exc.format_message())
            return 0
        where = f" (see: {exc.ctx.command_path} --help)" if isinstance(exc, click.UsageError) and exc.ctx else ""
        return fail(exc.format_message() + where, 2)
    except KeyboardInterrupt as exc:
        return fail(*signals.said(signals.number_of(exc)))
    except MemoryError:
        return fail("there is not enough memory for this: close other programs, or take a smaller model or input", 5)
    except (ReaderGone, BrokenPipeError):  # the second one: what `-o -` wrote
        return 0
    except Exception as exc:
        if signals.came:  # C code that was interrupted has its own words for it
            return fail(*signals.said(signals.came))
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return fail(f"cannot write {exc.filename or 'output'}: {exc.strerror}", 7)
        if isinstance(exc, PermissionError) and exc.filename:  # a folder that another user has closed
            return fail(f"cannot open {exc.filename}: {exc.strerror}", 7)
        raise


def _run(args: list[str]) -> int:
    """What click's own `main` does, but for its ways with broken pipes, Ctrl-C and errors."""
    if COMPLETE in os.environ:
        group.main(args, prog_name="splitpoint", complete_var=COMPLETE)
    try:
        with group.make_context(install.command(), args) as context:
            return int(group.invoke(context) or 0)
    except click.exceptions.Exit as exc:
        return exc.exit_code


def fail(message: str, status: int) -> int:
    click.echo(f"splitpoint: {typed(message)}", err=True)
    return status


def typed(text: str) -> str:
    """`text` with its commands (``splitpoint plan``) as they are to be typed here: ``.venv/bin/splitpoint plan``."""
    return _COMMAND.sub(lambda _: install.command(), text)
