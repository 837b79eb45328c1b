"""Bytes through a relay in a thread: whole, late and in order, whatever happens to the link."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from relays import ThreadRelay
from sockets import LONG_S, connect, read, target, until

from splitpoint.errors import UsageError
from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace

FAST = Link(1000, 1000, 0)


def test_bytes_come_whole_and_in_order_on_several_connections_at_once() -> None:
    data = [np.random.default_rng(k).bytes(300_000) for k in range(3)]
    with target() as (address, _), ThreadRelay(address, Link(200, 200, 2, jitter_ms=5)) as relay:
        socks = [connect(relay.address) for _ in data]
        senders = [threading.Thread(target=s.sendall, args=(d,)) for s, d in zip(socks, data, strict=True)]
        for sender in senders:
            sender.start()
        assert [read(s, len(d)) == d for s, d in zip(socks, data, strict=True)] == [True] * 3
        for sender in senders:
            sender.join()
        for sock in socks:
            sock.close()
        until(lambda: relay.status().connections == 0)
        status = relay.status()
        assert (status.up_nbytes, status.down_nbytes, status.held_nbytes) == (900_000, 900_000, 0)


def test_one_side_may_end_before_the_other() -> None:
    answer = b"all heard" * 10_000
    with (
        target(answer) as (address, heard),
        ThreadRelay(address, Link(50, 50, 4)) as relay,
        connect(relay.address) as sock,
    ):
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        assert read(sock, len(answer) + 1) == answer  # and then the end
        assert heard[-1] == b"question"
        until(lambda: relay.status().connections == 0)


def test_neither_rate_nor_round_trip_is_better_than_asked() -> None:
    with target() as (address, _), ThreadRelay(address, Link(2, 4, 40)) as relay, connect(relay.address) as sock:
        began = time.monotonic()
        sock.sendall(bytes(30_000))
        read(sock, 30_000)
        taken = time.monotonic() - began
        # 120 ms up; the answer streams behind it, so only its last chunk adds to that; 40 ms of round trip.
        assert 0.158 <= taken < LONG_S


def test_a_sender_feels_a_slow_link_at_once() -> None:
    with target() as (address, _), ThreadRelay(address, Link(0.13, 0.13, 100)) as relay, connect(relay.address) as sock:
        sock.setblocking(False)
        sent = 0
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            try:
                sent += sock.send(bytes(4096))
            except BlockingIOError:
                time.sleep(0.01)
        # What the sender's own kernel keeps, as on any network; loopback alone would have taken megabytes.
        assert sent < 250_000
        assert relay.status().held_nbytes <= 2 * (16_250 * 0.05 + 4 * 256)  # both ways


def test_the_link_changes_while_bytes_are_on_their_way() -> None:
    with target() as (address, _), ThreadRelay(address, Link(0.001, 0.001, 0)) as relay, connect(relay.address) as sock:
        sock.sendall(bytes(5_000))  # 40 seconds, and the first chunk alone takes two
        relay.set_link(FAST)
        assert read(sock, 5_000) == bytes(5_000)


def test_a_trace_is_replayed() -> None:
    trace = LinkTrace((0.0, 0.2), (Link(0.001, 0.001, 0), FAST))
    with target() as (address, _), ThreadRelay(address, trace) as relay, connect(relay.address) as sock:
        began = time.monotonic()
        sock.sendall(bytes(5_000))
        assert read(sock, 5_000) == bytes(5_000)
        assert time.monotonic() - began >= 0.15


def test_a_stall_holds_bytes_back_and_loses_none() -> None:
    with target() as (address, _), ThreadRelay(address, FAST) as relay, connect(relay.address) as sock:
        relay.stall(0.3)
        began = time.monotonic()
        sock.sendall(b"x" * 1000)
        assert read(sock, 1000) == b"x" * 1000
        assert time.monotonic() - began >= 0.29


def test_a_cut_resets_connections_and_refuses_new_ones_for_a_while() -> None:
    with target() as (address, _), ThreadRelay(address, FAST) as relay:
        with connect(relay.address) as sock:
            sock.sendall(b"hello")
            assert read(sock, 5) == b"hello"
            relay.cut(refuse_s=0.3)
            with pytest.raises(ConnectionError):
                sock.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(relay.address)

        def again() -> bool:
            with suppress(ConnectionRefusedError), connect(relay.address) as sock:
                sock.sendall(b"back")
                return read(sock, 4) == b"back"
            return False

        until(again)


def test_a_cut_in_the_middle_of_a_message_lets_exactly_so_much_through() -> None:
    with target(b"") as (address, heard), ThreadRelay(address, FAST) as relay:
        relay.cut(after_nbytes=70_001)

        def talk(sock: socket.socket) -> None:
            """Sending hears of the cut, or receiving, whichever comes first; the other one does not any more."""
            sock.sendall(bytes(200_000))
            sock.recv(1)

        with connect(relay.address) as sock, pytest.raises(ConnectionError):
            talk(sock)
        until(lambda: relay.status().connections == 0)
        until(lambda: len(heard[-1]) == 70_001)
        assert relay.status().up_nbytes == 70_001


def test_a_target_that_is_gone_resets_the_connection() -> None:
    with target() as (address, _):
        relay = ThreadRelay(address, FAST)
        relay.start()
    with relay, pytest.raises(ConnectionError), connect(relay.address) as sock:
        sock.recv(1)


def test_a_closed_relay_leaves_nothing() -> None:
    with target() as (address, _):
        before = threading.active_count(), len(os.listdir("/proc/self/fd"))
        relay = ThreadRelay(address, Link(1, 1, 100))
        relay.start()
        with connect(relay.address) as sock:
            sock.sendall(bytes(1000))
            until(lambda: relay.status().connections == 1)
            relay.close()
            with pytest.raises(ConnectionError):
                sock.recv(1)
        until(lambda: (threading.active_count(), len(os.listdir("/proc/self/fd"))) <= before)
        with pytest.raises(ConnectionRefusedError):
            connect(relay.address)
        with pytest.raises(UsageError, match="not started"):
            relay.stall(1)


def test_a_byte_is_changed_in_its_direction_and_counted() -> None:
    data = bytes(range(256)) * 40
    with target() as (address, heard), ThreadRelay(address, FAST) as relay, connect(relay.address) as sock:
        relay.corrupt("up", 5000, 2)
        relay.corrupt("down", 7000)
        sock.sendall(data)
        came = read(sock, len(data))
        assert [k for k, (a, b) in enumerate(zip(data, heard[-1], strict=True)) if a != b] == [5000, 5001]
        assert [k for k, (a, b) in enumerate(zip(data, came, strict=True)) if a != b] == [5000, 5001, 7000]
        assert relay.status().changed_nbytes == 3
        sock.sendall(data)
        assert read(sock, len(data)) == data  # once


def test_a_blackhole_lets_nothing_through_and_loses_nothing() -> None:
    with target() as (address, heard), ThreadRelay(address, Link(1000, 1000, 20)) as relay:
        with connect(relay.address) as sock:
            sock.sendall(b"before")
            assert read(sock, 6) == b"before"
            began = time.monotonic()
            relay.blackhole(0.4)
            sock.sendall(b"after")
            with connect(relay.address) as late:  # the kernel answers for the relay, which connects to nobody
                late.sendall(b"late")
                until(lambda: time.monotonic() > began + 0.2)
                assert heard == [b"", b"before"]  # the first one is the relay's, when it was made
                assert relay.status().connections == 1
                assert read(sock, 5) == b"after"
                assert time.monotonic() - began >= 0.4
                assert read(late, 4) == b"late"
        assert sorted(heard) == [b"", b"beforeafter", b"late"]


def test_no_end_and_no_reset_passes_a_blackhole() -> None:
    with target() as (address, heard), ThreadRelay(address, FAST) as relay:
        sock = connect(relay.address)
        sock.sendall(b"hello")
        assert read(sock, 5) == b"hello"
        began = time.monotonic()
        relay.blackhole(0.3)
        relay.set_link(Link(2000, 2000, 0))  # a better link makes it no shorter
        sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER: closes with a reset
        sock.close()
        assert relay.status().connections == 1
        until(lambda: relay.status().connections == 0)
        assert time.monotonic() - began >= 0.3
        assert heard == [b"", b"hello"]


def test_what_waits_for_a_full_receiver_waits_for_the_end_of_the_blackhole() -> None:
    data = os.urandom(3_000_000)
    with target() as (address, _), ThreadRelay(address, FAST) as relay, connect(relay.address) as sock:
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()  # nobody reads: the relay holds what the kernel does not take
        until(lambda: relay.status().held_nbytes > 0)
        relay.blackhole(0.2)
        assert read(sock, len(data)) == data
        sender.join()
