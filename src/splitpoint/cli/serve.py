"""splitpoint serve: the server side, and its log: a thread of its own writes the lines, so that no request waits for a
slow reader or fails with it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import click

from splitpoint import install
from splitpoint.calibration.calibrations import Calibration
from splitpoint.calibration.files import load_calibration
from splitpoint.calibration.tables import tables_of
from splitpoint.cli import signals
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.codecs import calibration_for, calibrations_option
from splitpoint.cli.options.model_options import Here, Opening, running_options
from splitpoint.cli.options.quantities import HOUR_OR_0, MS_OR_0, SECONDS, SIZE
from splitpoint.cli.options.server_options import port_option, server_security_options
from splitpoint.cli.stdio import ReaderGone, silence
from splitpoint.engines.process_memory import few_arenas
from splitpoint.errors import ModelError, SplitpointError, UsageError
from splitpoint.machine import half_the_memory
from splitpoint.models.model import Model
from splitpoint.models.names import SHORT_NAMES, with_weights
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.security import ServerSecurity
from splitpoint.text import plain
from splitpoint.units import counted, size
from splitpoint.wire import DEFAULT_PORT, Limits

#: How long the end waits for answers that are being computed or sent.
_DRAIN_S = 10.0
#: Events that only --verbose shows: without it, a connection is one line.
_DETAILS = frozenset({"listening", "opened", "evicted", "batched", "left", "fetched"})
#: Lines that wait for a reader that does not read (a stopped pager, a pipe that is full); the oldest are then lost.
_HELD = 1000
#: How long the last lines may take.
_LAST_S = 1.0


class Log:
    """Lines for standard output and error, written by a thread of its own."""

    def __init__(self) -> None:
        self._lines: deque[tuple[str, bool]] = deque(maxlen=_HELD)
        self._lost = 0
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)

    def __enter__(self) -> Log:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Waits a moment for what is not written yet."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(_LAST_S)
        if self._thread.is_alive():  # nobody reads: the process must end all the same
            for stream in (sys.stdout, sys.stderr):
                silence(stream.fileno())

    def say(self, text: str, *, err: bool = False) -> None:
        """One more line; from any thread, at once."""
        with self._changed:
            self._lost += len(self._lines) == _HELD
            self._lines.append((text, err))
            self._changed.notify()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._ended)
                if not self._lines:
                    return
                (text, err), lost = self._lines.popleft(), self._lost
                self._lost = 0
            if lost:
                self._echo(f"{counted(lost, 'line')} of this log were lost: it was not read", err)
            self._echo(text, err)

    def _echo(self, text: str, err: bool) -> None:
        try:
            click.echo(text, err=err)
        except ReaderGone:  # from now on it goes nowhere
            click.echo("splitpoint: nobody reads the log on standard output any more; serving goes on", err=True)
        except (SplitpointError, OSError, ValueError) as exc:
            click.echo(f"splitpoint: {exc}; serving goes on", err=True)


@verb(
    ("for this machine alone", "serve zoo:efficientnet_lite0"),
    (
        "for other machines: TLS and a token, which splitpoint keys makes",
        "serve yolo.onnx --host 0.0.0.0 --tls-cert lab/server.pem --tls-key lab/server.key --token-file lab/token",
    ),
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on; 0.0.0.0: every one, ::: those of IPv6 too.")  # fmt: skip
@port_option(DEFAULT_PORT, "0: any free one.")
@click.option("--verbose", is_flag=True, help="Also say what was opened, fetched and evicted, and who left.")
@click.option("--share", multiple=True, default=("model",), metavar="model|head:CUT|none",
              help="What edges may fetch: everything (default), the graph and the weights of the head up to CUT, "
                   "behind which nothing is cut then, or nothing (they bring the model). head:MODEL=CUT for one of "
                   "several models.")  # fmt: skip
@click.option("--max-profile", type=HOUR_OR_0, default=f"{Limits.profile_s:g}s", show_default=True, metavar="TIME",
              help="How long it measures itself when an edge asks for its profile; 0: it refuses.")  # fmt: skip
@click.option("--queue", type=click.IntRange(1, 1_000_000), default=Limits.queue, show_default=True, metavar="N",
              help="Requests that may wait for their turn; more are told that the server is busy.")  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 1_000_000), default=Limits.connections, show_default=True,
              metavar="N",
              help="Edges that may be connected at once.")  # fmt: skip
@click.option(
    "--client-connections", type=click.IntRange(1, 1_000_000), default=Limits.client_connections, show_default=True,
    metavar="N", help="How many of these may come from one address: more for a fleet behind one router.",
)  # fmt: skip
@click.option("--max-batch", type=click.IntRange(1, 1024), default=8, show_default=True, metavar="N",
              help="Most requests for one tail that run as one batch when they wait at the same time, where that is "
                   "measured to be faster; 1: none do.")  # fmt: skip
@click.option("--max-wait", "max_wait_ms", type=MS_OR_0, metavar="TIME",
              help="How long a request waits for others to join its batch, such as 2ms; 0: it never does. Default: "
                   "while that pays, by what batches save and how soon edges ask again; one alone never "
                   "waits.")  # fmt: skip
@click.option("--max-work", type=SIZE, metavar="SIZE",
              help="Memory that one request may take while it is computed, such as 4GiB; at least what one row takes, "
                   "whatever this says. Default: 1 GiB, or half the memory if that is less.")  # fmt: skip
@click.option("--max-run", type=SECONDS, default=f"{Limits.run_s:g}s", show_default=True, metavar="TIME",
              help="How long one request may be computed, or 20 times what others like it took (5 s at least) if that "
                   "is less.")  # fmt: skip
@click.option(
    "--until-stdin-ends", is_flag=True, hidden=True, help="End when standard input does: with who started it."
)
@calibrations_option
@server_security_options
@running_options
def command(
    models: tuple[str, ...], host: str, port: int, security: ServerSecurity, verbose: bool, share: tuple[str, ...],
    calibs: tuple[Path, ...],
    max_profile: float, queue: int, connections: int, client_connections: int, max_batch: int,
    max_wait_ms: float | None, max_work: float | None, max_run: float, until_stdin_ends: bool, here: Here,
) -> None:  # fmt: skip
    """Serve one or more MODELs to edges. A folder stands for every .onnx file in it that can be read.

    Hands out graphs and weights by hash, builds the tail of whatever cut an edge asks for, and runs it. Several
    versions of a model may be served at once. Ctrl-C or SIGTERM answers what is in flight and ends.
    """
    if (len(models) > 1 or any(map(_is_folder, models))) and here.opening:
        raise UsageError(
            "--shape, --weights, --input-spec, --input and --value describe one model: export or serve each by itself; "
            f"weights may stand behind each: {install.command()} serve {' '.join(_weighted(models, here.opening))}"
        )
    limits = Limits(
        profile_s=max_profile, queue=queue, connections=connections, client_connections=client_connections,
        memory_bytes=half_the_memory(Limits.memory_bytes), run_s=max_run,
        work_bytes=int(max_work) if max_work else half_the_memory(Limits.work_bytes),
    )  # fmt: skip
    named = []
    for name in models:
        try:
            named += _loaded(name, here.opening)
        except ModelError as exc:
            raise exc if len(models) == 1 else ModelError(_naming(name, exc)) from exc
    loaded = [model for _, model in named]
    calibrations = _calibrations(named, calibs)
    few_arenas()
    engine = here.choice.open()

    with Log() as log:

        def tell(event: Event) -> None:
            if verbose or event.kind not in _DETAILS:
                log.say(str(event), err=event.kind == "warning")

        server = Server(
            loaded, host=host, port=port, engine=engine, share=share, calibrations=calibrations, limits=limits,
            max_batch=max_batch, max_wait_s=None if max_wait_ms is None else max_wait_ms / 1e3, security=security,
            on_event=tell,
        )  # fmt: skip
        stop = threading.Event()
        came = _stop_by_signal(stop)
        if until_stdin_ends:
            threading.Thread(target=_read_to_the_end, args=(stop,), daemon=True).start()
        with server:
            for model in loaded:
                known_as = server.catalogue[model.fingerprint].name
                about = f"{size(model.nbytes)} of weights  {model.source}".rstrip()
                if known_as != model.name:
                    about = f"the same model as {known_as}"
                log.say(f"{model.name} {model.fingerprint[:12]}  {about}")
            for fingerprint, tables in server.catalogue.tables.items():
                log.say(f"{server.catalogue[fingerprint].name}: tables of {counted(len(tables), 'tensor')} for klt")
            for text in server.sharing.said:
                log.say(text)
            threads_of = counted(engine.threads, "thread")
            where = f"{server.address}{' (and every other address of this machine)' if server.everywhere else ''}"
            log.say(f"serving on {where} with {engine.name} on {engine.device}, {threads_of}")
            if security.certificate is not None or security.token:
                log.say(_lets_in(security))
            # In turns: a signal that the kernel gives to another thread does not wake this one.
            while not stop.wait(0.5):
                pass
            log.say("answering what is in flight, then ending")
            server.close(drain_s=_DRAIN_S)
    if server.hanging:  # Python would wait for it, and ONNX Runtime be taken apart under it
        os._exit(signals.said(came[0])[1] if came else 1)


def _stop_by_signal(stop: threading.Event) -> list[int]:
    """The first signal sets `stop`, and is put into the list; another one ends it at once. A SIGHUP that is ignored
    (nohup) stays ignored."""
    came: list[int] = []

    def hear(number: int, _: object) -> None:
        if stop.is_set():
            signals.at_once(number, None)
        came.append(number)
        stop.set()

    for number in signals.HANDLED:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, hear)
    return came


def _weighted(models: Sequence[str], opening: Opening) -> list[str]:
    """The models, each with the weights that were given for all."""
    weights = opening.weights or "random"
    return [name if _is_folder(name) or with_weights(name)[1] else f"{name}@{weights}" for name in models]


def _is_folder(name: str) -> bool:
    return name not in SHORT_NAMES and Path(name).is_dir()


def _calibrations(named: Sequence[tuple[str, Model]], given: Sequence[Path]) -> list[Calibration]:
    """Those of files that are `given`, each of one of the models, and for the other models what lies beside them."""
    by_fingerprint: dict[str, Calibration] = {}
    for path in given:
        calibration = load_calibration(path)
        its = next((model for _, model in named if model.fingerprint == calibration.fingerprint), named[0][1])
        tables_of(calibration, its, str(path))
        by_fingerprint[its.fingerprint] = calibration
    for name, model in named:
        if model.fingerprint not in by_fingerprint and (found := calibration_for(name, None, model)) is not None:
            by_fingerprint[model.fingerprint] = found
    return list(by_fingerprint.values())


def _loaded(name: str, opening: Opening) -> list[tuple[str, Model]]:
    """The model of that name, or those in the folder: a broken one is named, and the others are served."""
    if not _is_folder(name):
        return [(name, opening.load(name))]
    paths, loaded = sorted(Path(name).glob("*.onnx")), []
    for path in paths:
        try:
            loaded.append((str(path), Opening(allow_domains=opening.allow_domains).load(str(path))))
        except SplitpointError as exc:
            click.echo(plain(f"not served: {_naming(str(path), exc)}"), err=True)
    if not loaded:
        raise ModelError(f"the folder {name} has no {'.onnx file' if not paths else 'model that can be served'}")
    return loaded


def _naming(name: str, exc: SplitpointError) -> str:
    """What is wrong with one of several models, whose name is in it."""
    return str(exc) if name in str(exc) else f"{name}: {exc}"


def _lets_in(security: ServerSecurity) -> str:
    """Who may come in, and how."""
    wanted = {"TLS": security.certificate, "a certificate": security.client_ca, "the token": security.token}
    return f"edges need {' and '.join(name for name, needed in wanted.items() if needed)}"


def _read_to_the_end(stop: threading.Event) -> None:
    # Not sys.stdin: its lock must be free when Python ends.
    try:
        while os.read(0, 4096):
            pass
    finally:  # also where it cannot be read
        stop.set()
