"""The graph of a model as values: nodes in topological order, and the cuts one can make through it.

Nothing here reads ONNX or runs anything: a `Graph` can be built from JSON by a planner that has no model file.

There are two kinds of node (`Node.placed`, see docs/design/models.md):

* *placed* nodes depend on the values of the model's inputs. A cut puts each of them on the device or the server; those
  of one `group` (a quantised operator and its QuantizeLinear) go to the same side.
* *copied* nodes do not (constants, shape arithmetic), or cost less than what they would ship (DequantizeLinear of
  an integer tensor). Either side computes those that it needs. Their outputs never cross.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TypeVar

from splitpoint.errors import CutError, nearest
from splitpoint.tensors import TensorSpec
from splitpoint.units import counted

K = TypeVar("K")
T = TypeVar("T")

#: Names of topological prefixes that no layer or node stands for.
_PREFIX = "prefix:"
#: Between the names of a cut that more than one branch ends at.
JOIN = " + "
#: What a name may be of, in the order of preference: ``layer:NAME`` and so on nobody can mistake for another.
_KINDS = ("layer", "node", "tensor")


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. `inputs` are the tensors it reads: what its bodies capture too, weights not.

    `layer` is the path of the module it came from (``features.2.conv.0``), or its own name. `flops` are the
    floating-point operations of one run at the bound shapes, a multiply-add counted as two; `params` is the number of
    weight elements it reads. `group` is the number of its group, or −1.
    """

    name: str
    op: str
    layer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    flops: int = 0
    params: int = 0
    placed: bool = True
    group: int = -1


@dataclass(frozen=True, slots=True)
class Cut:
    """The placed nodes that run on the device, with all that they need, and what the link then carries.

    `name` is how it was asked for; `nodes` are indices into ``Graph.nodes``. `crossing` are the tensors that the server
    needs from the device, each once, with bound shapes. `shapes` are the names of int64 vectors [rank] (or scalars, of
    Size) that the server cannot compute: they travel in the frame's header. `results` are the model's outputs that are
    made on the device. `index` is the place in ``Graph.chain()``, or None.
    """

    name: str
    nodes: Set[int]
    crossing: tuple[TensorSpec, ...]
    shapes: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    index: int | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of all that crosses, before a codec makes them fewer."""
        return sum(t.nbytes for t in self.crossing)

    @property
    def boundary(self) -> tuple[str, ...]:
        """The names of the tensors between the two segments: crossing tensors, then shape vectors."""
        return tuple(t.name for t in self.crossing) + self.shapes

    def __str__(self) -> str:
        crossing = " + ".join(map(str, self.crossing)) or "nothing"
        return f"cut at {self.name}: {counted(len(self.nodes), 'node')} on the edge, {crossing} crosses"


@dataclass(frozen=True)
class Graph:
    """A model's `nodes` in topological order, and its tensors.

    `inputs` and `outputs` have a name where a dimension is free; `tensors` has all tensors with bound shapes, for the
    sizes `assumed` of the free dimensions, such as ``{"batch": 1}``. `aliases` maps module paths that no node carries
    (folded or inlined when exported) to the name of the node that holds them, or of the model input they hand on.
    `unused` are the module paths that play no part in the outputs (auxiliary heads in evaluation).
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tensors: Mapping[str, TensorSpec]
    aliases: Mapping[str, str] = field(default_factory=dict)
    assumed: Mapping[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @cached_property
    def producer(self) -> Mapping[str, int]:
        """Tensor name → index of the node that makes it. Model inputs have none."""
        return {t: i for i, n in enumerate(self.nodes) for t in n.outputs}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[int, ...]]:
        """Tensor name → indices of the *placed* nodes that need its value, looking through copied nodes."""
        return _listed((t, i) for i in self.placed for t in self._needs[i].values)

    @cached_property
    def placed(self) -> tuple[int, ...]:
        return tuple(i for i, n in enumerate(self.nodes) if n.placed)

    @cached_property
    def _needs(self) -> tuple[_Needs, ...]:
        """Per node, what it needs of the placed world, looking through copied nodes."""
        result: list[_Needs] = []
        inputs = {t.name for t in self.inputs}
        for i, node in enumerate(self.nodes):
            values: dict[str, None] = {}
            origins: dict[str, None] = {}
            vectors: dict[int, None] = {}
            for t in node.inputs:
                maker = self.producer.get(t)
                if maker is None and t not in inputs:
                    continue  # a weight
                if maker is None or self.nodes[maker].placed:
                    values[t] = origins[t] = None
                else:
                    values.update(dict.fromkeys(result[maker].values))
                    origins.update(dict.fromkeys(result[maker].origins))
                    vectors.update(dict.fromkeys(result[maker].vectors))
            if not node.placed and node.op in SHAPE_ROOTS:
                values, vectors = {}, {i: None}
            result.append(_Needs(tuple(values), tuple(origins), tuple(vectors)))
        return tuple(result)

    @cached_property
    def _output_needs(self) -> Mapping[str, _Needs]:
        """Model output → what it takes to have it: itself, or what a copied node makes it from."""
        result = {t.name: _Needs((t.name,), (t.name,), ()) for t in self.outputs}
        for name in result:
            maker = self.producer.get(name)
            if maker is not None and not self.nodes[maker].placed:
                result[name] = self._needs[maker]
        return result

    def sources(self, index: int) -> tuple[str, ...]:
        """The tensors whose values node `index` needs: model inputs, and what placed nodes make."""
        return self._needs[index].values

    def makers(self, index: int) -> tuple[int, ...]:
        """The placed nodes that must be on the device when node `index` is."""
        return self._makers[index]

    def answer(self, output: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """What it takes to have a model output: the tensors that it is made from, and the placed nodes behind it.

        It is made on the device if all of these are there (or if there are none), on the server otherwise.
        """
        need = self._output_needs[output]
        return need.values, self._behind(need)

    @cached_property
    def groups(self) -> Mapping[int, tuple[int, ...]]:
        """Group id → its placed nodes."""
        return _listed((self.nodes[i].group, i) for i in self.placed if self.nodes[i].group >= 0)

    @cached_property
    def _makers(self) -> tuple[tuple[int, ...], ...]:
        """Per node: the placed nodes that must be on the device when it is.

        A node that needs only the *shape* of a tensor must not run before it either: shapes travel one way, too.
        """
        return tuple(map(self._behind, self._needs))

    def _behind(self, need: _Needs) -> tuple[int, ...]:
        return tuple(self.producer[t] for t in need.origins if t in self.producer)

    def cut_of(self, nodes: Iterable[int], name: str = "", index: int | None = None) -> Cut:
        """The cut with exactly these placed nodes on the device; CutError if a predecessor is missing."""
        head = nodes if isinstance(nodes, Prefix) else frozenset(nodes)
        self._refuse_open(head)
        server = [self._needs[i] for i in self.placed if i not in head]
        results = []
        for out, need in self._output_needs.items():
            if all(i in head for i in self._behind(need)):
                # Made on the device, or passed through from its inputs: the answer is there already.
                results.append(out)
            else:
                server.append(need)
        needed = {t for need in server for t in need.values}
        crossing = [t for t in needed if t not in self.producer or self.producer[t] in head]
        vectors = self._vectors({v for need in server for v in need.vectors}, head, frozenset(crossing))
        return Cut(name or self.name_of(head), head, self._specs(crossing), vectors, tuple(results), index)

    def _refuse_open(self, head: Set[int]) -> None:
        for i in sorted(head):
            if not 0 <= i < len(self.nodes) or not self.nodes[i].placed:
                raise CutError(f"{i} is not the index of a placed node of {self.name}")
            missing = [p for p in self._makers[i] if p not in head]
            if missing:
                raise CutError(
                    f"node {self.nodes[i].name} needs {self.nodes[missing[0]].name}, "
                    "which this cut leaves on the server"
                )
        for members in self.groups.values():
            inside = [i for i in members if i in head]
            if inside and len(inside) < len(members):
                outside = next(i for i in members if i not in head)
                raise CutError(
                    f"nodes {self.nodes[inside[0]].name} and {self.nodes[outside].name} belong together (a quantised "
                    "operator, or a sequence between them): keep them on one side"
                )

    def _specs(self, crossing: Iterable[str]) -> tuple[TensorSpec, ...]:
        """Model inputs first, then in the order the tensors are made."""
        return tuple(self.tensors[t] for t in sorted(crossing, key=self._rank.__getitem__))

    @cached_property
    def _rank(self) -> Mapping[str, int]:
        names = (*(t.name for t in self.inputs), *self.producer)
        return {t: k for k, t in enumerate(names)}

    def _vectors(self, needed: Iterable[int], head: Set[int], crossing: Container[str]) -> tuple[str, ...]:
        """Outputs of the Shape and Size nodes in `needed` whose tensor the server does not have."""
        travel: set[int] = set()
        todo = list(needed)
        while todo:
            root = todo.pop()
            measured = self.nodes[root].inputs
            if not measured:  # the shape of a weight
                continue
            maker = self.producer.get(measured[0])
            if maker is None or self.nodes[maker].placed:
                there = self._on_server(measured[0], head, crossing)
            else:  # a copied node's output: the server can make it where it has what that needs
                there = all(self._on_server(t, head, crossing) for t in self._needs[maker].values)
                todo.extend(self._needs[maker].vectors if there else ())
            if not there:
                travel.add(root)
        return tuple(self.nodes[i].outputs[0] for i in sorted(travel))

    def before(self, deepest: Cut) -> frozenset[str]:
        """The tensors that cross at `deepest` or at a cut with less on the device.

        A client that has the head's weights can make all of these from what crosses at `deepest`: a tail that takes
        some of them tells nothing that the tail there does not.
        """
        outputs = (t for i in deepest.nodes for t in self.nodes[i].outputs)
        shapes = (i for i, n in enumerate(self.nodes) if not n.placed and n.op in SHAPE_ROOTS)
        vectors = self._vectors(shapes, deepest.nodes, frozenset(t.name for t in deepest.crossing))
        return frozenset((*(t.name for t in self.inputs), *outputs, *vectors))

    def _on_server(self, tensor: str, head: Set[int], crossing: Container[str]) -> bool:
        maker = self.producer.get(tensor)
        return tensor in crossing or (maker is not None and maker not in head)

    @cached_property
    def order(self) -> tuple[tuple[int, ...], ...]:
        """Placed nodes in topological order, in steps that keep groups whole."""
        steps: list[tuple[int, ...]] = []
        done: set[int] = set()
        for first in self.placed:
            todo, step = [first], set[int]()
            while todo:  # all that it needs, in whole groups
                i = todo.pop()
                if i not in step and i not in done:
                    step.add(i)
                    todo.extend(self._makers[i])
                    todo.extend(self.groups.get(self.nodes[i].group, ()))
            done |= step
            # Several nodes of more than one group happen only where a group reaches forward.
            steps.extend([(first,)] if step == {first} else self._unroll(sorted(step)))
        return tuple(steps)

    def _unroll(self, step: Sequence[int]) -> list[tuple[int, ...]]:
        """The groups in `step`, in an order in which every prefix is closed."""
        left, placed, result = list(step), set[int](), []
        outside = set(step)
        while left:
            for i in left:
                members = self.groups.get(self.nodes[i].group, (i,))
                ready = all(p in placed or p in members or p not in outside for m in members for p in self._makers[m])
                if ready:
                    break
            else:  # groups that feed each other: one step for all of them
                result.append(tuple(left))
                return result
            result.append(tuple(sorted(m for m in members if m in outside)))
            placed.update(members)
            left = [i for i in left if i not in placed]
        return result

    def prefixes(self) -> tuple[Cut, ...]:
        """Every topological prefix, from "nothing on the device" (input) to "all on the device" (output)."""
        return self._prefixes

    def chain(self) -> tuple[Cut, ...]:
        """The single-tensor cuts in order, `input` first and `output` last.

        Where there is none, in the whole graph or over a stretch of more than a quarter of its FLOPs (an attention
        mask travels beside BERT's hidden state, skip connections beside a U-Net's), the narrowest cuts there are.
        """
        return self._chain

    @cached_property
    def _chain(self) -> tuple[Cut, ...]:
        return tuple(c for c in self._prefixes if c.index is not None)

    @cached_property
    def _prefixes(self) -> tuple[Cut, ...]:
        cuts = [dataclasses.replace(c, name=name) for c, name in zip(self._walk(), self._prefix_names(), strict=True)]
        for index, k in enumerate(self._chosen(cuts)):
            cuts[k] = dataclasses.replace(cuts[k], index=index)
        return tuple(cuts)

    def _prefix_names(self) -> Iterator[str]:
        """For each prefix the name that `cut` takes for just this one: its last node's, unless that means another."""
        bits, count = 0, 0
        for k, step in enumerate(((), *self.order)):
            count += len(step)
            for i in step:
                bits |= 1 << i
            if not count or count == len(self.placed):
                yield self._spelled_word("output" if count else "input", bits)
            elif self._closures[max(step)] == bits:
                yield self.spell("node", self.nodes[max(step)].name)
            else:  # beside parallel branches, what the last node needs is less
                yield self._spelled_word(f"{_PREFIX}{k}", bits)

    @cached_property
    def _closures(self) -> Mapping[int, int]:
        """Placed node → its closure as bits: node i is bit i."""
        closures: dict[int, int] = {}
        for step in self.order:
            bits = 0
            for i in step:
                bits |= 1 << i
                for maker in self._makers[i]:
                    bits |= closures.get(maker, 0)
            closures.update(dict.fromkeys(step, bits))
        return closures

    def _bits(self, targets: Iterable[int]) -> int:
        """The closure of `targets` as bits."""
        bits = 0
        for i in targets:
            for maker in (i,) if self.nodes[i].placed else self._makers[i]:
                bits |= self._closures[maker]
        return bits

    def _chosen(self, cuts: list[Cut]) -> list[int]:
        """Places of the chain's cuts among the prefixes."""
        last = len(cuts) - 1
        single = [k for k, c in enumerate(cuts) if len(c.crossing) == 1 and 0 < k < last]
        work = list(accumulate((sum(self.nodes[i].flops for i in step) for step in self.order), initial=0))
        chosen = {0, last, *single}
        for a, b in pairwise(sorted(chosen)):
            stretch = [(len(cuts[k].crossing), k) for k in range(a + 1, b) if cuts[k].crossing]
            if stretch and (not single or work[b] - work[a] > work[-1] / 4):
                least = min(stretch)[0]
                chosen.update(k for width, k in stretch if width == least)
        return sorted(chosen)

    def _walk(self) -> Iterator[Cut]:
        """What `cut_of` says of every prefix, in one pass over the edges instead of one for each prefix."""
        flat = tuple(i for step in self.order for i in step)
        rank = {i: k for k, i in enumerate(flat)}
        # A tensor (a shape vector) is wanted while a node on the server or an output not made yet needs it.
        wanted: Counter[str] = Counter()
        vectors: Counter[int] = Counter()
        for need in (*(self._needs[i] for i in flat), *self._output_needs.values()):
            wanted.update(need.values)
            vectors.update(need.vectors)
        alive = {t.name for t in self.inputs if wanted[t.name]}
        pending = {out: set(self._behind(need)) for out, need in self._output_needs.items()}
        waiting: dict[int, list[str]] = {}
        for out, makers in pending.items():
            for i in makers:
                waiting.setdefault(i, []).append(out)

        def settle(need: _Needs) -> None:
            """`need` is met on the device."""
            wanted.subtract(need.values)
            vectors.subtract(need.vectors)
            alive.difference_update([t for t in need.values if not wanted[t]])

        for out, makers in pending.items():
            if not makers:
                settle(self._output_needs[out])
        count = 0
        for step in ((), *self.order):
            for i in step:
                alive.update(t for t in self.nodes[i].outputs if wanted[t])
                settle(self._needs[i])
                for out in waiting.get(i, ()):
                    pending[out].discard(i)
                    if not pending[out]:
                        settle(self._output_needs[out])
            count += len(step)
            head = Prefix(flat, rank, count)
            travelling = self._vectors([v for v, n in vectors.items() if n], head, alive)
            results = tuple(out for out, makers in pending.items() if not makers)
            yield Cut("", head, self._specs(alive), travelling, results)

    def name_of(self, head: Set[int]) -> str:
        """The name that `cut` takes for just this cut: its prefix's, else those of the last nodes of each branch."""
        place = self._places.get(len(head))
        if place is not None and self._prefixes[place].nodes == head:
            return self._prefixes[place].name
        inner = {maker for i in head for maker in self._makers[i]}
        return JOIN.join(self._node_names[i] for i in sorted(set(head) - inner)) or "input"

    @cached_property
    def _places(self) -> Mapping[int, int]:
        """How many nodes a prefix has → its place in `prefixes`."""
        return {len(c.nodes): k for k, c in enumerate(self._prefixes)}

    @cached_property
    def _node_names(self) -> Mapping[int, str]:
        """Placed node → what `cut` takes for it and all it needs: its layer's name where that means the same."""
        names = {}
        for i in self.placed:
            layer = self.nodes[i].layer
            same = self._means("layer", layer) == self._closures[i]
            names[i] = self.spell("layer", layer) if same else self.spell("node", self.nodes[i].name)
        return names

    def cut(self, at: str | int) -> Cut:
        """The cut named `at`: a layer path, node, tensor, chain index, ``input``, ``output`` or ``middle``.

        A layer means "up to and including all that this layer needs"; the outermost module may be left out, if what is
        left means one layer (``0.0`` for ``features.0.0``). ``prefix:17`` is the 17th topological prefix:
        beside parallel branches it may have no other name. ``a + b`` is all that either needs. Where a model has a
        layer, node or tensor of such a name, ``layer:5``, ``node:5`` and ``tensor:5`` mean these, ``cut:5`` ours.

        Raises CutError for a name that is not there (with the nearest ones), and for one that means several cuts.
        """
        if isinstance(at, int):
            if not -len(self.chain()) <= at < len(self.chain()):
                raise CutError(self._no_index(at))
            return self.chain()[at]
        meanings = self._meanings(at)
        if len(meanings) > 1:
            forms = " or ".join(f"{form} ({self._crossing_of(bits)})" for form, bits in meanings.items())
            raise CutError(f"{at} means {len(meanings)} things in {self.name}: say {forms}")
        if not meanings:
            parts = at.split(JOIN)
            if len(parts) == 1:
                raise CutError(self._unknown(at))
            meanings = {at: self._bits(i for part in parts for i in self.cut(part).nodes)}
        form, bits = next(iter(meanings.items()))
        kind, _, name = form.partition(":")
        if kind == "cut":
            return self._own(name) or self.prefixes()[0]
        nodes = self._nodes_of(bits)
        index = next((c.index for c in self.chain() if c.nodes == nodes), None)
        return self.cut_of(nodes, at, index)

    def meanings(self, at: str) -> tuple[str, ...]:
        """The ways to write `at` that nobody can mistake, one for each cut it may mean: ``("cut:5", "layer:5")``."""
        return tuple(self._meanings(at))

    def spell(self, kind: str, name: str) -> str:
        """How to write the ``layer``, ``node`` or ``tensor`` `name`: as it is where `cut` then takes just this.

        >>> graph = Graph("g", (Node("input", "Relu", "input", ("x",), ("y",)), Node("b", "Relu", "b", ("y",), ("z",))),
        ...               (), (), {})
        >>> graph.spell("layer", "input"), graph.spell("layer", "b")
        ('layer:input', 'b')
        """
        bits, known = self._means(kind, name), self._all_of(name)
        if set(known.values()) == {bits} and self._is_free(name, bits):
            return name
        return f"{next(k for k, meant in known.items() if meant == bits)}:{name}"

    def spell_index(self, index: int) -> str:
        """How to write the number `index` of the chain: ``"5"``, or ``"cut:5"`` where the model has names like it."""
        return self._spelled_word(str(index), self._bits(self.chain()[index].nodes))

    def _spelled_word(self, word: str, bits: int) -> str:
        return word if set(self._all_of(word).values()) <= {bits} else f"cut:{word}"

    def _is_free(self, name: str, bits: int | None) -> bool:
        """Whether `name` is no word of ours, or the word for the very cut `bits`."""
        kind, colon, _ = name.partition(":")
        if name in ("input", "output"):
            return bits == (self._bits(self.placed) if name == "output" else 0)
        # Not whether there is such a number: what a layer is called must not follow from how many cuts there are.
        return not (name in ("middle", "auto") or _INDEX.fullmatch(name) or (colon and kind in (*_KINDS, "cut"))
                    or (name.startswith(_PREFIX) and name[len(_PREFIX) :].isdecimal()))  # fmt: skip

    def _meanings(self, at: str) -> Mapping[str, int]:
        """Unmistakable form → closure as bits, for each cut that `at` may mean; ours is first."""
        kind, colon, name = at.partition(":")
        if colon and kind == "cut":
            own = self._own(name)
            return {} if own is None else {at: self._bits(own.nodes)}
        if colon and kind in _KINDS:
            meant = self._means(kind, name)
            return {} if meant is None else {at: meant}
        own = self._own(at)
        meanings: dict[int, str] = {} if own is None else {self._bits(own.nodes): f"cut:{at}"}
        for kind, bits in self._all_of(at).items():
            meanings.setdefault(bits, f"{kind}:{at}")
        if not meanings:  # ``0.0`` where the one module is called ``features.0.0``
            for top in self._outer:
                meant = self._means("layer", f"{top}.{at}")
                if meant is not None:
                    meanings.setdefault(meant, f"layer:{top}.{at}")
        return {form: bits for bits, form in meanings.items()}

    def _own(self, word: str) -> Cut | None:
        """The cut that a word of ours means, whatever the model's own names are; None if it is none."""
        if word in ("input", "output"):
            return self.prefixes()[0 if word == "input" else -1]
        if word == "middle":
            return self.middle()
        if word.startswith(_PREFIX) and word[len(_PREFIX) :].isdecimal() and len(word) <= _MOST_DIGITS:
            place = int(word[len(_PREFIX) :])
            return self.prefixes()[place] if place < len(self.prefixes()) else None
        if _INDEX.fullmatch(word) and -len(self.chain()) <= int(word) < len(self.chain()):
            return self.chain()[int(word)]
        return None

    def _unknown(self, at: str) -> str:
        """Why there is no cut `at`."""
        kind, colon, name = at.partition(":")
        word = name if colon and kind == "cut" else at
        if _INDEX.fullmatch(word):
            return self._no_index(word)
        if word.startswith(_PREFIX) and word[len(_PREFIX) :].isdecimal():
            return f"{word} is not in {_PREFIX}0…{len(self.prefixes()) - 1}, the rows of splitpoint inspect"
        if any(at == path or path.startswith(at + ".") for path in self.unused):
            return f"{at} plays no part in the outputs of {self.name}: there is nothing to cut behind it"
        if colon and kind in _KINDS:
            known = [n for n in self.names if self._means(kind, n) is not None]
            return f"{self.name} has no {kind} {name}{nearest(name, known)}"
        return f"{self.name} has no layer, node or tensor {at}{nearest(at, self.names)}"

    def _crossing_of(self, bits: int) -> str:
        nodes = self._nodes_of(bits)
        crossing = " + ".join(map(str, self.cut_of(nodes, "-").crossing)) or "nothing"
        return f"{len(nodes)} of {counted(len(self.placed), 'node')} on the edge, {crossing} crosses"

    def _nodes_of(self, bits: int) -> frozenset[int]:
        return frozenset(i for i in self.placed if bits >> i & 1)

    def _no_index(self, index: int | str) -> str:
        return f"cut {index} is not in 0…{len(self.chain()) - 1} (see splitpoint inspect)"

    def _all_of(self, name: str) -> Mapping[str, int]:
        """``layer``, ``node``, ``tensor`` → the closure (bits) of what `name` stands for, for each of this name."""
        return {kind: bits for kind in _KINDS if (bits := self._means(kind, name)) is not None}

    def _means(self, kind: str, name: str) -> int | None:
        """The closure (bits) of the layer, node or tensor `name`; None if there is none."""
        if (kind, name) not in self._known:
            nodes = self._named[kind].get(name)
            self._known[kind, name] = None if nodes is None else self._bits(nodes)
        return self._known[kind, name]

    @cached_property
    def _known(self) -> dict[tuple[str, str], int | None]:
        return {}  # of a layer with thousands of nodes, whose rows all ask

    @cached_property
    def _named(self) -> Mapping[str, Mapping[str, Sequence[int]]]:
        """``layer``, ``node``, ``tensor`` → each name of this kind → the nodes that it stands for."""
        inputs: dict[str, Sequence[int]] = {t.name: () for t in self.inputs}
        nodes = _listed((n.name, i) for i, n in enumerate(self.nodes))
        inside = _listed((path, i) for i, n in enumerate(self.nodes) for path in module_paths(n.layer))
        layers = {path: tuple(i for i in m if self.nodes[i].placed) or m for path, m in inside.items()}
        holders = {**nodes, **inputs}
        held = {path: holders[name] for path, name in self.aliases.items() if name in holders}
        # A container none of whose own paths survived the export: all that its folded children hold.
        folded = _listed((parent, i) for path, name in self.aliases.items()
                         for parent in module_paths(path)[:-1] for i in nodes.get(name, ()))  # fmt: skip
        tensors = {t: (i,) for t, i in self.producer.items()}
        return {"layer": {**folded, **layers, **held}, "node": nodes, "tensor": {**inputs, **tensors}}

    @cached_property
    def _outer(self) -> tuple[str, ...]:
        """The modules with modules inside that are inside of none."""
        return tuple(dict.fromkeys(path.partition(".")[0] for path in self._named["layer"] if "." in path))

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Every module as `cut` takes it, in the order of what it needs, those inside others before them; also those
        that no node carries (folded, dropped) or that only hold others."""
        held = {path: self._means("layer", path) or 0 for path in self._named["layer"] if path and self._shown(path)}
        order = sorted(held, key=lambda path: (held[path].bit_count(), -path.count("."), _natural(path)))
        return tuple(dict.fromkeys(self.spell("layer", path) for path in order))

    def _shown(self, path: str) -> bool:
        """Whether it is a folded module's path, or something of it is placed."""
        return path in self.aliases or any(self.nodes[i].placed for i in self._named["layer"][path])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Everything `cut` accepts by name, without repeats: layers and their parents, nodes, tensors."""
        paths = (path for n in self.nodes for path in module_paths(n.layer))
        nodes = (n.name for n in self.nodes)
        every = ("input", "output", "middle", *paths, *self.aliases, *nodes, *self.producer, *self._named["tensor"])
        return tuple(name for name in dict.fromkeys(every) if name)

    def middle(self) -> Cut:
        """The inner single-tensor cut nearest to half of the FLOPs: the default until there is a plan."""
        inner = [c for c in self.chain() if 0 < len(c.nodes) < len(self.placed) and c.crossing]
        if not inner:
            return self.chain()[0]
        done = list(accumulate((self.nodes[i].flops for step in self.order for i in step), initial=0))
        # Where nothing costs FLOPs, the middle of the nodes.
        return min(inner, key=lambda c: (abs(2 * done[len(c.nodes)] - done[-1]), abs(2 * len(c.nodes) - len(done))))

    def __str__(self) -> str:
        inner = sum(len(c.crossing) == 1 for c in self.chain()[1:-1])
        return f"{self.name}: {counted(len(self.nodes), 'node')}, {inner} single-tensor cuts between input and output"


class Prefix(Set[int]):
    """The first `count` nodes of an order: a set of nodes that costs no memory of its own.

    A graph of 5,000 nodes has 5,000 prefixes; as sets of their own they would take 700 MB.

    >>> some = Prefix((3, 5, 4), {3: 0, 5: 1, 4: 2}, 2)
    >>> 5 in some, 4 in some, some == frozenset({3, 5})
    (True, False, True)
    """

    __slots__ = ("_count", "_order", "_rank")

    def __init__(self, order: tuple[int, ...], rank: Mapping[int, int], count: int) -> None:
        self._order, self._rank, self._count = order, rank, count

    def __contains__(self, node: object) -> bool:
        return isinstance(node, int) and self._rank.get(node, self._count) < self._count

    def __iter__(self) -> Iterator[int]:
        return iter(self._order[: self._count])

    def __len__(self) -> int:
        return self._count

    def __sub__(self, other: Set[object]) -> Set[int]:
        if isinstance(other, Prefix) and other._order is self._order:
            return frozenset(self._order[other._count : self._count])
        return frozenset(self).difference(other)

    def __hash__(self) -> int:
        return hash(frozenset(self))

    def __repr__(self) -> str:
        return f"Prefix({sorted(self)})"

    @classmethod
    def _from_iterable(cls, it: Iterable[T]) -> frozenset[T]:
        return frozenset(it)


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a node (or a model output) needs, looking through copied nodes.

    `values` are tensors made by placed nodes, or model inputs; `vectors` the Shape and Size nodes it reads;
    `origins` are `values` and the tensors behind those shapes.
    """

    values: tuple[str, ...]
    origins: tuple[str, ...]
    vectors: tuple[int, ...]


def _natural(path: str) -> list[tuple[int, str]]:
    """What sorts ``conv.2`` before ``conv.10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.split(".")]


def module_paths(layer: str) -> list[str]:
    """A module and those it is inside of: ``a.b.c`` → ``a``, ``a.b``, ``a.b.c``."""
    parts = layer.split(".")
    return [".".join(parts[: k + 1]) for k in range(len(parts))]


def _listed(pairs: Iterable[tuple[K, int]]) -> Mapping[K, tuple[int, ...]]:
    """Each key of `pairs` → the numbers that come with it, in order."""
    places: dict[K, list[int]] = {}
    for key, i in pairs:
        places.setdefault(key, []).append(i)
    return {key: tuple(numbers) for key, numbers in places.items()}


#: Operators that read a tensor's shape only, never its values.
SHAPE_ROOTS = frozenset({"Shape", "Size"})

_INDEX = re.compile(r"-?[0-9]{1,9}")
_MOST_DIGITS = len(_PREFIX) + 9
