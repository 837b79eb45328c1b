"""A queue run for real: one thread runs heads in the order of a policy, and nobody waits for the network or the server.

    dispatcher ──takes the device──► a thread of the request: head ──gives it back──► its turn to send ──► its answer
        ▲                                                                                             │
        └──────────── the link, how fast device and server are (`QueueMonitor`) ◄─────────────────────┘

Every policy is run in the same way. It decides anew when a request arrives, and when the conditions differ from those
that were planned for. A queue begins as soon as each model's own best plan is ready. Whether other ways are worth
compiling is looked at in a second thread, which compiles them; they may be chosen from then on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import inf
from statistics import median
from time import perf_counter, sleep
from typing import NamedTuple

import msgspec

from splitpoint.callbacks import report
from splitpoint.errors import BusyError, SplitpointError
from splitpoint.planning.plans import Option
from splitpoint.report.noise import median_interval, outside
from splitpoint.runtime.adapt.conditions import Conditions
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.result import Request, Result
from splitpoint.survey import placement
from splitpoint.tasks.batch_trial import share_together
from splitpoint.tasks.choices import Menu, Source, slow_together
from splitpoint.tasks.fleet import Fleet
from splitpoint.tasks.joint_search import least
from splitpoint.tasks.monitor import QueueMonitor, Spent
from splitpoint.tasks.policies import policy
from splitpoint.tasks.schedule import Free, JobTurn, QueuedJob, Slot, StageTimes, advance, covered, rehearse, timeline
from splitpoint.tasks.task import QueueSummary, Task, TaskPlan, TaskResult, Usage, summarise
from splitpoint.tasks.turns import UplinkOrder
from splitpoint.tensors import Array
from splitpoint.trace import DEVICE, OTHERS

#: Requests that are under way at once, at most; the server takes 64 of a connection.
_WINDOW = 48
#: A request's first run allocates: each way is run a few times before the start, unless one takes longer than this.
_WARM_MS, _WARM_RUNS = 4000.0, 3
#: A run that takes this factor more or less than its profile says contradicts it; stages shorter than `_SAYS_MS` say
#: nothing.
_OFF, _SAYS_MS = 1.2, 2.0
#: How often profiles that runs contradict are corrected before the start, at most.
_CORRECTIONS = 2
#: A plan that needs something compiled must gain this multiple of the time that compiling takes, in what is left of the
#: queue by then: it keeps device and server busy, and the first requests of a new tail are slow.
_WORTH = 2.0
#: Models that are compiled at once before the start.
_AT_ONCE = 2
#: How often a server that is busy is asked again, and after how many seconds at most, whatever it says.
_TRIES = 50
_MOST_PAUSE_S = 5.0
#: The least time between two plans that are made because the conditions have changed.
_SETTLE_MS = 1000.0

OnAnswer = Callable[[TaskResult, Result], None]


class Planned(NamedTuple):
    """A queue as it is predicted: its rows in the order of the device, the options that are used, what was to choose
    from, and what would be if all were ready."""

    summary: QueueSummary
    rows: list[TaskPlan]
    options: list[tuple[Source, Option]]
    menu: Menu
    every: Menu


def predict(fleet: Fleet, tasks: Sequence[Task], by: str, ready: bool = False) -> Planned:
    """What policy `by` would make of `tasks` on the fleet's link, in virtual time; with `ready` of what is compiled
    now. UsageError for an unknown policy."""
    assert fleet.link is not None, "survey first"
    chosen_by = policy(by)
    began = perf_counter()
    conditions = Conditions(link=fleet.link)
    several, free = chosen_by.chooses_cuts, Free(shared=fleet.shared)
    every = Menu(fleet.planners, conditions, several=several, shares=fleet.shares, shared=fleet.shared)
    menu = every.at(conditions, fleet.shared)
    if ready:
        menu.only(fleet.ready)
    jobs = menu.jobs(tasks)
    slots, bound = rehearse(jobs, chosen_by.decide, free)
    if bound and ready:  # what is not ready counts, too
        bound = least(every.jobs(tasks), free._replace(device=min(j.release for j in jobs)))
    spent_ms = (perf_counter() - began) * 1e3
    rows = [_planned(tasks[s.turn.job], menu, s) for s in slots]
    span = max(s.ended for s in slots) - min(j.release for j in jobs)
    chosen = [jobs[s.turn.job].ways[s.turn.way] for s in slots]
    served = covered([(s.served_from, s.served) for s in slots])
    work = (sum(c.device for c in chosen), sum(c.up for c in chosen), served)
    usage = Usage(*(ms / span if span else 0.0 for ms in work))
    bound_ms = max(0.0, bound - min(j.release for j in jobs)) if bound else 0.0
    summary = summarise(rows, by, fleet.link, usage, span, bound_ms=bound_ms, planning_ms=spent_ms)
    summary = msgspec.structs.replace(summary, shared=fleet.shared)
    used = dict.fromkeys((tasks[s.turn.job].source, s.turn.way) for s in slots)
    return Planned(summary, rows, [(source, menu.options[source][way]) for source, way in used], menu, every)


def _planned(task: Task, menu: Menu, slot: Slot) -> TaskPlan:
    option = menu.options[task.source][slot.turn.way]
    stages = menu.stages(task.source, option)
    return TaskPlan(
        task=task,
        option=option.label,
        up_mbps=menu.conditions.link.up_mbps,
        edge_ms=stages.device,
        transfer_ms=stages.up + stages.down + 2 * stages.trip,
        server_ms=stages.server,
        waiting_ms=max(0.0, slot.ended - task.arrival_s * 1e3 - stages.total),
        started_ms=slot.started,
        ended_ms=slot.ended,
    )


class _TaskPlanned(NamedTuple):
    """How a task is run: its option, when its answer is predicted, on which uplink, and its place among the uploads."""

    task: Task
    option: Option
    ended_ms: float
    up_mbps: float
    ticket: int


#: How many times as long as planned device and server took; 0 where that says nothing.
_Slowdowns = tuple[float, float]


def _ratio(took_ms: float, planned_ms: float) -> float:
    """How many times as long as planned; 0 where that says nothing."""
    return took_ms / planned_ms if planned_ms >= _SAYS_MS and took_ms > 0 else 0.0


def _contradicted(ratios: Sequence[float]) -> float:
    """By how much a profile is off, as far as its model's ways agree on it; 1 if it is not."""
    known = [r for r in ratios if r]
    middle = median(known) if known else 1.0
    return middle if not 1 / _OFF <= middle <= _OFF else 1.0


def _earns(gain_ms: float, cost_ms: float, left_ms: float) -> bool:
    """Whether what takes `cost_ms` to compile and gains so much on a queue of `left_ms` earns its time back in what is
    left of it by then."""
    return gain_ms * max(0.0, 1 - cost_ms / max(left_ms, 1e-3)) > _WORTH * cost_ms


def _end(jobs: Sequence[QueuedJob], turns: Sequence[JobTurn], free: Free) -> float:
    """When the last answer is predicted."""
    return max((slot.ended for slot in timeline(jobs, turns, free)), default=0.0)


def _slower(spent: Sequence[Spent], shared: float) -> float:
    """How many times as long as the profiles say requests computed, where that is more than they lose by sharing cores,
    and beyond noise; 1 else."""
    ratios = [r for s in spent if (r := _ratio(s.edge + s.server, s.planned))]
    beyond = outside(len(ratios)) and median_interval(ratios)[0] > _OFF * shared
    return median(ratios) if beyond else 1.0


class QueueRun:
    """`tasks` by policy `by`, once. `inputs` are the model's, by the task's name.

    `run` returns the rows in the order of their answers. An error ends it: nothing new is begun, what is under way is
    answered, and `rows` has that when the error is raised. So it is with Ctrl-C. UsageError for an unknown policy.
    """

    def __init__(self, fleet: Fleet, tasks: Sequence[Task], by: str, inputs: Mapping[str, Mapping[str, Array]]) -> None:
        self.fleet, self.tasks, self.by = fleet, list(tasks), by
        self._policy, self._inputs = policy(by), inputs
        self.on_answer: OnAnswer = lambda row, result: None
        """Told of each answer, one after the other, from whatever thread."""
        assert fleet.link is not None, "survey first"
        self.monitor = QueueMonitor(fleet.link)
        self.rows: list[TaskResult] = []
        self.replans = 0
        self._spent: list[Spent] = []
        self._lock, self._telling = threading.Lock(), threading.RLock()
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._flying: dict[int, tuple[float, StageTimes]] = {}
        self._held_s: dict[int, float] = {}  # how long requests waited for the link between head and sending
        self._uplink = UplinkOrder(lambda nbytes: self.monitor.conditions.link.up_ms(nbytes) / 1e3)
        self._up_ms = self._server_ms = 0.0  # when the last answered request left the link, and the server
        self._wishing = threading.Event()  # what else might be compiled is being looked at
        self._fresh = threading.Event()  # something was compiled that may be chosen now
        self.planned: Planned | None = None
        self._turns: list[JobTurn] = []
        self.compile_s = self._planning_ms = 0.0
        self._ahead = False

    # --- before the start ---------------------------------------------------------------------------------------

    def prepare(self, ahead: bool = False) -> Planned:
        """Compiles each model's own best plan, runs it, and plans with what is ready; returns what is predicted. With
        `ahead` all that the policy wants is compiled, however long that takes: for a fleet that runs many queues.

        On a machine that others use too a profile may be off by half. Where the runs show that, it is corrected, and
        the plan is made again.
        """
        began = perf_counter()
        self._ahead = ahead
        self._make_ready("fifo")
        if ahead and self._policy.chooses_cuts:
            self._make_ready(self.by)
        planned = predict(self.fleet, self.tasks, self.by, ready=self._policy.chooses_cuts)
        first = [k for k, task in enumerate(self.tasks) if not task.arrival_s]
        free = Free(shared=planned.menu.shared)
        self._turns = list(self._policy.decide(planned.menu.jobs(self.tasks), first, free).turns)
        self.compile_s = perf_counter() - began
        self.planned = planned
        return planned

    def _make_ready(self, by: str) -> None:
        """Compiles and runs what policy `by` wants, as corrected by the runs."""
        for left in reversed(range(_CORRECTIONS + 1)):
            known = dict(self.fleet.shares)
            seen = self._warm_all(predict(self.fleet, self.tasks, by))
            if not left or (not self._correct(seen) and self.fleet.shares == known):
                break

    def _warm_all(self, planned: Planned) -> dict[Source, list[_Slowdowns]]:
        """Makes ready what `planned` needs, and returns how slow device and server were in new ways, by model."""
        seen: dict[Source, list[_Slowdowns]] = {}
        fresh = [way for way in planned.options if not self.fleet.is_ready(*way)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda way: self.fleet.prepare(*way), fresh))
        for source, option in fresh:
            if (slowdowns := self._warm(source, option)) is not None:
                seen.setdefault(source, []).append(slowdowns)
        return seen

    def _correct(self, seen: Mapping[Source, Sequence[_Slowdowns]]) -> bool:
        """Corrects the profiles that the runs contradict, and returns whether there were any."""
        off = False
        for source, runs in seen.items():
            device, server = (_contradicted(ratios) for ratios in zip(*runs, strict=True))
            if (device, server) != (1.0, 1.0):
                self.fleet.correct(source, device, server)
                off = True
        return off

    def _warm(self, source: Source, option: Option) -> _Slowdowns | None:
        """Runs a way that is ready: how slow device and server were against the profiles."""
        if option.total.ms > _WARM_MS:
            return None
        runs = [self._try(source, option) for _ in range(_WARM_RUNS)]
        self.monitor.loaded(runs[-1].times.load_queue_s * 1e3)
        stages = [run.numbers for run in runs[1:]]  # the first one allocates
        edge_ms = min(sum(s[name] for name in DEVICE) for s in stages)
        server_ms = min(s["server"] for s in stages)
        if server_ms:
            inputs = [self._inputs[t.name] for t in self.tasks if t.source == source]
            worth_ms = inf if self._ahead else server_ms
            share = share_together(self.fleet, source, option, inputs, max(edge_ms, server_ms), worth_ms)
            self.fleet.gains(source, option, share)
        planned_ms = option.stages["edge"].ms + option.stages["encode"].ms
        return _ratio(edge_ms, planned_ms), _ratio(server_ms, option.stages["server"].ms)

    def _try(self, source: Source, option: Option) -> Result:
        """Runs a way that is ready, once, beside all else."""
        edge = self.fleet.edges[source]
        task = next(t for t in self.tasks if t.source == source)
        cut, codecs = placement(edge.model.graph, option)
        return edge.infer(self._inputs[task.name], at=cut, codec=codecs)

    # --- the run ------------------------------------------------------------------------------------------------

    def run(self) -> list[TaskResult]:
        """Works the queue off. SplitpointError, KeyboardInterrupt: see above."""
        self.fleet.check()
        if self.planned is None:
            self.prepare()
        pool = ThreadPoolExecutor(_WINDOW, thread_name_prefix="task")
        beside = ThreadPoolExecutor(1, thread_name_prefix="compile")
        with self.monitor.looking(next(iter(self.fleet.edges.values()))):
            self._began = perf_counter()
            try:
                self._dispatch(pool, beside)
            finally:
                self._stop.set()
                pool.shutdown(wait=True)
                beside.shutdown(wait=True, cancel_futures=True)
        self.fleet.keep()
        if self._errors:
            raise self._errors[0]
        return self.rows

    @property
    def summary(self) -> QueueSummary:
        """What the answered requests came to."""
        assert self.planned is not None
        span = max(r.ended_ms for r in self.rows) - min(r.task.arrival_s for r in self.rows) * 1e3
        busy = (sum(s.edge for s in self._spent), self.monitor.link_busy_s * 1e3, sum(s.server for s in self._spent))
        said = self.planned.summary
        bound_ms = said.bound_ms if len(self.rows) == len(self.tasks) else 0.0  # it is one for all of them
        usage = Usage(*(min(1.0, ms / span) for ms in busy))
        summary = summarise(
            self.rows, self.by, self.monitor.conditions.link, usage, said.makespan_ms,
            bound_ms=bound_ms, planning_ms=said.planning_ms + self._planning_ms,
        )  # fmt: skip
        local = sum(bool(r.fallback) for r in self.rows)
        return msgspec.structs.replace(
            summary, compile_s=self.compile_s, replans=self.replans, local=local, shared=self.fleet.shared,
            slower=_slower(self._spent, self.fleet.shared),
        )  # fmt: skip

    def _now_ms(self) -> float:
        return (perf_counter() - self._began) * 1e3

    def _dispatch(self, pool: ThreadPoolExecutor, beside: ThreadPoolExecutor) -> None:
        """Begins one task after the other, as soon as the device is free."""
        assert self.planned is not None
        menu, turns = self.planned.menu, self._turns
        self._menu = self.planned.every
        waiting = [turn.job for turn in turns]
        left = [k for k in sorted(range(len(self.tasks)), key=lambda k: self.tasks[k].arrival_s) if k not in waiting]
        planned_ms, wish = 0.0, self._policy.chooses_cuts
        room = threading.Semaphore(_WINDOW)
        while (left or waiting) and not self._stop.is_set():
            self.fleet.device.take()
            try:
                self._await(left, waiting)
                new = [k for k in left if self.tasks[k].arrival_s * 1e3 <= self._now_ms()]
                left = left[len(new) :]
                waiting += new
                conditions, shared = slow_together(self.monitor.conditions, self.fleet.shared)
                changed = menu.differs(conditions, shared) and self._now_ms() - planned_ms > _SETTLE_MS
                fresh = self._fresh.is_set()
                wish |= bool(new) and self._policy.chooses_cuts
                if new or changed or fresh:
                    self.replans += changed or fresh
                    planned_ms = self._now_ms()
                    menu, turns = self._replan(conditions, shared, waiting)
                if (wish or changed) and not self._wishing.is_set():
                    wish = False
                    self._wishing.set()
                    every, now = self._menu.at(conditions, shared), menu.jobs(self.tasks)
                    beside.submit(self._wish, every, now, list(turns), self._free(menu))
                turn = turns.pop(0)
                waiting.remove(turn.job)
                room.acquire()
                way = self._way(menu, turn)
            except BaseException:
                self.fleet.device.drop()
                raise
            pool.submit(self._serve, turn.job, way, room)

    def _await(self, left: Sequence[int], waiting: Sequence[int]) -> None:
        while left and not waiting and (ms := self.tasks[left[0]].arrival_s * 1e3 - self._now_ms()) > 0:
            sleep(min(ms / 1e3, 0.05))

    def _replan(self, conditions: Conditions, shared: float, waiting: Sequence[int]) -> tuple[Menu, list[JobTurn]]:
        """(the menu, the order and ways of those that wait), of ways that are ready."""
        began = perf_counter()
        self._fresh.clear()
        if self._menu.differs(conditions, shared):  # it takes a while, and the device waits for it
            several = self._policy.chooses_cuts
            self._menu = Menu(self.fleet.planners, conditions, several=several, shares=self.fleet.shares, shared=shared)
        menu = self._menu.at(conditions, shared)
        menu.only(self.fleet.ready)
        turns = list(self._policy.decide(menu.jobs(self.tasks), waiting, self._free(menu)).turns)
        self._planning_ms += (perf_counter() - began) * 1e3
        return menu, turns

    def _wish(self, menu: Menu, ready: Sequence[QueuedJob], turns: Sequence[JobTurn], free: Free) -> None:
        """In the second thread: compiles what earns its time back in what is left of the queue, whose plan is `turns`
        of what is `ready`. `menu` has all ways."""
        try:
            for way in sorted(self._worth(menu, ready, turns, free), key=lambda way: self.fleet.expected_s(*way)):
                # If it fails, the queue goes on with what is ready; a request finds out whether the server is gone.
                with suppress(SplitpointError):
                    if not self._stop.is_set():
                        self.fleet.prepare(*way)
                        self._ask(partial(self._try, *way))  # the first run allocates
                        self._fresh.set()
        finally:
            self._wishing.clear()

    def _worth(
        self, menu: Menu, ready: Sequence[QueuedJob], turns: Sequence[JobTurn], free: Free
    ) -> list[tuple[Source, Option]]:
        """The ways that should be compiled, if any: those of all models that may earn it, or else of one."""
        end_ms, waiting = _end(ready, turns, free), [turn.job for turn in turns]
        left_ms = end_ms - free.device
        hopeful = self._hopeful(menu, ready, turns, free, left_ms)
        for some in dict.fromkeys((hopeful, *((source,) for source in hopeful))):
            if self._stop.is_set():
                break
            open_to = menu.at(menu.conditions, menu.shared)
            open_to.only(self.fleet.ready, but=some)
            jobs = open_to.jobs(self.tasks)
            wished = self._policy.decide(jobs, waiting, free).turns
            used = {(self.tasks[t.job].source, t.way) for t in wished}
            missing = [
                (source, option) for source, way in used
                if not self.fleet.is_ready(source, option := open_to.options[source][way])
            ]  # fmt: skip
            gain_ms, cost_ms = end_ms - _end(jobs, wished, free), 1e3 * sum(self.fleet.expected_s(*w) for w in missing)
            if _earns(gain_ms, cost_ms, left_ms):
                return missing
        return []

    def _hopeful(
        self, menu: Menu, ready: Sequence[QueuedJob], turns: Sequence[JobTurn], free: Free, left_ms: float
    ) -> tuple[Source, ...]:
        """The models of which another way may earn its compiling: known without a plan, which takes time, too. No way
        gains more than all work of its model, nor than what is left if everybody is always busy."""
        work: dict[Source, float] = {}
        for turn in turns:
            source = self.tasks[turn.job].source
            work[source] = work.get(source, 0.0) + ready[turn.job].ways[turn.way].total
        jobs = menu.jobs(self.tasks)
        least_ms = sum(min(s.device + s.least_server for s in jobs[turn.job].ways) for turn in turns)
        most_ms = left_ms - least_ms * min(free.shared, 2.0) / 2
        fleet = self.fleet
        missing = {s: [o for o in menu.options[s] if not fleet.is_ready(s, o)] for s in work}
        cost_s = {s: min(fleet.expected_s(s, o) for o in options) for s, options in missing.items() if options}
        return tuple(s for s, cost in cost_s.items() if _earns(min(work[s], most_ms), 1e3 * cost, left_ms))

    def _free(self, menu: Menu) -> Free:
        """From when on device, link and server are free, with what is under way."""
        now = self._now_ms()
        with self._lock:
            free = Free(now, self._up_ms, self._server_ms, self._server_ms, shared=menu.shared)
            for start, stages in self._flying.values():
                _, free = advance(stages, JobTurn(0), start, free)
        return free._replace(device=now)

    def _way(self, menu: Menu, turn: JobTurn) -> _TaskPlanned:
        task = self.tasks[turn.job]
        option = menu.options[task.source][turn.way]
        stages = menu.stages(task.source, option)
        free = self._free(menu)
        slot, _ = advance(stages, turn, free.device, free)
        with self._lock:
            self._flying[turn.job] = (free.device, stages)
        ticket = self._uplink.ticket() if stages.crosses else -1
        return _TaskPlanned(task, option, slot.ended, menu.conditions.link.up_mbps, ticket)

    # --- one request --------------------------------------------------------------------------------------------

    def _serve(self, id: int, way: _TaskPlanned, room: threading.Semaphore) -> None:
        """Runs a task in a thread of its own; the device is taken, and given back as soon as its head has run."""
        edge = self.fleet.edges[way.task.source]
        device = self.fleet.device
        cut, codecs = placement(edge.model.graph, way.option)
        self.monitor.began(id, edge, way.option, self._began + way.ended_ms / 1e3)
        device.lend(lambda: self._hold(id, way, edge))
        try:
            if not cut.nodes:  # no head: it only passes
                device.give_back()
                self._held_s.pop(id, None)  # before it began
            request = Request(self._inputs[way.task.name], tag=id)
            result = self._ask(lambda: edge.infer(request, at=cut, codec=codecs, more=True))
        except BaseException as exc:
            self.monitor.failed(id)
            self._fail(exc)
        else:
            self._answered(id, way, result)
        finally:
            device.give_back()
            self._uplink.leave(way.ticket)
            self._held_s.pop(id, None)
            with self._lock:
                self._flying.pop(id, None)
            room.release()

    def _hold(self, id: int, way: _TaskPlanned, edge: Edge) -> None:
        """Waits for the request's turn on the link, if it crosses."""
        if way.ticket >= 0:
            began = perf_counter()
            self._uplink.enter(way.ticket, edge, way.option.up_nbytes)
            self._held_s[id] = perf_counter() - began

    def _answered(self, id: int, way: _TaskPlanned, result: Result) -> None:
        whole_ms = self.fleet.whole_ms(way.task.source)
        spent = self.monitor.answered(id, way.option, whole_ms, result, self._held_s.get(id, 0.0))
        row = self._row(way, spent, result)
        with self._telling:  # in the order of `rows`
            with self._lock:
                self.rows.append(row)
                self._spent.append(spent)
                if spent.server:
                    self._up_ms = max(self._up_ms, (spent.arrived - self._began) * 1e3)
                    self._server_ms = max(self._server_ms, (spent.served - self._began) * 1e3)
            try:
                self.on_answer(row, result)
            except Exception as exc:
                report("on_answer", exc)
            except BaseException as exc:  # who wants to end the program: raised where the run was asked for
                self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        self._errors.append(exc)
        self._stop.set()

    def _ask(self, infer: Callable[[], Result]) -> Result:
        for _ in range(_TRIES):
            try:
                return infer()
            except BusyError as exc:
                if self._stop.wait(min(max(0.01, exc.retry_after_s), _MOST_PAUSE_S)):
                    raise
        return infer()

    def _row(self, way: _TaskPlanned, spent: Spent, result: Result) -> TaskResult:
        ended = (spent.ended - self._began) * 1e3
        arrival = way.task.arrival_s * 1e3
        return TaskResult(
            task=way.task,
            option=way.option.label,
            up_mbps=way.up_mbps,
            edge_ms=spent.edge,
            transfer_ms=spent.transfer,
            server_ms=spent.server,
            waiting_ms=max(0.0, ended - arrival - spent.edge - spent.transfer - spent.server),
            started_ms=(spent.started - self._began) * 1e3,
            ended_ms=ended,
            predicted_ms=way.ended_ms - arrival,
            fallback=result.fallback,
            numbers={name: result.numbers[name] for name in OTHERS},
        )
