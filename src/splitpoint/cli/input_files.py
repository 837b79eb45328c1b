"""Inputs that a command is given as files and folders: read, and what was not read is said."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from splitpoint.cli.console import say
from splitpoint.decoding import MAX_PIPE_NBYTES, OnNote
from splitpoint.errors import InputError, MissingExtraError
from splitpoint.inputs import find_inputs, read_bytes, read_inputs
from splitpoint.models.model import Model
from splitpoint.models.zoo import photos
from splitpoint.segments import samples_for
from splitpoint.tensors import Array
from splitpoint.units import counted

# What Pillow thinks of a file is said here, in one sentence.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

images_option = click.option(
    "--images", type=click.Path(path_type=Path), metavar="DIR|FILE|-", help="Inputs; default: four photos."
)
recursive_option = click.option("--recursive", is_flag=True, help="Also read what is in a folder's folders.")


def read_images(model: Model, images: Path | None, *, recursive: bool = False) -> list[dict[str, Array]]:
    """The inputs in a file or folder; without one the zoo's photos, or made-up inputs if the model takes none."""
    if images is not None or model.input_spec is not None:
        return read_photos(model, photos() if images is None else [images], recursive=recursive)
    say(f"{model.name} does not take photos by itself: measuring with made-up inputs")
    return samples_for(model, 4)


def read_photos(
    model: Model, paths: Sequence[Path], *, limit: int | None = None, recursive: bool = False
) -> list[dict[str, Array]]:
    """The inputs in files, folders and standard input (-), the first `limit` of them.

    Those that cannot be read are named; InputError if none is left.
    """
    return [inputs for _, inputs in read_named(model, paths, limit=limit, recursive=recursive)]


def read_named(
    model: Model, paths: Sequence[Path], *, limit: int | None = None, recursive: bool = False
) -> list[tuple[Path, dict[str, Array]]]:
    """The same with the file that each is from."""
    listing = find_inputs(paths, recursive=recursive)
    say(*listing.reasons)
    inputs, failed, note = list[tuple[Path, dict[str, Array]]](), list[Exception](), noting()
    for path in listing.files[:limit]:
        try:
            inputs.append((path, read_photo(model, path, note)))
        except (InputError, MissingExtraError) as exc:
            failed.append(exc)
            if len(listing.files) > 1:
                say(f"splitpoint: {exc}")
    if not inputs:
        if len(listing.files) == 1:
            raise failed[0]
        raise InputError(f"no input could be read ({len(failed)} tried)")
    if failed:
        say(f"{counted(len(failed), 'input')} left out, {len(inputs)} used")
    return inputs


def read_photo(model: Model, path: Path, on_note: OnNote) -> dict[str, Array]:
    """The inputs in a file, or in standard input if it is called ``-``."""
    if str(path) != "-":
        return read_inputs(model, path, on_note)
    data = sys.stdin.buffer.read(MAX_PIPE_NBYTES + 1)
    if len(data) > MAX_PIPE_NBYTES:
        raise InputError(
            f"standard input holds more than {MAX_PIPE_NBYTES >> 20} MiB: pipe one image or tensor into it"
        )
    return read_bytes(model, data, on_note=on_note)


def noting() -> OnNote:
    """Says on standard error what was made of a picture, each kind of note once."""
    told = set[str]()

    def note(name: str, text: str) -> None:
        if text not in told:
            told.add(text)
            say(f"{name} {text} (said once)")

    return note
