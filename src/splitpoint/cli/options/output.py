"""Options that name what is written: --output, --csv, --png, --xlsx (a file, standard output, or a folder), --json.

Every verb that prints results has --json and -o: what is in the file is what --json prints, unless the verb makes
a file of its own (a plan, a model, a folder). Every verb that prints a table has --csv.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import msgspec

from splitpoint.cli.options import OUTPUT as SECTION
from splitpoint.cli.options import together
from splitpoint.errors import MissingExtraError, UsageError
from splitpoint.files import STDOUT, check_writable, is_special, is_stdout, write_atomic

#: Where the command line's context keeps which option is at standard output.
_AT_STDOUT = f"{__name__}.at_stdout"


class _Output(click.Path):
    """A file that can be written: StorageError where it cannot, before any work. ``-`` is standard output; what would
    be printed there then goes to standard error, so that it holds the file and nothing else."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = STDOUT if str(value) == "-" else Path(os.fsdecode(super().convert(value, param, ctx)))
        if ctx is not None and is_stdout(path):
            root = ctx.find_root()  # closed also where the rest of the command line is wrong
            if root.meta.setdefault(_AT_STDOUT, param) is not param:
                raise UsageError("standard output takes one file: give the others names")
            root.with_resource(redirect_stdout(sys.stderr))
        check_writable(path)
        return path


class _OutputFolder(click.Path):
    """A folder for several files, which standard output cannot be."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if str(value) == "-" or is_special(Path(value)):
            raise UsageError(f"what is written there are several files: name a folder, not {value}")
        return Path(os.fsdecode(super().convert(value, param, ctx)))


OUTPUT, OUTPUT_FOLDER = _Output(), _OutputFolder()

Option = Callable[[Any], Any]


def _option(*names: str, **more: Any) -> Option:
    return together(click.option(*names, **more), section=SECTION)


json_option: Option = _option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def output_option(text: str, *old: str, metavar: str = "FILE", folder: bool = False, **more: Any) -> Option:
    """-o, --output: the parameter `output`, or that named in `old`, beside spellings of before."""
    kind = OUTPUT_FOLDER if folder else OUTPUT
    return _option("-o", "--output", "--out", *old, type=kind, metavar=metavar, help=text, **more)


result_option = output_option("Write what --json prints.")


def csv_option(text: str) -> Option:
    """--csv: the parameter `csv_path`."""
    return _option("--csv", "csv_path", type=OUTPUT, metavar="FILE", help=text)


def png_option(text: str) -> Option:
    """--png: the parameter `png_path`. MissingExtraError without matplotlib, before any work."""
    needs = _needing("matplotlib", "plot", "draw pictures")
    return _option("--png", "png_path", type=OUTPUT, metavar="FILE", callback=needs, help=text)


def xlsx_option(text: str) -> Option:
    """--xlsx: the parameter `xlsx_path`. MissingExtraError without openpyxl, before any work."""
    needs = _needing("openpyxl", "xlsx", "write spreadsheets")
    return _option("--xlsx", "xlsx_path", type=OUTPUT, metavar="FILE", callback=needs, help=text)


def _needing(package: str, extra: str, what: str) -> Callable[..., Path | None]:
    def check(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
        if path is not None and find_spec(package) is None:
            raise MissingExtraError(package, extra, what)
        return path

    return check


def save_json(path: Path | None, data: Any) -> None:
    """Writes what --json prints there, if it is anywhere, and says so."""
    if path is not None:
        write_atomic(path, msgspec.json.format(msgspec.json.encode(data), indent=1))
        wrote(path)


def wrote(*paths: Path | None) -> None:
    """Says on standard error which files were written; None is one that was not asked for."""
    for path in paths:
        if path is not None:
            click.echo(f"wrote {path}", err=True)
