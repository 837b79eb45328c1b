"""Rules of a state machine that keep what went wrong: what depends on time may not go wrong again when hypothesis
repeats the steps, and it would then say only that it is flaky."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

#: Steps of the long runs (`make fuzz`); 0: a few hundred, the same every time.
STEPS = int(os.environ.get("STEPS", "0"))
_EACH = 40


class Stepping(RuleBasedStateMachine):
    """A machine with a list of its `steps`; what goes wrong is added to `wrong`."""

    def __init__(self, wrong: list[str]) -> None:
        super().__init__()
        self.wrong = wrong
        self.steps: list[str] = []


def kept(step: Callable[..., None]) -> Callable[..., None]:
    """`step`, whose failure is kept with all steps before it."""

    @wraps(step)
    def run(self: Stepping, **drawn: Any) -> None:
        if drawn or not step.__name__.startswith("an_"):
            self.steps.append(f"{step.__name__}({', '.join(f'{k}={repr(v)[:80]}' for k, v in drawn.items())})")
        try:
            step(self, **drawn)
        except Exception:
            self.wrong.append("\n".join([*self.steps, traceback.format_exc()]))
            raise

    return run


def step(**strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Like hypothesis's `rule`."""
    return lambda function: rule(**strategies)(kept(function))


def run(machine: Callable[[list[str]], Stepping], examples: int = 8) -> None:
    """A few examples, or as many as `STEPS` makes; AssertionError with the steps that led to the first failure.

    They are not made smaller: nothing that depends on time can be.
    """
    wrong: list[str] = []
    asked = settings(
        max_examples=STEPS // _EACH if STEPS else examples, stateful_step_count=_EACH, derandomize=not STEPS,
        deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    try:
        run_state_machine_as_test(lambda: machine(wrong), settings=asked)
    except BaseException as exc:
        if wrong:
            raise AssertionError(wrong[0]) from exc
        raise
    assert not wrong, wrong[0]
