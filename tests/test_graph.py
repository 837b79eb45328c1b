"""Cuts of random graphs against brute force and against the engine; names, indices and JSON of a Graph."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nets
from splitpoint.errors import CutError
from splitpoint.graph import SHAPE_ROOTS, Cut, Graph, Node, Prefix
from splitpoint.models.model import Model
from splitpoint.segments import Halves
from splitpoint.tensors import TensorSpec

# --- the same questions answered the slow way, straight from the definitions ----------------------------------------


def behind(graph: Graph, tensor: str, *, shapes: bool) -> set[str]:
    """Tensors of placed nodes or model inputs whose value (with `shapes`: or shape) it takes to make `tensor`."""
    if tensor in {t.name for t in graph.inputs}:
        return {tensor}
    maker = next((n for n in graph.nodes if tensor in n.outputs), None)
    if maker is None:
        return set()  # a weight
    if maker.placed:
        return {tensor}
    if maker.op in SHAPE_ROOTS and not shapes:
        return set()
    return {t for i in maker.inputs for t in behind(graph, i, shapes=shapes)}


def made_by(graph: Graph, tensor: str) -> int | None:
    return next((i for i, n in enumerate(graph.nodes) if tensor in n.outputs), None)


def before(graph: Graph, i: int) -> set[int]:
    """Placed nodes that must not come after node i."""
    found = {made_by(graph, t) for name in graph.nodes[i].inputs for t in behind(graph, name, shapes=True)}
    return {p for p in found if p is not None}


def is_closed(graph: Graph, head: Iterable[int]) -> bool:
    inside = set(head)
    groups = [{i for i in graph.placed if graph.nodes[i].group == g} for g in graph.groups]
    return all(before(graph, i) <= inside for i in inside) and all(not g & inside or g <= inside for g in groups)


def results(graph: Graph, head: Iterable[int]) -> tuple[str, ...]:
    inside = set(head)
    made = {out.name: {made_by(graph, t) for t in behind(graph, out.name, shapes=True)} for out in graph.outputs}
    return tuple(name for name, makers in made.items() if makers - {None} <= inside)


def crossing(graph: Graph, head: Iterable[int]) -> set[str]:
    inside = set(head)
    needed = {
        t
        for i in graph.placed
        if i not in inside
        for name in graph.nodes[i].inputs
        for t in behind(graph, name, shapes=False)
    }
    for out in graph.outputs:
        if out.name not in results(graph, inside):
            needed |= behind(graph, out.name, shapes=False)
    made = {t: made_by(graph, t) for t in needed}
    return {t for t, maker in made.items() if maker is None or maker in inside}


def exact(model: Model, cut: Cut) -> None:
    """Both halves give the whole model's outputs to the last bit, for two batch sizes, and make no more of them."""
    whole = nets.ENGINE.compile(model.whole()) if model.whole().outputs else None
    both = Halves(model, cut, nets.ENGINE)
    try:
        for batch, seed in ((1, 0), (3, 1)):
            inputs = nets.whole_numbers(model, batch, seed)
            expected = {**inputs, **(whole.run(inputs) if whole else {})}
            got = both.run(inputs)
            assert set(got) == {t.name for t in model.outputs}
            for name, array in got.items():
                assert array.dtype == expected[name].dtype
                np.testing.assert_array_equal(array, expected[name], err_msg=f"{cut}: {name}")
    finally:
        both.close()


slow = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@slow
@given(nets.random_dags())
def test_every_prefix_of_a_random_graph_computes_the_whole(proto: object) -> None:
    model = nets.load(proto)
    for cut in model.graph.prefixes():
        exact(model, cut)


@slow
@given(nets.random_dags(), st.data())
def test_every_closed_set_of_a_random_graph_computes_the_whole(proto: object, data: st.DataObject) -> None:
    model = nets.load(proto)
    graph = model.graph
    picked = data.draw(st.sets(st.sampled_from(graph.placed or (0,)))) if graph.placed else set()
    head = nets.closed(graph, picked)
    assert is_closed(graph, head)
    exact(model, graph.cut_of(head))


@settings(max_examples=150, deadline=None)
@given(nets.random_dags(most=14))
def test_prefixes_agree_with_the_definition(proto: object) -> None:
    graph = nets.load(proto).graph
    assert sorted(i for step in graph.order for i in step) == list(graph.placed)
    cuts = graph.prefixes()
    heads = [frozenset[int](), *itertools.accumulate((frozenset(s) for s in graph.order), frozenset.union)]
    assert [frozenset(c.nodes) for c in cuts] == heads
    for cut in cuts:
        assert is_closed(graph, cut.nodes)
        names = [t.name for t in cut.crossing]
        assert len(names) == len(set(names))
        assert set(names) == crossing(graph, cut.nodes)
        assert cut.results == results(graph, cut.nodes)
        # The fast walk and the definition for any set say the same, shape vectors and names included.
        assert graph.cut_of(frozenset(cut.nodes), name=cut.name, index=cut.index) == cut
        # A name that is printed leads back to the very cut it was printed for.
        assert graph.cut(cut.name).nodes == cut.nodes
    widths = [len(crossing(graph, h)) for h in heads]
    flops = [sum(graph.nodes[i].flops for i in h) for h in heads]
    single = [k for k in range(1, len(heads) - 1) if widths[k] == 1]
    ends = [0, len(heads) - 1]
    narrow = {*ends, *single}
    for a, b in itertools.pairwise(sorted(narrow)):
        inside = [widths[k] for k in range(a + 1, b) if widths[k]]
        if inside and (not single or flops[b] - flops[a] > flops[-1] / 4):
            narrow |= {k for k in range(a + 1, b) if widths[k] == min(inside)}
    assert [frozenset(c.nodes) for c in graph.chain()] == [heads[k] for k in sorted(narrow)]
    assert [c.index for c in graph.chain()] == list(range(len(narrow)))


@settings(max_examples=100, deadline=None)
@given(nets.random_dags(most=4))
def test_exactly_the_closed_sets_are_cuts(proto: object) -> None:
    graph = nets.load(proto).graph
    if len(graph.placed) > 9:
        return
    for size in range(len(graph.placed) + 1):
        for picked in itertools.combinations(graph.placed, size):
            if is_closed(graph, picked):
                assert {t.name for t in graph.cut_of(picked).crossing} == crossing(graph, picked)
            else:
                with pytest.raises(CutError):
                    graph.cut_of(picked)


@settings(max_examples=100, deadline=None)
@given(nets.random_dags(most=14), st.data())
def test_closure_is_the_smallest_closed_set(proto: object, data: st.DataObject) -> None:
    graph = nets.load(proto).graph
    picked = data.draw(st.sets(st.integers(0, len(graph.nodes) - 1), max_size=3))
    grown = {i for i in picked if graph.nodes[i].placed}
    grown |= {p for i in picked if not graph.nodes[i].placed for p in before(graph, i)}
    while True:
        more = {p for i in grown for p in before(graph, i)}
        more |= {m for g in graph.groups.values() if grown & set(g) for m in g}
        if more <= grown:
            break
        grown |= more
    assert nets.closed(graph, picked) == grown


@settings(max_examples=50, deadline=None)
@given(nets.random_dags(most=14))
def test_a_graph_survives_json(proto: object) -> None:
    graph = nets.load(proto).graph
    graph.chain()  # what is cached must not be written
    again = msgspec.json.decode(msgspec.json.encode(graph), type=Graph)
    assert again == graph
    assert again.prefixes() == graph.prefixes()


# --- names ----------------------------------------------------------------------------------------------------------


def chain_graph(layers: Iterable[tuple[str, str]], **more: object) -> Graph:
    """A chain of (node name, layer) from tensor ``t0``; each node makes a float32[1,4] and costs 10 FLOPs."""
    nodes = [Node(name, "Relu", layer, (f"t{i}",), (f"t{i + 1}",), flops=10) for i, (name, layer) in enumerate(layers)]
    specs = {f"t{i}": TensorSpec(f"t{i}", "float32", (1, 4)) for i in range(len(nodes) + 1)}
    return Graph("toy", tuple(nodes), (specs["t0"],), (specs[f"t{len(nodes)}"],), specs, **more)  # type: ignore[arg-type]


FEATURES = chain_graph(
    [
        ("conv0", "features.0.0"),
        ("conv1", "features.1.0"),
        ("relu1", "features.1.2"),
        ("conv10", "features.10.0"),
        ("relu10", "features.10.2"),
        ("fc", "classifier.1"),
        ("Softmax_6", "Softmax_6"),
    ],
    aliases={
        "features.0": "relu1",  # nonsense on purpose: an alias counts before a parent's name
        "features.1.1": "conv1",
        "dropout.0": "conv10",
        "dropout.1": "relu10",
        "gone": "features.1",
    },
)


@pytest.mark.parametrize(
    ("at", "count"),
    [
        ("features.1", 3),  # and not features.10
        ("features.1.0", 2),
        ("features.1.1", 2),  # a batch norm folded into conv1
        ("features.10", 5),
        ("features", 5),
        ("features.0", 3),
        ("dropout", 5),  # a container none of whose own paths survived
        ("classifier", 6),
        ("conv10", 4),
        ("t4", 4),
        ("t0", 0),
        ("Softmax_6", 7),
        ("input", 0),
        ("output", 7),
        (0, 0),
        (3, 3),
        ("3", 3),
        ("-1", 7),
        (-2, 6),
        (7, 7),
    ],
)
def test_a_cut_by_any_name(at: str | int, count: int) -> None:
    cut = FEATURES.cut(at)
    assert cut.nodes == frozenset(range(count))
    assert cut.index == count
    assert [t.name for t in cut.crossing] == ([f"t{count}"] if count < 7 else [])
    assert cut.nbytes == (16 if count < 7 else 0)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("featurs.1", "no layer, node or tensor featurs.1; did you mean features.1"),
        ("8", "cut 8 is not in 0…7"),
        (-9, "cut -9 is not in 0…7"),
        ("--1", "no layer, node or tensor --1"),
        ("²", "no layer, node or tensor ²"),
        ("1234567890123", "no layer, node or tensor"),
        ("", "no layer, node or tensor"),
        ("features.", "no layer, node or tensor features."),
        ("zzzzzzzz", "no layer, node or tensor zzzzzzzz$"),
    ],
)
def test_an_unknown_cut_names_the_nearest(at: str | int, message: str) -> None:
    with pytest.raises(CutError, match=message):
        FEATURES.cut(at)


def test_every_listed_name_is_a_cut() -> None:
    for name in FEATURES.names:
        if name != "gone":  # an alias to a node that is not there: placement never writes one
            assert FEATURES.cut(name).name
    with pytest.raises(CutError):
        FEATURES.cut("gone")


NAMES = [
    "input",
    "middle",
    "output",
    "auto",
    "3",
    "-1",
    "1",
    "prefix:2",
    "layer:x",
    "cut:1",
    "a b",
    "a,b",
    "a=b",
    "A B",
    "last",
]


@pytest.mark.parametrize("shift", range(0, len(NAMES), 4))
def test_whatever_layers_are_called_what_is_printed_selects_just_that_cut(shift: int) -> None:
    names = NAMES[shift:] + NAMES[:shift]
    graph = chain_graph([(name, name) for name in names])
    prefixes = graph.prefixes()
    assert len({c.name for c in prefixes}) == len(prefixes)
    for k, cut in enumerate(prefixes):
        assert graph.cut(cut.name).nodes == cut.nodes, cut.name
        assert graph.cut(f"cut:prefix:{k}") == cut
        assert cut.index is not None
        assert graph.cut(graph.spell_index(cut.index)) == graph.cut(cut.index) == cut
    for k, name in enumerate(names, start=1):
        for kind in ("layer", "node"):
            assert graph.cut(graph.spell(kind, name)).nodes == graph.cut(f"{kind}:{name}").nodes == prefixes[k].nodes
    assert graph.cut("cut:input").nodes == set()
    assert len(graph.cut("cut:output").nodes) == len(names)
    assert graph.cut("cut:middle") == graph.middle()


@pytest.mark.parametrize(
    ("at", "forms"),
    [
        ("input", ("cut:input", "layer:input")),
        ("3", ("cut:3", "layer:3")),
        ("prefix:2", ("cut:prefix:2", "layer:prefix:2")),
    ],
)
def test_a_word_with_two_meanings_is_refused_with_each_form(at: str, forms: tuple[str, ...]) -> None:
    graph = chain_graph([(n, n) for n in ("stem", "x3", "input", "3", "prefix:2", "fc")])
    assert graph.meanings(at) == forms
    with pytest.raises(CutError, match=rf"{at} means 2 things in toy: say {forms[0]} \(.* crosses\) or {forms[1]} \("):
        graph.cut(at)
    assert len({graph.cut(form).nodes for form in forms}) == 2


def test_a_layer_a_node_and_a_tensor_of_one_name() -> None:
    """The tensor `relu` is made by the node `conv`, and the layer `conv` holds three nodes."""
    tensors = ["x", "relu", "conv", "add", "y"]
    rows = [("conv", "conv"), ("bias", "conv.bias"), ("relu", "conv.relu"), ("fc", "fc")]
    specs = {t: TensorSpec(t, "float32", (1, 4)) for t in tensors}
    nodes = tuple(Node(name, "Relu", layer, (tensors[i],), (tensors[i + 1],)) for i, (name, layer) in enumerate(rows))
    graph = Graph("toy", nodes, (specs["x"],), (specs["y"],), specs)
    assert [len(graph.cut(f"{kind}:conv").nodes) for kind in ("layer", "node", "tensor")] == [3, 1, 2]
    assert [len(graph.cut(f"{kind}:relu").nodes) for kind in ("node", "tensor")] == [3, 1]
    assert [c.name for c in graph.prefixes()] == ["input", "node:conv", "bias", "node:relu", "output"]
    with pytest.raises(CutError, match="conv means 3 things"):
        graph.cut("conv")
    with pytest.raises(CutError, match=r"no layer relu; did you mean conv\.relu"):
        graph.cut("layer:relu")
    assert graph.cut("conv.relu").nodes == graph.cut("node:relu").nodes


def test_names_that_mean_one_cut_need_no_form() -> None:
    # PyTorch's old exporter calls tensors 12, 13, …; torchvision's segmentation models call input and output so.
    graph = chain_graph([("n0", "a"), ("n1", "b"), ("433", "433")])
    assert len(graph.cut("433").nodes) == 3
    specs = {t: TensorSpec(t, "float32", (1,)) for t in ("input", "h", "output")}
    nodes = (Node("0", "Relu", "0", ("input",), ("h",)), Node("head", "Relu", "head", ("h",), ("output",)))
    graph = Graph("toy", nodes, (specs["input"],), (specs["output"],), specs)
    assert [c.name for c in graph.prefixes()] == ["input", "layer:0", "output"]
    assert graph.cut("input").nodes == set()
    assert graph.cut("output").nodes == {0, 1}
    assert (graph.spell_index(0), graph.spell_index(1)) == ("cut:0", "1")


def test_a_cut_that_several_branches_end_at_has_a_name_too() -> None:
    specs = {t: TensorSpec(t, "float32", (1,)) for t in ("x", "a", "b", "c", "y")}
    nodes = (
        *(Node(t, "Relu", t, ("x",), (t,)) for t in ("a", "b", "c")),
        Node("sum", "Sum", "sum", ("a", "b", "c"), ("y",)),
    )
    graph = Graph("toy", nodes, (specs["x"],), (specs["y"],), specs)
    cut = graph.cut_of([0, 2])
    assert cut.name == "a + c"
    assert graph.cut("a + c").nodes == {0, 2}
    with pytest.raises(CutError, match="no layer, node or tensor d"):
        graph.cut("a + d")


def test_cut_of_refuses_open_sets_and_says_which() -> None:
    with pytest.raises(CutError, match="node relu1 needs conv1, which this cut leaves on the server"):
        FEATURES.cut_of([0, 2])
    with pytest.raises(CutError, match="99 is not the index of a placed node"):
        FEATURES.cut_of([99])
    assert FEATURES.cut_of(iter([0, 1])).name == "conv1"


def test_middle_is_nearest_to_half_of_the_flops() -> None:
    assert FEATURES.cut("middle").index in (3, 4)
    nodes = list(FEATURES.nodes)
    nodes[5] = Node("fc", "Gemm", "fc", ("t5",), ("t6",), flops=1000)
    heavy = Graph("toy", tuple(nodes), FEATURES.inputs, FEATURES.outputs, FEATURES.tensors)
    assert heavy.middle().index in (5, 6)
    plain = tuple(dataclasses.replace(n, flops=0) for n in FEATURES.nodes)
    free = Graph("toy", plain, FEATURES.inputs, FEATURES.outputs, FEATURES.tensors)
    assert free.middle().index in (3, 4)
    assert chain_graph([("only", "only")]).middle().index == 0


def test_a_graph_where_nothing_is_placed_has_one_cut() -> None:
    spec = TensorSpec("y", "float32", (1,))
    graph = Graph("constant", (Node("c", "Constant", "c", (), ("y",), placed=False),), (), (spec,), {"y": spec})
    (cut,) = graph.prefixes()
    assert (cut.results, cut.crossing, len(cut.nodes)) == (("y",), (), 0)
    assert graph.chain() == (cut,)
    assert graph.cut("output") == graph.cut("input") == graph.cut("middle") == cut


def test_groups_that_feed_each_other_are_one_step() -> None:
    """Two groups, each with a node that needs the other: no prefix may part them."""
    nodes = (
        Node("a0", "Relu", "a0", ("x",), ("a",), group=1),
        Node("b0", "Relu", "b0", ("x",), ("b",), group=2),
        Node("a1", "Relu", "a1", ("b",), ("c",), group=1),
        Node("b1", "Relu", "b1", ("a",), ("d",), group=2),
        Node("add", "Add", "add", ("c", "d"), ("y",)),
    )
    specs = {t: TensorSpec(t, "float32", (1,)) for t in "xabcdy"}
    graph = Graph("knot", nodes, (specs["x"],), (specs["y"],), specs)
    assert graph.order == ((0, 1, 2, 3), (4,))
    assert [len(c.nodes) for c in graph.prefixes()] == [0, 4, 5]


def test_a_group_that_reaches_forward_pulls_what_it_needs_first() -> None:
    nodes = (
        Node("split", "Split", "split", ("x",), ("a",), group=1),
        Node("between", "Relu", "between", ("x",), ("b",)),
        Node("join", "Concat", "join", ("a", "b"), ("y",), group=1),
    )
    specs = {t: TensorSpec(t, "float32", (1,)) for t in "xaby"}
    graph = Graph("reach", nodes, (specs["x"],), (specs["y"],), specs)
    assert graph.order == ((1,), (0, 2))
    for cut in graph.prefixes():
        assert is_closed(graph, cut.nodes)
    assert nets.closed(graph, [0]) == {0, 1, 2}


def test_an_output_that_a_copied_node_makes_of_two_tensors() -> None:
    """A DequantizeLinear whose scale is data: with one of the two on the device, that one crosses."""
    nodes = (
        Node("values", "Cast", "values", ("x",), ("q",)),
        Node("scale", "ReduceMax", "scale", ("x",), ("s",)),
        Node("widen", "DequantizeLinear", "widen", ("q", "s"), ("y",), placed=False),
    )
    specs = {t: TensorSpec(t, "float32", (1,)) for t in "xqsy"}
    graph = Graph("two", nodes, (specs["x"],), (specs["y"],), specs)
    assert [[t.name for t in c.crossing] for c in graph.prefixes()] == [["x"], ["x", "q"], []]
    assert [c.results for c in graph.prefixes()] == [(), (), ("y",)]
    assert [graph.cut_of(c.nodes, index=c.index) for c in graph.prefixes()] == list(graph.prefixes())
    assert graph.cut("widen").nodes == {0, 1}


def test_crossing_tensors_come_in_the_order_they_are_made() -> None:
    """Inputs first. Both segments, the manifest and the wire go by this order."""
    names = ["z", "y", "b", "a"]
    nodes = tuple(Node(t, "Relu", t, ("in9", "in1"), (t,)) for t in names)
    last = Node("sum", "Sum", "sum", (*reversed(names), "in1", "in9"), ("out",))
    specs = {t: TensorSpec(t, "float32", (1,)) for t in ("in9", "in1", "out", *names)}
    graph = Graph("order", (*nodes, last), (specs["in9"], specs["in1"]), (specs["out"],), specs)
    assert [t.name for t in graph.prefixes()[4].crossing] == ["in9", "in1", *names]


def test_shapes_travel_one_way_only() -> None:
    """A node that needs the shape of a tensor may not run on the device while that tensor is made on the server."""
    nodes = (
        Node("big", "Conv", "big", ("x",), ("a",), flops=10**9),
        Node("shape", "Shape", "shape", ("a",), ("s",), placed=False),
        Node("view", "Reshape", "view", ("z", "s"), ("y",)),
        Node("last", "Add", "last", ("a", "y"), ("out",)),
    )
    specs = {t: TensorSpec(t, "float32", (1,)) for t in "xzay"} | {"out": TensorSpec("out", "float32", (1,))}
    graph = Graph("shapes", nodes, (specs["x"], specs["z"]), (specs["out"],), specs)
    assert nets.closed(graph, [2]) == {0, 2}
    with pytest.raises(CutError, match="node view needs big"):
        graph.cut_of([2])
    assert graph.cut_of([0]).shapes == ()  # a crosses, so the server can measure it


def test_prefix_is_a_set() -> None:
    order = (4, 2, 9, 7)
    rank = {i: k for k, i in enumerate(order)}
    two, three = Prefix(order, rank, 2), Prefix(order, rank, 3)
    assert two == {2, 4}
    assert {2, 4} == two
    assert hash(two) == hash(frozenset({2, 4}))
    assert two < three
    assert three - two == {9} == three - frozenset({2, 4})
    assert frozenset({2, 9}) - two == {9}
    assert two | {1} == {1, 2, 4}
    assert (9 in two, 9 in three, "x" in two) == (False, True, False)
    assert repr(three) == "Prefix([2, 4, 9])"
    assert sorted(three) == [2, 4, 9]


def test_the_outermost_module_may_be_left_out() -> None:
    """The first seed's lists have the names inside `features`."""
    names = ("features.0.0", "features.0.1", "features.1.conv.0.0", "classifier.1")
    nodes = [Node(n, "Relu", n, (f"t{k}",), (f"t{k + 1}",)) for k, n in enumerate(names)]
    specs = {f"t{k}": TensorSpec(f"t{k}", "float32", (1, 4)) for k in range(5)}
    graph = Graph("g", tuple(nodes), (specs["t0"],), (specs["t4"],), specs, aliases={"features.0.2": "features.0.1"})
    for short in ("0.0", "0.1", "0.2", "1.conv.0.0"):
        assert graph.cut(short).name == short
        assert graph.cut(short).nodes == graph.cut(f"features.{short}").nodes
    with pytest.raises(CutError, match=r"no layer, node or tensor 0\.9"):
        graph.cut("0.9")
    assert graph.modules == (
        "features.0.0", "features.0.1", "features.0.2", "features.0", "features.1.conv.0.0", "features.1.conv.0",
        "features.1.conv", "features.1", "features", "classifier.1", "classifier",
    )  # fmt: skip


def test_a_short_name_of_two_layers_is_refused_with_both() -> None:
    names = ("left.0.0", "right.0.0")
    nodes = [Node(n, "Relu", n, (f"t{k}",), (f"t{k + 1}",)) for k, n in enumerate(names)]
    specs = {f"t{k}": TensorSpec(f"t{k}", "float32", (1, 4)) for k in range(3)}
    graph = Graph("g", tuple(nodes), (specs["t0"],), (specs["t2"],), specs)
    with pytest.raises(CutError, match=r"say layer:left\.0\.0 .* or layer:right\.0\.0"):
        graph.cut("0.0")
