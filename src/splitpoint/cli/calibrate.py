"""splitpoint calibrate: what codecs cost in accuracy, with real inputs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import click

from splitpoint.calibration.calibrations import Calibration, CalibrationRow, TensorTables, needed_inputs
from splitpoint.calibration.codec_trials import calibrate
from splitpoint.calibration.files import calibration_bytes, save_calibration
from splitpoint.calibration.measures import MEASURES
from splitpoint.calibration.tables import LEAST_APART, apart, learn_tables
from splitpoint.cli.console import err, out, progress, say, table
from splitpoint.cli.input_files import read_named, recursive_option
from splitpoint.cli.options.codecs import BESIDE, beside
from splitpoint.cli.options.model_options import Here, cuts_option, running_options
from splitpoint.cli.options.output import json_option, output_option, wrote
from splitpoint.codecs import OPPONENTS, calibrated_names, needs_tables, open_priced, picture
from splitpoint.errors import InputError, nearest
from splitpoint.files import check_writable, read_text
from splitpoint.models.model import Model
from splitpoint.models.zoo import ZOO, zoo_path
from splitpoint.report.table import fields_of
from splitpoint.segments import select
from splitpoint.units import ms, size

#: What is tried and has no qualities.
_PLAIN = [name for name in calibrated_names() if not (":" in name or picture(name))]


@click.command()
@click.argument("model")
@click.option("--images", type=click.Path(path_type=Path), required=True, multiple=True, metavar="DIR|FILE|-",
              help="Real inputs: images, or .npy/.npz tensors. A drop of 1 % takes 300 of them to show.")  # fmt: skip
@recursive_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Use the first N inputs only.")
@click.option("--codec", "codecs", multiple=True, metavar="NAME",
              help=f"Codecs to try. Default: {', '.join(_PLAIN)}; "
                   f"klt at several levels, from {LEAST_APART} inputs on; and, for images, JPEG, WebP and AVIF at "
                   "several qualities and sizes, lossless WebP and PNG.")  # fmt: skip
@cuts_option
@click.option("--measure", default="", metavar="NAME|MODULE:FUNCTION",
              help=f"How alike two answers are: {'; '.join(f'{n}: {words}' for n, words in MEASURES.items())}; or a "
                   "function of (expected, got), both outputs by name, to a number from 0 to 1. Default: top1 for "
                   "classifiers.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="True labels, for the accuracy beside the agreement: CSV with a line FILE NAME,LABEL for each input "
                   "(a label's words, or its number).")  # fmt: skip
@output_option(f"Write the calibration, for --calibration of other commands. Default, with klt: MODEL{BESIDE} beside "
               "MODEL.onnx, where they look for it.")  # fmt: skip
@json_option
@running_options
def command(
    model: str, images: tuple[Path, ...], recursive: bool, limit: int | None, codecs: tuple[str, ...], cuts: str,
    measure: str, labels: Path | None, output: Path | None, as_json: bool, here: Here,
) -> None:  # fmt: skip
    """Run real inputs through every cut with every codec, and record bytes and quality.

    Quality is agreement with the whole model on the raw input: how many top labels stay (or --measure), the least
    cosine and the largest error of the outputs. The same is recorded of the pictures that people would send instead;
    WebP, AVIF and lossless ones are never sent by splitpoint. splitpoint plan MODEL --agreement 98% then compares what
    keeps as much.

    The tables of klt are learnt first, from every other input; what is then measured are the others.
    """
    names = [open_priced(c).name for c in codecs] or list(calibrated_names())
    loaded = here.opening.load(model)
    named = read_named(loaded, images, limit=limit, recursive=recursive)
    chosen = select(loaded, cuts)
    tables: tuple[TensorTables, ...] = ()
    place = None if as_json else beside(model)
    if not codecs and len(named) < LEAST_APART:
        names = [name for name in names if not needs_tables(name)]
        say(f"klt is left out: it takes {LEAST_APART} inputs or more, half of them to learn from, not {len(named)}")
    if any(map(needs_tables, names)):
        learning, named = apart(named)
        if output is None and place is not None and not place.is_relative_to(zoo_path(ZOO[0]).parent):
            check_writable(place)
            output = place
        with progress() as bar:
            task = bar.add_task("learning tables", total=1)
            tables = learn_tables(
                loaded, here.choice.open(), [one for _, one in learning], chosen,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
                on_note=lambda text: err().print(text),
            )  # fmt: skip
    with progress() as bar:
        task = bar.add_task("calibrating", total=len(chosen) * len(named))
        calibration = calibrate(
            loaded, here.choice.open(), [one for _, one in named], codecs=names, cuts=chosen, tables=tables,
            measure=measure, labels=None if labels is None else _labels(labels, [path for path, _ in named], loaded),
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


def _labels(path: Path, inputs: Sequence[Path], model: Model) -> list[int]:
    """The class of each input by the file `path`. InputError for an input without a label, and a label that is none."""
    known = model.input_spec.labels if model.input_spec else ()
    given = {
        row[0]: row[1].strip()
        for row in csv.reader(read_text(path, 16 << 20, "a file of labels").splitlines())
        if len(row) == 2
    }
    classes = []
    for one in inputs:
        label = given.get(one.name)
        if label is None:
            raise InputError(f"{path} has no line {one.name},LABEL: every input needs one")
        if not label.isdecimal() and label not in known:
            raise InputError(f"{path}: {label} is no label of {model.name}{nearest(label, known)}")
        classes.append(int(label) if label.isdecimal() else known.index(label))
    return classes


def _print(calibration: Calibration, model: Model) -> None:
    console = out()
    prefixes = model.graph.prefixes()
    places = list(dict.fromkeys(r.prefix for r in calibration.rows))
    general = [c for c in dict.fromkeys(r.codec for r in calibration.rows) if not picture(c)]
    columns = fields_of(("cut", "raw", *general), left=("cut",), keep=("cut", "raw"))
    rows = []
    for place in places:
        cells = [_cell(calibration.row(place, codec)) for codec in general]
        if any(cells):
            rows.append((prefixes[place].name, size(prefixes[place].nbytes), *cells))
    if rows:
        table(columns, rows, console=console)
    pictures = [r for r in calibration.rows if picture(r.codec)]
    if pictures:
        titles = ("the input as", "bytes", "agreement", "not below", "encode ms", "")
        listed = [
            (picture(r.codec), size(sum(r.nbytes)), _agreement(r), f"{1 - r.quality.bound:.1%}", ms(r.encode_ms),
             "priced only" if r.codec.partition(":")[0] in OPPONENTS else "")
            for r in pictures
        ]  # fmt: skip
        table(fields_of(titles, left=(titles[0], ""), keep=titles), listed, console=console)
    count = calibration.inputs
    if calibration.accuracy is not None:
        console.print(f"the whole model is right about {calibration.accuracy:.1%} of {count} inputs")
    if calibration.classifier:
        console.print(
            f"bytes (median), and how many of {count} top labels of {calibration.output} stay; with none changed, a "
            f"drop of up to {min(1.0, 3 / count):.1%} is not ruled out (95 %); to show 1 % takes {needed_inputs(0.01)} "
            "inputs"
        )
    elif calibration.measure:
        console.print(f"bytes (median), and the mean of {calibration.measure} over {count} inputs")
    else:
        console.print(
            f"bytes (median), and the largest error of {calibration.output} as a share of its range; --measure says "
            "what else counts as the same answer"
        )


def _agreement(row: CalibrationRow) -> str:
    quality = row.quality
    same = f"error {quality.error:.1%}" if quality.agreement is None else f"{quality.agreement:.1%}"
    return same if quality.accuracy is None else f"{same}, {quality.accuracy:.1%} right"


def _cell(row: CalibrationRow | None) -> str:
    if row is None:
        return ""
    quality = row.quality
    if quality.agreement is None:
        same: object = f"{quality.error:.1%}"
    else:
        same = f"{quality.agreement:.1%}" if quality.least is not None else round(quality.agreement * quality.inputs)
    return f"{size(sum(row.nbytes))} {same}"
