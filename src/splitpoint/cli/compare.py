"""splitpoint compare: the plan's table, run for real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from splitpoint.cli.console import out, progress, put_json, say, table
from splitpoint.cli.help_pages import verb
from splitpoint.cli.input_files import images_option, read_images, recursive_option
from splitpoint.cli.options import gathered
from splitpoint.cli.options.codecs import calibration_beside, calibration_option, codec_names_option, fidelity_options
from splitpoint.cli.options.model_options import Here, device_options
from splitpoint.cli.options.output import csv_option, json_option, output_option, save_json, wrote
from splitpoint.cli.options.quantities import budget_option
from splitpoint.cli.options.server_options import cloud_option, fresh_option
from splitpoint.measured_cuts import TABLE, CompareRow, compare, verdict
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.plans import Plan
from splitpoint.report.files import write_csv
from splitpoint.security import Security
from splitpoint.survey import survey, worth_running
from splitpoint.units import counted


@verb(
    ("is the plan right? with photos of your own", "compare yolo --cloud SERVER --images photos/"),
    (
        "more requests, codecs too, and every number as rows",
        "compare efficientnet_lite0 --cloud SERVER --agreement 95% --repeat 30 --csv compared.csv",
    ),
)
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
@csv_option("Write a row an option.")
@json_option
@device_options
@gathered("constraints", Constraints)
def command(
    model: str, cloud: str, security: Security, images: Path | None, recursive: bool, repeat: int,
    constraints: Constraints, calib: Path | None, budget_s: float, fresh: bool, output: Path | None,
    csv_path: Path | None, as_json: bool, here: Here,
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
    save_json(output, data)
    if csv_path is not None:
        write_csv(csv_path, [row.flat() for row in rows], list(rows[0].flat()))
        wrote(csv_path)


def show(plan: Plan, rows: Sequence[CompareRow]) -> None:
    """Print predicted beside measured, and whether the advice was right."""
    console = out()
    table(TABLE, rows, console=console)
    console.print(
        f"milliseconds, medians of {counted(rows[0].requests, 'request')}, taken in turns; the link as measured: "
        f"{plan.link}"
    )
    console.print(verdict(rows), style="bold")
