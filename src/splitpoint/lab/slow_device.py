"""A slower device, emulated: an engine whose runs take longer, or a whole command of which that, or a CPU limit, holds.

>>> Stretched(open_engine(threads=1), 4).note              # every run takes four times as long
'emulated: 4x slower by waiting after every run of the engine'

    with slowed(4) as slow:                                # the same for a command of splitpoint
        slow.start([sys.executable, "-m", "splitpoint", "profile", "zoo:lenet5"]).wait()

Waiting is repeatable for any length of run, but slows only what the engine computes. A CPU limit slows every command,
and Python too, but by shares of a period: what takes less than the share runs at full speed, then waits.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

from splitpoint import cgroup
from splitpoint.engines import Engine, Session
from splitpoint.engines.stretch import LIMIT, SLOWDOWN, check_factor, sleep_until, slowdown
from splitpoint.errors import EngineError, UsageError
from splitpoint.machine import EMULATED
from splitpoint.models.model import Segment
from splitpoint.tensors import Array

#: ``stretched`` waits after every run of the engine, ``limit`` is the first of ``quota`` and ``stop`` that works.
METHODS = ("auto", "stretched", "limit", "quota", "stop")

_PERIOD_MS = 10.0
#: The least the kernel grants in a period, and the least for which starting and stopping a process is exact enough.
LEAST_QUOTA_MS, LEAST_RUN_MS = 1.0, 2.0


# --- an engine that takes longer ------------------------------------------------------------------------------------


class Stretched:
    """An engine (splitpoint.engines) whose every run takes `factor` times as long as it computed.

    `factor` may be set at any time and holds from the next run on; 1 is as fast as it is.
    """

    def __init__(
        self, engine: Engine, factor: float, *, clock: Callable[[], float] = time.perf_counter,
        wait_until: Callable[[float], None] | None = None,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self.factor = factor
        self.clock = clock
        self.wait_until = wait_until or sleep_until

    @property
    def factor(self) -> float:
        return self._factor

    @factor.setter
    def factor(self, factor: float) -> None:
        self._factor = check_factor(factor, least=1.0)

    @property
    def note(self) -> str:
        """What a measurement with it must say; empty at factor 1."""
        return _stretched_note(self.factor) if self.factor > 1 else ""

    def compile(self, segment: Segment) -> _StretchedSession:
        return _StretchedSession(self.engine.compile(segment), self)


class _StretchedSession:
    def __init__(self, session: Session, engine: Stretched) -> None:
        self.inputs, self.outputs, self.nbytes = session.inputs, session.outputs, session.nbytes
        self._session, self._engine = session, engine

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        began = self._engine.clock()
        outputs = self._session.run(inputs)
        ended = self._engine.clock()
        if self._engine.factor > 1:
            self._engine.wait_until(began + (ended - began) * self._engine.factor)
        return outputs

    def close(self) -> None:
        self._session.close()


def _stretched_note(factor: float) -> str:
    return f"emulated: {factor:g}x slower by waiting after every run of the engine"


# --- a CPU limit for a command ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """`run_ms` of processor time in every `period_ms`."""

    run_ms: float
    period_ms: float


def share(factor: float, least_ms: float, threads: int = 1) -> Share:
    """What `threads` busy threads may use so that each computes `factor` times slower.

    The period is 10 ms, and longer where the share would be less than `least_ms`.

    >>> share(4, least_ms=1), share(16, least_ms=2)
    (Share(run_ms=2.5, period_ms=10.0), Share(run_ms=2.0, period_ms=32.0))
    """
    period = max(_PERIOD_MS, least_ms * factor / threads)
    return Share(period * threads / factor, period)


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A folder of the control groups' file system where a group may be made. `version` 1 or 2."""

    version: int
    folder: Path

    def limit(self, group: Path, share: Share) -> None:
        """Bounds `group`. OSError where that is not allowed, or the group has no CPU controller."""
        quota, period = round(share.run_ms * 1e3), round(share.period_ms * 1e3)
        if self.version == 2:
            _write(group / "cpu.max", f"{quota} {period}")
        else:
            _write(group / "cpu.cfs_period_us", str(period))
            _write(group / "cpu.cfs_quota_us", str(quota))


def hierarchies(root: Path = Path("/")) -> Iterator[Hierarchy]:
    """Where this process might make a group: below its own (version 1, or 2), then beside it (version 2)."""
    for (version, controllers), groups in groupby(cgroup.groups(root), key=lambda group: group[:2]):
        if version == 2:
            # A group with processes in it can have no limited groups below.
            yield from (Hierarchy(2, folder) for _, _, folder in islice(groups, 2))
        elif "cpu" in controllers:
            yield Hierarchy(1, next(groups)[2])


def slowed(factor: float, *, threads: int = 1, method: str = "auto", root: Path = Path("/")) -> Slowed:
    """Commands started by what this returns compute `factor` times slower. Use it in a with statement.

    `method` is ``stretched`` (every run of splitpoint's engine in it takes longer; ``auto`` is that, for commands of
    splitpoint alone), ``quota`` (a control group's CPU quota; EngineError where this user may not set one), ``stop``
    (SIGSTOP and SIGCONT in turns) or ``limit`` (the first of these two that works). `threads` is how many threads
    of the command compute at once: a quota is theirs together. UsageError for a factor that is not above 1.
    """
    check_factor(factor)
    if not 1 <= threads <= 1024:
        raise UsageError(f"a command computes with 1 to 1024 threads, not {threads}")
    if method not in METHODS:
        raise UsageError(f"a command is slowed by {', '.join(METHODS)}, not {method}")
    if method in ("auto", "stretched"):
        factor = check_factor(factor * slowdown())  # of a command that is slowed itself
        return Slowed(factor, method, _stretched_note(factor))
    if method != "stop":
        quota = share(factor, LEAST_QUOTA_MS, threads)
        for hierarchy in hierarchies(root):
            group = _make_group(hierarchy, quota)
            if group is not None:
                several = f" for {threads} threads together" if threads > 1 else ""
                how = f"a CPU quota of {quota.run_ms:.3g} ms in every {quota.period_ms:.3g} ms{several}"
                return Slowed(factor, "quota", _limited_note(factor, how), group=group)
        if method == "quota":
            raise EngineError(
                "this user may not set CPU quotas here: run it as root, inside `systemd-run --user --scope "
                "-p Delegate=yes`, or use --method stop"
            )
    runs = share(factor, LEAST_RUN_MS)
    how = f"stopping it for {runs.period_ms - runs.run_ms:.3g} ms after every {runs.run_ms:.3g} ms"
    return Slowed(factor, "stop", _limited_note(factor, how))


def _limited_note(factor: float, how: str) -> str:
    return f"emulated: {factor:g}x slower by {how}; computing for a few milliseconds is not slowed"


def _is_ours(command: Sequence[str]) -> bool:
    """Whether `command` is one of splitpoint: ``splitpoint …``, ``python -m splitpoint …``, also behind taskset."""
    return any(Path(word).name == "splitpoint" for word in command)


@dataclass
class Slowed(AbstractContextManager["Slowed"]):
    """Starts commands that are slowed. `note` says how, and is given to them as $SPLITPOINT_EMULATED."""

    factor: float
    method: str
    note: str
    group: Path | None = None
    _processes: list[subprocess.Popen[Any]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _guards: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.group is not None:
            self._guard(_UNGROUP, str(self.group))

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """The command as a process, slowed from its first instruction; `options` are Popen's.

        UsageError if there is no such command, or its method cannot slow it. `close` ends it if it still runs.
        """
        if not command or shutil.which(command[0]) is None:
            raise UsageError(f"there is no command {command[0] if command else 'given'}: check the spelling")
        if self.method == "auto" and not _is_ours(command):
            raise UsageError(
                f"{command[0]} is no command of splitpoint, and only what splitpoint's engine computes can be slowed "
                "truly: say --method stretched if it computes with that, or --method limit to slow all it does on "
                "average, but not what computes for a few milliseconds"
            )
        told = f"{self.factor:g}" if self.method in ("auto", "stretched") else LIMIT
        options["env"] = {**(options.get("env") or os.environ), EMULATED: self.note, SLOWDOWN: told}
        words = list(command)
        if self.group is not None:
            words = ["/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"', str(self.group / "cgroup.procs"), *words]
        process = subprocess.Popen(words, start_new_session=self.method == "stop", **options)
        self._processes.append(process)
        if self.method == "stop":
            self._guard(_CONTINUE, str(process.pid))
            thread = threading.Thread(target=_take_turns, args=(process, self.factor), name="slow", daemon=True)
            self._threads.append(thread)
            thread.start()
        return process

    def send(self, process: subprocess.Popen[Any], number: int) -> None:
        """Sends a signal to the command, and to the processes it started where they are a group of their own."""
        with suppress(ProcessLookupError):
            if self.method == "stop":
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)

    def close(self) -> None:
        """Ends what still runs, and leaves no group, no thread and no guard behind."""
        for process in self._processes:
            if process.poll() is None:
                self.send(process, signal.SIGTERM)
                try:
                    process.wait(5.0)
                except subprocess.TimeoutExpired:
                    self.send(process, signal.SIGKILL)
                    process.wait()
        for thread in self._threads:
            thread.join()
        if self.group is not None:
            _remove_group(self.group)
        for guard in self._guards:
            assert guard.stdin is not None
            guard.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                guard.wait(1.0)

    def _guard(self, script: str, argument: str) -> None:
        """A shell that tidies up when this process is gone, however it ended: the end of a pipe tells it."""
        command = ["/bin/sh", "-c", script, argument]
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        self._guards.append(guard)


#: What the guards do, to the group $0 or to the processes of group $0.
_UNGROUP = 'read _; while [ -d "$0" ] && ! rmdir "$0"; do sleep 0.2; done'
_CONTINUE = 'read _; kill -s CONT -- "-$0"'  # dash's `kill -CONT` takes no --
_number = count()


def _make_group(hierarchy: Hierarchy, quota: Share) -> Path | None:
    """A limited group that this user may put processes into; None, and nothing left, where that is not so."""
    group = hierarchy.folder / f"splitpoint-{os.getpid()}-{next(_number)}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        hierarchy.limit(group, quota)
        # Making a group does not mean that processes may be moved there: try it with one.
        probe = ["/bin/sh", "-c", 'echo 0 > "$0"', str(group / "cgroup.procs")]
        if subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return group
    except OSError:
        pass
    _remove_group(group)
    return None


def _remove_group(group: Path) -> None:
    """Removes the group. What still runs in it (a daemon that the command left) goes on outside, unslowed."""
    end = time.monotonic() + 2.0
    while group.is_dir():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > end:
                return  # the guard goes on trying
            with suppress(OSError):
                for pid in (group / "cgroup.procs").read_text().split():
                    _write(group.parent / "cgroup.procs", pid)
            time.sleep(0.01)


def _write(path: Path, text: str) -> None:
    # Not write_text: the file is there or the controller is not, and must not be made.
    with open(path, "r+") as file:
        file.write(text)


def _take_turns(process: subprocess.Popen[Any], factor: float) -> None:
    """Lets the process group run and stop in turns until its first process has ended."""
    run_s = share(factor, LEAST_RUN_MS).run_ms / 1e3
    try:
        while process.poll() is None:
            began = time.monotonic()
            time.sleep(run_s)
            os.killpg(process.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            # As long as it really ran, not as long as it should have: a late wake-up makes both longer.
            time.sleep(max(0.0, (stopped - began) * (factor - 1) - (time.monotonic() - stopped)))
            os.killpg(process.pid, signal.SIGCONT)
    except ProcessLookupError:
        return
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
