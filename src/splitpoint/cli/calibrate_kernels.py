"""splitpoint calibrate-kernels: learn what kernels cost on this machine, to price networks that never ran here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import msgspec
import numpy as np

from splitpoint import install
from splitpoint.cli.console import bold, countdown, line, out, say, table, waiting
from splitpoint.cli.help_pages import verb
from splitpoint.cli.latency_files import in_words
from splitpoint.cli.options import given
from splitpoint.cli.options.engine import EngineChoice, engine_of, engine_options
from splitpoint.cli.options.output import OUTPUT_FOLDER, json_option, output_option, wrote
from splitpoint.cli.options.quantities import budget_option
from splitpoint.engines import Engine
from splitpoint.errors import InputError, MissingExtraError, UsageError
from splitpoint.files import check_writable, is_special
from splitpoint.machine import EMULATED, now, this_machine
from splitpoint.predict.calibrate.collect import collect, quick_fit
from splitpoint.predict.calibrate.collection import Collection, load_collection, save_collection, started
from splitpoint.predict.calibrate.reference import measure
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernel_table import Table, write_tables
from splitpoint.predict.learn.files import latency_bytes, load_latency, save_latency
from splitpoint.predict.learn.latency_model import Latency
from splitpoint.profile.measure import Progress
from splitpoint.report.table import fields_of
from splitpoint.text import valid
from splitpoint.units import counted

#: A latency file's usual ending, and that of the measurements beside it.
_ENDING, _BESIDE = ".latency.json", ".strips.json"
#: Where half of the reference networks lie further apart than this, something disturbed them.
_UNSURE = 1.25
#: Where learning is expected to take more of the budget than this, what it takes is timed again.
_MUCH = 0.4
#: Of each kind half a minute measures about so many kernels.
_USUAL_ROWS = 50


@verb(
    ("five minutes of measuring; predict and plan --edge take the file", "calibrate-kernels -o edge.latency.json"),
    ("the machine is slower today, or faster: half a minute", "calibrate-kernels --refresh -o edge.latency.json"),
)
@output_option(
    "Where to write what was learned; the measurements go beside it (device.strips.json).",
    default=Path("device.latency.json"), show_default=True,
)  # fmt: skip
@budget_option("5m", "How long measuring and learning may take: 2m, 5m.")
@click.option(
    "--csv",
    "csv_folder",
    type=OUTPUT_FOLDER,
    metavar="DIR",
    help="Write the measurements as tables, one CSV file a kind (splitpoint predict train DIR learns from them).",
)
@click.option(
    "--name", default="", metavar="TEXT", help="What this machine is called in tables (default: its processor)."
)
@click.option("--note", default="", metavar="TEXT", help="Kept in the file: what is special about this machine.")
@click.option(
    "--seed", type=click.IntRange(0, 1 << 30), default=0, metavar="N", help="Of the random networks (default: 0)."
)
@click.option(
    "--refresh",
    is_flag=True,
    help="Only see how fast this machine is by now (half a minute), and have FILE speak of that speed.",
)
@json_option
@engine_options
def command(
    output: Path, budget_s: float, csv_folder: Path | None, name: str, note: str, seed: int, refresh: bool,
    as_json: bool, choice: EngineChoice,
) -> None:  # fmt: skip
    """Measure kernels of all kinds on this machine, as they run in networks, and learn what any of them costs.

    What runs are random networks, and what is timed are their kernels as the engine fuses them. It learns while it
    measures, and measures what it is least sure of. An interrupted run is gone on with by the same command; so is a
    finished one, with a larger --budget. Learning needs splitpoint[predict]; without it --csv takes the measurements
    to a machine that has it.

    A machine is not as fast every day. --refresh measures two dozen of the networks again and scales what the file says
    by the median of what they take now, until more is measured.
    """
    if refresh:
        for option in ("budget_s", "csv_folder", "name", "note", "seed", "engine", "device", "threads"):
            if given(option):
                flag = option.partition("_")[0]
                raise UsageError(f"--refresh takes nothing but -o FILE, which says the rest: leave out --{flag}")
        if is_special(output):
            raise UsageError(f"--refresh reads what it writes, which is not possible with {output}: name a file")
        _refresh(output, as_json=as_json)
        return
    beside = None if is_special(output) else beside_of(output)
    if beside is not None:
        check_writable(beside)
    began = time.perf_counter()
    learns = _can_learn(csv_folder)
    engine = choice.open()
    collection = _begun(beside, engine, seed)
    learning = _learning(budget_s) if learns else _nothing
    # What starting took is not there for measuring; one network is measured in any case.
    left_s = max(1e-3, budget_s - (time.perf_counter() - began))
    done = collection.left_s(left_s) <= learning(collection.tables())
    if beside is not None and output.exists() and collection.strips and done:
        raise UsageError(
            f"{output} has {collection.spent_s:.0f} s of measurements behind it: a larger --budget measures on, and "
            f"without {beside} it begins anew"
        )
    collection = _measure(collection, engine, left_s, beside, learning, learns)
    if csv_folder is not None:
        write_tables(csv_folder, collection.tables())
        say(f"wrote {counted(collection.rows, 'row')} to {csv_folder}")
    if not learns:
        say(f"next, where splitpoint[predict] is: splitpoint predict train {csv_folder} -o {output}")
        return
    with waiting(f"learning from {counted(collection.rows, 'kernel')}"):
        latency = collection.learned(name=valid(name), note=valid(note or os.environ.get(EMULATED, "")))
    save_latency(output, latency)
    if as_json:
        click.echo(latency_bytes(latency), nl=False)
    else:
        _print(latency, collection)
        if beside is not None:
            click.echo(f"next: {install.command()} predict MODEL --on {output}")
    wrote(output)


def beside_of(output: Path) -> Path:
    """Where the measurements behind a latency file are: ``device.latency.json`` → ``device.strips.json``."""
    return output.with_name(output.name.removesuffix(_ENDING).removesuffix(".json") + _BESIDE)


def _can_learn(csv_folder: Path | None) -> bool:
    """Whether scikit-learn is there. MissingExtraError if it is not, and nothing else is wanted."""
    from importlib.util import find_spec

    if find_spec("sklearn") is not None:
        return True
    if csv_folder is None:
        raise MissingExtraError("scikit-learn", "predict", "learn from what is measured (--csv DIR only measures)")
    say("scikit-learn is not installed: measuring only, without choosing what tells most")
    return False


def _begun(beside: Path | None, engine: Engine, seed: int) -> Collection:
    """What an earlier run has measured, or a new collection. InputError if it was measured with something else."""
    if beside is None or not beside.exists():
        return started(engine, seed)
    collection = load_collection(beside)
    collection.require(engine, seed)
    say(f"going on with {counted(len(collection.strips), 'network')} of {beside} ({collection.spent_s:.0f} s)")
    return collection


def _nothing(tables: Mapping[str, Table]) -> float:
    return 0.0


def _learning(budget_s: float) -> Callable[[Mapping[str, Table]], float]:
    """What learning takes here in the end, by how quickly trees grow now. It is said for the least that is measured."""
    from splitpoint.predict.learn.training import leaf_s, learning_s

    leaf = leaf_s()
    least_s = learning_s({kind: Table(kind, {}, np.ones(_USUAL_ROWS)) for kind in KINDS}, leaf)
    beyond = f", and the budget is less: expect {least_s:.0f} s and one network" if least_s > budget_s else ""
    say(f"learning takes about {least_s:.0f} s or more of the budget{beyond}")

    def expected(tables: Mapping[str, Table]) -> float:
        nonlocal leaf
        if tables and learning_s(tables, leaf) > _MUCH * budget_s:  # was the machine busy for a moment, or is it still?
            leaf = leaf_s()
        return learning_s(tables, leaf)

    return expected


def _measure(
    collection: Collection, engine: Engine, seconds: float, beside: Path | None,
    learning: Callable[[Mapping[str, Table]], float], learns: bool,
) -> Collection:  # fmt: skip
    fit = quick_fit if learns else None
    with countdown() as shown:
        task = shown.add_task("calibrating", total=seconds, left="")

        def show(progress: Progress) -> None:
            what = f"network {progress.done + 1} of about {progress.total}: {progress.what}"
            shown.update(task, completed=progress.elapsed_s, description=what, left=f"{progress.left_s:.0f} s left")

        try:
            for latest in collect(collection, engine, budget_s=seconds, fit=fit, learning_s=learning, on_progress=show):
                collection = latest
                if beside is not None:
                    save_collection(beside, collection)
        except KeyboardInterrupt:
            if beside is not None:
                networks = counted(len(collection.strips), "network")
                say(f"{networks} kept in {beside}: the same command goes on from there")
            raise
    return collection


def _refresh(output: Path, *, as_json: bool) -> None:
    """Scales the latency file by how fast the machine is now. InputError if it is of another one."""
    latency = load_latency(output)
    here = this_machine()
    if not latency.reference:
        raise InputError(f"{output} has no reference networks to measure: calibrate anew, without --refresh")
    if latency.machine is None or latency.machine.processor != here.processor:
        had = latency.machine.processor if latency.machine else "an unknown machine"
        raise InputError(f"{output} is of {had}, and this is {here.processor}: refresh it there")
    engine = engine_of(latency.engine, latency.device, latency.threads)
    for what, has in (("engine", engine.name), ("device", engine.device), ("threads", engine.threads)):
        if (had := getattr(latency, what)) != has:
            raise InputError(
                f"{output} was made with {in_words(what, had)}, not with {in_words(what, has)}: calibrate anew"
            )
    with countdown() as shown:
        task = shown.add_task("measuring reference networks", total=1.0, left="")
        speed = measure(
            latency.reference, engine, on_step=lambda done, total: shown.update(task, completed=done / total)
        )
    latency = msgspec.structs.replace(latency.slowed(speed.ratio), refreshed=now())
    save_latency(output, latency)
    if as_json:
        click.echo(latency_bytes(latency), nl=False)
    else:
        out().print(f"now {speed}")
        out().print(
            f"{output} now says that everything takes {latency.slowdown:.2f}x as long as when it was calibrated "
            f"({latency.created})",
        )
    if speed.high > _UNSURE * speed.low:
        click.echo("the networks do not agree: --refresh once more when nothing else runs", err=True)
    wrote(output)


# --- printing ---------------------------------------------------------------------------------------------------------

_TITLES = ("kind", "rows", "within ±10 %", "mean error", "in the range")


def _print(latency: Latency, collection: Collection) -> None:
    """What was learned, and how well it priced rows that were kept apart."""
    console = out()
    threads = counted(latency.threads, "thread")
    console.print(line(bold(latency.name), f", {threads} of {latency.engine} ({latency.device})"))
    # Of a kind that was in one network, none could be kept apart.
    ordered = sorted(latency.kinds.items(), key=lambda item: -item[1].rows)
    scores = [(kind, m.rows, m.score, m.networks > 1) for kind, m in ordered]
    cells = [
        (kind, str(n), *((f"{s.within10:.0%}", f"{s.mape:.1%}", f"{s.covered:.0%}") if judged else ("-", "-", "-")))
        for kind, n, s, judged in scores
    ]
    table(fields_of(_TITLES, left=_TITLES[:1], keep=_TITLES[:4]), cells, console=console)
    of = counted(len(collection.strips), "network")
    measured = f"{counted(collection.rows, 'kernel')} of {of} in {collection.spent_s:.0f} s"
    console.print(
        f"{measured}; errors are those of networks kept apart, of kernels of 5 µs and more where a kind has any"
    )
    near = f"within ± {latency.spread:.0%} four times in five" if latency.spread else "how nearly, one does not tell"
    console.print(
        f"a whole network takes {latency.scale:.2f} times its kernels and up to {latency.fixed_ms:.2f} ms, {near}"
    )
    if sentence := latency.too_little():
        console.print(sentence)
