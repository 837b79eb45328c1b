"""What the calibration that comes with EfficientNet-Lite0 promises, judged on photos it has not seen.

    python -m bench.ready [--photos DIR]

For 90, 95 and 98 % agreement: of each cut, and of the pictures that may be sent, the setting with the fewest bytes that
keeps it by the calibration (75 photos), and what that takes and keeps on the 226 ``test`` photos of `bench.photos`.
Intervals are Clopper and Pearson's, 95 %. Agreement is with the uncut network on the raw picture: fidelity.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.common import EDGE_CORE, header, pin
from bench.photos import photos
from splitpoint.calibration.calibrations import Calibration, CalibrationRow
from splitpoint.calibration.files import load_calibration
from splitpoint.calibration.tables import tables_of
from splitpoint.codecs import CODECS, Codec, open_codec
from splitpoint.codecs.untabled import Untabled
from splitpoint.engines import open_engine
from splitpoint.inputs import read_inputs
from splitpoint.models import load
from splitpoint.models.zoo import zoo_path
from splitpoint.planning.planner import AGREEMENTS
from splitpoint.segments import Halves
from splitpoint.tensors import spec_of

MODEL = "efficientnet_lite0"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ready", description="Judges the zoo's calibration.")
    parser.add_argument("--photos", type=Path, help="where bench.photos keeps them")
    options = parser.parse_args(arguments)
    pin(EDGE_CORE)
    model, engine = load(f"zoo:{MODEL}"), open_engine(threads=1)
    calibration = load_calibration(zoo_path(MODEL).with_suffix(".calib.json"))
    tables, prefixes = tables_of(calibration, model), model.graph.prefixes()
    fresh = [read_inputs(model, path) for path in photos("test", options.photos)]
    print(f"{header()}\n{len(fresh)} photos", flush=True)
    print(f"{'at':<25}{'asked':>6}  {'as':<12}{'calibrated':>18}{'bytes':>8}   {'same':<22}")
    for place in dict.fromkeys(row.prefix for row in calibration.rows):
        picks = {share: _least(calibration, place, share) for share in AGREEMENTS}
        rows = {row.codec: row for row in picks.values() if row is not None}
        halves = Halves(model, prefixes[place], engine)
        assert halves.tail
        [tensor] = prefixes[place].crossing
        kept: dict[str, list[tuple[int, bool]]] = {codec: [] for codec in rows}
        for one in fresh:
            value = {**one, **(halves.head.run(one) if halves.head else {})}[tensor.name]
            wanted = halves.tail.run({tensor.name: value})[calibration.output].argmax()
            for name, results in kept.items():
                codec: Codec = open_codec(name)
                if isinstance(codec, Untabled):
                    codec = codec.with_tables(tables[tensor.name])
                data = codec.encode(value)
                decoded = codec.decode(data, spec_of(tensor.name, value))
                answer = halves.tail.run({tensor.name: decoded})[calibration.output].argmax()
                results.append((data.nbytes, answer == wanted))
        halves.close()
        for share, row in picks.items():
            if row is None:
                print(f"{prefixes[place].name:<25}{share:>6.0%}  nothing keeps it")
                continue
            sizes, same = zip(*kept[row.codec], strict=True)
            low, high = _interval(sum(same), len(same))
            said = f"{sum(row.nbytes)} B {row.quality.agreement:.1%}"
            print(
                f"{prefixes[place].name:<25}{share:>6.0%}  {row.codec:<12}{said:>18}{median(sizes):>8.0f}   "
                f"{sum(same) / len(same):.1%} ({low:.1%} to {high:.1%})", flush=True,
            )  # fmt: skip


def _least(calibration: Calibration, place: int, share: float) -> CalibrationRow | None:
    """The row with the fewest bytes that keeps `share` at a cut, of what may be sent."""
    sent = [r for r in calibration.rows if r.prefix == place and r.codec.partition(":")[0] in CODECS]
    kept = [r for r in sent if (r.quality.agreement or 0.0) >= share]
    return min(kept, key=lambda row: sum(row.nbytes), default=None)


def _interval(same: int, count: int) -> tuple[float, float]:
    from scipy.stats import beta

    low = float(beta.ppf(0.025, same, count - same + 1)) if same else 0.0
    return low, float(beta.ppf(0.975, same + 1, count - same)) if same < count else 1.0


if __name__ == "__main__":
    main()
