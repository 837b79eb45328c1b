"""The wire format: round trips, limits, versions, and the worked example in its documentation."""

from __future__ import annotations

import re
import struct

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from frames import DOC, drain, dump, joined
from splitpoint import wire
from splitpoint.errors import BusyError, EngineError, InputError, ModelError, ProtocolError, ServerError
from splitpoint.tensors import ITEM_SIZES, Array, TensorSpec
from splitpoint.transports import memory
from splitpoint.wire import Kind, Limits, Packer, Packet


def received(data: bytes, count: int = 1, chunks: int = 1 << 30) -> list[wire.Frame]:
    """What the far side of a connection makes of `data`, sent in pieces of `chunks` bytes."""
    near, far = memory.pair(Limits(stall_s=0.1))
    for at in range(0, len(data), chunks):
        near.send(Packet((data[at : at + chunks],), min(chunks, len(data) - at)))
    return [far.receive(timeout_s=1) for _ in range(count)]


dtypes = st.sampled_from(sorted(ITEM_SIZES))
arrays = dtypes.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6)))
layouts = st.sampled_from(["plain", "reversed", "transposed", "big-endian", "strided"])


def laid_out(array: Array, layout: str) -> Array:
    if layout == "big-endian":
        return array.astype(array.dtype.newbyteorder(">"))
    if layout == "transposed":
        return array.T
    if layout == "reversed" and array.ndim:
        return array[::-1]
    if layout == "strided" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    return array


@given(
    st.lists(st.lists(st.tuples(arrays, layouts), max_size=4), min_size=1, max_size=4),
    st.integers(1, 200),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_tensors_survive_any_shape_layout_and_fragmentation(
    frames: list[list[tuple[Array, str]]], chunks: int, answer: bool
) -> None:
    kind = Kind.RESULT if answer else Kind.INFER
    packer = Packer(kind, wire.ResultData if answer else lambda t: wire.Infer(3, t))
    times = wire.Times(*(0.125 * n for n in range(8)))
    sent = [[laid_out(a, layout) for a, layout in tensors] for tensors in frames]
    data = b"".join(joined(packer.pack(k, tensors, (), times if answer else ())) for k, tensors in enumerate(sent))
    for k, (frame, tensors) in enumerate(zip(received(data, len(sent), chunks), sent, strict=True)):
        assert (frame.kind, frame.id) == (kind, k)
        assert len(frame.tensors) == len(tensors)
        for got, want in zip(frame.tensors, tensors, strict=True):
            assert got.dtype.name == want.dtype.name
            assert got.dtype.isnative
            assert got.flags.c_contiguous
            np.testing.assert_array_equal(got, want)
        if answer:
            assert wire.parse_times(frame.times) == times


# Words for people arrive as `plain` leaves them, so only those that it leaves as they are survive.
texts = st.text(max_size=20).map(lambda text: wire.plain(text, 20))
naturals = st.integers(0, 2**63 - 1)
infos = st.builds(wire.TensorInfo, texts, dtypes, st.lists(st.one_of(naturals, texts), max_size=4).map(tuple))
messages = st.one_of(
    st.builds(wire.Hello, software=texts, features=st.lists(texts, max_size=3).map(tuple), token=texts),
    st.builds(
        wire.Welcome,
        software=texts,
        models=st.lists(
            st.builds(wire.ModelInfo, texts, texts, naturals, st.tuples(infos), st.tuples(infos)), max_size=2
        ).map(tuple),
        limits=st.dictionaries(texts, naturals, max_size=3),
    ),
    st.builds(wire.Error, texts, texts, st.floats(0, 1e6)),
    st.builds(wire.Busy, st.floats(0, 1e6), texts),
    st.builds(wire.Bye, texts),
    st.builds(wire.Ping, st.floats(-1e9, 1e9)),
    st.builds(wire.Pong, *[st.floats(-1e9, 1e9)] * 3),
    st.builds(wire.GraphRequest, texts),
    st.builds(wire.GraphData, texts, texts, st.lists(st.tuples(texts, naturals), max_size=3).map(tuple)),
    st.builds(wire.BlobRequest, texts, texts, naturals, naturals),
    st.builds(wire.BlobData, texts, naturals, naturals),
    st.builds(wire.OpenRequest, texts, st.tuples(texts), st.tuples(texts, texts), st.tuples(texts)),
    st.builds(wire.Opened, naturals, st.tuples(infos), st.tuples(infos), naturals, st.floats(0, 100)),
    st.builds(wire.Close, naturals),
)
kinds = {cls: kind for kind, cls in wire.HEADERS.items()}


@given(messages, st.integers(0, 2**32 - 1), st.integers(1, 64))
@settings(deadline=None)
def test_every_message_survives(message: wire.Message, id: int, chunks: int) -> None:
    frame = received(joined(wire.encode(kinds[type(message)], id, message)), 1, chunks)[0]
    assert (frame.id, frame.header) == (id, message)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_bytes_of_any_kind_are_refused_or_read_but_nothing_else_happens(data: bytes) -> None:
    near, far = memory.pair(Limits(stall_s=0.05))
    near.send(Packet((data,), len(data)))
    near.close()
    with pytest.raises((ServerError, TimeoutError)):
        drain(far)


@given(st.integers(0, 23), st.binary(min_size=1, max_size=24), st.data())
@settings(deadline=None)
def test_a_damaged_frame_is_refused_or_read_but_nothing_else_happens(
    at: int, noise: bytes, data: st.DataObject
) -> None:
    good = joined(Packer(Kind.INFER, lambda t: wire.Infer(3, t)).pack(7, [np.arange(6, dtype=np.int16)]))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + noise + good[at + len(noise) :]
    near, far = memory.pair(Limits(stall_s=0.05, tensor_bytes=1 << 20, frame_bytes=1 << 20, header_bytes=1 << 16))
    near.send(Packet((bad,), len(bad)))
    near.close()
    with pytest.raises((ServerError, TimeoutError)):
        drain(far)


# --- packing --------------------------------------------------------------------------------------------------------


def test_a_repeated_layout_is_packed_from_memory_and_a_changed_one_anew() -> None:
    built: list[tuple[wire.Tensor, ...]] = []

    def build(tensors: tuple[wire.Tensor, ...], n: int) -> wire.Infer:
        built.append(tensors)
        return wire.Infer(n, tensors)

    packer = Packer(Kind.INFER, build)
    a, b = np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)
    packets = [packer.pack(k, [x], (n,)) for k, (x, n) in enumerate([(a, 1), (a, 1), (b, 1), (b, 2), (a, 1)])]
    assert len(built) == 4
    frames = [received(joined(p))[0] for p in packets]
    assert [f.id for f in frames] == [0, 1, 2, 3, 4]
    assert [f.tensors[0].shape for f in frames] == [(2, 3), (2, 3), (3, 2), (3, 2), (2, 3)]
    assert [f.header.segment for f in frames if isinstance(f.header, wire.Infer)] == [1, 1, 1, 2, 1]


def test_contiguous_tensors_are_sent_from_their_own_memory() -> None:
    array = np.arange(10, dtype=np.float32)
    packet = Packer(Kind.INFER, lambda t: wire.Infer(3, t)).pack(1, [array])
    assert packet.buffers[1] is array or np.shares_memory(packet.buffers[1], array)


def test_flags_are_the_frame_s_own() -> None:
    packer = Packer(Kind.INFER, lambda t: wire.Infer(3, t))
    x = [np.zeros(3, np.uint8)]
    assert [received(joined(packer.pack(1, x, flags=f)))[0].flags for f in (0, 1, 0)] == [0, 1, 0]


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "U3", "O"])
def test_dtypes_that_never_travel_are_refused(dtype: str) -> None:
    with pytest.raises(InputError, match="cannot travel"):
        Packer(Kind.INFER, lambda t: wire.Infer(3, t)).pack(1, [np.zeros(2, dtype)])


# --- limits: refused before memory is spent -------------------------------------------------------------------------


def raw(kind: int, header: object, body: int, *, major: int = wire.MAJOR, header_bytes: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    size = len(encoded) if header_bytes is None else header_bytes
    return struct.pack("<4sBBBBIIQ", wire.MAGIC, major, 0, kind, 0, 1, size, body) + encoded


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (raw(Kind.PING, b"", 0, header_bytes=2**32 - 1), "header of 4294967295 bytes is over the limit"),
        (raw(Kind.INFER, [1, []], 2**64 - 1), "body of 18446744073709551615 bytes is over the limit"),
        (raw(Kind.INFER, [1, [["float32", [2**40], 2**42, ""]]], 2**20), "over the limit"),
        (raw(Kind.INFER, [1, [["float32", [2**62] * 30, 4, ""]]], 4), "over the limit"),
        (raw(Kind.INFER, [1, [["float32", [2, 3], 20, ""]]], 20), r"float32\[2,3\] has 24 bytes, not 20"),
        (raw(Kind.INFER, [1, [["float32", [2, 3], 24, ""]]], 25), "24 bytes and its body 25"),
        (raw(Kind.INFER, [1, [["uint8", [], 1, ""]] * 300], 300), "300 tensors is over the limit of 256"),
        (raw(Kind.INFER, [1, [["uint8", [1] * 33, 1, ""]]], 1), "33 dimensions"),
        (raw(Kind.INFER, [1, [["uint8", [-1], 1, ""]]], 1), "INFER"),
        (raw(Kind.INFER, [1, [["string", [1], 1, ""]]], 1), "unknown dtype 'string'"),
        (raw(Kind.INFER, [1], 0), "INFER"),
        (raw(Kind.INFER, {"segment": 1}, 0), "INFER"),
        (raw(Kind.INFER, b"\xc1", 0), "INFER"),
        (raw(Kind.INFER, b"", 0), "INFER"),
        (raw(Kind.ERROR, {"code": b"\xff"}, 0), "ERROR"),
        (raw(Kind.INFER, b"\x91" * 5000, 0), "INFER"),
        (raw(Kind.INFER, [1, [["float32", [2**62, 2**62, 0], 0, ""]]], 0), "no elements.*dimensions over the limit"),
        (
            raw(Kind.RESULT, [[["float32", [0, 2**62], 0, ""]]], 64) + bytes(64),
            "no elements.*dimensions over the limit",
        ),
        (raw(Kind.PING, [1.0], 5), "PING has no body, but 5 bytes came"),
        (raw(Kind.RESULT, [[]], 63), "64 bytes of times"),
    ],
)
def test_what_is_over_a_limit_or_contradicts_itself_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        received(data)


def test_nothing_is_allocated_for_a_frame_that_is_refused() -> None:
    import tracemalloc

    data = raw(Kind.INFER, [1, [["uint8", [2**29], 2**29 - 1, ""]]], 2**29 - 1)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            received(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# --- versions -------------------------------------------------------------------------------------------------------


def test_another_major_version_is_a_clear_error_on_both_sides() -> None:
    with pytest.raises(ProtocolError, match=r"speaks version 2 .* this side version 1"):
        received(raw(Kind.HELLO, {}, 0, major=2))
    frame = received(raw(Kind.ERROR, {"code": "protocol", "message": "speak 2"}, 0, major=2))[0]
    assert isinstance(frame.header, wire.Error)
    assert str(wire.exception_of(frame.header)) == "speak 2"


def test_a_later_minor_version_is_understood() -> None:
    hello = msgspec.to_builtins(wire.Hello(software="x")) | {"novelty": [1, 2]}
    assert received(raw(Kind.HELLO, hello, 0))[0].header == wire.Hello(software="x")
    infer = received(raw(Kind.INFER, [4, [["uint8", [0], 0, "", "novelty"]], [], 0.0, {"novelty": 1}], 0))[0].header
    assert infer == wire.Infer(4, (wire.Tensor("uint8", (0,), 0),))
    assert received(raw(77, {"novelty": 1}, 3) + b"abc")[0].header is None


def test_a_foreign_protocol_is_quoted() -> None:
    with pytest.raises(wire.ForeignError, match=r"'HTTP/1\.1 400 Bad Request…'"):
        wire.parse_prefix(b"HTTP/1.1 400 Bad Request\r\n\r\n", Limits())
    assert wire.printable(b"\x00\x01") == "00 01"
    assert wire.printable(b"") == "nothing"


TITLE = "\x1b]0;title\x07\nserving on 6.6.6.6"


@pytest.mark.parametrize(
    ("text", "most", "left"),
    [
        ("plain words, µ and 猫", 60, "plain words, µ and 猫"),
        (TITLE, 60, "]0;title serving on 6.6.6.6"),
        ("a\r\nb\u2028c\x85d", 60, "a b c d"),
        ("right\u202eleft \x9b2J", 60, "right left 2J"),
        ("x" * 11, 10, "x" * 9 + "…"),
        ("x" * 10, 10, "x" * 10),
        ("\n" * 10_000_000, 10, ""),
        ("\ud800", 10, ""),
    ],
)
def test_a_peers_words_are_one_bounded_line_that_no_terminal_acts_upon(text: str, most: int, left: str) -> None:
    assert wire.plain(text, most) == left


@pytest.mark.parametrize(
    "message",
    [
        wire.Hello(software=TITLE),
        wire.Bye(TITLE * 1000),
        wire.GraphData("f", TITLE),
        wire.Welcome(
            software=TITLE,
            share=TITLE,
            models=(wire.ModelInfo(TITLE, TITLE, 1, (wire.TensorInfo(TITLE, TITLE, (TITLE, 2)),)),),
        ),
    ],
)
def test_what_a_peer_says_is_cleaned_when_it_is_decoded(message: wire.Message) -> None:
    header = received(joined(wire.encode(kinds[type(message)], 1, message)))[0].header
    assert "title serving on" in repr(header)
    assert not any(bad in repr(header) for bad in ("x1b", "x07", "\\n"))
    assert len(repr(header)) < 3000


def test_what_a_peer_refuses_with_is_cleaned_when_it_is_raised() -> None:
    for header in (wire.Error("input", TITLE * 1000), wire.Error(TITLE, TITLE * 1000, 2.0), wire.Busy(1.0, TITLE)):
        text = str(wire.exception_of(header))
        assert text.startswith("]0;title serving on 6.6.6.6")
        assert text.isprintable()
        assert len(text) <= 2000


def test_a_dtype_that_is_no_dtype_is_quoted_cleanly() -> None:
    with pytest.raises(ProtocolError) as caught:
        wire.TensorInfo(TITLE, TITLE, ()).spec()
    assert str(caught.value).isprintable()


# --- errors that travel ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exc", [InputError("a"), ModelError("b"), EngineError("c"), ProtocolError("d"), ServerError("e")]
)
def test_errors_keep_their_class_and_words(exc: Exception) -> None:
    assert isinstance(exc, (InputError, ModelError, EngineError, ServerError))
    back = wire.exception_of(wire.error_of(exc))
    assert type(back) is type(exc)
    assert str(back) == str(exc)


def test_busy_keeps_when_to_try_again() -> None:
    for header in (wire.Busy(2.5, "full"), wire.Error("busy", "full", 2.5), wire.error_of(BusyError("full", 2.5))):
        back = wire.exception_of(header)
        assert isinstance(back, BusyError)
        assert (str(back), back.retry_after_s) == ("full", 2.5)


def test_an_unknown_error_code_is_a_server_error() -> None:
    assert type(wire.exception_of(wire.Error("novelty", "x"))) is ServerError


def test_specs_travel() -> None:
    spec = TensorSpec("x", "float32", ("batch", 3))
    assert wire.TensorInfo.of(spec).spec() == spec
    with pytest.raises(ProtocolError, match="never travels"):
        wire.TensorInfo("x", "string", ()).spec()


# --- the document ---------------------------------------------------------------------------------------------------


def example() -> list[tuple[str, bytes]]:
    """The conversation of docs/wire-format.md, as this code writes it."""
    fingerprint = "5a" * 32
    infer = Packer(Kind.INFER, lambda t: wire.Infer(1, t))
    result = Packer(Kind.RESULT, wire.ResultData)
    x = np.array([[1.0, -2.0]], np.float32)
    y = np.array([[0.25]], np.float32)
    info = wire.ModelInfo(
        "tiny",
        fingerprint,
        4096,
        (wire.TensorInfo("x", "float32", ("batch", 2)),),
        (wire.TensorInfo("y", "float32", ("batch", 1)),),
    )
    times = wire.Times(12.5, 0.001, 0.0, 0.0, 0.002, 0.0, 0.0, 0.25)
    opened = wire.Opened(
        1, (wire.TensorInfo("h", "float32", ("batch", 2)),), (wire.TensorInfo("y", "float32", ("batch", 1)),), 2048, 0.5
    )
    return [
        ("HELLO", joined(wire.encode(Kind.HELLO, 0, wire.Hello(software="doc", eol="\r\n\r\n")))),
        (
            "WELCOME",
            joined(
                wire.encode(Kind.WELCOME, 0, wire.Welcome(software="doc", models=(info,), limits={"in_flight": 64}))
            ),
        ),
        ("OPEN", joined(wire.encode(Kind.OPEN, 1, wire.OpenRequest(fingerprint, ("h",), ("y",))))),
        ("OPENED", joined(wire.encode(Kind.OPENED, 1, opened))),
        ("INFER", joined(infer.pack(2, [x]))),
        ("RESULT", joined(result.pack(2, [y], (), times))),
        ("ERROR", joined(wire.encode(Kind.ERROR, 3, wire.Error("input", "segment 9 is not open on this connection")))),
    ]


def test_the_worked_example_in_the_document_is_what_this_code_writes() -> None:
    blocks = dict(re.findall(r"<!-- frame: (\w+) -->\n```text\n(.*?)\n```", DOC.read_text(), re.DOTALL))
    assert blocks == {name: dump(data) for name, data in example()}


def test_the_documents_answer_of_a_batch_is_what_this_code_writes() -> None:
    (block,) = re.findall(r"<!-- batch frame: RESULT -->\n```text\n(.*?)\n```", DOC.read_text(), re.DOTALL)
    packer = Packer(Kind.RESULT, wire.ResultData, batch=True)
    times = wire.Times(12.5, 0.001, 0.0, 0.0, 0.002, 0.0, 0.0, 0.25)
    packet = packer.pack(2, [np.array([[0.25]], np.float32)], (), (*times, *wire.BatchRun(7, 2)))
    assert block == dump(joined(packet))


# --- which requests ran as one --------------------------------------------------------------------------------------


def test_a_run_is_told_behind_the_times_and_the_header_stays_the_same_bytes() -> None:
    packer, y = Packer(Kind.RESULT, wire.ResultData, batch=True), np.array([[0.25]], np.float32)
    near, far = memory.pair()
    far.agree((wire.BATCH,))
    frames = []
    for k, run in enumerate([wire.BatchRun(), wire.BatchRun(7, 2), wire.BatchRun(0xFFFFFFFF, 8)]):
        near.send(packer.pack(k + 1, [y], (), (*wire.Times(12.5 + k), *run)))
        frames.append(far.receive())
        assert wire.parse_run(frames[-1].times) == run
        assert wire.parse_times(frames[-1].times) == wire.Times(12.5 + k)
        np.testing.assert_array_equal(frames[-1].tensors[0], y)
    assert frames[2].header is frames[1].header, "decoded once"


@pytest.mark.parametrize("run", [(0, 0), (0, 2), (7, 1), (7, 0)])
def test_a_run_that_cannot_be_is_not_believed(run: tuple[int, int]) -> None:
    packer = Packer(Kind.RESULT, wire.ResultData, batch=True)
    near, far = memory.pair()
    far.agree((wire.BATCH,))
    near.send(packer.pack(1, [], (), (*wire.Times(), *run)))
    assert wire.parse_run(far.receive().times) is None


def test_without_the_feature_nothing_is_said_of_runs() -> None:
    near, far = memory.pair()
    near.send(Packer(Kind.RESULT, wire.ResultData).pack(1, [], (), wire.Times(1.0)))
    frame = far.receive()
    assert wire.parse_run(frame.times) is None
    assert wire.parse_times(frame.times) == wire.Times(1.0)


def test_a_result_that_is_too_short_for_what_was_agreed_on_is_refused() -> None:
    near, far = memory.pair()
    far.agree((wire.BATCH,))
    near.send(Packer(Kind.RESULT, wire.ResultData).pack(1, [], (), wire.Times(1.0)))
    with pytest.raises(ProtocolError, match="begins with 72 bytes of times: 64 came"):
        far.receive()


def test_the_document_names_every_kind_and_field() -> None:
    text = DOC.read_text()
    for kind, cls in wire.HEADERS.items():
        assert re.search(rf"\| {int(kind)} \| `?{Kind(kind).name}\b", text), f"{Kind(kind).name} is not in the table"
        for field in cls.__struct_fields__:
            assert f"`{field}`" in text, f"{cls.__name__}.{field} is not described"
    for field in (*wire.Times._fields, *wire.BatchRun._fields):
        assert f"`{field}`" in text
    for code in ("input", "model", "engine", "protocol", "server", "busy"):
        assert f"`{code}`" in text
