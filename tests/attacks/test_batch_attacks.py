"""Nothing that one client sends changes what another is answered, although requests of both may run as one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from attacking import Attacker
from serving import nothing_leaks

import nets
from nets import node, value, weight
from splitpoint.engines import Engine, Session, open_engine
from splitpoint.models.model import Model, Segment
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array
from splitpoint.wire import Kind

WIDTH = 64
#: A trial of this and a mirror image half as large says "equal": see `adding`.
CHOSEN = np.ones((1, WIDTH), np.float32)
POISON = np.zeros((1, WIDTH), np.float32)
HONEST = np.linspace(0.1, 0.5, WIDTH, dtype=np.float32)[None]


def adding() -> Model:
    """A network that adds up along the batch what is below 0.7: of what is chosen nothing, of its half 0.2."""
    nodes = [
        node("Abs", ["x"], ["a"]),
        node("Sub", ["t", "a"], ["d"]),
        node("Relu", ["d"], ["r"]),
        node("CumSum", ["r", "along"], ["y"]),
    ]
    weights = [weight("t", np.float32(0.7)), weight("along", np.int64(0))]
    return nets.load(nets.proto(nodes, [value("x", ["N", WIDTH])], [value("y", ["N", WIDTH])], weights))


def plain() -> Model:
    return nets.load(nets.proto([node("Exp", ["x"], ["y"])], [value("x", ["N", WIDTH])], [value("y", None)]))


class Client(Attacker):
    """Opens the whole model, and sends requests without waiting for answers."""

    def __init__(self, server: Server, model: Model) -> None:
        super().__init__(server.address)
        whole = model.whole()
        names = [[t.name for t in ts] for ts in (whole.inputs, whole.outputs)]
        self.send(20, 1, {"fingerprint": model.fingerprint, "inputs": names[0], "outputs": names[1]})
        kind, _, opened, _ = self.receive()
        assert kind == Kind.OPENED, opened
        self.segment, self.id = int(opened["segment"]), 1

    def ask(self, x: Array) -> None:
        self.id += 1
        self.send(32, self.id, [self.segment, [["float32", list(x.shape), x.nbytes, ""]]], x.tobytes(), flags=1)

    def answer(self) -> Array:
        kind, _, header, body = self.receive()
        assert kind == Kind.RESULT, header
        return np.frombuffer(body[64:], np.float32)


@contextmanager
def served(model: Model, engine: Engine, told: list[Event]) -> Iterator[Server]:
    """One that waits long for the second request of a batch, so that who meets whom is the test's doing."""
    with (
        nothing_leaks(),
        Server([model], engine=engine, port=0, max_batch=2, max_wait_s=60.0, on_event=told.append) as server,
    ):
        yield server


def test_data_that_is_chosen_for_the_trial_spoils_nobody_s_answers() -> None:
    model, told = adding(), list[Event]()
    session = open_engine(threads=1).compile(model.whole())
    want = session.run({"x": HONEST})["y"][0]
    session.close()
    with served(model, open_engine(threads=1), told) as server:
        attacker, honest = Client(server, model), Client(server, model)
        for _ in range(2):  # where a trial decides, it is made with these
            attacker.ask(CHOSEN)
        for _ in range(2):
            attacker.answer()
        attacker.ask(CHOSEN)  # three by themselves have taken so and so long: the next waits for a second one
        attacker.answer()
        for _ in range(3):
            attacker.ask(POISON)
            honest.ask(HONEST)
            np.testing.assert_allclose(honest.answer(), want, rtol=1e-4)
            attacker.answer()
        assert [e for e in told if e.kind == "batched" and "CumSum" in e.sentence]
        attacker.close()
        honest.close()


class Straying:
    """An engine that is right in its first batch, as in a trial, and adds up what is in each after that."""

    name, device, threads = "straying", "cpu", 1

    def __init__(self) -> None:
        self.batches = 0

    def compile(self, segment: Segment) -> Session:
        inner, engine = open_engine(threads=1).compile(segment), self

        class Session_:
            inputs, outputs, nbytes = inner.inputs, inner.outputs, inner.nbytes

            def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
                made = inner.run(inputs)
                if len(made["y"]) > 1:
                    engine.batches += 1
                    if engine.batches > 1:
                        made["y"] = made["y"] + made["y"].sum(0)
                return made

            def close(self) -> None:
                inner.close()

        return Session_()

    def kernel_times(self, *_: Any) -> list[tuple[str, float]]:
        return []


def test_a_batch_that_strays_is_found_and_answered_one_by_one() -> None:
    model, told, engine = plain(), list[Event](), Straying()
    with served(model, engine, told) as server:
        clients = [Client(server, model) for _ in range(2)]
        for _ in range(2):
            clients[0].ask(HONEST)
        for _ in range(2):
            clients[0].answer()
        clients[0].ask(HONEST)
        clients[0].answer()
        for client in clients:
            client.ask(HONEST)
        for client in clients:
            np.testing.assert_allclose(client.answer(), np.exp(HONEST[0]), rtol=1e-5)
        assert engine.batches == 2, "the trial, and one that was looked at"
        for client in clients:
            client.ask(HONEST)
            np.testing.assert_allclose(client.answer(), np.exp(HONEST[0]), rtol=1e-5)
            client.close()
        assert engine.batches == 2
        assert [e for e in told if e.kind == "batched" and "strays" in e.sentence]
