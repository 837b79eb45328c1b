"""Documents: values of ours as JSON files, one way for all of them.

    _PROFILES = Documents(
        what="a profile", holds=Profile, format=1, made_by="splitpoint profile MODEL -o", most_bytes=256 << 20,
        marks=("fingerprint", "segments", "whole"), check=_check,
    )
    save_profile, load_profile, parse_profile = _PROFILES.save, _PROFILES.load, _PROFILES.parse

What each kind of document states once, and what then holds:

* `format` is written as the member ``format`` (the type has a field of that name, whose default it is). A file of
  another number is refused with a sentence, unless `older` reads it.
* The bounds of every number and text are in the type that it `holds`, by `msgspec.Meta` (the types below). A file is
  decoded with them, and an error names the path (``at `$.segments[3].head` ``). A value that is made in the program
  is not checked.
* `check` is for what one field cannot say: it raises ValueError, or one of our own errors, with the sentence.
* `marks` are members that no other JSON file of ours has: without them a file is not taken for a damaged document.
* A file is written whole or not at all (`files.write_atomic`) and is never read beyond `most_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from splitpoint.errors import InputError, SplitpointError
from splitpoint.files import check_writable, read_file, write_atomic
from splitpoint.parsing import MalformedError, parse_json
from splitpoint.text import HIDDEN

T = TypeVar("T")

# JSON has neither NaN nor infinity, and msgspec refuses numbers that are too large for a float.
NotNegative = Annotated[float, Meta(ge=0)]
Above0 = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
#: A whole number of anything; of bytes that a machine can have; of processors or threads.
Count = Annotated[int, Meta(ge=0, le=1 << 60)]
AtLeast1 = Annotated[int, Meta(ge=1, le=1 << 60)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]
Cores = Annotated[int, Meta(ge=0, le=1 << 16)]
#: No run takes a day.
Milliseconds = Annotated[float, Meta(ge=0, le=86_400_000)]
_SHOWN = f"^[^{HIDDEN.pattern[1:-1]}]*\\Z"
#: Text that is shown: nothing in it acts on a terminal, or hides. Names in graphs are long: exporters nest scopes.
Label = Annotated[str, Meta(max_length=200, pattern=_SHOWN)]
LongLabel = Annotated[str, Meta(max_length=1000, pattern=_SHOWN)]


def readable(value: Any) -> bytes:
    """`value` as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


@dataclass(frozen=True)
class Documents(Generic[T]):
    """One kind of document: `what` it is, with its article, and the command that makes one (up to the file).

    `older` reads earlier formats: number → (the type that a file had then, what it means now). `write` makes the bytes.
    """

    what: str
    holds: type[T]
    format: int
    made_by: str
    most_bytes: int
    marks: Sequence[str] = ()
    check: Callable[[T], object] = lambda value: None
    older: Mapping[int, tuple[type[Any], Callable[[Any], T]]] = field(default_factory=dict)
    write: Callable[[T], bytes] = readable

    def save(self, path: Path | str, value: T) -> None:
        """Write `value` to `path`; StorageError if that is not possible, and nothing is left half-written."""
        path = Path(path)
        check_writable(path)
        write_atomic(path, self.write(value))

    def load(self, path: Path | str) -> T:
        """The value in a file. InputError names the file and what is wrong in it."""
        path = Path(path)
        return self.parse(read_file(path, self.most_bytes, self.what, self.made_by), str(path))

    def parse(self, data: bytes, where: str = "") -> T:
        """The value in `data`, which came from `where` (a file or a server). InputError says what is wrong there."""
        kind = self.what.partition(" ")[2]
        where = where or f"the {kind}"
        try:
            members = parse_json(data, dict[str, msgspec.Raw])
            if any(mark not in members for mark in self.marks):
                raise InputError(f"{where} is not {self.what}: make one with {self.made_by} FILE")
            number = parse_json(bytes(members.get("format", b"-1")), int)
        except MalformedError as exc:
            raise InputError(f"{where} is not {self.what}, or it is damaged: {exc}") from exc
        then, meaning = self.older.get(number, (self.holds, None))
        if number not in (self.format, *self.older):
            came = number if number >= 0 else "none"
            raise InputError(
                f"{where} is {self.what} of format {came}, and this version reads format {self.format}: make it anew "
                f"with {self.made_by} FILE"
            )
        try:
            value = parse_json(data, then)
        except (MalformedError, SplitpointError) as exc:  # ours: of a type that checks itself
            raise InputError(f"{where} is not {self.what}, or it is damaged: {exc}") from exc
        try:
            document: T = meaning(value) if meaning else value
            self.check(document)
        except (ValueError, KeyError, IndexError, TypeError, OverflowError, SplitpointError) as exc:
            raise InputError(f"{where} is a damaged {kind}: {exc}") from exc
        return document


def require_model(
    document: str,
    made_for: tuple[str, str],
    model: tuple[str, str],
    way_out: str,
    error: type[SplitpointError] = InputError,
) -> None:
    """An `error` unless `document` was made for this model; both are (name, fingerprint)."""
    if made_for[1] != model[1]:
        mine, wanted = (f"{name or 'the model'} {fingerprint[:12]}" for name, fingerprint in (made_for, model))
        raise error(f"{document} is of {mine}, not of {wanted}: {way_out}")
