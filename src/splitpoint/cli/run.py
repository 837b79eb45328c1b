"""splitpoint run: images in, answers and milliseconds out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import inf
from pathlib import Path

import click

from splitpoint.cli.answers import AnswerRows
from splitpoint.cli.console import say
from splitpoint.cli.fidelity import fidelity_of
from splitpoint.cli.help_pages import verb
from splitpoint.cli.input_files import recursive_option
from splitpoint.cli.options import gathered
from splitpoint.cli.options.codecs import calibration_option, codec_choice_option, fidelity_options
from splitpoint.cli.options.model_options import device_options
from splitpoint.cli.options.output import csv_option, json_option, output_option, wrote
from splitpoint.cli.options.quantities import MS, RATE, SECONDS_OR_0, budget_option
from splitpoint.cli.options.server_options import cloud_option, fresh_option
from splitpoint.cli.run_cut import Asked, Placed
from splitpoint.cli.run_stream import Stream, check_policy, degraded, pacing
from splitpoint.codecs import open_codec
from splitpoint.errors import InputError, UsageError
from splitpoint.files import is_special, write_atomic
from splitpoint.models.foreign import MODEL_SUFFIXES
from splitpoint.models.names import SHORT_NAMES, is_named
from splitpoint.planning.files import load_plan
from splitpoint.report.files import write_csv
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.request import FALLBACKS
from splitpoint.runtime.client.whole_model import Local
from splitpoint.runtime.stream.pacing import DEGRADE, DROP_OLDEST, POLICIES, QUEUE, Feed
from splitpoint.sources import Files, Source, is_stream, open_source, redacted
from splitpoint.text import plain
from splitpoint.units import counted, size

#: Requests under way in a stream where no plan says how many keep everything busy; fewer where frames grow old.
_WINDOW, _FRESH_WINDOW = 8, 4


@verb(
    ("photos through the only model of a server: planned, cut, answered", "run --cloud SERVER photos/"),
    (
        "a camera, each answer within 200 ms, from the server or from here",
        "run yolo --cloud SERVER --source /dev/video0 --deadline 200ms",
    ),
)
@click.argument("arguments", metavar="[MODEL] [FILES|FOLDER|-]", nargs=-1)
@cloud_option(required=False)
@click.option("--source", "source_text", metavar="FOLDER|VIDEO|CAMERA|URL",
              help="Stream this: a folder, a video file, a camera (0, camera:0, /dev/video0 or a link to it), a stream "
                   "of the network (rtsp://…, http://…), or a GStreamer pipeline (… ! appsink). All but a folder need "
                   "splitpoint[video].")  # fmt: skip
@recursive_option
@click.option("--reconnect", "reconnect_s", type=SECONDS_OR_0, default=inf, metavar="TIME",
              help="How long to try a camera or stream again that has gone, such as 5m; 0 ends with it. Default: until "
                   "it is back.")  # fmt: skip
@click.option("--rate", type=RATE, metavar="FPS", help="Give frames at this rate, like a camera, ready or not.")
@click.option("--on-overload", type=click.Choice(POLICIES),
              help="When frames come faster than they are answered: let them wait (queue, default for files), drop the "
                   "oldest (drop-oldest, default for cameras and streams), or use a cheaper codec or cut, and drop "
                   "where none is left (degrade).")  # fmt: skip
@click.option("--deadline", "deadline_ms", type=MS, metavar="TIME",
              help="How long an answer may take, such as 200ms: what the server does not answer by then is finished "
                   "here (see --fallback). Misses are counted, from when a frame came.")  # fmt: skip
@click.option("--fallback", type=click.Choice(FALLBACKS),
              help="When the server is late, gone, busy or wrong: finish here (local, default where the whole model "
                   "can be had), wait for it, or fail (error).")  # fmt: skip
@click.option("--at", metavar="CUT",
              help="A layer, node, tensor, cut number, input (all on the server), output (all on the edge), or auto "
                   "(default): begin with a guess, profile both sides beside requests, and go over to the "
                   "best.")  # fmt: skip
@click.option("--plan", "plan_path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Cut as splitpoint plan -o wrote, instead of planning now.")  # fmt: skip
@budget_option("20s", "How long --at auto profiles in all, half of it a side, beside requests. With 0 it does not: the "
                      "plan is by what earlier runs kept, or a guess.", zero=True)  # fmt: skip
@click.option("--profile-first", is_flag=True, help="Profile before the first request: no answer is by a guess.")
@click.option("--objective", type=click.Choice(("latency", "throughput")),
              help="What --at auto plans for: each answer as soon as can be, or as many a second as can be. Default: "
                   "latency for files and folders, one after the other; for --source, videos, cameras and --rate what "
                   "keeps up with them.")  # fmt: skip
@fresh_option
@click.option("--no-adapt", is_flag=True,
              help="Stay with the plan of --at auto once both sides are profiled, whatever becomes of the "
                   "link.")  # fmt: skip
@click.option(
    "--probe-every", "probe_every_s", type=SECONDS_OR_0, default="1s", show_default=True, metavar="TIME",
    help="How often --at auto looks at an idle link, with at most 1 % of what it carries; 0 is never.",
)  # fmt: skip
@codec_choice_option
@fidelity_options
@calibration_option
@output_option("Keep all outputs.", "--save", "save", metavar="FILE.npz")
@csv_option("Write a row an answer.")
@click.option("--model-hash", metavar="HEX", help="Refuse any model but the one with this fingerprint.")
@click.option("--follow-model", is_flag=True,
              help="When the server comes back with a newer model of that name, fetch it and go over to it between two "
                   "requests.")  # fmt: skip
@click.option("--checksum", is_flag=True,
              help="Every frame carries a CRC-32: what was changed on its way is no answer. (TCP's own checksum has 16 "
                   "bits.)")  # fmt: skip
@json_option
@device_options
@gathered("asked", Asked)
def command(
    arguments: tuple[str, ...], source_text: str | None, recursive: bool, reconnect_s: float, rate: float | None,
    on_overload: str | None, save: Path | None, csv_path: Path | None, as_json: bool, asked: Asked,
) -> None:  # fmt: skip
    """Run images, tensors (.npy, .npz) or token ids (.ids, .txt) through a model cut at CUT.

    Without MODEL the server's only model is used. The edge needs no model file: it fetches the graph and its
    half's weights once. A video, a camera, rtsp://… and --source are streamed: edge, link and server work at the same
    time, and Ctrl-C answers what is under way before it ends. Without --cloud all runs here.
    """
    if (asked.objective or asked.profile_first) and (asked.cloud is None or asked.plan_path or not asked.auto):
        raise UsageError("--objective and --profile-first are for --at auto: give --cloud, and no --at CUT or --plan")
    if not asked.budget_s and (asked.profile_first or (on_overload == DEGRADE and not asked.plan_path)):
        raise UsageError("with a budget of 0 nothing is profiled: --profile-first and --on-overload degrade need more")
    if asked.plan_path and (asked.at or asked.codecs):
        raise UsageError("--plan says where to cut and how: --at and --codec are for runs without it")
    fps = rate or 0.0
    name, files = _arguments(arguments, source_text)
    if save is not None and save.suffix != ".npz" and not is_special(save):
        raise UsageError(f"--save writes an .npz file: call it {save.stem}.npz")
    asked = replace(asked, name=name, plan=load_plan(asked.plan_path) if asked.plan_path else None)
    with ExitStack() as stack:
        source = _open(files, fps, recursive, reconnect_s)
        stack.callback(source.close)
        skipped, labels = 0, ["frame 00000"]  # as wide as those of the table's rows
        if isinstance(source, Files):
            say(*source.input_files.reasons)
            skipped, labels = source.input_files.skipped, [plain(source.label(path)) for path in source.paths]
        streamed = fps > 0 or source.live or any(is_stream(f) for f in files)
        streamed = streamed or (asked.objective == "throughput" and source.count != 1)
        # A folder is its files: who gives one looks at each photo's answer and milliseconds. Where frames come at a
        # rate, or --source or --objective wants many, they are under way together.
        objective = asked.objective or ("latency" if isinstance(source, Files) and source_text is None else "")
        planned = asked.auto and asked.cloud is not None
        singly = planned and not (fps or source.live) and objective == "latency"
        # Without a server photos under way together would only wait for each other.
        streamed = streamed and not (asked.cloud is None and objective == "latency" and not fps)
        policy = on_overload or (DROP_OLDEST if source.live else QUEUE)
        check_policy(on_overload, source, fps, has_options=asked.has_options)
        engine = asked.here.choice.open()
        placed = Placed()
        runner: Edge | Local
        if asked.cloud is None:
            runner = stack.enter_context(asked.local(engine))
        else:
            runner = stack.enter_context(asked.edge(engine))
            arriving = (fps or source.rate or inf) if streamed and not singly else 0.0
            placed = asked.place(runner, arriving, degrade=policy == DEGRADE, once=source.count == 1)
        feed = Feed(
            source, live=source.live, rate=fps, policy=policy, levels=len(placed.cheaper),
            moved=lambda level: degraded(runner, placed, level), captured_s=lambda frame: frame.captured_s,
        )  # fmt: skip
        if feed.paced:
            then = DROP_OLDEST if policy == DEGRADE and not placed.cheaper else policy  # which has been said
            say(pacing(source, fps, then, asked=on_overload is not None))
        rows = AnswerRows(
            lambda: runner.model.input_spec, labels, lambda: describe(runner, asked.cloud), as_json=as_json,
            keep=save is not None, in_rows=csv_path is not None,
            fidelity=fidelity_of(runner) if isinstance(runner, Edge) else None,
        )  # fmt: skip
        stream = Stream(runner, rows, feed, source.count, asked.deadline_s)
        try:
            if streamed:
                window = 1 if singly else placed.window(_FRESH_WINDOW if feed.paced else _WINDOW)
                stream.all_at_once(window)
            else:
                stream.one_by_one()
        finally:
            # Whatever ended the run, what was answered is not lost.
            if save and rows.outputs:
                write_atomic(save, rows.saved())
                say(f"wrote {save} ({counted(len(rows.outputs), 'input')})")
            if csv_path and rows.flat:
                write_csv(csv_path, rows.flat, rows.columns)
                wrote(csv_path)
            stream.conclude(streamed=streamed, policy=policy)
            if skipped:  # what was said at the beginning may be a thousand lines away
                say(f"{skipped} beside them not read (said at the beginning)")
    stream.check()


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
        if Path(first).suffix.lower() in MODEL_SUFFIXES or ":" in first or is_named(first):
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


def describe(edge: Edge | Local, address: str | None) -> str:
    """Two lines: which model and server; where it is cut and what crosses."""
    cut, model = edge.cut, edge.model
    codecs = {n: open_codec(c) for n, c in edge.codecs.items()} if isinstance(edge, Edge) else {}
    ways = {name: f" as {codec.name}" for name, codec in codecs.items()}
    crossing = " + ".join(f"{t.name} {t.type}{ways.get(t.name, '')}" for t in cut.crossing)
    nbytes = sum(codecs[t.name].nbytes(t) if t.name in codecs else t.nbytes for t in cut.crossing)
    about = "" if all(c.sized for c in codecs.values()) else "about "
    crosses = f"{crossing} crosses ({about}{size(nbytes)})" if crossing else "nothing crosses"
    place = f"server {address}" if address else "no server"
    return (
        f"{model.name} {model.fingerprint[:12]}, {place}\n"
        f"cut at {cut.name}: {len(cut.nodes)} of {len(model.graph.placed)} nodes here, {crosses}"
    )
