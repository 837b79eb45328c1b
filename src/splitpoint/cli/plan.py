"""splitpoint plan: whether to split, and where; the honest table."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import click
import msgspec
from rich.console import Console

from splitpoint.cli.console import out, put_json, say, table, waiting
from splitpoint.cli.help_pages import verb
from splitpoint.cli.latency_files import check_same, codecs_there, is_latency
from splitpoint.cli.options import gathered, given
from splitpoint.cli.options.codecs import (
    calibration_beside,
    calibration_for,
    calibration_option,
    codec_names_option,
    fidelity_options,
)
from splitpoint.cli.options.engine import EngineChoice
from splitpoint.cli.options.model_options import Here, device_options, is_local
from splitpoint.cli.options.output import OUTPUT, csv_option, json_option, output_option, png_option, wrote
from splitpoint.cli.options.quantities import MS, SIZE, WATTS, budget_option
from splitpoint.cli.options.server_options import security_options
from splitpoint.cli.verbs import typed
from splitpoint.errors import InputError, UsageError
from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace
from splitpoint.link.parse import parse_link
from splitpoint.models.model import Model
from splitpoint.models.names import names_of
from splitpoint.planning.constraints import Constraints, Shared, percent
from splitpoint.planning.files import plan_bytes, save_plan
from splitpoint.planning.objectives import NAMES
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Plan
from splitpoint.predict.learn.files import load_latency
from splitpoint.predict.learn.latency_model import Latency
from splitpoint.predict.price.prediction import predict_latency
from splitpoint.profile.files import load_profile
from splitpoint.profile.profiles import Profile, Watts
from splitpoint.report.files import write_csv
from splitpoint.report.front import write_front
from splitpoint.report.plan_table import draw, fitted, legend, proof, range_lines, refusals, seed_lines
from splitpoint.report.point_table import COLUMNS, point_rows
from splitpoint.report.point_table import TABLE as POINTS
from splitpoint.report.prediction_table import uncalibrated_line
from splitpoint.report.table import fields_of
from splitpoint.security import Security

#: ``--link measured``: what no ``--link`` means, too, where there is a server.
MEASURED = "measured"


@verb(
    ("this machine as the edge, a server, and the link between them as they are now", "plan yolo.onnx --cloud SERVER"),
    (
        "from files alone, where 98 % of the answers must stay",
        "plan --edge edge.profile.json --cloud cloud.profile.json --link 4g --agreement 98% -o plan.json",
    ),
)
@click.argument("model", required=False)
@click.option("--edge", "edge_path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="The edge's profile (splitpoint profile -o), or what was learned of it (splitpoint "
                   "calibrate-kernels -o, or neurosurgeon-edge), which prices a MODEL that never ran there; without it "
                   "this machine is profiled now.")  # fmt: skip
@click.option("--cloud", required=True, metavar="FILE|HOST[:PORT]",
              help="The server's profile or latency file (also neurosurgeon-cloud), or the server, which then profiles "
                   "itself.")  # fmt: skip
@security_options
@click.option(
    "--link", "link_text", metavar="SPEC",
    help="4g, 10mbit/20mbit,40ms, a .link.json or .csv file, or measured (default with --cloud HOST).",
)  # fmt: skip
@click.option("--objective", type=click.Choice(NAMES), default="latency", show_default=True,
              help="What to make least (throughput: most).")  # fmt: skip
@fidelity_options
@click.option("--max-edge-memory", type=SIZE, metavar="SIZE",
              help="The most that the edge's half may hold, such as 100MB: weights and tensors (an estimate), "
                   "without the engine's own memory.")  # fmt: skip
@click.option("--keep-input-local", is_flag=True, help="The model's input must not leave the edge.")
@click.option("--deadline", "deadline_ms", type=MS, metavar="TIME",
              help="Nine requests in ten must be answered by then, such as 200ms.")  # fmt: skip
@codec_names_option
@calibration_option
@click.option("--edge-watts", type=WATTS, metavar="COMPUTE,TX,IDLE",
              help="The edge's power in watts, for --objective energy.")  # fmt: skip
@budget_option("20s", "How long profiling may take.")
@click.option("--force", is_flag=True, help="Only warn where a latency file is of another engine, device or threads.")
@click.option("--explain", is_flag=True, help="Say why the runner-up lost, stage by stage.")
@png_option("Draw the plan as a function of the bandwidth (needs splitpoint[plot]).")
@click.option("--front", "fronts", type=OUTPUT, metavar="FILE", multiple=True,
              help="Write what nothing else is faster, smaller and more faithful than, whatever agreement is asked "
                   "for: CSV, or a picture if the file is a .png, .svg or .pdf (needs a calibration). May be given "
                   "twice.")  # fmt: skip
@click.option("--all", "every", is_flag=True,
              help="Also print edge, transfer, cloud and total of every partition point, predicted.")  # fmt: skip
@csv_option("Write every partition point as CSV.")
@output_option("Write the plan as JSON.")
@json_option
@device_options
@gathered("constraints", Constraints)
def command(
    model: str | None, edge_path: Path | None, cloud: str, security: Security, link_text: str | None, objective: str,
    constraints: Constraints, calib: Path | None, edge_watts: Watts | None, budget_s: float, force: bool,
    explain: bool, png_path: Path | None, fronts: tuple[Path, ...], every: bool, csv_path: Path | None,
    output: Path | None, as_json: bool, here: Here,
) -> None:  # fmt: skip
    """Compare all on the edge, all on the server and every split, and say what is best and by how much.

    MODEL is not needed where both profiles are files: the graph is inside them. A latency file has none.
    """
    learned = _learned(edge_path, cloud, here.choice, force=force)
    load_it = model is not None and (is_local(model) or (bool(learned) and _is_named(cloud, learned)))
    load_it = load_it or (model is not None and bool(here.opening.weights))
    wanted = here.opening.load(model) if model is not None and load_it else None
    calibration = calibration_for(model, calib, wanted)
    edge, there, link, shared = _gather(
        model, wanted, edge_path, cloud, security, link_text, budget_s, here=here, learned=learned
    )
    if edge_watts is not None:
        edge = msgspec.structs.replace(edge, watts=edge_watts)
    calibration = calibration or calibration_beside(model or edge.graph.name, edge.fingerprint)
    if fronts and calibration is None:
        raise UsageError("--front needs a calibration: splitpoint calibrate-codecs MODEL --images DIR -o calib.json")
    constraints = msgspec.structs.replace(constraints, shared=shared)
    planner = Planner(None, (edge, there), objective=objective, constraints=constraints, calibration=calibration)
    plan = planner.plan(link)
    points = point_rows(planner.points(link), plan) if every or csv_path else []
    if as_json and every:
        put_json({"plan": plan, "points": points})
    elif as_json:
        click.echo(plan_bytes(plan), nl=False)
    else:
        if every:
            table(POINTS, points, console=out())
            out().print(
                "milliseconds: edge with encoding, transfer both ways; ~ not all of it was measured; × ruled out\n"
            )
        show(plan, explain=explain)
    if csv_path is not None:
        write_csv(csv_path, [row.flat() for row in points], COLUMNS)
        wrote(csv_path)
    if output is not None:
        save_plan(output, plan)
        wrote(output)
    for path in fronts:
        write_front(plan, planner.front(link), path)
        wrote(path)
    if png_path is not None:
        draw(plan, planner.curves(link), png_path)
        wrote(png_path)


def _gather(
    model: str | None, wanted: Model | None, edge_path: Path | None, cloud: str, security: Security,
    link_text: str | None, budget_s: float, *, here: Here, learned: Mapping[str, Latency],
) -> tuple[Profile, Profile, Link, Shared | None]:  # fmt: skip
    """The two profiles and the link, from files, from the server, or measured here, and what the server allows."""
    named = _is_named(cloud, learned)
    edge = None if edge_path is None else _side(str(edge_path), model, wanted, learned)
    there = _side(cloud, model, wanted, learned) if named else None
    link = None if link_text in (None, MEASURED) else _link(str(link_text))
    if link is None and named:
        raise UsageError(
            "a link cannot be measured without a server: name it with --link (4g, 10mbit/20mbit,40ms, a file), or give "
            "--cloud HOST"
        )
    if edge is None and model is None:
        raise UsageError("give MODEL, to profile it here, or the edge's profile with --edge FILE")
    if edge is not None and there is not None and link is not None:
        return edge, there, link, None
    from splitpoint.survey import profile_here

    engine = here.choice.open()
    served = wanted or model or (edge.graph.name if edge else "")
    shared = None
    with nullcontext() if named else here.edge(served, cloud, security, engine=engine) as server:
        if server is not None:
            with waiting(f"the server profiles {server.model.name}, at most {budget_s:g} s"):
                there, shared = server.profile_server(budget_s), server.shared
            if link is None:
                say("measuring the link, 3 s")
                link = server.measure_link()
        if edge is None:
            ours = wanted or (server.model if server is not None else None)
            if ours is None:
                raise UsageError(f"{model} is no model on this machine: name a file, or a --cloud HOST that has it")
            known_of = learned.get(str(edge_path))
            if known_of:
                edge = _predicted(ours, known_of)
            else:
                say("no --edge profile: taking this machine as the edge")
                edge = profile_here(ours, engine, budget_s=budget_s, cache=here.cache, on_step=say)
    assert there is not None
    assert link is not None
    return edge, there, link, shared


def _is_named(cloud: str, learned: Mapping[str, Latency]) -> bool:
    """Whether the server is known by a file, rather than one to connect to."""
    return cloud in learned or Path(cloud).suffix == ".json" or Path(cloud).is_file()


def _learned(edge_path: Path | None, cloud: str, choice: EngineChoice, *, force: bool) -> dict[str, Latency]:
    """What was learned of the device, of the server, or both, by what was typed; profiles and servers are not there."""
    learned: dict[str, Latency] = {}
    for path in (cloud, edge_path):
        text = str(path)
        if path is None or not is_latency(text):
            continue
        learned[text] = load_latency(text)
        if path is edge_path:  # --engine, --device and --threads say what runs the device's half
            device, threads = (getattr(choice, name) if given(name) else None for name in ("device", "threads"))
            check_same(learned[text], text, engine=choice.engine, device=device, threads=threads or None, force=force)
        else:
            check_same(learned[text], text, force=force)
    return learned


def _side(text: str, model: str | None, wanted: Model | None, learned: Mapping[str, Latency]) -> Profile | None:
    """The profile behind a file: as it is, or predicted for `wanted`; None if the model is not known yet.

    InputError unless it is of `wanted`, or, where MODEL is only a name, of one called so.
    """
    if text in learned:
        if model is None:
            raise UsageError(f"give MODEL: {text} says what kernels take on a machine, and prices any model")
        return None if wanted is None else _predicted(wanted, learned[text])
    profile = load_profile(Path(text))
    if wanted is None and model is not None and profile.graph.name not in names_of(model):
        raise InputError(f"{text}: this is a profile of {profile.graph.name}, not of {model}")
    if wanted is not None:
        try:
            profile.require(wanted.fingerprint, wanted.name)
        except InputError as exc:
            raise InputError(f"{text}: {exc}") from exc
    return profile


def _predicted(model: Model, latency: Latency) -> Profile:
    """What `model` would take there, which is said."""
    prediction = predict_latency(model, latency)
    say(f"{latency.name}: {model.name} predicted, never run there ({prediction.whole} for the whole)")
    line = uncalibrated_line(prediction)
    for said in (line, prediction.too_little):
        if said:
            say(said)
    return prediction.profile(codecs_there(model, latency))


def _link(text: str) -> Link:
    link = parse_link(text)
    if isinstance(link, LinkTrace):
        say(f"{text} is a trace: planning for its mean, {link.mean}")
        return link.mean
    return link


def show_options(plan: Plan, console: Console) -> None:
    """The table alone."""
    titles, rows = fitted(plan, console.width)
    table(fields_of(titles, left=("option", "quality"), keep=titles), rows, console=console)


def show(plan: Plan, *, explain: bool = False, console: Console | None = None) -> None:
    """Print the honest table, and what it comes to, to standard output or `console`."""
    console = console or out()
    aim = f"{'most' if plan.objective == 'throughput' else 'least'} {plan.objective}"
    console.print(f"{plan.model} {plan.fingerprint[:12]}, {aim}", style="bold")
    for name, host in zip(("edge", "server"), plan.hosts, strict=True):
        console.print(f"{name:<7} {host}")
    name = f"{plan.link.name}: " if plan.link.name and plan.link.name not in str(plan.link) else ""
    console.print(f"link    {name}{plan.link}")
    show_options(plan, console)
    console.print(legend(plan))
    for line in refusals(plan):
        console.print(typed(line))
    for line in seed_lines(plan):
        console.print(line)
    console.print()
    console.print(typed(plan.advice), style="bold")
    console.print(proof(plan))
    ranges = range_lines(plan.sensitivity)
    if ranges:
        console.print("\nas the uplink's bandwidth changes, all else being equal:")
        width = max(len(rates) for rates, _ in ranges)
        for rates, label in ranges:
            console.print(f"  {rates:<{width}}  {label}")
    if plan.agreements:
        console.print("lossy codecs and pictures are planned only where asked for (--agreement, --max-drop, --codec):")
    for kept in plan.agreements:
        stretches = "; ".join(f"{rates} {typed(label)}" for rates, label in range_lines(kept.ranges))
        console.print(f"  where {percent(kept.agreement)} of the answers must stay: {stretches}")
    if explain and plan.why:
        console.print()
        for line in plan.why:
            console.print(typed(line))
