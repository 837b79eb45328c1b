"""splitpoint compare: the plan's table, run for real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from splitpoint.cli.console import out, progress, put_json, say, table
from splitpoint.cli.input_files import images_option, read_images, recursive_option
from splitpoint.cli.options import gathered
from splitpoint.cli.options.codecs import calibration_beside, calibration_option, codec_names_option, fidelity_options
from splitpoint.cli.options.model_options import Here, device_options
from splitpoint.cli.options.output import json_option, output_option, wrote
from splitpoint.cli.options.quantities import budget_option
from splitpoint.cli.options.server_options import cloud_option, fresh_option
from splitpoint.files import write_atomic
from splitpoint.measured_cuts import TABLE, CompareRow, compare, verdict
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.plans import Plan
from splitpoint.security import Security
from splitpoint.survey import survey, worth_running


@click.command()
@click.argument("model")
@cloud_option()
@images_option
@recursive_option
@click.option("--repeat", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Requests an option.")
@codec_names_option
@fidelity_options
@calibration_option
@budget_option("20s", "How long each profiling may take.")
@fresh_option
@output_option("Write predictions and measurements as JSON.")
@json_option
@device_options
@gathered("constraints", Constraints)
def command(
    model: str, cloud: str, security: Security, images: Path | None, recursive: bool, repeat: int,
    constraints: Constraints, calib: Path | None, budget_s: float, fresh: bool, output: Path | None, as_json: bool,
    here: Here,
) -> None:  # fmt: skip
    """Plan, then run every row of the table against the server, in turns, and print predicted beside measured.

    Both sides are profiled first (the results are kept) and the link is measured.
    """
    engine = here.choice.open()
    with here.reached(model, cloud, security, engine, calib) as (edge, calibration):
        inputs = read_images(edge.model, images, recursive=recursive)
        known = survey(edge, engine, budget_s=budget_s, cache=here.cache, fresh=fresh, on_step=say)
        calibration = calibration or calibration_beside(model, edge.model.fingerprint)
        planner = known.planner(edge.model.graph, constraints=constraints, calibration=calibration)
        plan = planner.plan(known.link)
        with progress() as bar:
            task = bar.add_task("measuring", total=None)
            rows = compare(
                edge, worth_running(plan), inputs, repeat=repeat,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )  # fmt: skip
    data = {"plan": plan, "compared": rows}
    if as_json:
        put_json(data)
    else:
        show(plan, rows)
    if output:
        write_atomic(output, msgspec.json.format(msgspec.json.encode(data), indent=1))
        wrote(output)


def show(plan: Plan, rows: Sequence[CompareRow]) -> None:
    """Print predicted beside measured, and whether the advice was right."""
    console = out()
    table(TABLE, rows, console=console)
    console.print(
        f"milliseconds, medians of {rows[0].requests} requests, taken in turns; the link as measured: {plan.link}"
    )
    console.print(verdict(rows), style="bold")
