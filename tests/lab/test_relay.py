"""A relay in a process of its own: what it is told, and what it says."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from sockets import connect, read, target

from splitpoint.errors import ServerError, UsageError
from splitpoint.lab.relay import Relay
from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace

FAST = Link(1000, 1000, 0)


def test_a_relay_in_a_process_of_its_own() -> None:
    data = np.random.default_rng(0).bytes(200_000)
    with target() as (address, _):
        with Relay(address, Link(100, 100, 1), seed=3) as relay, connect(relay.address) as sock:
            sender = threading.Thread(target=sock.sendall, args=(data,))
            sender.start()
            assert read(sock, len(data)) == data
            sender.join()
            relay.set_link(LinkTrace((0.0, 5.0), (Link(50, 50, 1), FAST), "t"))
            assert relay.status().up_nbytes == len(data)
            with pytest.raises(UsageError, match="is no time"):
                relay.stall(-1)
            with pytest.raises(UsageError, match="bytes to cut after"):
                relay.cut(0, -5)
            with pytest.raises(UsageError, match="does not know dance"):
                relay._tell("dance")
            assert relay.status().connections == 1  # none of that harmed it
            process = relay._process
            assert process is not None
            with pytest.raises(ServerError, match="is in use"):
                Relay(address, FAST, port=int(relay.address.split(":")[1])).start()
        assert process.process.returncode == 0
        with pytest.raises(ConnectionRefusedError):
            connect(relay.address)
    with pytest.raises(ServerError, match=f"nothing answers at {address}"):
        Relay(address, FAST).start()


def test_a_relay_that_died_is_said_so() -> None:
    with target() as (address, _), Relay(address, FAST) as relay:
        assert relay._process is not None
        relay._process.process.kill()
        with pytest.raises(ServerError):
            relay.stall(1)


def test_a_relay_process_obeys_and_says_what_makes_no_sense() -> None:
    with target() as (address, heard), Relay(address, FAST, seed=3) as relay, connect(relay.address) as sock:
        relay.corrupt("up", 1)
        relay.blackhole(0.1)
        sock.sendall(b"aaaa")
        came = read(sock, 4)
        assert came == heard[-1] != b"aaaa"
        assert relay.status().changed_nbytes == 1
        for line, said in (
            ("corrupt sideways", "does not know corrupt sideways"),
            ("corrupt up -1", "no number of bytes to pass first"),
            ("corrupt up 0 0", "from 1 to 1000000 bytes can be changed, not 0"),
            ("corrupt up 0 " + "9" * 30, "no number of bytes to change"),
            ("blackhole", "does not know blackhole"),
            ("blackhole inf", "inf is no time"),
        ):
            with pytest.raises(UsageError, match=said):
                relay._tell(line)
        sock.sendall(b"bbbb")
        assert read(sock, 4) == b"bbbb"  # none of that harmed it
