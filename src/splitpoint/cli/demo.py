"""splitpoint demo: a server process and a device process on this machine, and the proof that the answers are right."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from splitpoint.cli import answers
from splitpoint.cli.console import out
from splitpoint.cli.run import describe
from splitpoint.engines import open_engine
from splitpoint.errors import ServerError, VerifyError
from splitpoint.inputs import input_spec, read_inputs
from splitpoint.models import load
from splitpoint.models.zoo import photos
from splitpoint.runtime.edge import Edge
from splitpoint.runtime.result import Request
from splitpoint.segments import compare
from splitpoint.tensors import Array
from splitpoint.trace import Recorder

MODEL = "zoo:efficientnet_lite0"


@click.command(short_help="See it work: a server, a device, four photos, one minute.")
@click.option("--at", default="middle", show_default=True, metavar="CUT", help="Where to cut.")
def command(at: str) -> None:
    """Cut EfficientNet-Lite0 in the middle and run four photos through both halves.

    A second process serves the tail on loopback; this one fetches its head from it, as a device would, into an
    empty cache. Then the whole model runs here, uncut, and the answers are compared.
    """
    threads = max(1, (os.cpu_count() or 2) // 2)
    with tempfile.TemporaryDirectory(prefix="splitpoint-demo-") as folder, _server(threads) as address:
        click.echo(f"server process: splitpoint serve {MODEL}, listening on {address}")
        with Edge(address, at=at, engine=open_engine(threads=threads), cache=Path(folder)) as edge:
            click.echo(f"device process: {describe(edge, address)}\n")
            got = _run(edge)
        _prove(edge, got, threads)
    click.echo(_NEXT)


def _run(edge: Edge) -> Sequence[Mapping[str, Array]]:
    spec = input_spec(edge.model)
    lines = answers.Lines(out().width, [p.name for p in photos()])
    click.echo(lines.header())
    edge.infer(read_inputs(edge.model, photos()[0]))  # the first run of a network allocates: not shown
    got = []
    for photo in photos():
        recorder = Recorder()
        with recorder.span("prepare"):
            inputs = read_inputs(edge.model, photo)
        result = edge.infer(Request(inputs, tuple(recorder.spans)))
        got.append(result.outputs)
        text = answers.answer(result.outputs, spec)
        click.echo(lines.row(photo.name, text, result.trace))
    click.echo(lines.medians() + "\n")
    return got


def _prove(edge: Edge, got: Sequence[Mapping[str, Array]], threads: int) -> None:
    model = load(MODEL)
    if model.fingerprint != edge.model.fingerprint:
        raise VerifyError("the server's model is not the zoo's: is another version of splitpoint running?")
    whole = open_engine(threads=threads).compile(model.whole())
    expected = [whole.run(read_inputs(model, p)) for p in photos()]
    check = compare(model, edge.cut, expected, got)
    if not check.ok:
        raise VerifyError(f"the cut model's answers differ from the whole model's: {check}")
    click.echo(
        f"The uncut model gives the same answers for all {len(got)} photos: the largest difference is\n"
        f"{check.error:.1e} of what changes from photo to photo (rounding)."
    )


@contextmanager
def _server(threads: int) -> Iterator[str]:
    """Address of a `splitpoint serve` process of our own, which is ended at the end."""
    arguments = [
        sys.executable,
        "-u",
        "-m",
        "splitpoint",
        "serve",
        MODEL,
        "--port",
        "0",
        "--threads",
        str(threads),
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        said: list[str] = []
        while True:
            try:
                line = lines.get(timeout=60)
            except queue.Empty:
                raise ServerError("the demo's server did not start within a minute") from None
            if line is None:
                raise ServerError("the demo's server ended at once: " + " ".join(said[-3:]))
            said.append(line.strip())
            if line.startswith("serving on "):
                yield line.split()[2]
                return
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        process.stdout.close()


def _read(stream: Iterator[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


_NEXT = """
Next:
  splitpoint inspect zoo:efficientnet_lite0         what would cross the link at each layer
  splitpoint serve zoo:efficientnet_lite0           on the server (loopback until --host says otherwise)
  splitpoint run --cloud HOST photo.jpg             on the device: it fetches its half by itself
  splitpoint sweep efficientnet_lite0 --cloud HOST  measure every split point
  splitpoint verify model.onnx                      prove the cuts of your own model
  splitpoint doctor                                 what this machine can run on"""
