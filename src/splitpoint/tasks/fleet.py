"""Several models on one server, each with an edge here: surveyed, planned for, and made ready.

with Fleet("10.0.0.5", engine=open_engine()) as fleet:
    fleet.add(("vgg16_bn", ""), "vgg16_bn")
    fleet.add(("lenet5", ""), "lenet5")
    fleet.survey(budget_s=10)
    rows = QueueRun(fleet, tasks, "joint", inputs_of(fleet, tasks)).run()
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

from splitpoint.callbacks import call
from splitpoint.engines import Engine
from splitpoint.errors import StorageError, UsageError
from splitpoint.inputs import read_inputs
from splitpoint.lifetime import Closable
from splitpoint.link import Link
from splitpoint.machine import default_cache
from splitpoint.models.model import Model
from splitpoint.models.zoo import photos
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.runtime.adapt.option_costs import same
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.runtime.client.request import LOCAL, WAIT, check_fallback
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event, OnEvent, ignore, teller
from splitpoint.security import OPEN, Security
from splitpoint.segments import samples_for
from splitpoint.survey import OnStep, Survey, placement, survey
from splitpoint.tasks.choices import Source
from splitpoint.tasks.kept import KeptQueue, keep, load_kept, place_of
from splitpoint.tasks.shared_cores import slowdown
from splitpoint.tasks.task import Task
from splitpoint.tasks.turns import SharedDevice
from splitpoint.tensors import Array

#: Runs that are shorter say nothing of what they share, ms.
_SAYS_MS = 2.0
#: A request waits for its turn behind others on the link and at the server, as planned: only after this is it late.
_PATIENCE = Patience(answer_s=120.0, first_s=30.0, least_s=30.0, need_server=True)


class Fleet(Closable):
    """The models of a queue on the server at `cloud`, one `Edge` each, and the device that they share.

    `constraints` are those of every plan. `fallback` is what becomes of a request whose server is gone, busy or wrong,
    as an `Edge` has it; ``"auto"`` finishes it here where the model is here, and waits for the server else.
    `allow_domains`: as for an `Edge`.
    """

    def __init__(
        self,
        cloud: str,
        *,
        engine: Engine,
        cache: Path | None = None,
        constraints: Constraints | None = None,
        fallback: str = "error",
        security: Security = OPEN,
        allow_domains: Collection[str] = (),
        on_event: OnEvent = ignore,
    ) -> None:
        self.device = SharedDevice(engine)
        self.edges: dict[Source, Edge] = {}
        self.planners: dict[Source, Planner] = {}
        self.ready: dict[Source, list[Option]] = {}
        self.shares: dict[Source, tuple[tuple[Option, float], ...]] = {}
        """Ways that gain by running together on the server: what each further one takes, as a share of one alone."""
        self.compile_s: dict[Source, float] = {}
        """How long it took to make a way of each model ready, at most."""
        self.shared = 1.0
        """How many times as long device and server take while both compute: more than 1 where they share cores."""
        self._place: Path | None = None
        self._kept: KeptQueue | None = None
        self._took_s: dict[str, float] = {}
        self.link: Link | None = None
        self.note = ""
        """What its measurements must say: that the device is emulated. Empty if it is not."""
        self._cloud, self._security, self._cache, self._constraints = cloud, security, cache, constraints
        self.allow_domains = tuple(allow_domains)
        self._fallback, self._tell = fallback, teller(on_event)
        self._stack = ExitStack()
        self._opened()

    def add(self, source: Source, model: Model | str) -> Edge:
        """The edge of `model` (one that is here, or what the server calls it), which tasks name by `source`.

        ServerError, ModelError and StorageError as an `Edge` raises them.
        """
        self.check()
        if source not in self.edges:
            fallback = self._fallback
            if fallback == "auto":
                fallback = LOCAL if isinstance(model, Model) else WAIT
            edge = Edge(
                self._cloud, model, at="cut:input", engine=self.device, cache=self._cache,
                fallback=check_fallback(fallback), models=ModelPolicy(allow_domains=self.allow_domains),
                patience=_PATIENCE, security=self._security, on_event=self._tell,
            )  # fmt: skip
            self.edges[source] = self._stack.enter_context(edge)
            self.ready[source] = []
        return self.edges[source]

    def _end(self) -> None:
        self._stack.close()

    def survey(self, *, budget_s: float, fresh: bool = False, on_step: OnStep = lambda text: None) -> Link:
        """Profiles every model here and there, each for `budget_s` at most, measures the link and whether both share a
        machine's cores, and makes the planners.

        Raises ServerError if the server does not profile itself, UsageError where the constraints cannot be kept.
        """
        self.check()
        if not self.edges:
            raise UsageError("there are no tasks")
        link = self.link
        for source, edge in self.edges.items():
            known = survey(
                edge, self.device.engine, budget_s=budget_s, link=link, cache=self._cache, fresh=fresh, on_step=on_step
            )
            link = known.link
            self.know(source, known)
        assert link is not None
        self._place = place_of(
            self._cache or default_cache(on_step),
            [(p.hosts[0].profile, p.hosts[1].profile) for p in self.planners.values()],
        )
        self._kept = None if fresh or self.note else load_kept(self._place)
        if self._kept is not None:
            self.shared = self._kept.shared
        else:
            self._measure_shared(on_step)
        return link

    def keep(self) -> None:
        """Keeps what a queue has shown for the next one of these models and machines, where that can be written."""
        if self._place is None or self.note:
            return
        known = self._kept.compile_s if self._kept is not None else {}
        try:
            keep(self._place, KeptQueue(shared=self.shared, compile_s={**known, **self._took_s}))
        except StorageError as exc:
            self._tell(Event("notice", f"what this queue has shown is not kept for the next: {exc}", {"why": str(exc)}))

    def _measure_shared(self, on_step: OnStep) -> None:
        """Runs a model on both sides at once, if they may be one machine: the one with the fewest weights of those that
        compute for long enough to say something."""
        here, there = (host.profile.machine for host in next(iter(self.planners.values())).hosts)
        if (here.system, here.processor) != (there.system, there.processor):
            return
        call(on_step, "measuring whether edge and server share cores, about a second")
        long = [source for source in self.edges if min(self.whole_ms(source)) >= _SAYS_MS]
        nbytes = {source: self.edges[source].model.nbytes for source in long}
        source = min(long, key=nbytes.__getitem__) if long else max(self.edges, key=lambda s: self.whole_ms(s)[1])
        edge = self.edges[source]
        inputs, cut = samples_for(edge.model, 1, 0)[0], edge.model.graph.cut("input")
        session = self.device.compile(edge.model.with_stand_ins().whole())

        def run() -> float:
            began = perf_counter()
            session.run(inputs)
            return perf_counter() - began

        try:
            self.shared = slowdown(run, lambda: edge.infer(inputs, at=cut, codec="raw").times.compute_s)
        finally:
            session.close()

    def know(self, source: Source, known: Survey) -> None:
        """Plans for `source` by what is known of it."""
        self.planners[source] = known.planner(self.edges[source].model.graph, constraints=self._constraints)
        self.link = known.link
        self.note = self.note or known.edge.note

    def whole_ms(self, source: Source) -> tuple[float, float]:
        """How long the whole model takes (on the device, on the server), by their profiles."""
        device, server = self.planners[source].hosts
        return device.profile.whole.median, server.profile.whole.median

    def correct(self, source: Source, device: float, server: float) -> None:
        """Plans for `source` as if all took so many times as long as its profiles say: it was run, and did."""
        self.planners[source] = self.planners[source].slowed(device, server)

    def gains(self, source: Source, option: Option, share: float) -> None:
        """Plans for requests that run together on the server, where each further one takes `share` of one alone."""
        if share < 1:
            self.shares[source] = (*self.shares.get(source, ()), (option, share))

    def prepare(self, source: Source, option: Option) -> None:
        """Fetches and compiles what `option` needs, here and there, if that is not done."""
        self.check()
        if not self.is_ready(source, option):
            edge = self.edges[source]
            began = perf_counter()
            edge.warm(*placement(edge.model.graph, option))
            took_s = self._took_s[self._name_of(source, option)] = perf_counter() - began
            self.compile_s[source] = max(took_s, self.compile_s.get(source, 0.0))
            self.ready[source].append(option)

    def expected_s(self, source: Source, option: Option) -> float:
        """How long making a way ready is expected to take: as it did in an earlier queue, or as others of its model."""
        known = self._kept.compile_s if self._kept is not None else {}
        return known.get(self._name_of(source, option), self.compile_s.get(source, 0.0))

    def _name_of(self, source: Source, option: Option) -> str:
        return f"{self.edges[source].model.fingerprint} {option.label}"

    def is_ready(self, source: Source, option: Option) -> bool:
        """Whether a request can be served so at once."""
        return any(same(option, known) for known in self.ready[source])


def inputs_of(fleet: Fleet, tasks: Sequence[Task]) -> Mapping[str, Mapping[str, Array]]:
    """The inputs of each task, by its name: its file's; the zoo's photos in turn where it has none and its model takes
    photos; made-up numbers else. InputError for a file that cannot be read or does not fit."""
    inputs: dict[str, Mapping[str, Array]] = {}
    read: dict[tuple[Source, str], Mapping[str, Array]] = {}
    for k, task in enumerate(tasks):
        model = fleet.edges[task.source].model
        file = task.input or (str(photos()[k % len(photos())]) if model.input_spec is not None else f"{k % 4}")
        key = task.source, file
        if key not in read:
            made_up = not task.input and model.input_spec is None
            read[key] = samples_for(model, 1, k % 4)[0] if made_up else read_inputs(model, Path(file))
        inputs[task.name] = read[key]
    return inputs
