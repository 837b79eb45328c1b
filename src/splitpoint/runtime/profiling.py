"""The server measures itself, so that a device can plan with its profile: one model at a time, each once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import isfinite
from time import monotonic

from splitpoint.engines import Engine
from splitpoint.errors import BusyError, InputError, ServerError, SplitpointError
from splitpoint.models.model import Model
from splitpoint.profile.files import profile_bytes
from splitpoint.profile.measure import Progress, profile_model
from splitpoint.runtime.events import Event, OnEvent

#: Takes the profile as JSON, or why there is none.
Answer = Callable[[bytes | SplitpointError], None]


class _Cancelled(Exception):
    """Nobody waits for the profile any more."""


class Profiling:
    """Runs `profile_model` in a thread of its own, for at most `most_s` seconds (0: never)."""

    def __init__(self, engine: Engine, most_s: float, on_event: OnEvent) -> None:
        self._engine, self._most_s, self._tell = engine, most_s, on_event
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._until = 0.0
        self._closed = threading.Event()
        #: Fingerprint → seconds it was given (infinite if no more would help), the profile.
        self._made: dict[str, tuple[float, bytes]] = {}

    def ask(self, model: Model, budget_s: float, answer: Answer, gone: Callable[[], bool]) -> None:
        """Answers with a profile made before, or starts to make one; `gone` says that the asker has left.

        ServerError if this server does not profile, BusyError while another profile is being made.
        """
        if not isfinite(budget_s) or budget_s < 0:
            raise InputError(f"a profile's time budget is a number of seconds, not {budget_s}")
        if not self._most_s:
            raise ServerError(
                "this server does not measure itself (--max-profile 0): make its profile there, "
                "with splitpoint profile MODEL -o cloud.profile.json"
            )
        budget_s = min(budget_s or self._most_s, self._most_s)
        with self._lock:
            given_s, data = self._made.get(model.fingerprint, (0.0, b""))
            made = data if given_s >= budget_s else None
            if made is None:
                if self._thread is not None:
                    left_s = max(1.0, self._until - monotonic())
                    raise BusyError("the server is making another profile: try again later", left_s)
                self._until = monotonic() + budget_s
                self._thread = threading.Thread(
                    target=self._run, args=(model, budget_s, answer, gone), name="profile", daemon=True
                )
                self._thread.start()
        if made is not None:
            answer(made)

    def _run(self, model: Model, budget_s: float, answer: Answer, gone: Callable[[], bool]) -> None:
        def check(progress: Progress) -> None:
            del progress
            if gone() or self._closed.is_set():
                raise _Cancelled

        result: bytes | SplitpointError
        try:
            self._tell(Event("profiling", f"measuring {model.name} on this machine for up to {budget_s:g} s"))
            profile = profile_model(model, self._engine, budget_s=budget_s, on_progress=check)
            result = profile_bytes(profile)
            self._made[model.fingerprint] = (float("inf") if profile.complete else budget_s, result)
            self._tell(Event("profiling", f"measured {model.name}: {profile.measured} cuts"))
        except _Cancelled:
            self._tell(Event("profiling", f"{model.name} is not measured to the end: nobody waits for it"))
            result = ServerError("the server is ending")
        except SplitpointError as exc:
            result = exc
        except Exception as exc:  # engines are foreign code
            self._tell(Event("failed", f"{model.name} cannot be measured: {exc!r}"))
            result = ServerError("the server cannot measure this model; its log says more")
        finally:
            with self._lock:
                self._thread = None
        answer(result)

    def stop(self) -> None:
        """What is being measured ends after the cut it is at."""
        self._closed.set()

    def close(self) -> None:
        """Stops, and waits for that."""
        self.stop()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
