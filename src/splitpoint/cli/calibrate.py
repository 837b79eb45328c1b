"""splitpoint calibrate: what codecs cost in accuracy, with real inputs."""

from __future__ import annotations

from pathlib import Path

import click

from splitpoint.calibration.calibrations import Calibration, CalibrationRow, TensorTables, needed_inputs
from splitpoint.calibration.codec_trials import calibrate
from splitpoint.calibration.files import calibration_bytes, save_calibration
from splitpoint.calibration.tables import apart, learn_tables
from splitpoint.cli.console import err, out, progress, table
from splitpoint.cli.input_files import read_photos, recursive_option
from splitpoint.cli.options.codecs import beside
from splitpoint.cli.options.model_options import Here, cuts_option, running_options
from splitpoint.cli.options.output import json_option, output_option, wrote
from splitpoint.codecs import calibrated_names, needs_tables, open_codec
from splitpoint.files import check_writable
from splitpoint.models.model import Model
from splitpoint.models.zoo import ZOO, zoo_path
from splitpoint.report.table import fields_of
from splitpoint.segments import select
from splitpoint.units import size


@click.command()
@click.argument("model")
@click.option("--images", type=click.Path(path_type=Path), required=True, multiple=True, metavar="DIR|FILE|-",
              help="Real inputs: images, or .npy/.npz tensors. A drop of 1 % takes 300 of them to show.")  # fmt: skip
@recursive_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Use the first N inputs only.")
@click.option("--codec", "codecs", multiple=True, metavar="NAME",
              help=f"Codecs to try; default: {', '.join(c for c in calibrated_names() if ':' not in c)}, "
                   "and JPEG at seven qualities for images.")  # fmt: skip
@cuts_option
@output_option("Write the calibration, for splitpoint plan --calib.")
@json_option
@running_options
def command(
    model: str, images: tuple[Path, ...], recursive: bool, limit: int | None, codecs: tuple[str, ...], cuts: str,
    output: Path | None, as_json: bool, here: Here,
) -> None:  # fmt: skip
    """Run real inputs through every cut with every codec, and record bytes and quality.

    Quality is agreement with the whole model on the raw input: how many top labels stay, the least cosine and the
    largest error of the outputs. splitpoint plan --max-drop 1% --calib FILE then keeps to it.
    """
    names = [open_codec(c).name for c in codecs] or list(calibrated_names())
    loaded = here.opening.load(model)
    inputs = read_photos(loaded, images, limit=limit, recursive=recursive)
    chosen = select(loaded, cuts)
    tables: tuple[TensorTables, ...] = ()
    place = None if as_json else beside(model)
    if any(map(needs_tables, names)):
        learning, inputs = apart(inputs)
        if output is None and place is not None and not place.is_relative_to(zoo_path(ZOO[0]).parent):
            check_writable(place)
            output = place
        with progress() as bar:
            task = bar.add_task("learning tables", total=1)
            tables = learn_tables(
                loaded, here.choice.open(), learning, chosen,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
                on_note=lambda text: err().print(text),
            )  # fmt: skip
    with progress() as bar:
        task = bar.add_task("calibrating", total=len(chosen) * len(inputs))
        calibration = calibrate(
            loaded, here.choice.open(), inputs, codecs=names, cuts=chosen, tables=tables,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            on_note=lambda text: err().print(text),
        )  # fmt: skip
    if as_json:
        click.echo(calibration_bytes(calibration), nl=False)
    else:
        _print(calibration, loaded)
    if output:
        save_calibration(output, calibration)
        wrote(output)


def _print(calibration: Calibration, model: Model) -> None:
    console = out()
    prefixes = model.graph.prefixes()
    places = list(dict.fromkeys(r.prefix for r in calibration.rows))
    general = [c for c in dict.fromkeys(r.codec for r in calibration.rows) if not c.startswith("jpeg:")]
    columns = fields_of(("cut", "raw", *general), left=("cut",), keep=("cut", "raw"))
    rows = []
    for place in places:
        cells = [_cell(calibration.row(place, codec)) for codec in general]
        if any(cells):
            rows.append((prefixes[place].name, size(prefixes[place].nbytes), *cells))
    if rows:
        table(columns, rows, console=console)
    pictures = [r for r in calibration.rows if r.codec.startswith("jpeg:")]
    if pictures:
        told = ", ".join(f"q{r.codec.partition(':')[2]} {_cell(r)}" for r in pictures)
        console.print(f"the input as JPEG: {told}")
    if calibration.classifier:
        console.print(
            f"bytes (median), and how many of {calibration.inputs} top labels of {calibration.output} stay; with "
            f"none changed, a drop of up to {min(1.0, 3 / calibration.inputs):.1%} is not ruled out (95 %); to show "
            f"1 % takes {needed_inputs(0.01)} inputs"
        )
    else:
        console.print(f"bytes (median), and the largest error of {calibration.output} as a share of its range")


def _cell(row: CalibrationRow | None) -> str:
    if row is None:
        return ""
    quality = row.quality
    same = f"{quality.error:.1%}" if quality.agreement is None else round(quality.agreement * quality.inputs)
    return f"{size(sum(row.nbytes))} {same}"
