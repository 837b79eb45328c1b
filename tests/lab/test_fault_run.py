"""Nothing is lost: links that swallow and change bytes, servers that are killed and paused, and every request answered.

The first parts need no server; the last one has real processes: a server, a device, and what goes wrong between.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given
from serving import nothing_leaks
from sockets import connect, read, target, until

from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.errors import InputError, UsageError
from splitpoint.lab import fault_run as ordeal
from splitpoint.lab import faults, scenario
from splitpoint.lab.damage import Damage
from splitpoint.lab.fault_run import Answer, Report
from splitpoint.lab.faults import KINDS, Fault, schedule
from splitpoint.lab.relay import Relay, ThreadRelay
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.result import Marks, Result
from splitpoint.segments import samples_for

FAST = Link(1000, 1000, 0)


# --- damage, in no time at all --------------------------------------------------------------------------------------


@given(
    st.lists(st.binary(max_size=30), max_size=8),
    st.integers(0, 100),
    st.integers(1, 40),
    st.integers(0, 5),
)
def test_so_many_bytes_change_by_a_bit_each_after_so_many_others(
    chunks: list[bytes], after: int, count: int, seed: int
) -> None:
    damage = Damage(Random(seed))
    damage.order(after, count)
    sent = b"".join(chunks)
    came = b"".join(damage.passed(chunk) for chunk in chunks)
    assert len(came) == len(sent)
    changed = [k for k, (a, b) in enumerate(zip(sent, came, strict=True)) if a != b]
    assert changed == list(range(after, min(after + count, len(sent))))
    assert all((sent[k] ^ came[k]).bit_count() == 1 for k in changed)
    assert damage.nbytes == len(changed)
    again = Damage(Random(seed))
    again.order(after, count)
    assert again.passed(sent) == came


def test_a_second_order_takes_the_place_of_the_first() -> None:
    damage = Damage(Random(0))
    damage.order(1000, 5)
    damage.order(0, 1)
    assert damage.passed(b"ab")[1:] == b"b"
    assert damage.passed(bytes(2000)) == bytes(2000)


# --- a link that changes and swallows -------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ('do = "corrupt"', 'has a direction if, and only if, it does "corrupt"'),
        ('do = "cut"\ndirection = "up"', 'has a direction if, and only if, it does "corrupt"'),
        ('do = "corrupt"\ndirection = "left"', "Invalid enum value 'left'"),
        ('do = "corrupt"\ndirection = "up"\ncount = 0', "its count from 1"),
        ('do = "corrupt"\ndirection = "up"\nafter_nbytes = -1', "after_nbytes must be 0 or more"),
        ('do = "blackhole"\nseconds = -1.0', "must be 0 or more"),
        ('do = "blackout"', "Invalid enum value 'blackout'"),
    ],
)
def test_an_event_that_makes_no_sense_is_said(tmp_path: Path, event: str, said: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f'model = "zoo:lenet5"\nat = ["input"]\nlink = "lan"\n[[events]]\nat_s = 1.0\n{event}\n')
    with pytest.raises(InputError, match=said):
        scenario.load_scenario(path)


# --- the schedule ---------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 1000),
    st.integers(1, 3000),
    st.sets(st.sampled_from(list(KINDS)), min_size=1).map(sorted),
    st.floats(0.01, 5),
)
def test_a_schedule_is_a_function_of_its_seed_and_within_bounds(
    seed: int, count: int, kinds: list[str], most_s: float
) -> None:
    planned = schedule(seed, count, kinds=kinds, gap=(20, 60), most_s=most_s)
    assert planned == schedule(seed, count, kinds=kinds, gap=(20, 60), most_s=most_s)
    at = [0, *(f.request for f in planned)]
    assert all(20 <= b - a <= 60 for a, b in pairwise(at))
    assert at[-1] <= max(0, count - 20)
    assert len(planned) >= (count - 20) // 60
    found = Counter(f.do for f in planned)
    assert max(found.values(), default=0) - min((found[k] for k in kinds), default=0) <= 1  # in turns
    for fault in planned:
        assert fault.do in kinds
        assert 0 <= fault.seconds <= min(KINDS[fault.do][2], most_s)
        assert bool(fault.direction) == (fault.do == "mid-frame" or fault.do.startswith("corrupt"))


def test_schedules_differ_by_seed_and_the_last_blackhole_may_be_long() -> None:
    assert schedule(1, 2000) != schedule(2, 2000)
    planned = schedule(1, 2000, blackout_s=10.0)
    assert [f.seconds for f in planned if f.do == "blackhole"][-1] == 10.0
    assert {f.do for f in planned} == set(KINDS)
    for wrong, said in ((("kil",), "did you mean kill"), ((), "needs a kind of fault")):
        with pytest.raises(UsageError, match=said):
            schedule(1, 100, kinds=wrong)
    with pytest.raises(UsageError, match="a gap of one request at least"):
        schedule(1, 100, gap=(0, 5))


def _answer(request: int, at_s: float, fallback: str = "", *, equal: bool = True) -> Answer:
    return Answer(request, at_s, 1.0, fallback, 1, 0.0, 0.0, equal)


def test_a_report_counts_what_is_lost_doubled_wrong_and_whose_it_was() -> None:
    planned = (Fault(2, "cut"), Fault(4, "kill"), Fault(6, "cut"))
    good = [_answer(k, 0.1 * k + 0.1, "gone" * (k in (2, 4, 5))) for k in range(8)]

    def report(answers: list[Answer], **more: object) -> Report:
        known = {"out_of_order": 0, "failures": (), "recovered_s": 0.5, "changed_nbytes": 3, "seconds": 1.0}
        return Report(count=8, faults=planned, answers=tuple(answers), **{**known, **more})  # type: ignore[arg-type]

    sound = report(good)
    assert sound.sound
    assert sound.complaints == []
    assert [(t.kind, t.times, t.by_server, t.here) for t in sound.tolls()] == [
        ("", 0, 2, 0),
        ("kill", 1, 0, 2),
        ("cut", 2, 3, 1),
    ]
    assert sound.reasons == {"gone": 3}
    assert "5 from the server, 3 finished here; 0 lost" in sound.summary
    late = report([*good[:4], _answer(4, 0.9), *good[5:]])
    assert max(t.longest_gap_ms for t in late.tolls()) == pytest.approx(200)  # between 3 and 5, and once at the end
    for bad, said in (
        (report(good[1:]), "1 of 8 requests were not answered"),
        (report([*good, good[3]]), "1 of 8 requests were answered twice"),
        (report([*good[1:], _answer(0, 0.1, equal=False)]), "1 of 8 requests were answered wrong"),
        (report(good, out_of_order=1), "1 of 8 requests came out of order"),
        (report(good, failures=("3: it raised",)), "3: it raised"),
    ):
        assert not bad.sound
        assert bad.complaints == [said]


def test_the_judge_knows_another_inputs_answer() -> None:
    model = load("zoo:lenet5")
    samples = samples_for(model, 8)
    judge = ordeal._AnswerJudge(model, open_engine(threads=1), model.graph.cut("pool1"), samples)
    marks = Marks(0.0, 0.0, 0.0, 0.0)
    for request, k, equal in ((3, 3, True), (11, 3, True), (3, 4, False), (0, 7, False)):
        result = Result({t.name: judge._expected[k][t.name] for t in model.outputs}, "pool1", marks)
        assert judge.answer(request, 0.0, result).equal == equal


# --- real processes -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with nothing_leaks():
        yield


def test_hundreds_of_requests_through_everything_that_can_go_wrong() -> None:
    """The seeded schedule, in small; `python -m bench.faults` is the large one."""
    planned = schedule(3, 260, gap=(12, 24), most_s=0.4)
    assert {f.do for f in planned} == set(KINDS)
    quick = Patience(pong_s=0.5, longest_pause_s=0.5)
    report = ordeal.run("zoo:lenet5", planned, count=260, at="pool1", rate=60.0, seed=3, patience=quick)
    assert report.complaints == []
    assert report.changed_nbytes > 0
    here = sum(bool(a.fallback) for a in report.answers)
    assert 0 < here < 260  # both took part
    assert max(a.error for a in report.answers) < 1e-3


def test_the_command_says_what_it_found(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["lab", "faults", "zoo:lenet5", "--count", "60", "--rate", "100", "--kind", "cut", "--at", "pool1"]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert "60 answers to 60 requests through" in out
    assert "0 lost, 0 doubled, 0 wrong, 0 out of order" in out
    assert "Traceback" not in err
    assert main(["lab", "faults", "--kind", "earthquake"]) == 2
    assert main(["lab", "faults", "--rate", "0"]) == 2
    assert main(["lab", "faults", "--at", "nowhere"]) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_every_kind_has_a_line_for_people() -> None:
    for about, least, most in faults.KINDS.values():
        assert about
        assert 0 <= least <= most
