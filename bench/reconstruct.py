"""What a decoder of klt's bits shows of the photo: `python -m bench.reconstruct [-o docs/reconstruction.png]`.

Who reads what crosses at a cut, and has the model and other photos, can try to get the picture back. This is the
simplest try: least squares (ridge). From the decoded tensor at a place and the eight around it, the pixels of that
place are estimated, at half the model's resolution. The weights are learnt from the ``calibration`` photos of
`bench.photos` (three crops of each and their mirror images) and judged on all of ``test``. klt and its levels are those
of the zoo's calibration: at each cut the coarsest level that kept 95 % of the answers there. Printed are medians over
the test photos: PSNR, and how the estimated pixels correlate with the true ones. The four photos of the picture come
with splitpoint (src/splitpoint/zoo/LICENSES.md), and are not among those that the weights were learnt from.

A trained decoder would show more: this is what can be seen at least, not at most.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bench.common import EDGE_CORE, header, pin
from bench.photos import photos
from splitpoint.calibration.calibrations import Calibration
from splitpoint.calibration.files import load_calibration
from splitpoint.calibration.tables import tables_of
from splitpoint.codecs.klt import Klt
from splitpoint.engines import Session, open_engine
from splitpoint.inputs import read_inputs
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.models.zoo import zoo_path
from splitpoint.tensors import Array, spec_of

MODEL = "efficientnet_lite0"
CUTS = ("blocks.3.project.norm", "blocks.5.project.norm", "blocks.11.project.norm")
SHARE = 0.95
SIZE = 112
#: What is added to the squares of each weight, as a share of the mean square of a feature over all places.
RIDGE = 1e-3
SHOWN_SIDE = 168
#: The zoo's photos among those of bench.photos: what is shown must not have been learnt from.
SHOWN = ("astronaut", "chelsea", "coffee", "rocket")


class Reader:
    """From the photo to what a server decodes of it at one cut."""

    def __init__(self, model: Model, calibration: Calibration, at: str) -> None:
        cut = model.graph.cut(at)
        self.at, self.tensor = at, cut.crossing[0].name
        self._head: Session = open_engine(threads=1).compile(model.head(cut))
        prefix = next(k for k, one in enumerate(model.graph.prefixes()) if one.nodes == cut.nodes)
        self._klt = Klt(coarsest(calibration, prefix), tables_of(calibration, model)[self.tensor])

    @property
    def codec(self) -> str:
        return self._klt.name

    def crossed(self, inputs: dict[str, Array]) -> tuple[Array, int]:
        """(the decoded tensor, float32[channels, height, width], how many bytes it was)."""
        features = self._head.run(inputs)[self.tensor]
        data = self._klt.encode(features)
        return self._klt.decode(data, spec_of(self.tensor, features))[0], data.size


class Estimate:
    """Pixels from a tensor: a linear map from each place and those around it."""

    _weights: Array | None = None

    def learn(self, crossed: Iterable[tuple[Array, Array]]) -> None:
        """From (decoded tensor, pixels) of many photos."""
        squares: Array = np.zeros(())
        products: Array = np.zeros(())
        for features, pixels in crossed:
            x, y = around(features), tiles(pixels, features.shape[-1])
            squares, products = squares + x.T @ x, products + x.T @ y
        penalty = RIDGE * np.trace(squares) / len(squares) * np.eye(len(squares))
        self._weights = np.linalg.solve(squares + penalty, products)

    def pixels(self, features: Array) -> Array:
        """The estimated picture, float[SIZE, SIZE, 3] from 0 to 255."""
        assert self._weights is not None
        side = features.shape[-1]
        each: Array = (around(features) @ self._weights).reshape(side, side, SIZE // side, SIZE // side, 3)
        picture: Array = np.clip(each.swapaxes(1, 2).reshape(SIZE, SIZE, 3) * 255, 0, 255)
        return picture


def coarsest(calibration: Calibration, prefix: int) -> str:
    """The level of klt with the fewest bytes that kept `SHARE` of the answers at ``Graph.prefixes()[prefix]``."""
    kept = [
        (sum(row.nbytes), row.codec)
        for row in calibration.rows
        if row.prefix == prefix and row.codec.startswith("klt:") and (row.quality.agreement or 0) >= SHARE
    ]
    return min(kept)[1]


def around(features: Array) -> Array:
    """float64[places, 9 channels + 1]: each place's values, those of the eight around it, and 1."""
    channels, height, width = features.shape
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1)), mode="edge")
    seen = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    rows = np.concatenate(seen).reshape(9 * channels, -1).T
    return np.hstack([rows, np.ones((len(rows), 1))]).astype(np.float64)


def tiles(pixels: Array, side: int) -> Array:
    """float64[places, pixels of a place], 0 to 1."""
    n = SIZE // side
    rows: Array = pixels.reshape(side, n, side, n, 3).swapaxes(1, 2).reshape(side * side, n * n * 3) / 255
    return rows


def small(picture: Array) -> Array:
    """uint8[1, 224, 224, 3] → float64[SIZE, SIZE, 3]."""
    return np.asarray(Image.fromarray(picture[0]).resize((SIZE, SIZE), Image.Resampling.BOX), np.float64)


def views(path: Path, picture: Array) -> Iterable[Array]:
    """The centre crop, two other crops of the same photo, and the mirror images of all."""
    side = picture.shape[1]
    with Image.open(path) as image:
        whole = image.convert("RGB")
    ends = (0, whole.width - min(whole.size)), (0, whole.height - min(whole.size))
    crops = [picture[0]]
    for k in (0, 1):
        x, y, least = ends[0][k], ends[1][k], min(whole.size)
        crops.append(np.asarray(whole.crop((x, y, x + least, y + least)).resize((side, side))))
    for crop in crops:
        yield crop[None]
        yield np.ascontiguousarray(crop[None, :, ::-1])


def psnr(true: Array, estimated: Array) -> float:
    return float(10 * np.log10(255**2 / np.mean((true - estimated) ** 2)))


def correlation(true: Array, estimated: Array) -> float:
    """Pearson's, of all pixels and colours of a picture."""
    return float(np.corrcoef(true.ravel(), estimated.ravel())[0, 1])


def picture_of(rows: Sequence[tuple[str, Sequence[Array]]], titles: Sequence[str]) -> Image.Image:
    """Titles above, a row a photo."""
    side, gap, top = SHOWN_SIDE, 6, 44
    sheet = Image.new("RGB", (len(titles) * (side + gap) - gap, top + len(rows) * (side + gap) - gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for k, title in enumerate(titles):
        draw.multiline_text((k * (side + gap) + 4, 4), title, "black", font, spacing=3)
    for j, (_, pictures) in enumerate(rows):
        for k, pixels in enumerate(pictures):
            one = Image.fromarray(np.rint(pixels).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(one, (k * (side + gap), top + j * (side + gap)))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.reconstruct")
    parser.add_argument("-o", "--output", type=Path, help="write the picture")
    parser.add_argument("--photos", type=Path, help="where bench.photos keeps them")
    given = parser.parse_args()
    pin(EDGE_CORE)
    print(header(pinned=False))
    model, calibration = load(f"zoo:{MODEL}"), load_calibration(zoo_path(MODEL).with_suffix(".calib.json"))
    name = model.inputs[0].name
    known = [p for p in photos("calibration", given.photos) if not any(s in p.name for s in SHOWN)]
    learnt = [view for path in known for view in views(path, read_inputs(model, path)[name])]
    fresh = [read_inputs(model, path)[name] for path in photos("test", given.photos)]
    shown = [read_inputs(model, path)[name] for path in sorted((zoo_path(MODEL).parent / "photos").iterdir())]
    grey = np.mean([small(one) for one in learnt], axis=0)
    print(
        f"{len(known)} photos ({len(learnt)} pictures) learnt from, {len(fresh)} others judged, {SIZE} x {SIZE} pixels"
    )
    print(f"{'what is known':<44}{'bytes':>7}{'PSNR dB':>9}{'correlation':>13}")
    levels = [psnr(small(one), grey) for one in fresh], [correlation(small(one), grey) for one in fresh]
    print(
        f"{'nothing: the mean of the photos learnt from':<44}{0:>7}{median(levels[0]):>9.1f}{median(levels[1]):>13.2f}"
    )
    titles, columns = ["the photo"], [[small(one) for one in shown]]
    for at in CUTS:
        reader = Reader(model, calibration, at)
        estimate = Estimate()
        estimate.learn((reader.crossed({name: one})[0], small(one)) for one in learnt)
        sizes, noise, alike = [], [], []
        for one in fresh:
            features, nbytes = reader.crossed({name: one})
            estimated = estimate.pixels(features)
            sizes.append(nbytes)
            noise.append(psnr(small(one), estimated))
            alike.append(correlation(small(one), estimated))
        row = f"{at}, {reader.codec}", median(sizes), median(noise), median(alike)
        print(f"{row[0]:<44}{row[1]:>7.0f}{row[2]:>9.1f}{row[3]:>13.2f}", flush=True)
        titles.append(f"from {row[1] / 1000:.1f} kB at\n{at}")
        columns.append([estimate.pixels(reader.crossed({name: one})[0]) for one in shown])
    if given.output:
        rows = [("", pictures) for pictures in zip(*columns, strict=True)]
        picture_of(rows, titles).save(given.output, optimize=True)
        print(f"wrote {given.output}: {given.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
