"""What a queue showed of its models and machines, kept for the next one: small, next to the kept profiles.

Whether device and server share cores, and how long it took to compile the ways that were chosen: the next queue of
these models knows before its start which of them earn their time back.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec

from splitpoint.errors import InputError, StorageError
from splitpoint.files import private_folder, read_text, write_atomic
from splitpoint.profile.profiles import Profile

_MOST_BYTES = 1 << 20


class KeptQueue(msgspec.Struct, frozen=True, kw_only=True):
    """`shared`: how many times as long device and server take while both compute. `compile_s`: by model and way."""

    shared: Annotated[float, msgspec.Meta(ge=1, le=1e3)]
    compile_s: dict[str, Annotated[float, msgspec.Meta(ge=0, le=1e6)]] = {}


def place_of(cache: Path, profiles: list[tuple[Profile, Profile]]) -> Path:
    """The file for these models on these machines, with their engines, threads and versions."""
    parts = sorted(
        f"{p.fingerprint} {p.machine} {p.engine} {p.device} {p.threads} {sorted(p.versions.items())}"
        for both in profiles
        for p in both
    )
    return cache / "queues" / f"{sha256(chr(10).join(parts).encode()).hexdigest()[:32]}.json"


def load_kept(place: Path) -> KeptQueue | None:
    """What was kept there; None where nothing is, or nothing that can be used."""
    try:
        if not place.is_file():  # no folder is made for it
            return None
        text = read_text(private_folder(place.parent) / place.name, _MOST_BYTES, "JSON")
        return msgspec.json.decode(text, type=KeptQueue)
    except (InputError, StorageError, OSError, msgspec.MsgspecError):  # measured anew
        return None


def keep(place: Path, kept: KeptQueue) -> None:
    """Writes it. StorageError."""
    private_folder(place.parent)
    write_atomic(place, msgspec.json.encode(kept))
