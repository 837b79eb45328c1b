"""Uploads in their order, on a clock that is the test's."""

from __future__ import annotations

import threading

from serving import interruptible, nothing_leaks  # noqa: F401  # a fixture is used by its name

from splitpoint.tasks.uplink_order import UplinkOrder


def test_uploads_leave_in_their_order_one_after_the_other() -> None:
    now, order, mbit_s = [0.0], list[tuple[int, float]](), [8.0]
    lane = UplinkOrder(lambda nbytes: nbytes * 8e-6 / mbit_s[0], lambda: now[0])
    tickets = [lane.ticket() for _ in range(5)]
    lane.enter(tickets[0], "a", 100_000)
    lane.enter(tickets[1], "a", 100_000)  # the same connection: behind it in any case

    def enter(k: int, connection: str) -> threading.Thread:
        def run() -> None:
            lane.enter(tickets[k], connection, 50_000)
            order.append((k, now[0]))

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    fourth = enter(3, "b")
    lane.leave(tickets[2])  # failed before it was to be sent
    now[0] = 0.185
    fourth.join(0.1)
    assert fourth.is_alive(), "the link is taken until 0.2, but for the last tenth of that upload"
    now[0] = 0.195
    fourth.join(5)
    fifth = enter(4, "a")
    now[0] = 0.2
    fifth.join(0.1)
    assert fifth.is_alive(), "the link is taken until 0.245"
    mbit_s[0] = 800.0  # the link is another one than it was taken for: everything has long left
    fifth.join(5)
    assert order == [(3, 0.195), (4, 0.2)]
