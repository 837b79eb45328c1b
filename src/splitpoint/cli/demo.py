"""splitpoint demo: a server process and an edge process on this machine, what splitting would gain here and
elsewhere, and the proof that the answers are right."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import msgspec

from splitpoint import install
from splitpoint.cli.answers import Lines, answer
from splitpoint.cli.emulated_case import AGREEMENT, GAIN, NO_GAIN, band, inside, narrow, show_case, ways
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.codecs import calibration_for
from splitpoint.cli.options.engine import EngineChoice, engine_option
from splitpoint.cli.options.output import png_option, wrote
from splitpoint.cli.plan import show_options
from splitpoint.cli.verbs import typed
from splitpoint.engines import Engine
from splitpoint.errors import VerifyError
from splitpoint.files import temporary_folder
from splitpoint.inputs import read_inputs
from splitpoint.lab.process import serving
from splitpoint.machine import usable_cores
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.models.zoo import photos
from splitpoint.planning.constraints import percent
from splitpoint.planning.plans import Option, Plan
from splitpoint.report.plan_table import refusals
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.result import Request
from splitpoint.segments import compare
from splitpoint.survey import placement, survey
from splitpoint.tensors import Array
from splitpoint.trace import Recorder

MODEL = "zoo:efficientnet_lite0"
#: Seconds that each side may profile itself.
_BUDGET_S = 5.0
#: A load of more than this a core is not the demo's own.
_BUSY = 1.5


@verb(
    ("what it is for, in a minute", "demo"),
    ("the photos cut at a layer of your choice", "demo --at blocks.5"),
)
@click.option("--at", metavar="CUT", help="Where to cut for the photos (default: the best split of the plan).")
@png_option("Draw the first emulated case: planned by the uplink's rate, and measured (needs splitpoint[plot]).")
@engine_option
def command(at: str | None, png_path: Path | None, engine: str) -> None:
    """Plan EfficientNet-Lite0 for this machine and for two emulated ones, and run it cut in two.

    A second process serves the tail on loopback; this one is the edge, with an empty cache. Both are profiled, the
    link is measured, and the honest table says whether splitting pays here. Four photos go through the best split (or
    --at CUT), and the answers are compared with the whole model's. Then a slower edge is emulated behind two other
    links, with a relay and an engine that waits: what is planned for it is run, too.
    """
    threads = max(1, usable_cores() // 2)
    options = ("--engine", engine, "--threads", str(threads))
    click.echo(f"Two processes on this machine: a server with {MODEL}, and an edge. First they")
    click.echo(f"measure themselves and the link between them, some {2 * _BUDGET_S + 3:.0f} s.\n")
    with temporary_folder() as folder, serving("demo's server", MODEL, *options) as address:
        ours = EngineChoice(engine, threads=threads).open()
        with Edge(address, at="cut:input", engine=ours, cache=folder) as edge:
            known = survey(edge, ours, budget_s=_BUDGET_S, cache=folder)
            model = load(MODEL)
            if model.fingerprint != edge.model.fingerprint:
                raise VerifyError("the server's model is not the zoo's: is another version of splitpoint running?")
            calibration = calibration_for(MODEL, None, model)
            plan = known.planner(edge.model.graph, calibration=calibration).plan(known.link, sensitivity=False)
            options_here = ways(plan, model.graph)
            _show(plan, options_here)
            # Both halves are shown, whether or not it pays on this machine.
            split = next((o for o in options_here if inside(o, model.graph)), None)
            place = [at or "middle"] if at or split is None else placement(edge.model.graph, split)
            edge.switch(*place)
            answered = _run(edge)
            _prove(model, edge, answered, ours)
        click.echo(
            "\nTwo emulated cases: heads are slowed by waiting, a relay shapes the link; the rest is real. "
            f"{percent(AGREEMENT)} of\nthe answers must stay. The plan (→) is run in turns with what else one would "
            "try, some 15 s."
        )
        inputs = [read_inputs(model, photo) for photo in photos()]
        gain = show_case(GAIN, address, ours, known, model, calibration, inputs, png_path)
        show_case(NO_GAIN, address, ours, known, model, calibration, inputs)
        narrow().print(f"\nThe plan for it by the uplink, Mbit/s: {band(gain)}.")
        if (load_average := os.getloadavg()[0]) > _BUSY * usable_cores():
            click.echo(f"(Other work keeps this machine busy, load {load_average:.0f}: times are long and vary.)")
        if png_path is not None:
            wrote(png_path)
    click.echo(_next())


def _show(plan: Plan, options: Sequence[Option]) -> None:
    """The honest table of this machine: an option of each kind, JPEG too where it is ruled out, and the advice."""
    plan = msgspec.structs.replace(plan, options=tuple(o for o in plan.options if o in options or o.kind == "jpeg"))
    console = narrow()
    console.print(f"This machine on both sides: {plan.hosts[0]}; loopback", style="bold")
    show_options(plan, console)
    for line in refusals(plan):
        console.print(typed(line))
    console.print(typed(plan.advice), style="bold")


def _run(edge: Edge) -> Sequence[Mapping[str, Array]]:
    """Prints the photos' answers, and where the milliseconds went; returns the outputs."""
    lines = Lines(narrow().width, [photo.name for photo in photos()])
    nodes = f"{len(edge.cut.nodes)} of {len(edge.model.graph.placed)} nodes on the edge"
    click.echo(f"\nPhotos, cut after {edge.cut.name} all the same ({nodes}):\n{lines.header()}")
    edge.infer(read_inputs(edge.model, photos()[0]))  # the first run of a network allocates: not shown
    outputs = []
    for photo in photos():
        recorder = Recorder()
        with recorder.span("prepare"):
            inputs = read_inputs(edge.model, photo)
        result = edge.infer(Request(inputs, tuple(recorder.spans)))
        click.echo(lines.row(photo.name, answer(result.outputs, edge.model.input_spec), result.numbers))
        outputs.append(result.outputs)
    return outputs


def _prove(model: Model, edge: Edge, answered: Sequence[Mapping[str, Array]], engine: Engine) -> None:
    whole = engine.compile(model.whole())
    expected = [whole.run(read_inputs(model, p)) for p in photos()]
    check = compare(model, edge.cut, expected, answered)
    if not check.ok:
        raise VerifyError(f"the cut model's answers differ from the whole model's: {check}")
    near = f"within {check.error:.1e} of what they differ by" if check.error else "to the last bit"
    click.echo(f"The uncut model gives the same answers for all {len(answered)} photos, {near}.")


def _next() -> str:
    """Lines that work as they are printed, in the folder they are printed in; then what to put in their place."""
    call, photo_folder = install.command(), install.shown(photos()[0].parent)
    lines = (
        (f"serve {MODEL}", "the server; the others in another terminal"),
        (f"run --cloud localhost {photo_folder}", "the edge: plans, fetches its half, runs"),
        (
            f"run --cloud localhost --agreement 95% {photo_folder}",
            "as above, with codecs",
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
