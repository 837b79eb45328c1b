"""The server measures itself, so that a device can plan with its profile: one model at a time, for all who ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite
from time import monotonic

import msgspec

from splitpoint.engines import Engine
from splitpoint.errors import BusyError, EngineError, InputError, RefusedError, ServerError, SplitpointError
from splitpoint.models.model import Model
from splitpoint.profile.files import profile_bytes
from splitpoint.profile.measure import profile_model
from splitpoint.profile.profiles import Profile
from splitpoint.profile.spare import Enough, Spare
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.server.accounts import Origin
from splitpoint.runtime.server.run_limits import Watch
from splitpoint.units import counted

#: Takes the profile as JSON, or why there is none.
Answer = Callable[[bytes | SplitpointError], None]
#: Models that wait while another one is measured.
_MOST_WAITING = 8
#: When who asked for one may ask again, if requests left no time at all.
_AGAIN_S = 60.0


class _Cancelled(Exception):
    """Nobody waits for the profile any more."""


@dataclass(frozen=True, slots=True)
class _ProfileAsker:
    who: object
    origin: Origin
    budget_s: float
    answer: Answer


@dataclass(slots=True)
class _ProfileJob:
    """A model to measure, for everyone who asked for it until it was done."""

    model: Model
    askers: list[_ProfileAsker] = field(default_factory=list)
    budget_s: float = 0.0
    """What it is given; 0 until it is its turn."""
    charged_s: dict[Origin, float] = field(default_factory=dict)
    """What is on the account of each who asked, until it is known what it took. Who leaves meanwhile pays too."""

    def charge(self, asker: _ProfileAsker, *, overdrawing: bool = False) -> None:
        """Puts what `asker` wants on its origin's account. BusyError if that is overdrawn, and may not be."""
        more_s = asker.budget_s - self.charged_s.get(asker.origin, 0.0)
        if more_s <= 0:
            return
        if not overdrawing and (wait_s := asker.origin.measuring.take(0.0, monotonic())):
            raise BusyError("this server has measured much for this address already: wait", wait_s)
        asker.origin.measuring.spend(more_s)
        self.charged_s[asker.origin] = asker.budget_s

    def settle(self, took_s: float) -> None:
        """It took so long, of which each origin pays an equal part."""
        for origin, charged_s in self.charged_s.items():
            origin.measuring.spend(took_s / len(self.charged_s) - charged_s)
            origin.had_measured(took_s)

    def again(self, askers: list[_ProfileAsker]) -> _ProfileJob:
        """The same model for those of its askers who want more time."""
        job = _ProfileJob(self.model, askers)
        for asker in askers:
            job.charge(asker, overdrawing=True)
        return job

    def leave(self) -> None:
        """Takes what those are charged who do not wait for it any more off their accounts: it was not begun."""
        for origin in [origin for origin in self.charged_s if not self.asked_by(origin)]:
            origin.measuring.spend(-self.charged_s.pop(origin))

    def asked_by(self, origin: Origin) -> bool:
        return any(asker.origin is origin for asker in self.askers)

    def spent_s(self) -> float:
        """How long was measured already for the one who asked for it and has had least."""
        return min((asker.origin.measured_s for asker in self.askers), default=0.0)


class Profiling:
    """Runs `profile_model` in a thread of its own, for at most `most_s` seconds a model (0: never).

    It takes what requests leave (`Spare`). `served` says how many the server has answered: those that ran meanwhile are
    noted in the profile. `watch` gives up a run that lasts.
    """

    def __init__(
        self, engine: Engine, most_s: float, on_event: OnEvent, served: Callable[[], int], watch: Watch
    ) -> None:
        self._watch = watch
        self._engine, self._most_s, self._tell, self._served = engine, most_s, on_event, served
        self._lock = threading.Lock()
        #: Measures, if there is something to measure: after `stop` it ends.
        self.thread: threading.Thread | None = None
        self._until = 0.0
        self._closed = threading.Event()
        #: The first is being measured.
        self._jobs: list[_ProfileJob] = []
        #: Fingerprint → seconds it was given (infinite if no more would help), the profile.
        self._made: dict[str, tuple[float, bytes]] = {}

    def ask(
        self, model: Model, budget_s: float, answer: Answer, who: object, origin: Origin, *, fresh: bool = False
    ) -> None:
        """Answers with a profile made before, unless it must be `fresh` or was given less time and is incomplete;
        else with the one that is being made, or that will be made in its turn: of those that wait, the one whose
        `origin` has had least measured. `who` asks: call `forget` when it leaves.

        RefusedError if this server does not profile, BusyError if too many models wait for their turn, or `origin` has
        had too much measured.
        """
        if not isfinite(budget_s) or budget_s < 0:
            raise InputError(f"a profile's time budget is a number of seconds, not {budget_s}")
        if not self._most_s:
            raise RefusedError(
                "this server does not measure itself (--max-profile 0): make its profile there, "
                "with splitpoint profile MODEL -o cloud.profile.json"
            )
        budget_s = min(budget_s or self._most_s, self._most_s)
        with self._lock:
            if self._closed.is_set():
                raise ServerError("the server is ending")
            given_s, profile = self._made.get(model.fingerprint, (0.0, b""))
            keep = bool(profile) and given_s >= budget_s and not fresh
            if not keep:
                self._join(model, _ProfileAsker(who, origin, budget_s, answer))
        if keep:
            answer(profile)

    def _join(self, model: Model, asker: _ProfileAsker) -> None:
        """Holds the lock."""
        for job in self._jobs:
            if job.model.fingerprint == model.fingerprint:
                job.charge(asker)
                job.askers.append(asker)
                return
        # One address may have half of the places, as in the queue of requests: others need not wait for it to leave.
        own = sum(job.asked_by(asker.origin) for job in self._jobs[1:])
        if len(self._jobs) > _MOST_WAITING or own > _MOST_WAITING - len(self._jobs):
            left_s = max(0.2, self._until - monotonic())
            raise BusyError("the server is making another profile, and others wait: try again later", left_s)
        job = _ProfileJob(model, [asker])
        job.charge(asker)
        self._jobs.append(job)
        if self.thread is None:
            self._until = monotonic() + asker.budget_s
            self.thread = threading.Thread(target=self._work, name="profile", daemon=True)
            self.thread.start()

    def _work(self) -> None:
        """One job after the other, until there is none."""
        with Spare(self._served, self._closed) as spare:
            self._all(spare)

    def _all(self, spare: Spare) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self.thread = None
                    return
                job = min(self._jobs, key=_ProfileJob.spent_s)
                self._jobs.remove(job)
                self._jobs.insert(0, job)
                job.budget_s = max((asker.budget_s for asker in job.askers), default=0.0)
                began_s = monotonic()
                self._until = began_s + job.budget_s
            enough_s, result = self._run(job, spare)
            with self._lock:
                del self._jobs[0]
                job.settle(monotonic() - began_s)
                if isinstance(result, bytes):
                    self._made[job.model.fingerprint] = (enough_s, result)
                # Someone may have asked for more time, or have come just when all others had left.
                again = [a for a in job.askers if a.budget_s > enough_s and not self._closed.is_set()]
                if again:
                    self._jobs.append(job.again(again))
            for asker in job.askers:
                if asker not in again:
                    try:
                        asker.answer(result)
                    except Exception as exc:  # no memory, a bug: the others get theirs
                        self._tell(Event("failed", f"a profile of {job.model.name} cannot be sent: {exc!r}"))

    def _run(self, job: _ProfileJob, spare: Spare) -> tuple[float, bytes | SplitpointError]:
        """The profile, or why there is none, and up to which budget that is the answer."""

        def check() -> None:
            with self._lock:
                if self._closed.is_set() or not job.askers:
                    raise _Cancelled

        def proceed() -> None:
            spare.proceed()  # which may be a rest: then nobody may wait any more
            check()

        name, guarded = job.model.name, None
        try:
            check()
            spare.begin(job.budget_s)
            self._tell(Event("profiling", f"measuring {name} on this machine for up to {job.budget_s:g} s"))
            before = self._served()
            with self._watch.guard() as guarded:
                profile = profile_model(
                    job.model, self._engine, budget_s=job.budget_s, proceed=proceed, pause=spare.pause,
                    clock=spare.clock,
                )  # fmt: skip
            check()
            profile = _noted(profile, self._served() - before)
            data = profile_bytes(profile)
            self._tell(Event("profiling", f"measured {name}: {counted(profile.measured, 'cut')}"))
            return inf if profile.complete else job.budget_s, data
        except (_Cancelled, Enough) as exc:
            if isinstance(exc, Enough) and not self._closed.is_set():
                self._tell(Event("profiling", f"{name} is not measured: requests leave no time for it"))
                return inf, BusyError("requests leave this server no time to measure itself", _AGAIN_S)
            self._tell(Event("profiling", f"{name} is not measured to the end: nobody waits for it"))
            return 0.0, ServerError("the server is ending")
        except SplitpointError as exc:
            if guarded is not None and guarded.given_up:
                most = f"{self._watch.run_s:g} s"
                return inf, EngineError(f"{name} is not profiled: a run of it took more than {most} (serve --max-run)")
            return inf, exc
        except Exception as exc:  # engines are foreign code
            self._tell(Event("failed", f"{name} cannot be measured: {exc!r}"))
            return inf, ServerError("the server cannot measure this model; its log says more")

    def forget(self, who: object) -> int:
        """`who` has left: so many profiles are not made for it any more, nor at all if nobody else waits for them."""
        with self._lock:
            before = sum(len(job.askers) for job in self._jobs)
            for job in self._jobs:
                job.askers = [asker for asker in job.askers if asker.who is not who]
            for job in self._jobs[1:]:
                job.leave()
            self._jobs[1:] = [job for job in self._jobs[1:] if job.askers]
            return before - sum(len(job.askers) for job in self._jobs)

    def stop(self) -> None:
        """What is being measured ends after the cut it is at, and nothing is measured after it."""
        self._closed.set()


def _noted(profile: Profile, served: int) -> Profile:
    """`profile`, with a note if requests ran beside it: they made it slower than it is when nobody asks."""
    if not served:
        return profile
    note = f"{counted(served, 'request')} {'was' if served == 1 else 'were'} served meanwhile"
    return msgspec.structs.replace(profile, note=f"{profile.note}; {note}" if profile.note else note)
