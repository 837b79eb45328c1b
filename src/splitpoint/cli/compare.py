"""splitpoint compare: the plan's table, run for real."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from splitpoint.calibration.files import load_calibration
from splitpoint.cli.console import Column, out, progress, put_json, table
from splitpoint.cli.input_files import recursive_option
from splitpoint.cli.options import (
    Opening,
    cache_option,
    cloud_option,
    engine_options,
    json_option,
    model_options,
)
from splitpoint.cli.outputs import OUTPUT
from splitpoint.cli.quantities import parse_budget, parse_share
from splitpoint.cli.run import is_local
from splitpoint.cli.sweep import read_images
from splitpoint.compare import Compared, compare
from splitpoint.engines import open_engine
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.plans import Plan
from splitpoint.report.files import check_writable, write_atomic
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.security import Security
from splitpoint.survey import rows, survey
from splitpoint.units import ms, size


@click.command(short_help="Run the plan's table for real: predicted beside measured.")
@click.argument("model")
@cloud_option()
@click.option("--images", type=click.Path(path_type=Path), metavar="DIR|FILE|-", help="Inputs; default: four photos.")
@recursive_option
@click.option("--repeat", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Requests an option.")
@click.option(
    "--codec",
    "codecs",
    multiple=True,
    metavar="NAME",
    help="What may cross encoded: fp16, int8, int4, also with +zstd, jpeg:QUALITY; several may be given.",
)
@click.option("--max-drop", metavar="SHARE", help="The most top-1 agreement to lose, such as 1% (needs --calib).")
@click.option(
    "--calib",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="What codecs cost in accuracy (splitpoint calibrate -o).",
)
@click.option("--budget", default="20s", show_default=True, metavar="TIME", help="How long each profiling may take.")
@click.option("--fresh", is_flag=True, help="Profile this machine anew, whatever an earlier run has kept.")
@click.option(
    "-o",
    "--out",
    "out_path",
    type=OUTPUT,
    metavar="FILE",
    help="Write predictions and measurements as JSON.",
)
@json_option
@cache_option
@engine_options
@model_options
def command(
    model: str, cloud: str, security: Security, images: Path | None, recursive: bool, repeat: int,
    codecs: tuple[str, ...], max_drop: str | None,
    calib: Path | None, budget: str, fresh: bool, out_path: Path | None, as_json: bool, cache: Path | None, device: str,
    threads: int, opening: Opening,
) -> None:  # fmt: skip
    """Plan, then run every row of the table against the server, in turns, and print predicted beside measured.

    Both sides are profiled first (the results are kept) and the link is measured.
    """
    constraints = Constraints(max_drop=None if max_drop is None else parse_share(max_drop), codecs=codecs)
    calibration = None if calib is None else load_calibration(calib)
    budget_s = parse_budget(budget)
    if out_path:
        check_writable(out_path)
    here = opening.load(model) if is_local(model) else None
    if here is None:
        opening.refuse_local()
    engine = open_engine(device=device, threads=threads)
    with Edge(
        cloud, here or model, at="cut:input", engine=engine, cache=cache, security=security,
        models=ModelPolicy(allow_domains=opening.allow_domains),
    ) as edge:  # fmt: skip
        if here is None:
            edge.prepare(opening.on)
        inputs = read_images(edge.model, images, recursive=recursive)
        known = survey(edge, engine, budget_s=budget_s, cache=cache, fresh=fresh, on_step=step)
        planner = known.planner(edge.model.graph, constraints=constraints, calibration=calibration)
        plan = planner.plan(known.link)
        with progress() as bar:
            task = bar.add_task("measuring", total=None)
            found = compare(
                edge,
                rows(plan),
                inputs,
                repeat,
                lambda done, total: bar.update(task, completed=done, total=total),
            )
    data = msgspec.json.encode({"plan": plan, "compared": found})
    if as_json:
        put_json({"plan": plan, "compared": found})
    else:
        show(plan, found)
    if out_path:
        write_atomic(out_path, msgspec.json.format(data, indent=1))
        click.echo(f"wrote {out_path}", err=True)


def step(text: str) -> None:
    """What is being measured, on standard error."""
    click.echo(text, err=True)


def show(plan: Plan, found: list[Compared]) -> None:
    """Print predicted beside measured, and whether the advice was right."""
    console = out()
    columns = (
        Column("option", right=False, keep=True), Column("predicted", keep=True), Column("measured", keep=True),
        Column("p10…p90"), Column("error", keep=True), Column("edge"), Column("net"), Column("server"),
        Column("bytes up"),
    )  # fmt: skip
    table(columns, [_cells(c) for c in found], console=console)
    console.print(
        f"milliseconds, medians of {found[0].requests} requests, taken in turns; the link as measured: {plan.link}"
    )
    console.print(verdict(found), style="bold")


def _cells(c: Compared) -> tuple[str, ...]:
    stages = c.stages
    return (
        c.option.label,
        ms(c.option.total.ms),
        ms(c.measured.ms),
        f"{ms(c.measured.low)}…{ms(c.measured.high)}",
        f"{c.error:+.0%}",
        ms(stages["edge"] + stages["encode"]),
        ms(stages["up"] + stages["down"]),
        ms(stages["server"]),
        size(c.up_nbytes),
    )


def verdict(found: list[Compared]) -> str:
    """Whether the planned option, the first one, was the fastest; and by how much not."""
    planned, fastest = found[0], min(found, key=lambda c: c.measured.ms)
    others = [c for c in found if c is not planned]
    if planned is fastest:
        if not others:
            return f"planned and measured: {planned.option.label}, {ms(planned.measured.ms)} ms"
        second = min(others, key=lambda c: c.measured.ms)
        gain = 1 - planned.measured.ms / second.measured.ms
        if planned.measured.high >= second.measured.low:
            return (
                f"the plan is not refuted: {planned.option.label} is the fastest, but {second.option.label} is only "
                f"{gain:.0%} behind, within what requests vary by"
            )
        return f"the plan was right: {planned.option.label} is the fastest, {gain:.0%} before {second.option.label}"
    late = planned.measured.ms / fastest.measured.ms - 1
    near = planned.measured.low <= fastest.measured.high
    how = "within what requests vary by" if near else "more than requests vary by"
    return (
        f"planned: {planned.option.label}; fastest: {fastest.option.label}, "
        f"which the plan is {late:.1%} slower than ({how})"
    )
