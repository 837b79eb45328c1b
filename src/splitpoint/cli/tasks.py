"""splitpoint tasks: a queue of requests for different models, planned together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from splitpoint.cli import answers
from splitpoint.cli.console import out, progress, put_json, say, table
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.codecs import codec_names_option
from splitpoint.cli.options.engine import EngineChoice, engine_options
from splitpoint.cli.options.model_options import Opening, allow_domain_option, is_local
from splitpoint.cli.options.output import csv_option, json_option, result_option, save_json, wrote
from splitpoint.cli.options.quantities import budget_option
from splitpoint.cli.options.server_options import cache_option, cloud_option, fresh_option
from splitpoint.errors import InputError, ModelError, SplitpointError, StorageError, UsageError
from splitpoint.planning.constraints import Constraints
from splitpoint.report.files import write_csv
from splitpoint.runtime.client.request import FALLBACKS
from splitpoint.runtime.result import Result
from splitpoint.security import Security
from splitpoint.tasks.choices import Source
from splitpoint.tasks.files import load_tasks
from splitpoint.tasks.fleet import Fleet, inputs_of
from splitpoint.tasks.policies import POLICIES
from splitpoint.tasks.queue_run import Planned, QueueRun, predict
from splitpoint.tasks.task import QueueSummary, Task, TaskPlan, TaskResult, mix
from splitpoint.tasks.task_rows import COLUMNS, TABLE, record, summary_lines
from splitpoint.units import ms


@verb(
    ("40 requests for three models, in the order that ends first", "tasks --mix alexnet,vgg16_bn,lenet --cloud SERVER"),
    ("tasks of a file: only what each policy would come to", "tasks tasks.toml --cloud SERVER --dry-run"),
)
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[TASKS.toml]")
@cloud_option(required=False)
@click.option(
    "--mix",
    "models",
    metavar="MODEL,MODEL,…",
    help="Draw tasks at random from these models, all at once; MODEL@random[:SEED]: with these weights.",
)
@click.option("--count", type=int, default=40, show_default=True, help="How many --mix draws.")
@click.option("--seed", type=int, default=0, show_default=True, help="What --mix draws: the same for the same seed.")
@click.option(
    "--policy", "by", type=click.Choice(tuple(POLICIES)), default="joint", show_default=True,
    help="Who goes first. " + "; ".join(f"{name}: {policy.first}" for name, policy in POLICIES.items()) + ".",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only plan: print what is predicted, by every policy.")
@codec_names_option
@click.option("--fallback", type=click.Choice(("auto", *FALLBACKS)), default="auto", show_default=True,
              help="When the server is gone, busy or wrong: finish on the edge (local), ask again (wait), or end "
                   "(error). auto: local for models that are here, wait for others.")  # fmt: skip
@budget_option("10s", "How long each profiling may take.")
@fresh_option
@result_option
@csv_option("Write one line a task.")
@json_option
@cache_option
@engine_options
@allow_domain_option
def command(
    file: Path | None, cloud: str | None, security: Security, models: str | None, count: int, seed: int, by: str,
    dry_run: bool, codecs: tuple[str, ...], fallback: str, budget_s: float, fresh: bool, output: Path | None,
    csv_path: Path | None, as_json: bool, cache: Path | None, choice: EngineChoice, allow_domains: tuple[str, ...],
) -> None:  # fmt: skip
    """Run the tasks of a file, or a mix of MODELs, on this machine and a server that has these models.

    Every model is profiled on both sides (the results are kept) and the link is measured. Then all tasks go through
    one pipeline: edge, link and server work at the same time. docs/tasks.md has the file's fields.
    """
    if (file is None) == (models is None):
        raise UsageError("say what to run: a file of tasks (tasks.toml), or --mix MODEL,MODEL,…")
    if cloud is None:
        raise UsageError("tasks are shared out between this machine and a server: add --cloud HOST (splitpoint serve)")
    told = Told(output, csv_path, as_json)
    drawn = mix(models.split(","), count, seed) if models is not None else []
    with Fleet(
        cloud, engine=choice.open(), cache=cache, constraints=Constraints(codecs=codecs), fallback=fallback,
        security=security, allow_domains=allow_domains, on_event=say,
    ) as fleet:  # fmt: skip
        tasks = load_tasks(file, lambda e: wrong(fleet, e.source)) if file else reach(fleet, drawn)
        inputs = inputs_of(fleet, tasks)
        link = fleet.survey(budget_s=budget_s, fresh=fresh, on_step=say)
        say(f"link {link}")
        if dry_run:
            plans = {name: predict(fleet, tasks, name) for name in POLICIES}
            put(plans[by].rows, plans[by].summary, fleet.note, told, plans)
            return
        execute(fleet, QueueRun(fleet, tasks, by, inputs), told)


@dataclass(frozen=True)
class Told:
    """Where the rows are told: -o, --csv, --json."""

    output: Path | None
    csv_path: Path | None
    as_json: bool


def reach(fleet: Fleet, tasks: list[Task]) -> list[Task]:
    """`tasks`, their models reached. ModelError names all that are not there."""
    complaints = [text for source in dict.fromkeys(t.source for t in tasks) if (text := wrong(fleet, source))]
    if complaints:
        raise ModelError("; ".join(complaints))
    return tasks


def wrong(fleet: Fleet, source: Source) -> str:
    """Reaches the model; what is wrong with it, or nothing."""
    model, weights = source
    try:
        opening = Opening(weights=weights or None, allow_domains=fleet.allow_domains)
        here = opening.load(model) if weights or is_local(model) else None
        fleet.add(source, here or model)
    except (ModelError, UsageError, InputError, StorageError) as exc:
        return str(exc)
    return ""


def execute(fleet: Fleet, run: QueueRun, told: Told) -> None:
    """Runs and prints; what was answered is printed and written also where not all was."""
    answered: list[TaskResult] = []
    planned = run.prepare()
    say(*summary_lines(planned.summary, predicted=True)[:1])
    with progress() as bar:
        task = bar.add_task("tasks", total=len(run.tasks))

        def on_answer(row: TaskResult, result: Result) -> None:
            spec = fleet.edges[row.task.source].model.input_spec
            answered.append(msgspec.structs.replace(row, answer=answers.answer(result.outputs, spec, 1)))
            bar.advance(task)

        run.on_answer = on_answer
        try:
            run.run()
        except (KeyboardInterrupt, SplitpointError) as exc:
            left = len(run.tasks) - len(answered)
            why = "interrupted" if isinstance(exc, KeyboardInterrupt) else str(exc)
            say(f"{len(answered)} of {len(run.tasks)} answered, {left} not: {why}")
            if answered:
                put(answered, run.summary, fleet.note, told)
            raise
    put(answered, run.summary, fleet.note, told)


def put(
    rows: Sequence[TaskPlan], summary: QueueSummary, note: str, told: Told,
    plans: Mapping[str, Planned] | None = None,
) -> None:  # fmt: skip
    """Prints and writes the rows and what they came to; of `plans`, what each policy is predicted to come to, too."""
    records = [record(row, summary.policy, note) for row in rows]
    every = {"policies": {name: plan.summary for name, plan in plans.items()}} if plans else {}
    data = {"summary": summary, "tasks": records} | every
    if told.as_json:
        put_json(data)
    else:
        table(TABLE, rows, console=out())
        for line in summary_lines(summary, predicted=plans is not None):
            click.echo(line)
        if plans:
            each = ", ".join(f"{name} {ms(plan.summary.makespan_ms)} ms" for name, plan in plans.items())
            click.echo(f"by policy: {each}")
    save_json(told.output, data)
    if told.csv_path:
        write_csv(told.csv_path, records, COLUMNS)
        wrote(told.csv_path)
