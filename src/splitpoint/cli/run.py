"""splitpoint run: images in, answers and milliseconds out."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click
import msgspec
import numpy as np

from splitpoint.advisor import placement, survey
from splitpoint.cli import answers
from splitpoint.cli.console import out, progress
from splitpoint.cli.options import (
    cache_option,
    cloud_option,
    codec_choice_option,
    engine_options,
    json_option,
    load_model,
    model_options,
    parse_codecs,
)
from splitpoint.cli.quantities import parse_budget
from splitpoint.codecs import Codec, open_codec
from splitpoint.engines import Engine, open_engine
from splitpoint.errors import InputError, RefusedError, SplitpointError, UsageError
from splitpoint.images import InputSpec
from splitpoint.inputs import expand, read_bytes, read_inputs
from splitpoint.models import name_of
from splitpoint.models.names import SHORT_NAMES
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.files import load_plan
from splitpoint.planning.values import Plan
from splitpoint.report.files import check_writable, write_atomic
from splitpoint.runtime.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.local import Local
from splitpoint.runtime.result import Request, Result
from splitpoint.tensors import Array
from splitpoint.trace import Recorder
from splitpoint.units import size


@click.command(short_help="Run the device side: images in, answers and milliseconds out.")
@click.argument("arguments", metavar="[MODEL] FILES|FOLDER|-", nargs=-1, required=True)
@cloud_option(required=False)
@click.option(
    "--at",
    metavar="CUT",
    help="A layer, node, tensor, cut number, input (all on the server), output (all on the device), or auto (default): "
    "profile both sides and the link, and take the best.",
)
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Cut as splitpoint plan -o wrote, instead of planning now.",
)
@click.option("--budget", default="10s", show_default=True, metavar="TIME", help="How long --at auto profiles a side.")
@click.option("--fresh", is_flag=True, help="Profile this machine anew, whatever an earlier run has kept.")
@codec_choice_option
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.npz", help="Keep all outputs.")
@click.option("--model-hash", metavar="HEX", help="Refuse any model but the one with this fingerprint.")
@json_option
@cache_option
@engine_options
@model_options
def command(
    arguments: tuple[str, ...], cloud: str | None, at: str | None, plan_path: Path | None, budget: str, fresh: bool,
    codecs: tuple[str, ...], save: Path | None,
    model_hash: str | None, as_json: bool, cache: Path | None, device: str, threads: int, shapes: tuple[str, ...],
    weights: str | None, input_spec: Path | None,
) -> None:  # fmt: skip
    """Run images, tensors (.npy, .npz) or token ids (.ids, .txt) through a model cut at CUT.

    Without MODEL the server's only model is used. The device needs no model file: it fetches the graph and its
    half's weights once. A folder is streamed: device, link and server work at the same time. Without --cloud all
    runs here.
    """
    if plan_path and (at or codecs):
        raise UsageError("--plan says where to cut and how: --at and --codec are for runs without it")
    planned = load_plan(plan_path) if plan_path else None
    auto = at in (None, "auto")
    budget_s = parse_budget(budget)
    name, files = _arguments(arguments)
    paths = [Path(f) for f in files]
    names = ["-"] if files == ["-"] else [str(p) for p in expand(paths)]
    if save:
        if save.suffix != ".npz":
            raise UsageError(f"--save writes an .npz file: call it {save.stem}.npz")
        check_writable(save)
    with ExitStack() as stack:
        runner: Edge | Local
        engine = open_engine(device=device, threads=threads)
        if cloud is None:
            if name is None:
                raise UsageError("say which MODEL to run here, or which server has it (--cloud HOST)")
            if at not in (None, "auto", "output") or model_hash or codecs or planned:
                raise UsageError("--at, --plan, --codec and --model-hash are for a cut model: add --cloud HOST")
            runner = stack.enter_context(Local(load_model(name, shapes, weights, input_spec), engine))
        else:
            here = load_model(name, shapes, weights, input_spec) if name and is_local(name) else None
            if here is None:
                refuse_local_options(shapes, weights)
            served = here or (name_of(name) if name else None)
            runner = stack.enter_context(
                Edge(cloud, served, at="input" if auto else str(at), codec="raw" if auto else parse_codecs(codecs),
                     engine=engine, cache=cache, model_hash=model_hash, on_event=notice)
            )  # fmt: skip
            if input_spec and here is None:
                runner.model = runner.model.with_input_spec(InputSpec.from_file(input_spec))
            if planned is not None:
                follow(runner, planned)
            elif auto:
                place(runner, engine, codecs, budget_s, cache, fresh=fresh)
        run = Run(runner, cloud, as_json, [Path(n).name for n in names])
        try:
            run.all(names, streamed=any(p.is_dir() for p in paths))
        finally:
            # Whatever ended the run, what was answered is not lost.
            if save and run.outputs:
                write_atomic(save, run.saved())
                click.echo(f"wrote {save} ({len(run.outputs)} input{'s' * (len(run.outputs) > 1)})", err=True)
    run.finish(len(names))


def follow(edge: Edge, plan: Plan) -> None:
    """Cuts as `plan` says; UsageError if it is for another model."""
    if plan.fingerprint != edge.model.fingerprint:
        raise UsageError(
            f"the plan is for {plan.model} {plan.fingerprint[:12]}, not for the server's {edge.model.name} "
            f"{edge.model.fingerprint[:12]}"
        )
    edge.switch(*placement(edge.model.graph, plan.best))


def place(
    edge: Edge, engine: Engine, codecs: tuple[str, ...], budget_s: float, cache: Path | None, *, fresh: bool
) -> None:
    """Plans for this device, server and link, says so on standard error, and cuts there."""
    if any("=" in codec for codec in codecs):
        raise UsageError("with --at auto the planner chooses what crosses: give --codec NAME, not TENSOR=NAME")
    constraints = Constraints(codecs=codecs)
    try:
        known = survey(
            edge, engine, budget_s=budget_s, cache=cache, fresh=fresh, on_step=lambda text: click.echo(text, err=True)
        )
    except RefusedError as exc:
        click.echo(f"no plan: {exc}. Cutting in the middle; --at CUT or --plan FILE says otherwise", err=True)
        edge.switch("middle")
        return
    plan = known.planner(edge.model.graph, constraints=constraints).plan(known.link, sensitivity=False)
    click.echo(f"link {plan.link}", err=True)
    click.echo(f"{plan.advice} (splitpoint compare shows the whole table)", err=True)
    edge.switch(*placement(edge.model.graph, plan.best))
    edge.forget()


def is_local(name: str) -> bool:
    """Whether MODEL is on this device, rather than a name the server knows."""
    return Path(name).suffix in (".onnx", ".pt2") or name.startswith("zoo:")


def refuse_local_options(shapes: tuple[str, ...], weights: str | None) -> None:
    """UsageError for options that would change nothing, because the model is the server's."""
    if shapes or weights:
        raise UsageError("--shape and --weights are for a model on this device; here the server's is used as it is")


def _arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """(MODEL or None, files): the first argument is the model unless it is plainly an input."""
    first, rest = arguments[0], list(arguments[1:])
    path = Path(first)
    is_input = first == "-" or (path.exists() and path.suffix not in (".onnx", ".pt2"))
    if is_input and not (first in SHORT_NAMES and not path.is_file()):
        return None, [first, *rest]
    if not rest:
        if path.suffix in (".onnx", ".pt2") or ":" in first or first in SHORT_NAMES:
            raise UsageError(f"say what to run {first} on: images, .npy/.npz files, a folder, or - for standard input")
        raise InputError(f"no such file: {first}")
    return first, rest


@dataclass
class Run:
    """One invocation: reads inputs, prints answers as they come, remembers outputs to save and what failed."""

    edge: Edge | Local
    cloud: str | None
    as_json: bool
    labels: Sequence[str]
    outputs: dict[str, Mapping[str, Array]] = field(default_factory=dict)
    failed: list[SplitpointError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines = answers.Lines(out().width, self.labels)

    def all(self, names: Sequence[str], *, streamed: bool) -> None:
        requests = self._requests(names)
        results = self.edge.stream(requests) if streamed else map(self.edge.infer, requests)
        # Rows and a live bar on one terminal must come from one console.
        terminal = out() if sys.stdout.isatty() else None
        with progress(terminal) as bar:
            task = bar.add_task("streaming", total=len(names), visible=streamed)
            for result in results:
                for line in self._lines(result):
                    if terminal:
                        terminal.print(line, markup=False, highlight=False, soft_wrap=True)
                    else:
                        click.echo(line)
                bar.advance(task)

    def _requests(self, names: Sequence[str]) -> Iterator[Request]:
        """Each input with the time it took to decode; one that cannot be read is reported and passed over."""
        model = self.edge.model
        for name in names:
            recorder = Recorder()
            try:
                with recorder.span("prepare"):
                    stdin = name == "-"
                    inputs = read_bytes(model, _standard_input()) if stdin else read_inputs(model, Path(name))
            except InputError as exc:
                if len(names) == 1:
                    raise
                self.failed.append(exc)
                click.echo(f"splitpoint: {exc}", err=True)
                continue
            yield Request(inputs, tuple(recorder.spans), name)

    def _lines(self, result: Result) -> Iterator[str]:
        """What to print for one answer; the first brings the header."""
        name, spec = result.tag, self.edge.model.input_spec
        if not self.outputs and not self.as_json:
            yield describe(self.edge, self.cloud)
            yield self.lines.header()
        self.outputs[self._key(name)] = result.outputs
        if self.as_json:
            more = {"cut": result.cut, "codecs": result.codecs, "up_nbytes": result.up_nbytes,
                    "clock_error_ms": result.clock_error_ms}  # fmt: skip
            row = answers.as_json(name, result.outputs, spec, result.trace, **more)
            yield msgspec.json.encode(row).decode()
        else:
            short = "-" if name == "-" else Path(name).name
            yield self.lines.row(short, answers.answer(result.outputs, spec), result.trace)

    def _key(self, name: str) -> str:
        stem, number = ("stdin" if name == "-" else Path(name).stem), 2
        key = stem
        while key in self.outputs:
            key, number = f"{stem}-{number}", number + 1
        return key

    def saved(self) -> bytes:
        """All outputs as an `.npz`: arrays are called ``<file's stem>/<output>``."""
        arrays = {f"{key}/{name}": v for key, outputs in self.outputs.items() for name, v in outputs.items()}
        data = io.BytesIO()
        np.savez(data, **arrays)  # type: ignore[arg-type]
        return data.getvalue()

    def finish(self, total: int) -> None:
        if not self.as_json and len(self.lines.traces) > 1:
            click.echo(self.lines.medians())
        if self.failed:
            raise InputError(f"{len(self.failed)} of {total} inputs could not be read; the others were answered")


#: The most that standard input may hold: a photo or a tensor, not a disk.
_STDIN_BYTES = 256 << 20


def _standard_input() -> bytes:
    data = sys.stdin.buffer.read(_STDIN_BYTES + 1)
    if len(data) > _STDIN_BYTES:
        raise InputError(f"standard input holds more than {_STDIN_BYTES >> 20} MiB: pipe one image or tensor into it")
    return data


def notice(event: Event) -> None:
    """What a device tells its user while it works: on standard error."""
    click.echo(str(event), err=True)


def describe(edge: Edge | Local, address: str | None) -> str:
    """Two lines: which model and server; where it is cut and what crosses."""
    cut, model = edge.cut, edge.model
    codecs = {n: open_codec(c) for n, c in edge.codecs.items()} if isinstance(edge, Edge) else {}
    crossing = " + ".join(f"{t.name} {t.type}{_as(codecs, t.name)}" for t in cut.crossing)
    nbytes = sum(codecs[t.name].nbytes(t) if t.name in codecs else t.nbytes for t in cut.crossing)
    about = "" if all(c.sized for c in codecs.values()) else "about "
    crosses = f"{crossing} crosses ({about}{size(nbytes)})" if crossing else "nothing crosses"
    place = f"server {address}" if address else "no server"
    return (
        f"{model.name} {model.fingerprint[:12]}, {place}\n"
        f"cut at {cut.name}: {len(cut.nodes)} of {len(model.graph.placed)} nodes here, {crosses}"
    )


def _as(codecs: Mapping[str, Codec], name: str) -> str:
    return f" as {codecs[name].name}" if name in codecs else ""
