"""splitpoint verify: every cut's two halves against the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from splitpoint.cli.console import progress, put_json
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.model_options import Here, cuts_option, running_options
from splitpoint.cli.options.output import csv_option, json_option, result_option, save_json, wrote
from splitpoint.errors import VerifyError
from splitpoint.inputs import read_inputs
from splitpoint.report.files import write_csv
from splitpoint.segments import RELATIVE_TOLERANCE, Check, random_note, select, verify
from splitpoint.units import counted

#: What --json and --csv have of each cut.
_COLUMNS = ("cut", "index", "crossing", "verdict", "error", "output")


@verb(
    ("every cut that one tensor crosses", "verify zoo:lenet5"),
    ("every cut there is, with photos of your own", "verify yolo.onnx --cuts all --input one.jpg --input two.jpg"),
)
@click.argument("model")
@cuts_option
@click.option("--tolerance", type=click.FloatRange(0, 1), default=RELATIVE_TOLERANCE, show_default=True,
              help="Largest difference, as a share of how much the output changes between inputs.")  # fmt: skip
@result_option
@csv_option("Write a row a cut.")
@json_option
@running_options
def command(
    model: str, cuts: str, tolerance: float, output: Path | None, csv_path: Path | None, as_json: bool, here: Here
) -> None:  # fmt: skip
    """Run the two halves of MODEL's cuts against the whole model on at least two inputs: --input images, .npy or .npz,
    or made-up ones (beside one .npz file: like those in it).

    Exit status 1 if any cut differs, or if the output does not depend on the input: then a match proves nothing.
    """
    loaded = here.opening.load(model, photos=True)
    chosen = select(loaded, cuts)
    note = random_note(loaded)
    inputs = here.opening.inputs
    # One file of values is what others are made like.
    alone = len(inputs) == 1 and inputs[0].suffix in (".npy", ".npz")
    samples = [read_inputs(loaded, path) for path in inputs] if inputs and not alone else None
    bad: list[Check] = []
    rows: list[dict[str, Any]] = []
    worst: Check | None = None
    with progress() as bar:
        task = bar.add_task("verifying", total=len(chosen))
        for check in verify(loaded, here.choice.open(), chosen, samples, tolerance):
            bar.advance(task)
            worst = check if worst is None or check.error >= worst.error else worst
            if not check.ok:
                bad.append(check)
            cut = check.cut
            crossing = [str(t) for t in cut.crossing]
            told = (cut.name, cut.index, crossing, check.verdict, check.error, check.output)
            rows.append(dict(zip(_COLUMNS, told, strict=True)))
            if as_json:
                put_json(rows[-1])
            elif not check.ok:
                bar.console.print(f"✗ {check}", style="red", highlight=False)
    save_json(output, rows)
    if csv_path is not None:
        write_csv(csv_path, [row | {"crossing": " + ".join(map(str, row["crossing"]))} for row in rows], _COLUMNS)
        wrote(csv_path)
    if bad:
        counts = {v: sum(c.verdict == v for c in bad) for v in ("different", "inconclusive")}
        kinds = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        hint = note
        if not hint and counts["inconclusive"]:
            hint = ": the output hardly depends on the input, so equality proves nothing (untrained weights?)"
        raise VerifyError(f"{len(bad)} of {counted(len(chosen), 'cut')} of {loaded.name} failed ({kinds}){hint}")
    if note:
        click.echo(f"{loaded.name}{note}: this time they were", err=True)
    if not as_json and not loaded.inputs:
        click.echo(f"{loaded.name} has no inputs: its one answer is the same at {counted(len(chosen), 'cut')}")
    elif not as_json and worst:
        equal = f"{counted(len(chosen), 'cut')} {'equal' if len(chosen) > 1 else 'equals'}"
        click.echo(
            f"{loaded.name}: {equal} the whole model on {len(samples or (1, 2))} inputs; "
            f"worst difference {worst.error:.1e} of the output's own change (at {worst.cut.name})"
        )
