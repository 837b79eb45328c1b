"""The lab: bytes arrive whole, late and in order; a slowed device is slower and says so; scenarios run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pytest
from bench.mobile import as_csv, mobile_trace
from hypothesis import given
from hypothesis import strategies as st
from sockets import LONG_S, connect, read, target, until

from splitpoint import machine
from splitpoint.cli import main
from splitpoint.errors import EngineError, InputError, ServerError, UsageError
from splitpoint.lab import experiment, scenario
from splitpoint.lab import scenario_device as worker
from splitpoint.lab import slow_device as device
from splitpoint.lab.relay import Relay, ThreadRelay
from splitpoint.lab.shaper import ShapedLane
from splitpoint.lab.slow_device import Hierarchy, Share, Stretched, hierarchies, quota_share, slowed, stop_share
from splitpoint.link import Link
from splitpoint.link.files import load_trace
from splitpoint.link.link_trace import LinkTrace
from splitpoint.models import load
from splitpoint.tensors import Array

FAST = Link(1000, 1000, 0)
#: Waits that only a hung relay would reach.


# --- the schedule, in virtual time ------------------------------------------------------------------------------------


def arrivals(lane: ShapedLane[int], nbytes: int, now: float = 0.0) -> list[float]:
    """When the chunks of a message of `nbytes` arrive, each read as soon as the lane is ready for it."""
    made = []
    while nbytes > 0:
        chunk = min(nbytes, lane.chunk)
        now = max(now, lane.ready_at)
        made.append(lane.admit(now, chunk, chunk, waiting=bool(made)))
        nbytes -= chunk
    return made


@given(
    mbps=st.floats(0.01, 2000),
    delay_s=st.floats(0, 1),
    nbytes=st.integers(1, 200_000),
    now=st.floats(-1e3, 1e3),
)
def test_a_message_arrives_after_its_bytes_and_the_delay(mbps: float, delay_s: float, nbytes: int, now: float) -> None:
    lane = ShapedLane[int](mbps, delay_s)
    last = arrivals(lane, nbytes, now)[-1]
    assert last - now == pytest.approx(nbytes / (mbps * 125e3) + delay_s, rel=1e-6, abs=1e-9)


@given(st.floats(0.13, 1000), st.floats(0, 0.2), st.just(0.0) | st.floats(0, 200), st.integers(0, 99))
def test_what_a_lane_holds_is_bounded_and_stays_in_order(mbps: float, delay_s: float, jitter: float, seed: int) -> None:
    lane = ShapedLane[int](mbps, delay_s, jitter, Random(seed))
    now, last, held = 0.0, 0.0, 0
    for _ in range(100):
        now = max(now, lane.ready_at)
        held -= sum(lane.arrived(now))
        if not jitter:  # two chunks that are leaving, and what is on its way
            assert held <= lane.bytes_per_s * delay_s * (1 + 1e-9) + 2 * lane.chunk <= lane.most
        arrives = lane.admit(now, lane.chunk, lane.chunk)
        held += lane.chunk
        assert arrives >= max(last, now + delay_s)
        last = arrives
    assert sum(lane.arrived(last)) == held


def test_chunks_follow_the_rate() -> None:
    assert ShapedLane[int](0.13).chunk == 256  # 16 ms: nobody waits longer for a part
    assert ShapedLane[int](200).chunk == 25_000
    assert ShapedLane[int](10_000).chunk == 64 << 10


def test_being_late_costs_nothing_while_the_sender_waits_and_time_while_it_does_not() -> None:
    for waiting, expected in ((True, 0.002), (False, 0.011)):
        lane = ShapedLane[int](8)
        lane.admit(0.0, 1000, 0)
        assert lane.admit(0.010, 1000, 1, waiting=waiting) == pytest.approx(expected)
    lane = ShapedLane[int](8)
    lane.admit(0.0, 1000, 0)
    assert lane.admit(5.0, 1000, 1, waiting=True) == pytest.approx(5.001)  # asleep for seconds: that is lost


def test_a_new_link_holds_for_what_has_not_left() -> None:
    lane = ShapedLane[int](0.008, 0.5)  # 1 kB/s
    assert lane.admit(0.0, 1000, 7) == pytest.approx(1.5)
    lane.set(0.5, 0.8, 0.1)  # half of it has left; the rest does at 100 kB/s
    assert lane.next_at == pytest.approx(0.5 + 0.005 + 0.1)
    assert list(lane.arrived(0.6)) == []
    assert list(lane.arrived(0.61)) == [7]


def test_a_shorter_delay_overtakes_nothing() -> None:
    lane = ShapedLane[int](8, 1.0)
    first = lane.admit(0.0, 10, 1)
    lane.set(0.1, 8, 0.0)
    assert lane.admit(0.2, 10, 2) >= first
    assert list(lane.arrived(10)) == [1, 2]


def test_a_stall_delays_what_is_on_its_way_and_what_comes_after() -> None:
    lane = ShapedLane[int](8, 0.1)
    lane.admit(0.0, 1000, 1)
    lane.stall(0.05, 2.0)
    lane.admit(0.06, 1000, 2)
    assert list(lane.arrived(2.04)) == []
    assert list(lane.arrived(2.05)) == [1]
    assert lane.next_at == pytest.approx(2.05 + 0.001 + 0.1)


def test_jitter_is_the_ninetieth_percentile_of_round_trips_and_repeats_with_its_seed() -> None:
    def trips(seed: str) -> list[float]:
        up, down = (ShapedLane[int](1e6, 0.010, 20.0, Random(f"{seed}:{way}")) for way in ("up", "down"))
        made = []
        for k in range(4000):
            there = up.admit(float(k), 1, 0)
            list(up.arrived(there))
            made.append(down.admit(there, 1, 0) - k - 0.020)
            list(down.arrived(k + 1.0))
        return made

    found = trips("a")
    assert np.percentile(found, 90) == pytest.approx(0.020, rel=0.1)
    assert min(found) >= -1e-9
    assert trips("a") == found
    assert trips("b") != found


# --- the relay, with real sockets -------------------------------------------------------------------------------------


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
        assert process.returncode == 0
        with pytest.raises(ConnectionRefusedError):
            connect(relay.address)
    with pytest.raises(ServerError, match=f"nothing answers at {address}"):
        Relay(address, FAST).start()


def test_a_relay_that_died_is_said_so() -> None:
    with target() as (address, _), Relay(address, FAST) as relay:
        assert relay._process is not None
        relay._process.kill()
        with pytest.raises(ServerError):
            relay.stall(1)


# --- the slowed device ------------------------------------------------------------------------------------------------


class Clocked:
    """An engine in virtual time: every run takes `run_s`."""

    name, device, threads = "clocked", "none", 1

    def __init__(self, run_s: float) -> None:
        self.now, self.run_s, self.closed = 0.0, run_s, False
        self.inputs = self.outputs = ()
        self.nbytes = 12

    def compile(self, segment: object) -> Clocked:
        return self

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.now += self.run_s
        return dict(inputs)

    def close(self) -> None:
        self.closed = True


def test_a_stretched_run_takes_so_many_times_as_long() -> None:
    inner = Clocked(0.25)
    engine = Stretched(inner, 4, clock=lambda: inner.now, wait_until=lambda moment: setattr(inner, "now", moment))
    session = engine.compile(None)  # type: ignore[arg-type]
    x = {"x": np.ones(3)}
    assert session.run(x) == x
    assert inner.now == 1.0
    engine.factor = 16
    session.run(x)
    assert inner.now == 5.0
    assert engine.note == "emulated: 16x slower by waiting after every run"
    engine.factor = 1
    session.run(x)
    assert (inner.now, engine.note, session.nbytes, engine.name) == (5.25, "", 12, "clocked")
    session.close()
    assert inner.closed


@pytest.mark.parametrize("wait", [device.sleep_until, device.spin_until])
def test_waits_do_not_end_early(wait: Callable[[float], None]) -> None:
    moment = time.perf_counter() + 0.003
    wait(moment)
    assert moment <= time.perf_counter() < moment + LONG_S


@pytest.mark.parametrize("factor", [0.5, 0, -2, float("nan"), float("inf"), 1e9])
def test_a_factor_that_makes_no_sense(factor: float) -> None:
    with pytest.raises(UsageError, match="slowed by a factor"):
        Stretched(Clocked(1), factor)
    with pytest.raises(UsageError, match="above 1"):
        slowed(factor)


def test_a_command_is_not_slowed_by_1_or_by_magic() -> None:
    with pytest.raises(UsageError, match="above 1"):
        slowed(1)
    with pytest.raises(UsageError, match="auto, quota, stop"):
        slowed(2, method="magic")
    with pytest.raises(UsageError, match="1 to 1024 threads"):
        slowed(2, threads=0)


def test_shares_of_a_period() -> None:
    assert quota_share(4, 2) == Share(5.0, 10.0)  # two threads together
    assert quota_share(100) == Share(1.0, 100.0)  # the kernel grants no less
    for factor in (1.5, 4, 16, 100):
        for share in (quota_share(factor), stop_share(factor)):
            assert share.period_ms / share.run_ms == pytest.approx(factor)


def proc(folder: Path, mounts: str, groups: str) -> Path:
    """What /proc/self would say."""
    process = folder / "proc"
    process.mkdir()
    (process / "mounts").write_text(mounts)
    (process / "cgroup").write_text(groups)
    return process


def test_where_a_group_may_be_made(tmp_path: Path) -> None:
    one, two = tmp_path / "cpu,cpuacct", tmp_path / "unified"
    (one / "docker").mkdir(parents=True)
    (two / "user" / "shell").mkdir(parents=True)
    mounts = f"cgroup {one} cgroup rw,cpu,cpuacct 0 0\nproc /proc proc rw 0 0\ncgroup2 {two} cgroup2 rw 0 0\n"
    found = list(hierarchies(proc(tmp_path, mounts, "4:memory:/x\n2:cpu,cpuacct:/docker\n0::/user/shell\n")))
    assert found == [Hierarchy(1, one / "docker"), Hierarchy(2, two / "user" / "shell"), Hierarchy(2, two / "user")]
    assert list(hierarchies(tmp_path / "nothing")) == []


def test_what_a_group_is_limited_to(tmp_path: Path) -> None:
    for file in ("cpu.max", "cpu.cfs_period_us", "cpu.cfs_quota_us"):
        (tmp_path / file).touch()
    Hierarchy(2, tmp_path).limit(tmp_path, Share(2.5, 10))
    Hierarchy(1, tmp_path).limit(tmp_path, Share(1, 16))
    assert (tmp_path / "cpu.max").read_text() == "2500 10000"
    assert (tmp_path / "cpu.cfs_period_us").read_text() == "16000"
    assert (tmp_path / "cpu.cfs_quota_us").read_text() == "1000"


def test_a_group_without_a_cpu_controller_is_not_used_and_not_left(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    process = proc(tmp_path, f"cgroup2 {tmp_path / 'group'} cgroup2 rw 0 0\n", "0::/\n")
    with pytest.raises(EngineError, match="may not set CPU quotas"):
        slowed(2, method="quota", process=process)
    assert list((tmp_path / "group").iterdir()) == []
    with slowed(2, process=process) as slow:
        assert slow.method == "stop"


#: Burns a fifth of a second of processor time; prints how long that took, and the note it was given.
BURN = """
import os, time
began = time.monotonic()
while time.process_time() < 0.2: pass
print(time.monotonic() - began, os.environ["SPLITPOINT_EMULATED"], sep="|")
"""


@pytest.fixture(params=["stop", "quota"])
def method(request: pytest.FixtureRequest) -> str:
    if request.param == "quota":
        try:
            slowed(2, method="quota").close()
        except EngineError:
            pytest.skip("this user may not set CPU quotas")
    return str(request.param)


def groups() -> list[Path]:
    return [p for h in hierarchies() for p in h.folder.glob(f"splitpoint-{os.getpid()}-*")]


def test_a_slowed_command_gets_its_share_and_says_so(method: str) -> None:
    with slowed(4, method=method) as slow:
        process = slow.start([sys.executable, "-c", BURN], stdout=subprocess.PIPE, text=True)
        text, _ = process.communicate(timeout=LONG_S)
    taken, note = text.strip().split("|")
    # Some of the fifth of a second went into starting Python.
    assert float(taken) > 0.3
    assert note == slow.note
    assert note.startswith("emulated: 4x slower by ")
    assert process.returncode == 0
    assert groups() == []


def test_a_command_that_still_runs_is_ended_with_its_limit(method: str) -> None:
    before = threading.active_count()
    with slowed(4, method=method) as slow:
        process = slow.start(["sleep", "60"])
        guards = list(slow._guards)
    assert process.returncode == -signal.SIGTERM
    assert all(guard.poll() is not None for guard in guards)
    assert groups() == []
    assert threading.active_count() == before


def test_what_is_left_when_we_are_killed_tidies_itself_up(method: str) -> None:
    """SIGKILL runs no clean-up of ours: the group must go, and the command must not stay stopped."""
    code = (
        "import sys, time\nfrom splitpoint.lab.slow_device import slowed\n"
        f"slow = slowed(4, method={method!r})\n"
        "command = slow.start(['sleep', '1.5'])\nprint(command.pid, slow.group, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, group = parent.stdout.readline().split()

    def state() -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return "gone"

    if method == "stop":
        until(lambda: state() == "T")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: state() in ("Z", "gone"))
    until(lambda: group == "None" or not Path(group).exists())


def test_an_unknown_command() -> None:
    with slowed(2, method="stop") as slow, pytest.raises(UsageError, match="there is no command nonsuch"):
        slow.start(["nonsuch"])


# --- scenarios --------------------------------------------------------------------------------------------------------

SCENARIO = """
model = "zoo:lenet5"
at = ["input", "conv2", "output"]
link = "20mbit,10ms"
requests = 20
warm_up = 1
inputs = "synthetic"
codec = "fp16"

[device]
slowdown = 2

[[events]]
at_s = 0.0
do = "cut"
seconds = 0.2
"""


def test_scenarios_that_ship_are_sound() -> None:
    links = {name: name for name in ("cat1", "3g", "4g", "wifi", "wifi5", "lan")}
    links |= {"lte": "lte.csv", "step": "50mbit,10ms"}
    assert scenario.names() == list(links)
    for name, link in links.items():
        found = scenario.load_scenario(scenario.find(name))
        assert found.model == "zoo:efficientnet_lite0"
        assert found.shaped().name == link
        assert found.title


def test_the_mobile_trace_that_ships_is_the_one_that_is_made() -> None:
    shipped = load_trace(scenario.find("lte").with_suffix(".csv"))
    made = mobile_trace()
    assert shipped.times == made.times
    assert shipped.links == made.links
    assert as_csv(made).splitlines()[0] == "time,up,down,rtt"
    rates = sorted(link.up_mbps for link in made.links)
    assert rates[0] < 1
    assert 4 < rates[len(rates) // 2] < 8
    assert rates[-1] > 15
    assert mobile_trace(seed=1) != made


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("model = ", "is not TOML"),
        ('at = ["x"]\nlink = "4g"', "missing required field `model`"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\nrequest = 3', "unknown field `request`; did you mean requests"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\nsource = "3"', "unknown field `source`"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\nrequests = "3"', r"Expected `int`, got `str` - at `\$.requests`"),
        ('model = "m"\nat = ["x"]\nlink = "5g"', "no link is called 5g"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\ncodec = "int9"', "no codec is called 'int9'"),
        ('model = "m"\nat = ["x"]\nlink = "gone.csv"', "there is no file .*gone.csv"),
        ('model = "m"\nlink = "4g"', "give either at"),
        ('model = "m"\nat = ["x"]\nplan = "p.json"\nlink = "4g"', "give either at"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\nrequests = 0', "requests must be from 1"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[device]\nslowdown = 0.5', "slowed by a factor 1 or more"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[device]\nslowdown = nan', "slowed by a factor 1 or more"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[device]\nmethod = "magic"', "Invalid enum value 'magic'"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[device]\nthreads = 0', "device.threads must be from 1"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[[events]]\nat_s = -1.0\ndo = "cut"', "must be 0 or more"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[[events]]\nat_s = 1.0\ndo = "link"', "has a link if"),
    ],
)
def test_a_scenario_that_is_wrong_says_where(tmp_path: Path, wrong: str, said: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(wrong)
    with pytest.raises(InputError, match=said) as caught:
        scenario.load_scenario(path)
    assert str(path) in str(caught.value)


def test_a_scenario_runs_survives_its_cut_and_is_written_down(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SCENARIO)
    it = scenario.load_scenario(path)
    results = experiment.run(it, path)
    assert len(results.rows) == 60
    assert "emulated link: 20mbit,10ms" in results.note
    assert "emulated: 2x slower" in results.note
    failed = [r for r in results.rows if r.error]
    assert len(failed) == 1  # the link was cut once, and used again once it was back
    good = [r for r in results.rows if not r.error]
    assert {r.cut for r in good} == {"input", "conv2", "output"}
    for row in good:
        assert sum(row.spans_ms.values()) == pytest.approx(row.total_ms, abs=0.01)
        assert row.note == results.note
        if row.cut != "output":
            assert row.total_ms >= 9.9  # no request beats the link's round trip
    results.save(tmp_path / "out")
    lines = (tmp_path / "out" / "requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["cut"] for line in lines] == [r.cut for r in results.rows]
    header, *rows = (tmp_path / "out" / "summary.csv").read_text().splitlines()
    assert header.startswith("scenario,cut,codec,requests,failed,up_nbytes,down_nbytes,median_ms")
    assert [row.split(",")[1] for row in rows] == ["input", "conv2", "output"]
    assert json.loads((tmp_path / "out" / "about.json").read_text())["note"] == results.note
    assert (tmp_path / "out" / "scenario.toml").read_text() == SCENARIO


def test_a_plan_must_be_there_and_be_the_models(tmp_path: Path) -> None:
    it = scenario.Scenario(model="zoo:lenet5", plan="gone.json", link="lan", folder=str(tmp_path))
    with pytest.raises(InputError, match=r"gone\.json"):
        worker.cuts_of(it, load("zoo:lenet5"))


def test_inputs_of_a_scenario(tmp_path: Path) -> None:
    model = load("zoo:lenet5")

    def inputs(which: str | tuple[str, ...], seed: int = 0) -> list[Mapping[str, Array]]:
        it = scenario.Scenario(
            model="zoo:lenet5", at=("input",), link="lan", inputs=which, seed=seed, requests=3, folder=str(tmp_path)
        )
        return [one for _, one in worker.inputs_of(it, model)]

    drawn, again, other = inputs("synthetic"), inputs("synthetic"), inputs("synthetic", 1)
    name = model.inputs[0].name
    assert [np.array_equal(a[name], b[name]) for a, b in zip(drawn, again, strict=True)] == [True] * 3
    assert not np.array_equal(drawn[0][name], other[0][name])
    np.save(tmp_path / "one.npy", drawn[1][name])
    assert np.array_equal(inputs("one.npy")[0][name], drawn[1][name])
    with pytest.raises(UsageError, match="it is empty"):
        inputs(())


def test_a_scenario_whose_device_cannot_start_says_why(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('model = "zoo:lenet5"\nlink = "lan"\ninputs = "synthetic"\nat = ["nowhere"]\n')
    with pytest.raises(UsageError, match=r"the device ended: .*nowhere"):
        experiment.run(scenario.load_scenario(path), path)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("lab run 5g", 2, "no scenario is called 5g; did you mean"),
        ("lab run nothing", 2, "no scenario is called nothing (there are: cat1"),
        ("lab run gone.toml", 4, "there is no file gone.toml"),
        ("lab slow 1 -- true", 2, "above 1"),
        ("lab slow nan -- true", 2, "above 1"),
        ("lab slow 2 --method stop -- nonsuch", 2, "there is no command nonsuch"),
        ("lab slow 2 --method stop -- sh -c exit\\ 7", 7, "emulated: 2x slower"),
        ("lab link --to 127.0.0.1:1 --link 4g", 6, "nothing answers at 127.0.0.1:1"),
        ("lab link --to 127.0.0.1:1 --link 5g", 2, "no link is called 5g"),
        ("lab link --to 127.0.0.1:99999 --link 4g", 2, "99999 is not a port"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: str, status: int, said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = [w.replace("\\", " ") for w in arguments.replace("\\ ", "\\").split()]
    assert main(words) == status
    _, err = capfd.readouterr()
    assert said in err
    assert "Traceback" not in err


def test_the_list_names_what_ships(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "list"]) == 0
    out = capfd.readouterr().out
    assert all(f" {name} " in out for name in scenario.names())


def test_a_note_reaches_measurements_by_this_name() -> None:
    assert machine.EMULATED == "SPLITPOINT_EMULATED"
