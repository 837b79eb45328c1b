"""splitpoint run: images in, answers and milliseconds out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import click

from splitpoint.cli.console import say
from splitpoint.cli.input_files import recursive_option
from splitpoint.cli.options.codecs import codec_choice_option, parse_codecs
from splitpoint.cli.options.engine import EngineChoice, engine_options
from splitpoint.cli.options.model_options import Opening, model_options
from splitpoint.cli.options.output import OUTPUT, json_option
from splitpoint.cli.options.quantities import MS, RATE, SECONDS_OR_0, budget_option
from splitpoint.cli.options.server_options import cache_option, cloud_option, fresh_option
from splitpoint.cli.run_cut import Placed, follow, plan_itself
from splitpoint.cli.run_rows import AnswerRows
from splitpoint.cli.run_stream import Stream, check_policy, degraded, pacing
from splitpoint.codecs import Codec, open_codec
from splitpoint.engines import Engine
from splitpoint.errors import CutError, InputError, RefusedError, UsageError
from splitpoint.files import is_special, write_atomic
from splitpoint.models.foreign import MODEL_SUFFIXES
from splitpoint.models.model import Model
from splitpoint.models.names import SHORT_NAMES
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.files import load_plan
from splitpoint.planning.plans import Plan
from splitpoint.runtime.adapt.controller import Watching
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import AutoPlan, ModelPolicy
from splitpoint.runtime.client.request import FALLBACKS, LOCAL, WAIT, check_fallback
from splitpoint.runtime.client.whole_model import Local
from splitpoint.runtime.client.wire_remote import WireSettings
from splitpoint.runtime.stream.pacing import DEGRADE, DROP_OLDEST, POLICIES, QUEUE, Feed
from splitpoint.security import Security
from splitpoint.sources import Files, Source, is_stream, open_source, redacted
from splitpoint.text import plain
from splitpoint.units import counted, size

#: Requests under way in a stream where no plan says how many keep everything busy; fewer where frames grow old.
_WINDOW, _FRESH_WINDOW = 8, 4


@click.command()
@click.argument("arguments", metavar="[MODEL] [FILES|FOLDER|-]", nargs=-1)
@cloud_option(required=False)
@click.option(
    "--source", "source_text", metavar="FOLDER|VIDEO|CAMERA|URL",
    help="Stream this: a folder, a video file, a camera (0, camera:0, /dev/video0 or a link to it), a stream of the "
    "network (rtsp://…, http://…), or a GStreamer pipeline (… ! appsink). All but a folder need splitpoint[video].",
)  # fmt: skip
@recursive_option
@click.option(
    "--reconnect", "reconnect_s", type=SECONDS_OR_0, default=inf, metavar="TIME",
    help="How long to try a camera or stream again that has gone, such as 5m; 0 ends with it. Default: until it is "
    "back.",
)  # fmt: skip
@click.option("--rate", type=RATE, metavar="FPS", help="Give frames at this rate, like a camera, ready or not.")
@click.option(
    "--on-overload", type=click.Choice(POLICIES),
    help="When frames come faster than they are answered: let them wait (queue, default for files), drop the oldest "
    "(drop-oldest, default for cameras and streams), or use a cheaper codec or cut, and drop where none is left "
    "(degrade).",
)  # fmt: skip
@click.option(
    "--deadline", "deadline_ms", type=MS, metavar="TIME",
    help="How long an answer may take, such as 200ms: what the server does not answer by then is finished here (see "
    "--fallback). Misses are counted, from when a frame came.",
)  # fmt: skip
@click.option(
    "--fallback", type=click.Choice(FALLBACKS),
    help="When the server is late, gone, busy or wrong: finish here (local, default where the whole model can be had), "
    "wait for it, or fail (error).",
)  # fmt: skip
@click.option(
    "--at", metavar="CUT",
    help="A layer, node, tensor, cut number, input (all on the server), output (all on the device), or auto (default): "
    "begin with a guess, profile both sides beside the requests, and go over to the best.",
)  # fmt: skip
@click.option(
    "--plan", "plan_path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Cut as splitpoint plan -o wrote, instead of planning now.",
)  # fmt: skip
@budget_option(
    "20s", "How long --at auto profiles in all, half of it a side, beside requests. With 0 it does not: the plan is by "
    "what earlier runs kept, or a guess.", zero=True,
)  # fmt: skip
@click.option("--profile-first", is_flag=True, help="Profile before the first request: no answer is by a guess.")
@fresh_option
@click.option(
    "--no-adapt", is_flag=True,
    help="Stay with the plan of --at auto once both sides are profiled, whatever becomes of the link.",
)  # fmt: skip
@click.option(
    "--probe-every", "probe_every_s", type=SECONDS_OR_0, default="1s", show_default=True, metavar="TIME",
    help="How often --at auto looks at an idle link, with at most 1 % of what it carries; 0 is never.",
)  # fmt: skip
@codec_choice_option
@click.option("--save", type=OUTPUT, metavar="FILE.npz", help="Keep all outputs.")
@click.option("--model-hash", metavar="HEX", help="Refuse any model but the one with this fingerprint.")
@click.option(
    "--follow-model", is_flag=True,
    help="When the server comes back with a newer model of that name, fetch it and go over to it between two requests.",
)  # fmt: skip
@click.option(
    "--checksum", is_flag=True,
    help="Every frame carries a CRC-32: what was changed on its way is no answer. (TCP's own checksum has 16 bits.)",
)  # fmt: skip
@json_option
@cache_option
@engine_options
@model_options
def command(
    arguments: tuple[str, ...], cloud: str | None, security: Security, source_text: str | None, recursive: bool,
    reconnect_s: float, rate: float | None, on_overload: str | None, deadline_ms: float | None, fallback: str | None,
    at: str | None, plan_path: Path | None, budget_s: float, profile_first: bool, fresh: bool, no_adapt: bool,
    probe_every_s: float, codecs: tuple[str, ...], save: Path | None, checksum: bool, follow_model: bool,
    model_hash: str | None, as_json: bool, cache: Path | None, choice: EngineChoice, opening: Opening,
) -> None:  # fmt: skip
    """Run images, tensors (.npy, .npz) or token ids (.ids, .txt) through a model cut at CUT.

    Without MODEL the server's only model is used. The device needs no model file: it fetches the graph and its
    half's weights once. A folder, a video, a camera and rtsp://… are streamed: device, link and server work at the same
    time, and Ctrl-C answers what is under way before it ends. Without --cloud all runs here.
    """
    if plan_path and (at or codecs):
        raise UsageError("--plan says where to cut and how: --at and --codec are for runs without it")
    fps = rate or 0.0
    name, files = _arguments(arguments, source_text)
    if save is not None and save.suffix != ".npz" and not is_special(save):
        raise UsageError(f"--save writes an .npz file: call it {save.stem}.npz")
    asked = Asked(
        name, cloud, at, load_plan(plan_path) if plan_path else None, budget_s, profile_first, fresh, codecs,
        fallback, (deadline_ms or 0.0) / 1e3, model_hash, checksum, cache, opening,
        None if no_adapt else probe_every_s, security, follow_model,
    )  # fmt: skip
    with ExitStack() as stack:
        source = _open(files, fps, recursive, reconnect_s)
        stack.callback(source.close)
        skipped = 0
        if isinstance(source, Files):
            say(*source.input_files.reasons)
            skipped = source.input_files.skipped
        streamed = fps > 0 or source.live or any(is_stream(f) for f in files)
        policy = on_overload or (DROP_OLDEST if source.live else QUEUE)
        check_policy(on_overload, source, fps, has_options=asked.has_options)
        engine = choice.open()
        placed = Placed()
        runner: Edge | Local
        if cloud is None:
            runner = stack.enter_context(asked.local(engine))
        else:
            runner = stack.enter_context(asked.edge(engine))
            arriving = (fps or source.rate or inf) if streamed else 0.0
            placed = asked.place(runner, arriving, degrade=policy == DEGRADE, once=source.count == 1)
        feed = Feed(
            source, live=source.live, rate=fps, policy=policy, levels=len(placed.cheaper),
            moved=lambda level: degraded(runner, placed, level), captured_s=lambda frame: frame.captured_s,
        )  # fmt: skip
        if feed.paced:
            then = DROP_OLDEST if policy == DEGRADE and not placed.cheaper else policy  # which has been said
            say(pacing(source, fps, then, asked=on_overload is not None))
        rows = AnswerRows(
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
                say(f"wrote {save} ({counted(len(rows.outputs), 'input')})")
            stream.conclude(streamed=streamed, policy=policy)
            if skipped:  # what was said at the beginning may be a thousand lines away
                say(f"{skipped} beside them not read (said at the beginning)")
    stream.check()


@dataclass(frozen=True)
class Asked:
    """What the command line says of the model, and of where and how it runs."""

    name: str | None
    cloud: str | None
    at: str | None
    plan: Plan | None
    budget_s: float
    profile_first: bool
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
        cuts = self.auto or self.plan is not None
        edge = self._connect(
            self.opening.here(self.name) or self.name,
            at="cut:input" if cuts else self.at, codec="raw" if cuts else parse_codecs(self.codecs),
            engine=engine, cache=self.cache, on_event=say, security=self.security,
            models=ModelPolicy(self.model_hash, self.follow, self.opening.allow_domains),
            wire=WireSettings(checksum=self.checksum),
        )  # fmt: skip
        try:
            if self.at == "auto" and (named := edge.model.graph.meanings("auto")):
                forms = " or ".join(named)
                raise CutError(f"auto is also a name in {edge.model.name}: say --at {forms}, or cut:auto to plan")
            if self.deadline_s and edge.fallback == LOCAL and not edge.local_ready:
                say("fetching all of the model first: only what can be finished here keeps a deadline")
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
            say(f"{exc}: taking wait")
            return Edge(self.cloud, model, fallback=WAIT, **options)

    def place(self, edge: Edge, arriving: float, *, degrade: bool, once: bool) -> Placed:
        """Cuts by the plan, or by one that is made now and goes on being made, unless it is said where. For one photo
        (`once`) nothing is measured beside it, as nothing comes after it."""
        if self.plan is not None:
            return follow(edge, self.plan, streamed=arriving > 0, degrade=degrade)
        if not self.auto:
            return Placed()
        if any("=" in codec for codec in self.codecs):
            raise UsageError("with --at auto the planner chooses what crosses: give --codec NAME, not TENSOR=NAME")
        probe_every_s = self.probe_every_s if self.probe_every_s is not None else 0.0
        # In a stream requests also wait for those before them: what is late there is learned.
        how = AutoPlan(
            0.0 if once and not self.profile_first else self.budget_s, Constraints(codecs=self.codecs),
            Watching(probe_every_s=probe_every_s, predict=arriving == 0, rate=arriving), self.profile_first, self.fresh,
            adapt=self.probe_every_s is not None and not once,
        )  # fmt: skip
        return plan_itself(edge, how, degrade=degrade)


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
        return open_source(files[0], rate=fps, recursive=recursive, reconnect_s=reconnect_s, on_event=say)
    for text in files:
        if is_stream(text) and not os.path.isdir(text):
            raise UsageError(f"{redacted(text)} is a stream of its own: run it alone")
    return Files([Path(f) for f in files], recursive=recursive)


def _labels(source: Source) -> Sequence[str]:
    """Names as wide as those of the table's rows."""
    return [plain(source.label(p)) for p in source.paths] if isinstance(source, Files) else ["frame 00000"]


# --- how it is run ----------------------------------------------------------------------------------------------------


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
