"""What may be chosen for each model, and what that costs now: plans' options → the stages of a schedule. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from functools import partial
from math import inf
from types import MappingProxyType

import msgspec

from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.runtime.adapt.conditions import Conditions
from splitpoint.runtime.adapt.option_costs import same
from splitpoint.tasks.schedule import QueuedJob, StageTimes
from splitpoint.tasks.task import Task

#: (model, weights): whose plan it is.
Source = tuple[str, str]
#: Options that a request is offered where they are planned together. Some that no prices make the cheapest are among
#: them: where a few large requests decide, the last of them fits only so (VGG-16 cut in its middle, once in ten).
MOST_OPTIONS = 64
#: What device and server lose by computing at the same time is the same within this factor.
SAME = 1.25

#: Ways that gain by running together on the server, and what each further request takes there, as a share of one alone.
Shares = Mapping[Source, Sequence[tuple[Option, float]]]


class Menu:
    """The options of each model under some conditions, its individual plan first; without `several` only that one."""

    def __init__(
        self, planners: Mapping[Source, Planner], conditions: Conditions, *, several: bool,
        shares: Shares = MappingProxyType({}), shared: float = 1.0,
    ) -> None:  # fmt: skip
        self.conditions, self.shared, self._shares = conditions, shared, shares
        link = conditions.link
        self.options: dict[Source, Sequence[Option]] = {}
        for source, planner in planners.items():
            options = planner.frontier(link, MOST_OPTIONS) if several else (planner.best(link),)
            # Nothing is allowed: `plan` says why, and what would be.
            self.options[source] = [o for o in options if o is not None] or [planner.plan(link).best]

    def differs(self, conditions: Conditions, shared: float) -> bool:
        """Whether what was chosen from it should be looked at again."""
        return conditions.differs(self.conditions) or not 1 / SAME <= shared / self.shared <= SAME

    def at(self, conditions: Conditions, shared: float) -> Menu:
        """The same options under conditions that hardly differ: what they cost follows them."""
        menu = copy(self)
        menu.conditions, menu.shared, menu.options = conditions, shared, dict(self.options)
        return menu

    def only(self, ready: Mapping[Source, Sequence[Option]], but: Collection[Source] = ()) -> None:
        """Keeps what is in `ready`, of all models `but` these; where that is nothing, what is ready is the menu. The
        quickest is first, unless the individual plan is left."""
        for source, options in self.options.items():
            if source in but:
                continue
            kept = [o for o in options if any(same(o, r) for r in ready[source])]
            if not kept or kept[0] is not options[0]:
                kept = sorted(kept or ready[source], key=partial(self._alone_ms, source))
            self.options[source] = kept

    def jobs(self, tasks: Sequence[Task]) -> list[QueuedJob]:
        """The tasks as the schedule knows them, milliseconds from the start."""
        ways = {s: tuple(self.stages(s, o) for o in options) for s, options in self.options.items()}
        return [
            QueuedJob(
                ways[t.source],
                release=t.arrival_s * 1e3,
                due=(t.arrival_s + t.deadline_s) * 1e3 if t.deadline_s else inf,
                priority=t.priority,
            )
            for t in tasks
        ]

    def stages(self, source: Source, option: Option) -> StageTimes:
        stages = stages_of(option, self.conditions)
        for known, share in self._shares.get(source, ()):
            if stages.crosses and same(known, option):
                return stages._replace(more=share * stages.server, tail=f"{source}: {option.label}")
        return stages

    def _alone_ms(self, source: Source, option: Option) -> float:
        return self.stages(source, option).total


def slow_together(conditions: Conditions, shared: float) -> tuple[Conditions, float]:
    """(the conditions without what device and server lose while both compute, how many times as long they take then).

    What runs show of a queue is mostly how both did at the same time. As far as `shared`, which was measured before,
    explains that, or as far as both are slower than it says, it is gone when they take turns.

    >>> conditions = Conditions(link=Link(50, 50, 1), device=3.0, server=2.0)
    >>> alone, shared = slow_together(conditions, 1.4)
    >>> alone.device, alone.server, shared
    (1.5, 1.0, 2.0)
    """
    shared = max(shared, min(conditions.device, conditions.server))
    alone = (c if c < 1 else max(1.0, c / shared) for c in (conditions.device, conditions.server))
    return msgspec.structs.replace(conditions, **dict(zip(("device", "server"), alone, strict=True))), shared


def stages_of(option: Option, conditions: Conditions) -> StageTimes:
    """How long `option` keeps each thing busy."""
    at = option.stages
    device = at["edge"].ms * conditions.device + at["encode"].ms
    if option.kind == "device":
        return StageTimes(device, remote=False)
    link = conditions.link
    server = at["server"].ms * conditions.server + conditions.queue_ms
    return StageTimes(
        device, link.up_ms(option.up_nbytes), server, link.down_ms(option.down_nbytes), link.beside_ms / 2, True
    )
