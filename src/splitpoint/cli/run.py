"""splitpoint run: images in, answers and milliseconds out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import click

from splitpoint.cli.input_files import recursive_option, say
from splitpoint.cli.options import (
    Opening,
    cache_option,
    cloud_option,
    codec_choice_option,
    engine_options,
    json_option,
    model_options,
    parse_codecs,
)
from splitpoint.cli.outputs import OUTPUT
from splitpoint.cli.quantities import parse_budget, parse_ms, parse_rate
from splitpoint.cli.run_cut import Placed, follow, place
from splitpoint.cli.run_rows import Rows
from splitpoint.cli.run_stream import Stream, check_policy, degraded, pacing
from splitpoint.codecs import Codec, open_codec
from splitpoint.engines import Engine, open_engine
from splitpoint.errors import CutError, InputError, RefusedError, ServerError, UsageError
from splitpoint.files import is_special
from splitpoint.models.foreign import MODEL_SUFFIXES
from splitpoint.models.model import Model
from splitpoint.models.names import SHORT_NAMES
from splitpoint.planning.files import load_plan
from splitpoint.planning.plans import Plan
from splitpoint.report.files import check_writable, write_atomic
from splitpoint.runtime.adapt.controller import Watching
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.runtime.client.request import FALLBACKS, LOCAL, WAIT, check_fallback
from splitpoint.runtime.client.whole_model import Local
from splitpoint.runtime.client.wire_remote import WireSettings
from splitpoint.runtime.events import Event
from splitpoint.runtime.stream.pacing import DEGRADE, DROP_OLDEST, POLICIES, QUEUE, Feed
from splitpoint.security import Security
from splitpoint.sources import Files, Source, is_stream, open_source, redacted
from splitpoint.text import plain
from splitpoint.units import counted, size

#: Requests under way in a stream where no plan says how many keep everything busy; fewer where frames grow old.
_WINDOW, _FRESH_WINDOW = 8, 4


@click.command(short_help="Run the device side: images in, answers and milliseconds out.")
@click.argument("arguments", metavar="[MODEL] [FILES|FOLDER|-]", nargs=-1)
@cloud_option(required=False)
@click.option(
    "--source",
    "source_text",
    metavar="FOLDER|VIDEO|CAMERA|URL",
    help="Stream this: a folder, a video file, a camera (0, camera:0, /dev/video0 or a link to it), a stream of the "
    "network (rtsp://…, http://…), or a GStreamer pipeline (… ! appsink). All but a folder need splitpoint[video].",
)
@recursive_option
@click.option(
    "--reconnect",
    metavar="TIME",
    help="How long to try a camera or stream again that has gone, such as 5m; 0 ends with it. Default: until it is "
    "back.",
)
@click.option("--rate", metavar="FPS", help="Give frames at this rate, like a camera, ready or not.")
@click.option(
    "--on-overload",
    type=click.Choice(POLICIES),
    help="When frames come faster than they are answered: let them wait (queue, default for files), drop the oldest "
    "(drop-oldest, default for cameras and streams), or use a cheaper codec or cut, and drop where none is left "
    "(degrade).",
)
@click.option(
    "--deadline",
    metavar="TIME",
    help="How long an answer may take, such as 200ms: what the server does not answer by then is finished here (see "
    "--fallback). Misses are counted, from when a frame came.",
)
@click.option(
    "--fallback",
    type=click.Choice(FALLBACKS),
    help="When the server is late, gone, busy or wrong: finish here (local, default where the whole model can be had), "
    "wait for it, or fail (error).",
)
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
@click.option("--no-adapt", is_flag=True, help="Stay with the first plan of --at auto, whatever becomes of the link.")
@click.option(
    "--probe-every",
    default="1s",
    show_default=True,
    metavar="TIME",
    help="How often --at auto looks at an idle link, with at most 1 % of what it carries; 0 is never.",
)
@codec_choice_option
@click.option("--save", type=OUTPUT, metavar="FILE.npz", help="Keep all outputs.")
@click.option("--model-hash", metavar="HEX", help="Refuse any model but the one with this fingerprint.")
@click.option(
    "--follow-model",
    is_flag=True,
    help="When the server comes back with a newer model of that name, fetch it and go over to it between two requests.",
)
@click.option(
    "--checksum",
    is_flag=True,
    help="Every frame carries a CRC-32: what was changed on its way is no answer. (TCP's own checksum has 16 bits.)",
)
@json_option
@cache_option
@engine_options
@model_options
def command(
    arguments: tuple[str, ...], cloud: str | None, security: Security, source_text: str | None, recursive: bool,
    reconnect: str | None, rate: str | None,
    on_overload: str | None,
    deadline: str | None, fallback: str | None, at: str | None, plan_path: Path | None, budget: str, fresh: bool,
    no_adapt: bool, probe_every: str,
    codecs: tuple[str, ...], save: Path | None, checksum: bool, follow_model: bool,
    model_hash: str | None, as_json: bool, cache: Path | None, device: str, threads: int, opening: Opening,
) -> None:  # fmt: skip
    """Run images, tensors (.npy, .npz) or token ids (.ids, .txt) through a model cut at CUT.

    Without MODEL the server's only model is used. The device needs no model file: it fetches the graph and its
    half's weights once. A folder, a video, a camera and rtsp://… are streamed: device, link and server work at the same
    time, and Ctrl-C answers what is under way before it ends. Without --cloud all runs here.
    """
    if plan_path and (at or codecs):
        raise UsageError("--plan says where to cut and how: --at and --codec are for runs without it")
    fps = parse_rate(rate) if rate is not None else 0.0
    name, files = _arguments(arguments, source_text)
    check_save(save)
    reconnect_s = inf
    if reconnect is not None:
        reconnect_s = 0.0 if reconnect.strip() == "0" else parse_budget(reconnect, "--reconnect")
    probe_every_s = 0.0 if probe_every.strip() == "0" else parse_budget(probe_every, "--probe-every")
    asked = Asked(
        name, cloud, at, load_plan(plan_path) if plan_path else None, parse_budget(budget), fresh, codecs, fallback,
        parse_ms(deadline, "--deadline") / 1e3 if deadline is not None else 0.0, model_hash, checksum, cache,
        opening, None if no_adapt else probe_every_s, security, follow_model,
    )  # fmt: skip
    with ExitStack() as stack:
        source = _open(files, fps, recursive, reconnect_s)
        stack.callback(source.close)
        skipped = 0
        if isinstance(source, Files):
            say(source.found.reasons)
            skipped = source.found.skipped
        streamed = fps > 0 or source.live or any(is_stream(f) for f in files)
        policy = on_overload or (DROP_OLDEST if source.live else QUEUE)
        check_policy(on_overload, source, fps, has_options=asked.has_options)
        engine = open_engine(device=device, threads=threads)
        placed = Placed()
        runner: Edge | Local
        if cloud is None:
            runner = stack.enter_context(asked.local(engine))
        else:
            runner = stack.enter_context(asked.edge(engine))
            arriving = (fps or source.rate or inf) if streamed else 0.0
            placed = asked.place(runner, engine, arriving, degrade=policy == DEGRADE, once=source.count == 1)
        feed = Feed(
            source, live=source.live, rate=fps, policy=policy, levels=len(placed.cheaper),
            moved=lambda level: degraded(runner, placed, level), captured_s=lambda frame: frame.captured_s,
        )  # fmt: skip
        if feed.paced:
            then = DROP_OLDEST if policy == DEGRADE and not placed.cheaper else policy  # which has been said
            click.echo(pacing(source, fps, then, asked=on_overload is not None), err=True)
        rows = Rows(
            lambda: runner.model.input_spec, _labels(source), lambda: describe(runner, cloud), as_json=as_json,
            keep=save is not None,
        )  # fmt: skip
        stream = Stream(runner, rows, feed, source.count, asked.deadline_s)
        try:
            if streamed:
                stream.all_at_once(placed.window(_FRESH_WINDOW if feed.paced else _WINDOW))
            else:
                stream.one_by_one()
        finally:
            # Whatever ended the run, what was answered is not lost.
            if save and rows.outputs:
                write_atomic(save, rows.saved())
                click.echo(f"wrote {save} ({counted(len(rows.outputs), 'input')})", err=True)
            stream.conclude(streamed=streamed, policy=policy)
            if skipped:  # what was said at the beginning may be a thousand lines away
                say([f"{skipped} beside them not read (said at the beginning)"])
    stream.check()


@dataclass(frozen=True)
class Asked:
    """What the command line says of the model, and of where and how it runs."""

    name: str | None
    cloud: str | None
    at: str | None
    plan: Plan | None
    budget_s: float
    fresh: bool
    codecs: tuple[str, ...]
    fallback: str | None
    deadline_s: float
    model_hash: str | None
    checksum: bool
    cache: Path | None
    opening: Opening
    probe_every_s: float | None
    """None: the plan stays what it is."""
    security: Security
    follow: bool

    @property
    def auto(self) -> bool:
        """Whether it is to be planned now."""
        return self.at in (None, "auto", "cut:auto") and self.plan is None

    @property
    def has_options(self) -> bool:
        """Whether there will be a plan with more than one option."""
        return self.cloud is not None and (self.auto or self.plan is not None)

    def local(self, engine: Engine) -> Local:
        """The whole model here."""
        if self.name is None:
            raise UsageError("say which MODEL to run here, or which server has it (--cloud HOST)")
        if self.checksum:
            raise UsageError("--checksum is for what crosses the link: add --cloud HOST")
        asked = self.model_hash or self.codecs or self.plan or self.fallback or self.follow
        if self.at not in (None, "auto", "cut:auto", "output", "cut:output") or asked:
            raise UsageError(
                "--at, --plan, --codec, --fallback, --model-hash and --follow-model are for a server: add --cloud HOST"
            )
        model = self.opening.load(self.name)
        return Local(model, engine)

    def edge(self, engine: Engine) -> Edge:
        """The server, reached; cut as it was asked for, or not at all yet."""
        name, cuts = self.name, self.auto or self.plan is not None
        here = self.opening.load(name) if name and is_local(name) else None
        if here is None:
            self.opening.refuse_local()
        edge = self._connect(
            here or name,
            at="cut:input" if cuts else self.at, codec="raw" if cuts else parse_codecs(self.codecs),
            engine=engine, cache=self.cache, on_event=notice, security=self.security,
            models=ModelPolicy(self.model_hash, self.follow, self.opening.allow_domains),
            wire=WireSettings(checksum=self.checksum),
        )  # fmt: skip
        try:
            if self.at == "auto" and (named := edge.model.graph.meanings("auto")):
                forms = " or ".join(named)
                raise CutError(f"auto is also a name in {edge.model.name}: say --at {forms}, or cut:auto to plan")
            if self.deadline_s and edge.fallback == LOCAL and not edge.local_ready:
                click.echo("fetching all of the model first: only what can be finished here keeps a deadline", err=True)
                edge.pull()
            edge.prepare(self.opening.on)
        except BaseException:
            edge.close()
            raise
        return edge

    def _connect(self, model: Model | str | None, **options: Any) -> Edge:
        """With the fallback that was asked for; else ``local``, or, if the whole model cannot be had, ``wait``."""
        assert self.cloud is not None
        if self.fallback is not None:
            edge = Edge(
                self.cloud, model, fallback=check_fallback(self.fallback), deadline_s=self.deadline_s, **options
            )
            if self.fallback == WAIT:  # who waits gets a late answer, too: from now on its deadline is only counted
                edge.deadline_s = 0.0
            return edge
        try:
            return Edge(self.cloud, model, fallback=LOCAL, deadline_s=self.deadline_s, **options)
        except RefusedError as exc:
            click.echo(f"{exc}: taking wait", err=True)
            return Edge(self.cloud, model, fallback=WAIT, **options)

    def place(self, edge: Edge, engine: Engine, arriving: float, *, degrade: bool, once: bool) -> Placed:
        """Cuts by the plan, or by one that is made now and goes on being made, unless it is said where."""
        if self.plan is not None:
            return follow(edge, self.plan, streamed=arriving > 0, degrade=degrade)
        if not self.auto:
            return Placed()
        watching = None
        if self.probe_every_s is not None and not once:
            # In a stream requests also wait for those before them: what is late there is learned.
            watching = Watching(probe_every_s=self.probe_every_s, predict=arriving == 0, rate=arriving)

        def planned(*, cheaper: bool) -> Placed:
            return place(
                edge, engine, self.codecs, self.budget_s, self.cache, fresh=self.fresh, rate=arriving, degrade=cheaper,
                watching=watching,
            )  # fmt: skip

        edge.when_reached(partial(planned, cheaper=False))
        if edge.reached:
            try:
                return planned(cheaper=degrade)
            except ServerError as exc:
                if not edge.does_without:
                    raise
                edge.plan_later(exc)
                return Placed()
        edge.switch("output")
        notice(Event("notice", "all runs here until the server is there: then it is planned where to cut"))
        return Placed()


# --- what is run ------------------------------------------------------------------------------------------------------


def _arguments(arguments: Sequence[str], source: str | None) -> tuple[str | None, list[str]]:
    """(MODEL or None, what to run): the first argument is the model unless it is plainly an input."""
    if source is not None:
        if len(arguments) > 1 or (arguments and _is_input(arguments[0])):
            raise UsageError(f"--source {redacted(source)} is what is run: give MODEL beside it, and no files")
        return (arguments[0] if arguments else None), [source]
    if not arguments:
        raise UsageError(
            "say what to run: images, .npy/.npz files, a folder, a video, - for standard input, or --source"
        )
    first, rest = arguments[0], list(arguments[1:])
    if _is_input(first):
        return None, [first, *rest]
    if not rest:
        if Path(first).suffix.lower() in MODEL_SUFFIXES or ":" in first or first in SHORT_NAMES:
            raise UsageError(f"say what to run {first} on: images, .npy/.npz files, a folder, or - for standard input")
        raise InputError(f"no such file: {first}")
    return first, rest


def _is_input(text: str) -> bool:
    path = Path(text)
    there = text == "-" or is_stream(text) or (os.path.exists(text) and path.suffix.lower() not in MODEL_SUFFIXES)
    return there and not (text in SHORT_NAMES and not path.is_file())


def _open(files: Sequence[str], fps: float, recursive: bool, reconnect_s: float) -> Source:
    """What to run, opened. UsageError for a video or a camera among others, InputError where nothing is there: before
    anything is profiled for it."""
    if len(files) == 1 and files[0] != "-" and (is_stream(files[0]) or not os.path.exists(files[0])):
        return open_source(
            files[0], rate=fps, recursive=recursive, reconnect_s=reconnect_s, on_event=lambda text: say([text])
        )
    for text in files:
        if is_stream(text) and not os.path.isdir(text):
            raise UsageError(f"{redacted(text)} is a stream of its own: run it alone")
    return Files([Path(f) for f in files], recursive=recursive)


def _labels(source: Source) -> Sequence[str]:
    """Names as wide as those of the table's rows."""
    return [plain(source.label(p)) for p in source.paths] if isinstance(source, Files) else ["frame 00000"]


def check_save(save: Path | None) -> None:
    """UsageError or StorageError unless outputs can be written there."""
    if save is None:
        return
    if save.suffix != ".npz" and not is_special(save):
        raise UsageError(f"--save writes an .npz file: call it {save.stem}.npz")
    check_writable(save)


def is_local(name: str) -> bool:
    """Whether MODEL is on this device, rather than a name the server knows."""
    path = Path(name)
    if path.suffix in (".onnx", ".pt2") or name.startswith("zoo:"):
        return True
    return path.suffix.lower() in MODEL_SUFFIXES and path.exists()  # of another framework: loading it says so


# --- how it is run ----------------------------------------------------------------------------------------------------


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
