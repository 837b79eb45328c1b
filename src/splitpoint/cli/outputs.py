"""Options that name what is written: a file, standard output (``-``), or a folder."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from splitpoint.errors import UsageError
from splitpoint.files import STDOUT, is_special, is_stdout

#: Where the command line's context keeps which option is at standard output.
_AT_STDOUT = f"{__name__}.at_stdout"


class _Output(click.Path):
    """A file to write. ``-`` is standard output; what would be printed there then goes to standard error, so that it
    holds the file and nothing else."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = STDOUT if str(value) == "-" else Path(os.fsdecode(super().convert(value, param, ctx)))
        if ctx is not None and is_stdout(path):
            root = ctx.find_root()  # closed also where the rest of the command line is wrong
            if root.meta.setdefault(_AT_STDOUT, param) is not param:
                raise UsageError("standard output takes one file: give the others names")
            root.with_resource(redirect_stdout(sys.stderr))
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
