"""How large a graph from a stranger's file may be, found out before anything grows with the square of its size.

Cuts of a graph list what crosses at each; a small file can wire a few thousand nodes so that these lists have
billions of entries. What is counted here takes time in proportion to the file, or stops at a limit.
"""

from __future__ import annotations

from splitpoint.errors import InputError
from splitpoint.graph import SHAPE_ROOTS, Graph

#: The largest exports have some 5,000 nodes.
MOST_NODES = 20_000
#: Inputs and outputs of nodes, of the graph, and tensors with a size.
MOST_WIRING = 200_000
#: Tensors that cross, summed over all prefixes. The zoo's models have at most a few thousand.
MOST_CROSSING = 2_000_000
#: Steps of other walks over the graph.
_MOST_STEPS = 20_000_000
#: Bytes of the sets of nodes behind layers' names.
_MOST_LAYERS = 256 << 20


def check_size(graph: Graph) -> None:
    """InputError if `graph` has more than the cuts of a real network need, in whichever respect."""
    nodes = len(graph.nodes)
    if nodes > MOST_NODES:
        raise _too("nodes", nodes, MOST_NODES)
    specs = len(graph.inputs) + len(graph.outputs) + len(graph.tensors)
    wiring = specs + sum(len(n.inputs) + len(n.outputs) for n in graph.nodes)
    if wiring > MOST_WIRING or len(graph.aliases) + len(graph.unused) > MOST_WIRING:
        raise _too("connections", max(wiring, len(graph.aliases) + len(graph.unused)), MOST_WIRING)
    _check_groups(graph)
    _check_layers(graph)
    values, vectors = _reach(graph)
    walk = sum(vectors.values()) + len(graph.outputs)
    if walk * nodes > _MOST_STEPS:
        raise _too("shapes that cross", walk * nodes, _MOST_STEPS)
    crossing = _crossing(graph, values)
    if crossing > MOST_CROSSING:
        raise _too("tensors that cross, over all cuts,", crossing, MOST_CROSSING)


def _too(what: str, count: int, most: int) -> InputError:
    least = f"{count:,}" if count < 1 << 60 else "billions"
    return InputError(f"its graph has {least} {what} and may have {most:,} (at $.graph)")


def _check_groups(graph: Graph) -> None:
    """Closures look at all members of a group for each of them, and sort out those that a group reaches over."""
    groups = graph.groups.values()
    steps = sum(len(members) ** 2 for members in groups) + max((m[-1] - m[0] for m in groups), default=0) ** 2
    if steps > 10 * _MOST_STEPS:
        raise _too("steps through its groups", steps, 10 * _MOST_STEPS)


def _check_layers(graph: Graph) -> None:
    paths: set[str] = set()
    for node in graph.nodes:
        parts = node.layer.split(".")
        if len(parts) > 100:
            raise _too("levels of layers", len(parts), 100)
        paths.update(".".join(parts[: depth + 1]) for depth in range(len(parts)))
        if len(paths) * len(graph.nodes) // 8 > _MOST_LAYERS:
            raise _too("layers", len(paths), _MOST_LAYERS * 8 // len(graph.nodes))


def _reach(graph: Graph) -> tuple[list[frozenset[str]], dict[int, int]]:
    """Each node's data tensors; each Shape node (a *vector*) and the steps of finding out whether it crosses.

    What nodes need through copied ones is collected as `Graph` does, but no further than a limit.
    """
    makers: dict[str, int] = {}
    inputs = {t.name for t in graph.inputs}
    values: list[frozenset[str]] = []
    vectors: list[frozenset[int]] = []
    walks: dict[int, int] = {}
    steps = 0
    for i, node in enumerate(graph.nodes):
        reads, roots = set[str](), set[int]()
        for t in node.inputs:
            maker = makers.get(t)
            if maker is None:
                reads.update((t,) if t in inputs else ())
            elif graph.nodes[maker].placed:
                reads.add(t)
            else:
                reads |= values[maker]
                roots |= vectors[maker]
                steps += len(values[maker]) + len(vectors[maker])
                if steps > MOST_CROSSING:
                    raise _too("needs through copied nodes", steps, MOST_CROSSING)
        if not node.placed and node.op in SHAPE_ROOTS:
            # Whether a shape of a copied node's output crosses depends on the shapes behind that one, and so on.
            walks[i] = 1 + len(reads) + sum(walks[r] for r in roots)
            reads, roots = set(), {i}
        values.append(frozenset(reads))
        vectors.append(frozenset(roots))
        makers.update(dict.fromkeys(node.outputs, i))
    return values, walks


def _crossing(graph: Graph, values: list[frozenset[str]]) -> int:
    """Tensors that cross, summed over the prefixes (nearly: groups may move a node ahead of its place in the file)."""
    born = {t.name: 0 for t in graph.inputs}
    dies: dict[str, int] = {}
    place = 0
    for i, node in enumerate(graph.nodes):
        if node.placed:
            place += 1
            dies.update(dict.fromkeys(values[i], place))
            born.update(dict.fromkeys(node.outputs, place))
    for out in graph.outputs:  # made of several tensors by a copied node: they wait for the last of them
        maker = graph.producer.get(out.name)
        if maker is not None and not graph.nodes[maker].placed:
            last = max((born.get(t, 0) for t in values[maker]), default=0)
            dies.update({t: max(last, dies.get(t, 0)) for t in values[maker]})
    return sum(max(0, place_ - born.get(t, 0)) for t, place_ in dies.items())
