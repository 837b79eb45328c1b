"""splitpoint plan: whether to split, and where; the honest table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from click.core import ParameterSource
from rich.console import Console

from splitpoint.calibration.calibrations import Calibration
from splitpoint.cli.console import Column, out, table
from splitpoint.cli.latency_files import check_same, codecs_there, is_latency
from splitpoint.cli.options import (
    Opening,
    cache_option,
    engine_options,
    json_option,
    model_options,
    security_options,
)
from splitpoint.cli.outputs import OUTPUT
from splitpoint.cli.quantities import parse_budget, parse_ms, parse_share, parse_size, parse_watts
from splitpoint.cli.run import is_local
from splitpoint.cli.verbs import typed
from splitpoint.engines import Engine
from splitpoint.errors import InputError, MissingExtraError, UsageError
from splitpoint.files import check_writable
from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace
from splitpoint.link.parse import parse_link
from splitpoint.models.model import Model
from splitpoint.models.names import names_of
from splitpoint.planning.constraints import Constraints, Shared
from splitpoint.planning.files import plan_bytes, save_plan
from splitpoint.planning.objectives import NAMES
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Plan
from splitpoint.predict.learn.files import load_latency
from splitpoint.predict.learn.latency_model import Latency
from splitpoint.predict.price.prediction import predict
from splitpoint.profile.files import load_profile
from splitpoint.profile.profiles import Profile, Watts
from splitpoint.report.plan_table import draw, fitted, proof, range_lines, refusals, seed_lines
from splitpoint.report.prediction_table import uncalibrated_line
from splitpoint.security import Security

#: ``--link measured``: what no ``--link`` means, too, where there is a server.
MEASURED = "measured"

T = TypeVar("T")


@click.command(short_help="Say whether and where to split: the honest table.")
@click.argument("model", required=False)
@click.option(
    "--edge",
    "edge_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The device's profile (splitpoint profile -o), or what was learned of it (splitpoint calibrate-device -o, or "
    "neurosurgeon-edge), which prices a MODEL that never ran there; without it this machine is profiled now.",
)
@click.option(
    "--cloud",
    required=True,
    metavar="FILE|HOST[:PORT]",
    help="The server's profile or latency file (also neurosurgeon-cloud), or the server, which then profiles itself.",
)
@security_options
@click.option(
    "--link",
    "link_text",
    metavar="SPEC",
    help="4g, 10mbit/20mbit,40ms, a .link.json or .csv file, or measured (default with --cloud HOST).",
)
@click.option(
    "--objective",
    type=click.Choice(NAMES),
    default="latency",
    show_default=True,
    help="What to make least (throughput: most).",
)
@click.option("--max-drop", metavar="SHARE", help="The most top-1 agreement to lose, such as 1% (needs --calib).")
@click.option(
    "--max-edge-memory",
    metavar="SIZE",
    help="The most that the device's half may hold, such as 100MB: weights and tensors (an estimate), without the "
    "engine's own memory.",
)
@click.option("--keep-input-local", is_flag=True, help="The model's input must not leave the device.")
@click.option("--deadline", metavar="TIME", help="Nine requests in ten must be answered by then, such as 200ms.")
@click.option(
    "--codec",
    "codecs",
    multiple=True,
    metavar="NAME",
    help="What may cross encoded: fp16, int8, int4, also with +zstd, jpeg:QUALITY; several may be given.",
)
@click.option(
    "--calib",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="What codecs cost in accuracy (splitpoint calibrate -o).",
)
@click.option("--edge-watts", metavar="COMPUTE,TX,IDLE", help="The device's power in watts, for --objective energy.")
@click.option("--budget", default="20s", show_default=True, metavar="TIME", help="How long profiling may take.")
@click.option("--force", is_flag=True, help="Only warn where a latency file is of another engine, device or threads.")
@click.option("--explain", is_flag=True, help="Say why the runner-up lost, stage by stage.")
@click.option(
    "--png",
    "png_path",
    type=OUTPUT,
    metavar="FILE",
    help="Draw the plan as a function of the bandwidth (needs splitpoint[plot]).",
)
@click.option(
    "-o",
    "--out",
    "out_path",
    type=OUTPUT,
    metavar="FILE",
    help="Write the plan as JSON.",
)
@json_option
@cache_option
@engine_options
@model_options
def command(
    model: str | None, edge_path: Path | None, cloud: str, security: Security, link_text: str | None, objective: str,
    max_drop: str | None,
    max_edge_memory: str | None, keep_input_local: bool, deadline: str | None, codecs: tuple[str, ...],
    calib: Path | None, edge_watts: str | None, budget: str, force: bool, explain: bool, png_path: Path | None,
    out_path: Path | None, as_json: bool, cache: Path | None, device: str, threads: int, opening: Opening,
) -> None:  # fmt: skip
    """Compare all on the device, all on the server and every split, and say what is best and by how much.

    MODEL is not needed where both profiles are files: the graph is inside them. A latency file has none.
    """
    constraints = Constraints(
        max_drop=None if max_drop is None else parse_share(max_drop),
        max_edge_memory=None if max_edge_memory is None else parse_size(max_edge_memory),
        keep_input_local=keep_input_local,
        deadline_ms=None if deadline is None else parse_ms(deadline, "--deadline"),
        codecs=codecs,
    )
    watts = None if edge_watts is None else parse_watts(edge_watts)
    for path in (out_path, png_path):
        if path is not None:
            check_writable(path)
    if png_path is not None:
        _need_plot()
    calibration = None if calib is None else _calibration(calib)
    learned = _learned(edge_path, cloud, device, threads, force=force)
    load_it = model is not None and (is_local(model) or (bool(learned) and _is_named(cloud, learned)))
    wanted = opening.load(model) if model is not None and load_it else None
    budget_s = parse_budget(budget)
    edge, there, link, shared = _gather(
        model, wanted, edge_path, cloud, security, link_text, budget_s, device=device, threads=threads, cache=cache,
        learned=learned, allow_domains=opening.allow_domains,
    )  # fmt: skip
    if watts is not None:
        edge = _with_watts(edge, watts)
    constraints = msgspec.structs.replace(constraints, shared=shared)
    planner = Planner(None, (edge, there), objective=objective, constraints=constraints, calibration=calibration)
    plan = planner.plan(link)
    if as_json:
        click.echo(plan_bytes(plan), nl=False)
    else:
        show(plan, explain=explain)
    if out_path is not None:
        save_plan(out_path, plan)
        click.echo(f"wrote {out_path}", err=True)
    if png_path is not None:
        draw(plan, planner.curves(link), png_path)
        click.echo(f"wrote {png_path}", err=True)


# --- what is planned with ---------------------------------------------------------------------------------------------


def _gather(
    model: str | None, wanted: Model | None, edge_path: Path | None, cloud: str, security: Security,
    link_text: str | None, budget_s: float, *, device: str, threads: int, cache: Path | None,
    learned: Mapping[str, Latency], allow_domains: Collection[str],
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
        raise UsageError("give MODEL, to profile it here, or the device's profile with --edge FILE")
    if edge is not None and there is not None and link is not None:
        return edge, there, link, None
    from splitpoint.engines import open_engine
    from splitpoint.runtime.client.edge import Edge
    from splitpoint.runtime.client.edge_settings import ModelPolicy

    engine = open_engine(device=device, threads=threads)
    served = wanted or model or (edge.graph.name if edge else "")
    known: dict[str, Any] = {
        "engine": engine, "cache": cache, "security": security,
        "models": ModelPolicy(allow_domains=allow_domains),
    }  # fmt: skip
    shared = None
    with nullcontext() if named else Edge(cloud, served, at="cut:input", **known) as server:
        if server is not None:
            there, shared = server.profile_server(budget_s), server.shared
            if link is None:
                click.echo("measuring the link, 3 s", err=True)
                link = server.measure_link()
        if edge is None:
            here = wanted or (server.model if server is not None else None)
            if here is None:
                raise UsageError(f"{model} is no model on this machine: name a file, or a --cloud HOST that has it")
            known_of = learned.get(str(edge_path))
            edge = _predicted(here, known_of) if known_of else _profile_here(here, engine, budget_s, cache)
    assert there is not None
    assert link is not None
    return edge, there, link, shared


def _is_named(cloud: str, learned: Mapping[str, Latency]) -> bool:
    """Whether the server is known by a file, rather than one to connect to."""
    return cloud in learned or Path(cloud).suffix == ".json" or Path(cloud).is_file()


def _learned(edge_path: Path | None, cloud: str, device: str, threads: int, *, force: bool) -> dict[str, Latency]:
    """What was learned of the device, of the server, or both, by what was typed; profiles and servers are not there."""
    asked = {str(p): p is edge_path for p in (cloud, edge_path) if p is not None and is_latency(str(p))}
    found = {}
    for text, is_edge in asked.items():
        found[text] = load_latency(text)
        if is_edge:  # --device and --threads say what runs the device's half
            check_same(found[text], text, device=_given("device", device), threads=_given("threads", threads) or None,
                       force=force)  # fmt: skip
        else:
            check_same(found[text], text, force=force)
    return found


def _given(name: str, value: T) -> T | None:
    """`value` if the user gave the option of that name; None where it is the default."""
    source = click.get_current_context().get_parameter_source(name)
    return value if source not in (None, ParameterSource.DEFAULT) else None


def _side(text: str, model: str | None, wanted: Model | None, learned: Mapping[str, Latency]) -> Profile | None:
    """The profile behind a file: as it is, or predicted for `wanted`; None if the model is not known yet."""
    if text not in learned:
        return _profile_file(Path(text), model, wanted)
    if model is None:
        raise UsageError(f"give MODEL: {text} says what kernels take on a device, and prices any model")
    return None if wanted is None else _predicted(wanted, learned[text])


def _predicted(model: Model, latency: Latency) -> Profile:
    """What `model` would take there, which is said."""
    found = predict(model, latency)
    click.echo(f"{latency.name}: {model.name} predicted, never run there ({found.whole} for the whole)", err=True)
    line = uncalibrated_line(found)
    if line:
        click.echo(line, err=True)
    return found.profile(codecs_there(model, latency))


def _profile_here(model: Model, engine: Engine, budget_s: float, cache: Path | None) -> Profile:
    from splitpoint.survey import profile_here

    click.echo("no --edge profile: taking this machine as the device", err=True)
    return profile_here(model, engine, budget_s=budget_s, cache=cache, on_step=lambda text: click.echo(text, err=True))


def _profile_file(path: Path, model: str | None, wanted: Model | None) -> Profile:
    """The profile in a file; InputError unless it is of `wanted`, or, where MODEL is only a name, of one called so."""
    profile = load_profile(path)
    if wanted is None and model is not None and profile.graph.name not in names_of(model):
        raise InputError(f"{path}: this is a profile of {profile.graph.name}, not of {model}")
    if wanted is not None:
        try:
            profile.require(wanted.fingerprint, wanted.name)
        except InputError as exc:
            raise InputError(f"{path}: {exc}") from exc
    return profile


def _link(text: str) -> Link:
    found = parse_link(text)
    if isinstance(found, LinkTrace):
        click.echo(f"{text} is a trace: planning for its mean, {found.mean}", err=True)
        return found.mean
    return found


def _calibration(path: Path) -> Calibration:
    from splitpoint.calibration.files import load_calibration

    return load_calibration(path)


def _with_watts(profile: Profile, watts: Watts) -> Profile:
    import msgspec

    return msgspec.structs.replace(profile, watts=watts)


def _need_plot() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "draw pictures")


# --- printing ---------------------------------------------------------------------------------------------------------


def show(plan: Plan, *, explain: bool = False, console: Console | None = None) -> None:
    """Print the honest table, and what it comes to, to standard output or `console`."""
    console = console or out()
    aim = f"{'most' if plan.objective == 'throughput' else 'least'} {plan.objective}"
    console.print(f"{plan.model} {plan.fingerprint[:12]}, {aim}", style="bold")
    console.print(f"device  {plan.edge}")
    console.print(f"server  {plan.cloud}")
    name = f"{plan.link.name}: " if plan.link.name and plan.link.name not in str(plan.link) else ""
    console.print(f"link    {name}{plan.link}")
    titles, rows = fitted(plan, console.width)
    columns = [Column(t, right=t not in ("option", "quality"), keep=True) for t in titles]
    table(columns, rows, console=console)
    for line in refusals(plan):
        console.print(typed(line))
    for line in seed_lines(plan):
        console.print(line)
    console.print()
    console.print(typed(plan.advice), style="bold")
    console.print(proof(plan))
    ranges = range_lines(plan)
    if ranges:
        console.print("\nas the uplink's bandwidth changes, all else being equal:")
        width = max(len(rates) for rates, _ in ranges)
        for rates, label in ranges:
            console.print(f"  {rates:<{width}}  {label}")
    if explain and plan.why:
        console.print()
        for line in plan.why:
            console.print(typed(line))
