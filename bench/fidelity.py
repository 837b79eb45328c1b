"""What pictures and codecs keep of the answers, on free photos: `python -m bench.fidelity [-o FILE]`, some ten minutes.

EfficientNet-Lite0 on the test photos of `bench.photos`, one centre crop each: every picture that a calibration knows,
and the codecs at a few cuts, with bytes (median), agreement with the uncut model on the raw crop (fidelity, not
accuracy), its 95 % interval (Clopper and Pearson: photos are drawn one by one), and the median time to encode.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scipy.stats import beta

from bench.common import EDGE_CORE, header, pin
from bench.photos import photos
from splitpoint.calibration.codec_trials import calibrate
from splitpoint.calibration.files import save_calibration
from splitpoint.codecs import OPPONENTS, calibrated_names, picture
from splitpoint.engines import open_engine
from splitpoint.images import read_image
from splitpoint.models import load

CUTS = ("input", "blocks.3.project.norm", "blocks.5.project.norm", "blocks.8.project.norm", "blocks.11.project.norm")


def interval(share: float, count: int) -> tuple[float, float]:
    """Clopper and Pearson's, 95 %, of `share` of `count` photos.

    >>> [round(end, 3) for end in interval(0.9, 100)]
    [0.824, 0.951]
    """
    same = round(share * count)
    low = float(beta.ppf(0.025, same, count - same + 1)) if same else 0.0
    return low, float(beta.ppf(0.975, same + 1, count - same)) if same < count else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity")
    parser.add_argument("-o", "--output", type=Path, help="write the calibration, for splitpoint plan --calib")
    parser.add_argument("--photos", type=Path, help="where the photos are (bench.photos)")
    parser.add_argument("--limit", type=int, help="use the first so many")
    parser.add_argument("--only", nargs="+", default=[""], help="codecs whose names begin so")
    given = parser.parse_args()
    pin(EDGE_CORE)
    print(header())
    model = load("zoo:efficientnet_lite0")
    assert model.input_spec is not None
    spec = model.input_spec.bind(model.graph.inputs)
    inputs = [{spec.input: read_image(path, spec)} for path in photos("test", given.photos)[: given.limit]]
    names = [name for name in calibrated_names() if name.startswith(tuple(given.only))]
    cuts = [model.graph.cut(name) for name in CUTS]
    found = calibrate(model, open_engine(threads=1), inputs, codecs=names, cuts=cuts)
    if given.output:
        save_calibration(given.output, found)
    prefixes = model.graph.prefixes()
    print(f"{len(inputs)} photos\n{'at':<26}{'as':<36}{'bytes':>8}{'same':>8}  {'95 %':<14}{'encode ms':>9}")
    for row in found.rows:
        share = row.quality.agreement or 0.0
        low, high = interval(share, row.quality.inputs)
        words = picture(row.codec) or row.codec
        words += " (not sent)" if row.codec.partition(":")[0] in OPPONENTS else ""
        where, ends = prefixes[row.prefix].name, f"{low:.1%}–{high:.1%}"
        print(f"{where:<26}{words:<36}{sum(row.nbytes):>8}{share:>8.1%}  {ends:<14}{row.encode_ms:>9.2f}")


if __name__ == "__main__":
    main()
