"""splitpoint predict evaluate: how good predictions are on this machine, with networks that no training saw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from splitpoint.cli.console import out, put_json, say, table, waiting
from splitpoint.cli.help_pages import verb
from splitpoint.cli.latency_files import check_same, refuse, whose
from splitpoint.cli.options.engine import engine_of
from splitpoint.cli.options.output import OUTPUT_FOLDER, json_option, output_option, wrote
from splitpoint.cli.options.quantities import budget_option
from splitpoint.errors import InputError, UsageError
from splitpoint.files import make_folder
from splitpoint.machine import this_machine
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.models.names import name_of
from splitpoint.predict.accuracy import Judgement, judge
from splitpoint.predict.calibrate import ground_truth as truths
from splitpoint.predict.calibrate.ground_truth import Truth
from splitpoint.predict.learn.files import load_latency
from splitpoint.predict.learn.latency_model import Latency
from splitpoint.report.accuracy_table import KINDS, WHOLES, kind_cells, sentences, whole_cells, write
from splitpoint.units import counted

#: Of every family that people split, small ones and large ones. PyTorch is needed to open them the first time.
NETWORKS: Sequence[str] = (
    "zoo:lenet5", "zoo:efficientnet_lite0", "torchvision:alexnet", "torchvision:vgg11", "torchvision:resnet18",
    "torchvision:resnet50", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large", "torchvision:squeezenet1_1",
    "torchvision:shufflenet_v2_x1_0", "torchvision:mnasnet1_0", "torchvision:googlenet", "torchvision:densenet121",
    "torchvision:efficientnet_b0", "torchvision:regnet_y_400mf", "torchvision:vit_b_16",
)  # fmt: skip


@verb(
    ("sixteen networks, once opened kept in a folder", "predict evaluate --on edge.latency.json --data networks"),
    ("one of your own", "predict evaluate yolo.onnx --on edge.latency.json -o judged"),
    short_help="Judge predictions by networks that run here.",
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--on",
    "device_file",
    required=True,
    metavar="FILE",
    help="What was learned of this machine (splitpoint calibrate-kernels -o).",
)
@budget_option("10m", "How long all measuring may take: half for whole networks, half for profiles to judge plans by.")
@click.option(
    "--data",
    type=OUTPUT_FOLDER,
    metavar="DIR",
    help="Keep the networks and what they took in this folder, and measure nothing that is there.",
)
@click.option("--prepare", is_flag=True, help="Only open the networks into --data (slow); measure another time.")
@output_option("Write networks.csv, kernels.csv, plans.csv and scatter.png there.", metavar="DIR", folder=True)
@click.option("--force", is_flag=True, help="Only warn where the file is of another engine, device or threads.")
@json_option
def command(
    models: tuple[str, ...], device_file: str, budget_s: float, data: Path | None, prepare: bool,
    output: Path | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare predictions with what networks take on this machine: kernels, whole networks, and plans.

    Without MODELs sixteen from LeNet-5 to a vision transformer are measured; none of them was in what predictions are
    learned from. Plans are made from predictions for five links and three slower machines, and priced by what was
    measured: how much longer they take than the best plan is the regret. Some networks of the calibration are measured
    as well: they tell how much faster or slower the machine was meanwhile, and what the errors are at the same speed.
    Run it when nothing else runs.
    """
    latency = load_latency(device_file)
    if prepare and data is None:
        raise UsageError("--prepare needs --data DIR, where the networks are kept")
    for folder in (data, output):
        if folder is not None:
            make_folder(folder)
    opened = _open(models, data)
    if prepare:
        click.echo(f"{counted(len(opened), 'network')} in {data}: measure them with the same command without --prepare")
        return
    truth = _measured(opened, latency, device_file, budget_s, data, force=force)
    judgement = judge(truth, latency)
    if as_json:
        put_json(_summary(judgement))
    else:
        _print(judgement, latency)
    if output is not None:
        wrote(*write(output, judgement, "Networks that no training saw, " + whose(latency)[0]))


def _open(asked: Sequence[str], data: Path | None) -> dict[str, Model]:
    """The networks by name: kept ones, or opened now, with random weights where weights would be fetched."""
    networks: dict[str, Model] = {}
    known = [] if asked or data is None else truths.names(data)
    for text in asked or known or NETWORKS:
        name = re.sub(r"[^\w.-]+", "_", name_of(text))
        model = truths.kept(data, name) if data is not None else None
        if model is None:
            say(f"opening {text}")
            model = load(text, weights="random" if text.startswith(("torchvision:", "timm:")) else None)
            if data is not None:
                truths.keep(model, name, data)
        if name in networks:
            raise UsageError(f"two of the networks are called {name}: rename a file")
        networks[name] = model
    return networks


def _measured(
    models: dict[str, Model], latency: Latency, device_file: str, budget_s: float, data: Path | None, *, force: bool
) -> Truth:
    """What they take, measured now or before. InputError for another machine, engine, device or number of threads."""
    truth = truths.load(data, models) if data is not None else None
    engine = None
    if truth is None or truth.missing():
        engine = engine_of(latency.engine, latency.device, latency.threads)
        truth = truth or truths.begin(engine, models)
    its = truth.wholes
    check_same(latency, device_file, engine=its.engine, device=its.device, threads=its.threads, force=force)
    ours, theirs, here = latency.machine, its.machine.processor, this_machine().processor
    if ours is not None and ours.processor not in ("", theirs):
        refuse(f"{device_file} is of {ours.processor}, and the networks run on {theirs}", force=force)
    if engine is not None:
        if theirs != here:
            raise InputError(f"{data} was begun on {theirs}, and this is {here}: use another --data folder")
        with waiting(f"measuring {counted(len(models), 'network')}") as say:
            truths.measure(
                truth, engine, budget_s, references=latency.reference, folder=data,
                on_step=lambda what, done, total: say(f"measuring {what}: {done} of {total} done"),
            )  # fmt: skip
    return truth


def _print(judgement: Judgement, latency: Latency) -> None:
    console = out()
    for line in whose(latency):
        console.print(line)
    table(WHOLES, whole_cells(judgement), console=console)
    if judgement.kernels:
        table(KINDS, kind_cells(judgement.kinds()), console=console)
    for line in sentences(judgement):
        console.print(line)
    if few := latency.too_little():
        console.print(few)
    if latency.reference and judgement.speed is None:
        console.print(
            "how fast the machine was meanwhile is not known: the file's reference networks are measured only with "
            "all networks in one go (an empty --data folder)",
        )


def _summary(judgement: Judgement) -> dict[str, object]:
    return {
        "wholes": judgement.wholes,
        "same_speed": judgement.same_speed,
        "speed": judgement.speed,
        "corrected": judgement.corrected,
        "kinds": dict(judgement.kinds()),
        "plans": [msgspec.to_builtins(r) | {"regret": r.regret} for r in judgement.plans],
        "said": sentences(judgement),
    }
