"""What may be chosen for each model, and what that costs now: plans' options → the stages of a schedule. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from math import inf
from types import MappingProxyType
from typing import NamedTuple

from splitpoint.link import Link
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.tasks.schedule import Job, Stages
from splitpoint.tasks.task import Task

#: (model, weights): whose plan it is.
Source = tuple[str, str]
#: Options that a request is offered where they are planned together. Some that no prices make the cheapest are among
#: them: where a few large requests decide, the last of them fits only so (VGG-16 cut in its middle, once in ten).
MOST_OPTIONS = 64
#: What differs by less than this share is not worth a new plan.
CHANGED = 0.2


class Pace(NamedTuple):
    """How things are now: the link, and how much slower than their profiles device and server are. `load_ms` is what
    a request waits for those of others at the server."""

    link: Link
    device: float = 1.0
    server: float = 1.0
    load_ms: float = 0.0

    def differs(self, other: Pace) -> bool:
        """Whether what was planned for `other` should be planned again: something changed by more than `CHANGED`."""
        pairs = (
            (self.link.up_mbps, other.link.up_mbps), (self.device, other.device), (self.server, other.server)
        )  # fmt: skip
        return any(max(a, b) > (1 + CHANGED) * min(a, b) for a, b in pairs)


#: Ways that gain by running together on the server, and what each further request takes there, as a share of one alone.
Shares = Mapping[Source, Sequence[tuple[Option, float]]]


class Menu:
    """The options of each model for one pace, its individual plan first; without `several` only that one."""

    def __init__(
        self, planners: Mapping[Source, Planner], pace: Pace, *, several: bool, shares: Shares = MappingProxyType({})
    ) -> None:
        self.pace, self._shares = pace, shares
        self.options: dict[Source, Sequence[Option]] = {}
        for source, planner in planners.items():
            found = planner.frontier(pace.link, MOST_OPTIONS) if several else (planner.best(pace.link),)
            # Nothing is allowed: `plan` says why, and what would be.
            self.options[source] = [o for o in found if o is not None] or [planner.plan(pace.link).best]

    def at(self, pace: Pace) -> Menu:
        """The same options for a pace that is hardly another: what they cost follows it."""
        menu = copy(self)
        menu.pace, menu.options = pace, dict(self.options)
        return menu

    def only(self, ready: Mapping[Source, Sequence[Option]]) -> None:
        """Keeps what is in `ready`; where that is nothing, what is ready is the menu. The quickest is first, unless the
        individual plan is left."""
        for source, options in self.options.items():
            kept = [o for o in options if any(same(o, r) for r in ready[source])]
            if not kept or kept[0] is not options[0]:
                kept = sorted(kept or ready[source], key=lambda o, s=source: self.stages(s, o).total)  # type: ignore[misc]
            self.options[source] = kept

    def jobs(self, tasks: Sequence[Task]) -> list[Job]:
        """The tasks as the schedule knows them, milliseconds from the start."""
        ways = {s: tuple(self.stages(s, o) for o in options) for s, options in self.options.items()}
        return [
            Job(
                ways[t.source],
                release=t.arrival_s * 1e3,
                due=(t.arrival_s + t.deadline_s) * 1e3 if t.deadline_s else inf,
                priority=t.priority,
            )
            for t in tasks
        ]

    def stages(self, source: Source, option: Option) -> Stages:
        """How long `option` of that model keeps each thing busy."""
        found = stages_of(option, self.pace)
        for known, share in self._shares.get(source, ()):
            if found.crosses and same(known, option):
                return found._replace(more=share * found.server, tail=f"{source}: {option.label}")
        return found

    def option(self, task: Task, way: int) -> Option:
        """What that way to serve `task` is."""
        return self.options[task.source][way]


def stages_of(option: Option, pace: Pace) -> Stages:
    """How long `option` keeps each thing busy."""
    at = option.stages
    device = at["edge"].ms * pace.device + at["encode"].ms
    if option.kind == "device":
        return Stages(device, remote=False)
    link = pace.link
    server = at["server"].ms * pace.server + pace.load_ms
    return Stages(device, link.up_ms(option.up_nbytes), server, link.down_ms(option.down_nbytes), link.rtt_ms / 2, True)


def same(one: Option, other: Option) -> bool:
    """Whether two options are one way to serve a request, whatever they cost."""
    return one.on_edge == other.on_edge and one.codecs == other.codecs
