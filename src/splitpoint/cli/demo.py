"""splitpoint demo: a server process and a device process on this machine, and the proof that the answers are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from splitpoint import install
from splitpoint.calibration.calibrations import Calibration
from splitpoint.cli.answers import AnswerRows, Tag
from splitpoint.cli.console import out
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.codecs import calibration_for
from splitpoint.cli.options.engine import EngineChoice, engine_option
from splitpoint.cli.plan import show, show_options
from splitpoint.cli.run import describe
from splitpoint.cli.verbs import typed
from splitpoint.engines import Engine
from splitpoint.errors import VerifyError
from splitpoint.files import temporary_folder
from splitpoint.inputs import read_inputs
from splitpoint.lab.process import serving
from splitpoint.link.presets import PRESETS
from splitpoint.machine import usable_cores
from splitpoint.models import load
from splitpoint.models.zoo import photos
from splitpoint.planning.constraints import Constraints, percent
from splitpoint.planning.plans import Option
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.result import Request
from splitpoint.segments import compare
from splitpoint.survey import Survey, placement, survey
from splitpoint.tensors import Array
from splitpoint.trace import Recorder
from splitpoint.units import ms, size

MODEL = "zoo:efficientnet_lite0"
#: Seconds that each side may profile itself.
_BUDGET_S = 5.0
#: The device of the what-if, against this machine: a small board against a server.
_SLOWER = 8
#: Its links, the first with a table of its own, and what it asks of codecs and pictures alike.
_LINKS = ("4g", "wifi", "wifi5", "lan")
_AGREEMENT = 0.95


@verb(
    ("what it is for, in a minute", "demo"),
    ("the photos cut at a layer of your choice", "demo --at blocks.5"),
)
@click.option("--at", metavar="CUT", help="Where to cut for the photos (default: the best split of the plan).")
@engine_option
def command(at: str | None, engine: str) -> None:
    """Plan EfficientNet-Lite0 for this machine, cut it, and run four photos through both halves.

    A second process serves the tail on loopback; this one is the device, with an empty cache. Both are profiled, the
    link is measured, and the honest table says whether splitting pays. Then the photos go through the best split (or
    --at CUT), and the answers are compared with the whole model's.
    """
    threads = max(1, usable_cores() // 2)
    options = ("--engine", engine, "--threads", str(threads))
    with temporary_folder() as folder, serving("demo's server", MODEL, *options) as address:
        click.echo(f"server process: splitpoint serve {MODEL}, listening on {address}")
        ours = EngineChoice(engine, threads=threads).open()
        with Edge(address, at="cut:input", engine=ours, cache=folder) as edge:
            click.echo(f"device process: profiling both sides and the link, about {2 * _BUDGET_S + 3:.0f} s\n")
            known = survey(edge, ours, budget_s=_BUDGET_S, cache=folder)
            calibration = calibration_for(MODEL, None, edge.model)
            plan = known.planner(edge.model.graph, calibration=calibration).plan(known.link)
            show(plan)
            _what_if(known, edge, calibration)
            # Both halves are shown, whether or not it pays on this machine.
            split = next((o for o in plan.options if o.kind == "split"), plan.best)
            edge.switch(*([at] if at else placement(edge.model.graph, split)))
            answered = _run(edge, address)
        _prove(edge, answered, ours)
    click.echo(_next())


def _what_if(known: Survey, edge: Edge, calibration: Calibration | None) -> None:
    """What would be advised for a slower device behind other links, everything at the same agreement: predicted,
    nothing is run."""
    slow = Survey(known.edge.slowed(_SLOWER), known.cloud, known.link)
    agreement = _AGREEMENT if calibration is not None else None
    planner = slow.planner(edge.model.graph, constraints=Constraints(agreement=agreement), calibration=calibration)
    kept = f", where {percent(_AGREEMENT)} of the answers must stay" if calibration is not None else ""
    first = planner.plan(PRESETS[_LINKS[0]], sensitivity=False)
    click.echo(f"\npredicted for a device that computes {_SLOWER} times slower than this one{kept};")
    click.echo(f"behind {_LINKS[0]} ({first.link}):")
    show_options(first, out())
    for name in _LINKS:
        link = PRESETS[name]
        plan = planner.plan(link, sensitivity=False)
        least = {o.kind: o for o in reversed(plan.options) if o.kind != plan.best.kind}
        told = "; ".join(_told(option) for option in (plan.best, *least.values()))
        click.echo(f"  {name:<6}{link.up_mbps:>5g} Mbit/s: {told}")
    click.echo(typed("  (×: see splitpoint plan, which says why)"))


def _told(option: Option) -> str:
    crosses = "" if option.kind == "device" else f" {size(option.up_nbytes)}"
    return f"{option.label} {ms(option.total.ms)} ms{crosses}{' (×)' if option.refused else ''}"


def _run(edge: Edge, address: str) -> Sequence[Mapping[str, Array]]:
    rows = AnswerRows(
        lambda: edge.model.input_spec, [p.name for p in photos()], lambda: f"\n{describe(edge, address)}\n",
        as_json=False, keep=True,
    )  # fmt: skip
    edge.infer(read_inputs(edge.model, photos()[0]))  # the first run of a network allocates: not shown
    for photo in photos():
        recorder = Recorder()
        with recorder.span("prepare"):
            inputs = read_inputs(edge.model, photo)
        rows.print(edge.infer(Request(inputs, tuple(recorder.spans), Tag(photo.name))))
    rows.medians()
    click.echo()
    return list(rows.outputs.values())


def _prove(edge: Edge, answered: Sequence[Mapping[str, Array]], engine: Engine) -> None:
    model = load(MODEL)
    if model.fingerprint != edge.model.fingerprint:
        raise VerifyError("the server's model is not the zoo's: is another version of splitpoint running?")
    whole = engine.compile(model.whole())
    expected = [whole.run(read_inputs(model, p)) for p in photos()]
    check = compare(model, edge.cut, expected, answered)
    if not check.ok:
        raise VerifyError(f"the cut model's answers differ from the whole model's: {check}")
    click.echo(
        f"The uncut model gives the same answers for all {len(answered)} photos: the largest difference is\n"
        f"{check.error:.1e} of what changes from photo to photo (rounding)."
    )


def _next() -> str:
    """Lines that work as they are printed, in the folder they are printed in; then what to put in their place."""
    call, photo_folder = install.command(), install.shown(photos()[0].parent)
    lines = (
        (f"serve {MODEL}", "the server; the others in another terminal"),
        (f"run --cloud localhost {photo_folder}", "a device: plans, fetches its half, runs"),
        (
            f"run --cloud localhost --agreement 95% {photo_folder}",
            "the same, with codecs that keep 95 % of the answers",
        ),
        ("compare efficientnet_lite0 --cloud localhost", "predicted beside measured"),
        (f"calibrate {MODEL} --images {photo_folder} -o calib.json", "what codecs do to answers"),
        (f"inspect {MODEL}", "what would cross the link at each layer"),
        ("doctor", "what this machine can run on"),
    )
    width = max(len(line) for line, _ in lines if len(line) < 50)
    told = "".join(f"\n  {call} {line:<{width}}  # {text}" for line, text in lines)
    return (
        f"\nNext, in {Path.cwd()}:{told}\n"
        "with your own model.onnx, photos, and server in their place (serve --help says how it lets other machines in)."
    )
