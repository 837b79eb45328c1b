"""splitpoint predict: what a model would take on a machine it never ran on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from splitpoint import install
from splitpoint.cli import evaluate, train
from splitpoint.cli.console import bold, line, out, put_json, say, table
from splitpoint.cli.help_pages import Verbs
from splitpoint.cli.latency_files import check_same, codecs_there, in_words, refuse, whose
from splitpoint.cli.options.model_options import Opening, model_options
from splitpoint.cli.options.output import csv_option, json_option, output_option, wrote
from splitpoint.engines import ENGINES
from splitpoint.errors import InputError
from splitpoint.files import is_special
from splitpoint.models.model import Model
from splitpoint.predict.learn.files import SHIPPED, load_latency
from splitpoint.predict.learn.latency_model import Latency
from splitpoint.predict.price.prediction import Prediction, predict_latency
from splitpoint.predict.price.service_traces import read_traces
from splitpoint.profile.files import load_profile, save_profile
from splitpoint.profile.profiles import SegmentCost
from splitpoint.report.files import write_csv
from splitpoint.report.prediction_table import (
    COLUMNS,
    TABLE,
    PriceRow,
    between,
    kernel_rows,
    layer_rows,
    uncalibrated_line,
)
from splitpoint.units import counted, fine_ms

_FILE = click.Path(path_type=Path, dir_okay=False)
#: What ``splitpoint predict MODEL`` runs.
_MODEL = "MODEL"


class _Default(Verbs):
    """Its commands by name; anything else is a MODEL. `./train` is a file of that name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [_MODEL, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in super().list_commands(ctx) if name != _MODEL]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        main = self.commands[_MODEL]
        with click.Context(main, info_name=ctx.info_name, parent=ctx.parent) as inner:
            main.format_help(inner, formatter)
        self.format_commands(ctx, formatter)


@click.group(cls=_Default)
def command() -> None:
    """Predict latency from what was learned of a machine; see splitpoint predict --help."""


command.add_command(train.command, "train")
command.add_command(evaluate.command, "evaluate")


@command.command(
    name=_MODEL,
    examples=(
        ("a network that never ran there", "predict torchvision:resnet50 --on edge.latency.json"),
        (
            "on the machines of the Neurosurgeon study, which come along",
            "predict alexnet --weights random --on neurosurgeon-edge",
        ),
    ),
)
@click.argument("model")
@click.option(
    "--on",
    "device_file",
    required=True,
    metavar="FILE|NAME",
    help="What was learned of the machine (splitpoint calibrate-kernels -o), or one of those that come along: "
    "neurosurgeon-edge, neurosurgeon-cloud.",
)
@click.option(
    "--measured", type=_FILE, metavar="PROFILE",
    help="Times of this model that were measured on that machine, if only some: they correct the prediction.",
)  # fmt: skip
@click.option(
    "--traces", type=_FILE, metavar="FILE",
    help="Requests that ran on that machine, a line each (splitpoint run --json): they correct it, too.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="Refuse a file of another number of threads."
)
@click.option("--engine", type=click.Choice(tuple(ENGINES)), help="Refuse a file of another engine.")
@click.option("-d", "--device", metavar="NAME", help="Refuse a file of another device of the engine (cpu, cuda, …).")
@click.option("--force", is_flag=True, help="Only warn where engine, device or threads are others.")
@click.option("--all", "show_all", is_flag=True, help="A row for every kernel, however many there are.")
@output_option("Write the predicted profile (edge.profile.json): splitpoint plan reads it like a measured one.")
@csv_option("Write a row a kernel as CSV.")
@json_option
@model_options
def model_command(
    model: str, device_file: str, measured: Path | None, traces: Path | None, threads: int | None, engine: str | None,
    device: str | None, force: bool, show_all: bool, output: Path | None, csv_path: Path | None, as_json: bool,
    opening: Opening,
) -> None:  # fmt: skip
    """Predict what every kernel of MODEL takes on a machine, and the whole of it, without running anything.

    A kernel is what an engine runs as one: Conv, batch norm and ReLU together. The range behind each time is where four
    times in five lie. Kernels of a kind or an operator that the machine was not measured with are priced by FLOPs and
    bytes, and marked.
    """
    latency = load_latency(device_file)
    check_same(latency, device_file, engine=engine, device=device, threads=threads, force=force)
    loaded = opening.load(model)
    segments = _corrections(loaded, latency, measured, traces, force=force)
    prediction = predict_latency(loaded, latency, segments)
    if output is not None:
        save_profile(output, prediction.profile(codecs_there(loaded, latency)))
    if csv_path is not None:
        write_csv(csv_path, [asdict(r) for r in kernel_rows(prediction)], COLUMNS)
    if as_json:
        put_json(_summary(prediction))
    else:
        _print(prediction, kernel_rows(prediction) if show_all else layer_rows(prediction))
        _say_next(prediction, model, device_file, output)
    wrote(output, csv_path)


def _corrections(
    model: Model, latency: Latency, measured: Path | None, traces: Path | None, *, force: bool
) -> list[SegmentCost]:
    """What was measured of `model` on the device of `latency`."""
    corrections: list[SegmentCost] = []
    if measured is not None:
        profile = load_profile(measured)
        try:
            profile.require(model.fingerprint, model.name)
        except InputError as exc:
            raise InputError(f"{measured}: {exc}") from exc
        for what in ("engine", "device", "threads"):
            ours, theirs = getattr(latency, what), getattr(profile, what)
            if ours != theirs:
                said = (
                    f"{measured} was measured with {in_words(what, theirs)}, {latency.name} with {in_words(what, ours)}"
                )
                refuse(said, force=force)
        corrections += [s for s in profile.segments if any(side and side.count > 0 for side in (s.head, s.tail))]
        if not corrections:
            raise InputError(f"{measured} has no measured time in it: make it with splitpoint profile")
    if traces is not None:
        segments, said_of = read_traces(traces, model.graph)
        say(*said_of)
        if not segments:
            raise InputError(f"{traces} has no request whose head ran there and can be used")
        corrections += segments
    return corrections


def _print(prediction: Prediction, rows: Sequence[PriceRow]) -> None:
    console, latency, whole = out(), prediction.latency, prediction.whole
    console.print(line(bold(prediction.graph.name), f" {prediction.fingerprint[:12]}, predicted: nothing was run"))
    for text in whose(latency):
        console.print(text)
    often = f"({between(whole.p10, whole.p90)} for eight of ten)"
    console.print(line("whole model ", bold(f"{fine_ms(whole.median)} ms"), f" {often}"))
    if prediction.measured:
        console.print(f"corrected by {counted(prediction.measured, 'measured time')} of this model")
    table(TABLE, rows, console=console)
    if len(rows) < len(prediction.kernels):
        console.print(f"{counted(len(prediction.kernels), 'kernel')} in {len(rows)} rows (--all, or --csv, has each)")
    if latency.fixed_ms:
        console.print(f"beside them up to {fine_ms(latency.fixed_ms)} ms that a run costs after a pause")
    if uncalibrated := uncalibrated_line(prediction):
        console.print(uncalibrated)
    if prediction.too_little:
        console.print(prediction.too_little)


def _say_next(prediction: Prediction, model: str, device_file: str, output: Path | None) -> None:
    if prediction.uncalibrated and device_file not in SHIPPED and sum(u.share for u in prediction.uncalibrated) > 0.1:
        click.echo(f"its interval is wide for that: {install.command()} profile MODEL on that machine measures it")
    edge = output if output is not None and not is_special(output) else device_file
    click.echo(f"next: {install.command()} plan {model} --edge {edge} --cloud HOST --link wifi")


def _summary(prediction: Prediction) -> dict[str, object]:
    return {
        "model": prediction.graph.name,
        "fingerprint": prediction.fingerprint,
        "on": prediction.latency.name,
        "note": prediction.latency.note,
        "too_little": prediction.too_little,
        "engine": prediction.latency.engine,
        "device": prediction.latency.device,
        "threads": prediction.latency.threads,
        "whole_ms": prediction.whole.median,
        "low_ms": prediction.whole.p10,
        "high_ms": prediction.whole.p90,
        "fixed_ms": prediction.latency.fixed_ms,
        "measured": prediction.measured,
        "uncalibrated": prediction.uncalibrated,
        "kernels": kernel_rows(prediction),
    }
