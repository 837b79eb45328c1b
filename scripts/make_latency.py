"""Makes src/splitpoint/predict/shipped: what the Neurosurgeon replica published of its two machines, learned.

    pip install -e '.[predict]'
    python scripts/make_latency.py DIR     # DIR has edge/ and cloud/ with conv_lat.csv and the others; 4 minutes

The result is committed, so that `splitpoint predict MODEL --on neurosurgeon-edge` works at once. It is trained on all
rows there are (judge it with `python -m bench.predict seed DIR`), and the same tables give the same files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from splitpoint.predict.kernels.kernel_table import read_tables  # noqa: E402
from splitpoint.predict.learn.files import save_latency  # noqa: E402 - runs from a bare checkout
from splitpoint.predict.learn.latency_model import SEED  # noqa: E402
from splitpoint.predict.learn.training import train  # noqa: E402

SHIPPED = ROOT / "src" / "splitpoint" / "predict" / "shipped"
#: Larger files make the repository heavy.
MOST_BYTES = 3_200_000
NOTE = (
    "trained on the rows that the Neurosurgeon replica published: it describes the {} machine of that replica "
    "(PyTorch), not yours"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with edge/ and cloud/")
    folder = parser.parse_args().folder
    SHIPPED.mkdir(exist_ok=True)
    for side in ("edge", "cloud"):
        tables, said = read_tables(folder / side)
        print(*said, sep="\n", end="\n" if said else "")
        name = f"neurosurgeon-{side}"
        latency = train(
            tables,
            name=name,
            engine="pytorch",
            device="cpu" if side == "edge" else "cuda",
            convention=SEED,
            note=NOTE.format(side),
            progress=lambda kind, side=side: print(f"{side}: {kind}", flush=True),  # type: ignore[misc]
        )
        path = SHIPPED / f"{name}.latency.json"
        save_latency(path, latency)
        size = path.stat().st_size
        print(f"{path.relative_to(ROOT)}: {latency.rows} rows, {size / 1e6:.2f} MB")
        if size > MOST_BYTES:
            raise SystemExit(f"{path} is larger than {MOST_BYTES} bytes: grow fewer trees")


if __name__ == "__main__":
    main()
