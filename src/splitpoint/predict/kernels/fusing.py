"""Which nodes of a graph an engine runs as one kernel.

The rules are those of ONNX Runtime on a processor: a convolution takes in the batch norm, the addition and the
activation behind it, a product its bias and activation; the patterns that exporters write for Gelu, layer norm and
attention are one each; what only renames its input's shape belongs to who made that. What matters is not that an engine
does just this, but that what was measured and what is priced are divided up alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from splitpoint.models.dataflow import Proto
from splitpoint.models.model import Model
from splitpoint.tensors import ITEM_SIZES

#: Only give their input another shape or name.
FREE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
#: Activations that a convolution or a product computes on its way out.
_INSIDE = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "Elu"})
#: An activation is a stage like an addition; Gelu costs as much as about three.
_STAGES: Mapping[str, int] = {"Gelu": 3, "Tanh": 2, "Sigmoid": 2}
#: Between the two products of attention: scale, mask, and what exporters put around the softmax.
_SCORES = frozenset({"Mul", "Div", "Add", "Sub", "Where", "Cast", "Dropout", "Identity", "IsNaN"})
#: Nodes of a pattern that are looked through, at most.
_FAR = 6


@dataclass(slots=True)
class Group:
    """Nodes that run as one, the one that names it first; `fused` elementwise stages are among them, the activation
    `act` perhaps, and `added` elements of a tensor that one of those adds. `pattern` is what several nodes are,
    if not what the first is.
    """

    nodes: list[int]
    fused: int = 0
    added: int = 0
    pattern: str = ""
    act: str = ""


def groups_of(wiring: Wiring) -> list[Group]:
    """Every placed node in just one group, in the order of their last nodes."""
    grouping, placed = _Grouping(wiring), wiring.graph.placed
    for i in placed:
        if wiring.ops[i] == "Softmax":
            grouping.attention(i)
        elif wiring.ops[i] == "Erf":
            grouping.gelu(i)
        elif wiring.ops[i] == "Sqrt":
            grouping.norm(i)
        elif wiring.ops[i] in ("Sigmoid", "HardSigmoid"):
            grouping.gated(i)
    for i in placed:
        grouping.start(i)
    return sorted(grouping.groups, key=lambda g: max(g.nodes))


class Wiring:
    """A model's graph as the rules look at it: who reads what, sizes, and what is data."""

    def __init__(self, model: Model) -> None:
        graph = self.graph = model.graph
        self.protos: list[Proto] = list(model.skeleton.graph.node)
        self.ops = [n.op for n in graph.nodes]
        self.weights = {t.name: tuple(t.dims) for t in model.skeleton.graph.initializer}
        self.results = {t.name for t in graph.outputs}
        self._data = {t.name for t in graph.inputs}
        self._data.update(t for i in graph.placed for t in graph.nodes[i].outputs)
        #: Names of what each node reads, in their places; empty where one is left out.
        self.reads = [list(node.input) for node in self.protos]
        self._elements: dict[str, int] = {}
        self._users: dict[str, list[int]] = {}
        for i in graph.placed:
            for t in graph.nodes[i].inputs:
                self._users.setdefault(t, []).append(i)

    def out(self, i: int) -> str:
        """The first tensor a node makes."""
        return self.graph.nodes[i].outputs[0] if self.graph.nodes[i].outputs else ""

    def users(self, i: int) -> list[int]:
        """Placed nodes that read what node `i` makes, each once."""
        return list(dict.fromkeys(u for t in self.graph.nodes[i].outputs for u in self._users.get(t, ())))

    def only_user(self, i: int) -> int:
        """The one placed node that reads what `i` makes; −1 if there are others, or the result is the model's."""
        users = self.users(i)
        return users[0] if len(users) == 1 and not self.ends(i) else -1

    def ends(self, i: int) -> bool:
        """Whether the model gives away what node `i` makes."""
        return any(t in self.results for t in self.graph.nodes[i].outputs)

    def readers(self, tensor: str) -> list[int]:
        """Placed nodes that read `tensor`."""
        return self._users.get(tensor, [])

    def is_data(self, tensor: str) -> bool:
        """Whether a tensor depends on the model's inputs by value."""
        return tensor in self._data

    def data(self, i: int) -> list[str]:
        """What a node reads of the data that flows through the model."""
        return [t for t in self.reads[i] if t in self._data]

    def maker(self, tensor: str) -> int:
        """The placed node that makes `tensor`; −1 if none does."""
        return self.graph.producer.get(tensor, -1) if tensor in self._data else -1

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The bound shape of a tensor or weight; empty if it is not known."""
        spec = self.graph.tensors.get(tensor)
        return spec.shape if spec is not None else self.weights.get(tensor, ())  # type: ignore[return-value]

    def elements(self, tensor: str) -> int:
        """How many numbers a tensor or weight has."""
        known = self._elements.get(tensor)
        if known is None:
            known = self._elements[tensor] = prod(self.shape(tensor))
        return known

    def nbytes(self, tensor: str) -> int:
        """Bytes of a tensor of the graph; 0 if its size is not known."""
        spec = self.graph.tensors.get(tensor)
        return self.elements(tensor) * ITEM_SIZES[spec.dtype] if spec is not None else 0

    def dtype(self, tensor: str) -> str:
        """numpy's name of a tensor's element type; empty if it is not known."""
        spec = self.graph.tensors.get(tensor)
        return spec.dtype if spec is not None else ""

    def leaving(self, nodes: list[int]) -> list[str]:
        """What `nodes` make that is read outside of them, or is a result of the model."""
        makes = (t for i in nodes for t in self.graph.nodes[i].outputs)
        return [t for t in makes if t in self.results or any(u not in nodes for u in self.readers(t))]


class _Grouping:
    """Groups under way; each method claims the nodes of what it finds, if they are free."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.groups: list[Group] = []
        self._of: dict[int, Group] = {}

    def _claim(self, nodes: Iterable[int], pattern: str = "") -> Group | None:
        claimed = list(dict.fromkeys(nodes))
        if any(i in self._of for i in claimed):
            return None
        group = Group(claimed, pattern=pattern)
        self.groups.append(group)
        self._of.update(dict.fromkeys(claimed, group))
        return group

    def _join(self, group: Group, i: int) -> None:
        group.nodes.append(i)
        self._of[i] = group

    # --- what several nodes are together ------------------------------------------------------------------------

    def attention(self, softmax: int) -> None:
        """MatMul → scale, mask → Softmax → MatMul, and the scaling of what the first reads."""
        w = self.wiring
        inside, back = [softmax], softmax
        while w.ops[back] != "MatMul":
            makers = [m for t in w.data(back) if (m := w.maker(t)) >= 0 and w.only_user(m) >= 0]
            scores = [m for m in makers if w.ops[m] == "MatMul" or (w.ops[m] in _SCORES and len(w.data(m)) <= 2)]
            if not scores or len(inside) > _FAR:
                return
            back = next((m for m in scores if w.ops[m] == "MatMul"), scores[0])
            inside.append(back)
        if len(w.data(back)) != 2:
            return
        first, last = back, self._behind(softmax, inside)
        if last < 0:
            return
        scales = [m for t in w.data(first) if (m := w.maker(t)) >= 0 and self._scales(m) and w.only_user(m) == first]
        self._claim([first, *scales, *inside, last], "attention")

    def _behind(self, softmax: int, inside: list[int]) -> int:
        """The product that a softmax's result goes into; adds what lies between to `inside`. −1 if there is none."""
        w, i = self.wiring, softmax
        for _ in range(_FAR):
            users = w.users(i)
            checks = [u for u in users if w.ops[u] == "IsNaN"]
            others = [u for u in users if u not in checks and not any(u in w.users(c) for c in checks)] or [
                u for u in users if u not in checks
            ]
            if len(others) != 1 or w.ends(i):
                return -1
            inside.extend(checks)
            i = others[0]
            if w.ops[i] == "MatMul":
                return i if len(w.data(i)) == 2 else -1
            if w.ops[i] not in _SCORES:
                return -1
            inside.append(i)
        return -1

    def _scales(self, i: int) -> bool:
        """Whether a node multiplies by one number."""
        w = self.wiring
        if w.ops[i] not in ("Mul", "Div") or len(w.data(i)) != 1:
            return False
        return all(w.elements(t) <= 1 for t in w.reads[i] if not w.is_data(t))

    def gelu(self, erf: int) -> None:
        """x · ½ · (1 + erf(x / √2)), in whichever order it is written."""
        w = self.wiring
        before = w.maker(w.reads[erf][0])
        if before < 0 or not self._scales(before) or w.only_user(before) != erf:
            return
        x, nodes, i = w.data(before)[0], [erf, before], erf
        for _ in range(3):
            i = w.only_user(i)
            if i < 0 or w.ops[i] not in ("Add", "Mul"):
                break
            nodes.append(i)
            for t in w.data(i):  # ½ · x may be a node of its own
                m = w.maker(t)
                if m >= 0 and m not in nodes and self._scales(m) and x in w.reads[m] and w.only_user(m) == i:
                    nodes.append(m)
            if x in w.reads[i] and w.only_user(i) >= 0 and not self._scales(w.only_user(i)):
                break
        if any(x in w.reads[n] or n in nodes[2:] for n in nodes[2:]):
            self._claim(nodes, "Gelu")

    def gated(self, gate: int) -> None:
        """x · sigmoid(x) and x · hard-sigmoid(x)."""
        w = self.wiring
        x, mul = w.reads[gate][0], w.only_user(gate)
        if mul >= 0 and w.ops[mul] == "Mul" and x in w.reads[mul] and w.is_data(x):
            self._claim([gate, mul], "Silu" if w.ops[gate] == "Sigmoid" else "HardSwish")

    def norm(self, root: int) -> None:
        """(x − mean) / √(mean of squares + ε) · γ + β, or without the mean, as older exports write it."""
        w, nodes, i = self.wiring, [root], root
        for ops in (("Add",), ("ReduceMean",), ("Pow", "Mul"), ("Sub",), ("ReduceMean",)):
            makers = [m for t in w.data(i) if (m := w.maker(t)) >= 0 and w.ops[m] in ops]
            if not makers:
                break
            i = makers[0]
            nodes.append(i)
        if len(nodes) < 4:
            return
        i = root
        for ops in (("Div", "Reciprocal"), ("Mul",), ("Add", "Mul"), ("Add",)):
            user = w.only_user(i)
            if user < 0 or w.ops[user] not in ops:
                break
            i = user
            nodes.append(i)
        self._claim(nodes, "layernorm")

    # --- what one node begins -----------------------------------------------------------------------------------

    def start(self, i: int) -> None:
        """Puts node `i` in a group if it is in none: the one before it, or a new one with what fuses behind it."""
        if i in self._of:
            return
        w = self.wiring
        if w.ops[i] in FREE:
            owner = next((self._of[m] for t in w.data(i) if (m := w.maker(t)) in self._of), None)
            if owner is not None:
                self._join(owner, i)
                return
        group = self._claim([i])
        if group is None:
            return
        if w.ops[i] == "Conv":
            self._convolution(group)
        elif w.ops[i] in ("MatMul", "Gemm"):
            self._product(group)
        elif w.ops[i] == "BatchNormalization":
            self._activation(group, i)
        elif w.ops[i] in ("Gather", "Slice"):
            self._siblings(group)

    def _convolution(self, group: Group) -> None:
        w, last = self.wiring, group.nodes[0]
        while (user := w.only_user(last)) >= 0 and user not in self._of:
            if w.ops[user] == "BatchNormalization" or self._shifts(user, w.out(last)):
                self._join(group, user)
            elif w.ops[user] in ("Add", "Sum") and not group.added and self._takes(user, last):
                other = next(t for t in w.reads[user] if t != w.out(last))
                group.added, group.fused = w.elements(other), group.fused + 1
                self._join(group, user)
            else:
                break
            last = user
        self._activation(group, last)

    def _shifts(self, i: int, tensor: str) -> bool:
        """Whether a node scales or shifts each channel by a weight: it is folded into those of the convolution."""
        w = self.wiring
        if w.ops[i] not in ("Mul", "Add") or w.data(i) != [tensor]:
            return False
        return all(w.elements(t) <= w.shape(tensor)[1] for t in w.reads[i] if t != tensor)

    def _takes(self, add: int, last: int) -> bool:
        """Whether the addition belongs to the convolution that ends in `last`: the first that can have it does."""
        w = self.wiring
        names = w.data(add)
        if not len(names) == len(w.reads[add]) == 2 or w.shape(names[0]) != w.shape(names[1]) or names[0] == names[1]:
            return False
        if names[0] == w.out(last):
            return True
        rival = w.maker(names[0])
        return rival < 0 or w.only_user(rival) != add or not self._ends_plainly(rival)

    def _ends_plainly(self, i: int) -> bool:
        """Whether node `i` is a convolution, or its batch norm, without an activation or an addition yet."""
        w = self.wiring
        while w.ops[i] == "BatchNormalization":
            i = w.maker(w.reads[i][0])
            if i < 0:
                return False
        return w.ops[i] == "Conv"

    def _product(self, group: Group) -> None:
        w, last = self.wiring, group.nodes[0]
        user = w.only_user(last)
        if w.ops[last] == "MatMul" and user >= 0 and user not in self._of and self._biases(user):
            self._join(group, user)
            group.fused, last = group.fused + 1, user
        self._activation(group, last, patterns=True)

    def _biases(self, i: int) -> bool:
        """Whether a node adds a weight with one number for each column."""
        w = self.wiring
        if w.ops[i] != "Add" or len(w.data(i)) != 1:
            return False
        return all(w.elements(t) <= w.shape(w.out(i))[-1] for t in w.reads[i] if not w.is_data(t))

    def _activation(self, group: Group, last: int, patterns: bool = False) -> None:
        """Takes in the activation that alone reads `last`, where `patterns` says so one of several nodes, too."""
        w, user = self.wiring, self.wiring.only_user(last)
        if user >= 0 and user not in self._of and w.ops[user] in (_INSIDE | {"Gelu"} if patterns else _INSIDE):
            group.fused += _STAGES.get(w.ops[user], 1)
            group.act = w.ops[user]
            self._join(group, user)
        elif patterns and w.users(last) and not w.ends(last):
            owners = {id(g): g for u in w.users(last) if (g := self._of.get(u)) is not None}
            [*groups] = owners.values()
            if len(groups) == 1 and groups[0].pattern == "Gelu" and all(u in self._of for u in w.users(last)):
                self.groups.remove(groups[0])
                group.fused += _STAGES["Gelu"]
                for i in groups[0].nodes:
                    self._join(group, i)

    def _siblings(self, group: Group) -> None:
        """Takes in the other pieces that are taken from the same tensor: an engine splits it once."""
        w, first = self.wiring, group.nodes[0]
        data = w.data(first)
        if not data or data[0] != w.reads[first][0]:
            return
        for i in w.readers(data[0]):
            if i not in self._of and w.ops[i] == w.ops[first] and w.reads[i][0] == data[0]:
                self._join(group, i)
