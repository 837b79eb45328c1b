"""splitpoint calibrate-codecs: what codecs cost in accuracy, with real inputs."""

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
from splitpoint.calibration.worthwhile_cuts import worthwhile
from splitpoint.cli.console import err, out, say, steps, table
from splitpoint.cli.help_pages import verb
from splitpoint.cli.input_files import read_named, recursive_option
from splitpoint.cli.options.codecs import BESIDE, beside
from splitpoint.cli.options.model_options import Here, running_options
from splitpoint.cli.options.output import csv_option, json_option, output_option, wrote
from splitpoint.codecs import OPPONENTS, calibrated_names, needs_tables, open_priced, picture
from splitpoint.errors import InputError, nearest
from splitpoint.files import check_writable, read_text
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.models.zoo import ZOO, zoo_path
from splitpoint.planning.constraints import percent
from splitpoint.planning.planner import AGREEMENTS
from splitpoint.report.files import write_csv
from splitpoint.report.table import fields_of
from splitpoint.segments import select
from splitpoint.text import plain
from splitpoint.units import counted, ms, size

#: What is tried and has no qualities.
_PLAIN = [name for name in calibrated_names() if not (":" in name or picture(name))]


@verb(
    (
        "every codec, at the cuts worth it; it lies beside the model from then on",
        "calibrate-codecs yolo.onnx --images photos/",
    ),
    (
        "two codecs at one cut, as rows",
        "calibrate-codecs zoo:lenet5 --images photos/ --at conv2 --codec int8 --codec fp16+zstd --csv codecs.csv",
    ),
)
@click.argument("model")
@click.option("--images", type=click.Path(path_type=Path), required=True, multiple=True, metavar="DIR|FILE|-",
              help="Real inputs: images, or .npy/.npz tensors. A drop of 1 % takes 300 of them to show.")  # fmt: skip
@recursive_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Use the first N inputs only.")
@click.option("--codec", "codecs", multiple=True, metavar="NAME",
              help=f"Codecs to try. Default: {', '.join(_PLAIN)}; "
                   f"klt at several levels, from {LEAST_APART} inputs on; and, for images, JPEG, WebP and AVIF at "
                   "several qualities and sizes, lossless WebP and PNG.")  # fmt: skip
@click.option(
    "--at",
    "named",
    multiple=True,
    metavar="CUT",
    help="Calibrate this cut (may be given several times) instead of the worthwhile ones.",
)
@click.option("--cuts", metavar="worthwhile|chain|all|N",
              help="The input, and cuts with fewer values than any before them (worthwhile, the default); all "
                   "single-tensor cuts; every topological prefix; or N spread over all.")  # fmt: skip
@click.option("--metric", is_flag=True,
              help="Learn where a classifier's answers look, by some thousand more passes through each tail: klt then "
                   "errs elsewhere, and takes some 6 % fewer bytes at the same divergence of answers.")  # fmt: skip
@click.option("--measure", default="", metavar="NAME|MODULE:FUNCTION",
              help=f"How alike two answers are: {'; '.join(f'{n}: {words}' for n, words in MEASURES.items())}; or a "
                   "function of (expected, got), both outputs by name, to a number from 0 to 1. Default: top1 for "
                   "classifiers.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="True labels, for the accuracy beside the agreement: CSV with a line FILE NAME,LABEL for each input "
                   "(a label's words, or its number).")  # fmt: skip
@output_option(f"Write the calibration, for --calibration of other commands. Default, with klt: MODEL{BESIDE} beside "
               "MODEL.onnx, where they look for it.")  # fmt: skip
@csv_option("Write a row a cut and codec: bytes, agreement, milliseconds.")
@json_option
@running_options
def command(
    model: str, images: tuple[Path, ...], recursive: bool, limit: int | None, codecs: tuple[str, ...],
    named: tuple[str, ...], cuts: str | None, metric: bool, measure: str, labels: Path | None, output: Path | None,
    csv_path: Path | None, as_json: bool, here: Here,
) -> None:  # fmt: skip
    """Run real inputs through cuts with every codec, and record bytes and quality.

    Quality is agreement with the whole model on the raw input: how many top labels stay (or --measure), the least
    cosine and the largest error of the outputs. The same is recorded of the pictures that people would send instead;
    WebP, AVIF and lossless ones are never sent by splitpoint. splitpoint plan MODEL --agreement 98% then compares what
    keeps as much.

    The tables of klt are learnt first, from every other input; what is then measured are the others.
    """
    names = [open_priced(c).name for c in codecs] or list(calibrated_names())
    loaded = here.opening.load(model)
    chosen = _cuts(loaded, named, cuts)
    inputs = read_named(loaded, images, limit=limit, recursive=recursive)
    tables: tuple[TensorTables, ...] = ()
    place = None if as_json else beside(model)
    if not codecs and len(inputs) < LEAST_APART:
        names = [name for name in names if not needs_tables(name)]
        say(f"klt is left out: it takes {LEAST_APART} inputs or more, half of them to learn from, not {len(inputs)}")
    if any(map(needs_tables, names)):
        learning, inputs = apart(inputs)
        if output is None and place is not None and not place.is_relative_to(zoo_path(ZOO[0]).parent):
            check_writable(place)
            output = place
        with steps("learning tables") as on_progress:
            tables = learn_tables(
                loaded, here.choice.open(), [one for _, one in learning], chosen,
                metric=metric, on_progress=on_progress,
                on_note=lambda text: err().print(text),
            )  # fmt: skip
    with steps("calibrating") as on_progress:
        calibration = calibrate(
            loaded, here.choice.open(), [one for _, one in inputs], codecs=names, cuts=chosen, tables=tables,
            measure=measure, labels=None if labels is None else _labels(labels, [path for path, _ in inputs], loaded),
            on_progress=on_progress, on_note=lambda text: err().print(text),
        )  # fmt: skip
    if as_json:
        click.echo(calibration_bytes(calibration), nl=False)
    else:
        _print(calibration, loaded)
    if output:
        save_calibration(output, calibration)
        wrote(output)
    if csv_path is not None:
        rows = [_flat(row, loaded) for row in calibration.rows]
        write_csv(csv_path, rows, list(rows[0]) if rows else [])
        wrote(csv_path)


def _cuts(model: Model, named: Sequence[str], which: str | None) -> list[Cut]:
    """Those that are named, and those of `which`; where neither is given the worthwhile ones, which is said."""
    if not named and which in (None, "worthwhile"):
        cuts = worthwhile(model.graph)
        names = ", ".join(cut.name for cut in cuts)
        say(plain(f"calibrating {names}: every other cut sends no less than one before it (--at CUT, --cuts chain)"))
        return cuts
    cuts = [model.graph.cut(name) for name in named]
    if which is not None:
        cuts += worthwhile(model.graph) if which == "worthwhile" else select(model, which)
    return list({cut.nodes: cut for cut in reversed(cuts)}.values())[::-1]


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


def _flat(row: CalibrationRow, model: Model) -> dict[str, object]:
    """The row of a CSV file."""
    cut, quality = model.graph.prefixes()[row.prefix], row.quality
    return {
        "cut": cut.name, "codec": row.codec, "raw_nbytes": cut.nbytes, "nbytes": sum(row.nbytes),
        "most_nbytes": row.most,
        "encode_ms": row.encode_ms, "decode_ms": row.decode_ms, "inputs": quality.inputs,
        "agreement": quality.agreement, "at_least": None if quality.agreement is None else 1 - quality.bound,
        "accuracy": quality.accuracy, "cosine": quality.cosine, "error": quality.error,
    }  # fmt: skip


def _print(calibration: Calibration, model: Model) -> None:
    console = out()
    prefixes = model.graph.prefixes()
    places = list(dict.fromkeys(r.prefix for r in calibration.rows))
    codecs = [c for c in dict.fromkeys(r.codec for r in calibration.rows) if not picture(c)]
    # Of a codec with many levels those are told that are enough.
    levelled = [c for c in codecs if calibration.judged and needs_tables(c)]
    general = [c for c in codecs if c not in levelled]
    columns = fields_of(("cut", "raw", *general), left=("cut",), keep=("cut", "raw"))
    rows = []
    for place in places:
        cells = [_cell(calibration.row(place, codec)) for codec in general]
        if any(cells):
            rows.append((prefixes[place].name, size(prefixes[place].nbytes), *cells))
    if rows:
        table(columns, rows, console=console)
    if levelled:
        titles = ("cut", *(f"klt at {percent(share)}" for share in AGREEMENTS))
        listed = [
            (prefixes[place].name, *(_least(calibration, place, levelled, share) for share in AGREEMENTS))
            for place in places
            if calibration.row(place, levelled[0])
        ]
        table(fields_of(titles, left=("cut",), keep=titles), listed, console=console)
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
        console.print(f"the whole model is right about {calibration.accuracy:.1%} of {counted(count, 'input')}")
    if calibration.classifier:
        console.print(
            f"bytes (median), and how many of {count} top labels of {calibration.output} stay; with none changed, a "
            f"drop of up to {min(1.0, 3 / count):.1%} is not ruled out (95 %); to show 1 % takes {needed_inputs(0.01)} "
            "inputs"
        )
    elif calibration.measure:
        console.print(f"bytes (median), and the mean of {calibration.measure} over {counted(count, 'input')}")
    else:
        console.print(
            f"bytes (median), and the largest error of {calibration.output} as a share of its range; --measure says "
            "what else counts as the same answer"
        )


def _least(calibration: Calibration, place: int, codecs: Sequence[str], share: float) -> str:
    """The fewest bytes of `codecs` at a cut that keep this share of the answers."""
    rows = [row for codec in codecs if (row := calibration.row(place, codec)) is not None]
    kept = [row for row in rows if (row.quality.agreement or 0.0) >= share]
    best = min(kept, key=lambda row: sum(row.nbytes), default=None)
    return "-" if best is None else f"{best.codec} {size(sum(best.nbytes))}"


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
