"""Random networks to measure: blocks of the kinds that real ones are made of, in sizes that real ones have.

A kernel runs in a network as it never does alone: its input was just written, its weights have to come back to the
cache, its channels lie in blocks, its activation is fused. Sizes are drawn, never taken from a list: every real network
stays one that was never measured. Weights are stand-ins that keep activations at a usual size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import log2, sqrt

import numpy as np

from splitpoint.models import model as building
from splitpoint.models.model import Model
from splitpoint.models.weights import StandIn
from splitpoint.predict.calibrate.network_builder import Sketch

#: FLOPs of a strip: from a fifth of MobileNetV2 to two ResNet-50s.
LEAST_WORK, MOST_WORK = 1e8, 1.6e10
#: Networks drawn for one strip: the one whose work is nearest to what was asked for is taken.
_DRAWS = 4


def random_network(seed: int, family: str, work: float = 2e9) -> Model:
    """A random network of `family` (one of `FAMILIES`) with about `work` FLOPs; the same for the same arguments."""
    sketches = [Sketch(np.random.default_rng([seed, k, *family.encode()]), work) for k in range(_DRAWS)]
    drawn = [(net, FAMILIES[family](net)) for net in sketches]
    best, result = min(drawn, key=lambda pair: abs(log2(max(1.0, pair[0].flops) / work)))
    skeleton = best.proto(result)
    return building.build(skeleton, StandIn(skeleton), f"{family}-{seed}")


Family = Callable[[Sketch], str]


def _side(net: Sketch) -> int:
    """Height and width of a photo: mostly what networks are trained on."""
    return int(net.pick(224, 224, 224, 224, 192, 240, 256, 160, 128, 288, 299, 320))


def _stages(net: Sketch, first: float, growth: tuple[float, float], most: int) -> list[int]:
    """Channels of stages one after the other, each wider than the one before."""
    widths, c = [], first
    for _ in range(most):
        widths.append(net.width(c * 0.9, c * 1.1))
        c *= net.spread(*growth)
    return widths


#: How far into a network a strip begins: pictures so many times smaller, with as many times the channels.
_LATE = (1, 1, 1, 2, 4)


def _stem(net: Sketch, width: int, act: str, late: int = 1) -> str:
    """What large networks begin with: a wide convolution and a pool, or one that halves the picture."""
    x = net.image(_side(net) // late)
    if net.chance(0.5):
        x = net.conv(x, width, net.pick(7, 7, 5, 3), 2, act=act)
        return net.pool(x, kernel=3, pad=1) if net.chance(0.8) else x
    return net.conv(x, width, 3, 2, act=act)


# --- convolutions -------------------------------------------------------------------------------------------------


def _vgg(net: Sketch) -> str:
    """3 × 3 convolutions and pools, then wide products; or a few stages of it, as wide as they are there."""
    late = int(net.pick(1, 1, 2, 4, 8))
    stages = 5 if late == 1 else int(net.pick(1, 2, 2, 3))
    x = net.image(int(net.pick(224, 224, 224, 160, 192)) // late)
    first = net.spread(24, 72) * min(1.0, sqrt(net.work / 8e9)) if late == 1 else net.spread(32, 80) * late
    for width in _stages(net, first, (1.4, 2.2), stages):
        for _ in range(net.pick(1, 1, 2, 3)):
            x = net.conv(x, min(width, 640), 3, act="Relu")
        x = net.pool(x)
    if net.chance(0.5):
        return net.classify(x)
    return _wide_head(net, x, net.spread(512, 4096))


def _alex(net: Sketch, normed: bool = False) -> str:
    """A large first convolution, then few and wide ones; `normed` across channels, as it was at first."""
    kernel = net.pick(11, 9, 7)
    x = net.conv(net.image(int(net.pick(224, 224, 192, 256))), net.width(48, 112), kernel, 4, act="Relu", pad=2)
    x = net.pool(net.across(x) if normed else x, kernel=3)
    x = net.conv(x, net.width(96, 288), 5, act="Relu")
    x = net.pool(net.across(x) if normed else x, kernel=3)
    for _ in range(net.pick(1, 2, 3)):
        x = net.conv(x, net.width(160, 448), 3, act="Relu")
    x = net.pool(x, kernel=3)
    return _wide_head(net, x, 4096)


def _wide_head(net: Sketch, x: str, width: float) -> str:
    """Flattened positions → two wide products → classes."""
    _, c, h, w = net.shape(x)
    if net.chance(0.5):
        x = net.pool(x, "AveragePool", 1, 1)
    x = net.reshape(x, 1, c * h * w)
    for _ in range(net.pick(1, 2, 2)):
        x = net.linear(x, net.width(width / 4, width), "Relu")
    return net.linear(x, net.pick(10, 100, 1000, 1000))


def _resnet(net: Sketch) -> str:
    """Two 3 × 3 convolutions and what they are added to."""
    late = int(net.pick(*_LATE))
    base = net.spread(32, 80) * late
    x = _stem(net, net.width(base * 0.9, base * 1.1), "Relu", late)
    for k, width in enumerate(_stages(net, base, (1.5, 2.2), 4 - late // 2)):
        for j in range(net.pick(1, 1, 2)):
            stride = 2 if k and not j else 1
            inner = net.conv(x, width, 3, stride, act="Relu")
            out = net.conv(inner, width, 3)
            same = stride == 1 and net.channels(x) == width
            x = net.act(net.sum(out, x if same else net.conv(x, width, 1, stride)), "Relu")
    return net.classify(x)


def _bottleneck(net: Sketch) -> str:
    """1 × 1, 3 × 3 (in groups, in some networks), 1 × 1 and an addition; some weigh channels as well."""
    late = int(net.pick(*_LATE))
    base = net.spread(24, 72) * late
    expand = net.pick(4, 4, 2, 1)
    group = net.pick(0, 0, 0, 4, 8, 8, 16, 16, 24, 32, 48)
    share = net.pick(0.0, 0.0, 0.25)
    x = _stem(net, net.width(base * 0.9, base * 1.1), "Relu", late)
    for k, width in enumerate(_stages(net, base, (1.6, 2.2), 4 - late // 2)):
        width = max(group, round(width / group) * group) if group else width
        for j in range(net.pick(1, 2, 2)):
            stride = 2 if k and not j else 1
            out = width * expand
            y = net.conv(x, width, 1, act="Relu")
            y = net.conv(y, width, 3, stride, width // group if group else 1, act="Relu")
            if share:
                y = net.excite(y, share, "Relu", "Sigmoid")
            y = net.conv(y, out)
            same = stride == 1 and net.channels(x) == out
            x = net.act(net.sum(y, x if same else net.conv(x, out, 1, stride)), "Relu")
    return net.classify(x)


def _mobile(net: Sketch) -> str:
    """Widened, a depthwise convolution, narrowed: MobileNets, MnasNets and EfficientNets."""
    act = net.pick("Relu6", "Relu", "HardSwish", "Silu")
    gate = "HardSigmoid" if act == "HardSwish" else "Sigmoid"
    share = net.pick(0.0, 0.0, 0.04, 0.25) if act in ("Relu", "Relu6") else net.pick(0.04, 0.25, 0.25)
    base = net.spread(12, 36)
    x = net.conv(net.image(_side(net)), net.width(base, base * 1.5), 3, 2, act=act)
    for k, width in enumerate(_stages(net, base, (1.25, 1.75), net.pick(5, 6, 7))):
        for j in range(net.pick(1, 1, 2)):
            stride = 2 if k in (1, 2, 3, 5) and not j else 1
            x = _inverted(net, x, width, stride, act, gate, share)
    x = net.conv(x, net.width(320, 1536), 1, act=act)
    return net.classify(x)


def _inverted(net: Sketch, x: str, width: int, stride: int, act: str, gate: str, share: float) -> str:
    c = net.channels(x)
    times = net.pick(1, 3, 4, 6, 6, 2.5)
    y = net.conv(x, max(8, round(c * times / 8) * 8), act=act) if times > 1 else x
    y = net.conv(y, net.channels(y), net.pick(3, 3, 5), stride, net.channels(y), act=act)
    if share:
        y = net.excite(y, share, "Relu" if gate == "HardSigmoid" else act, gate)
    y = net.conv(y, width)
    return net.sum(y, x) if stride == 1 and c == width else y


def _separable(net: Sketch) -> str:
    """A depthwise and a 1 × 1 convolution in turns: the first MobileNet, Xception."""
    act = net.pick("Relu", "Relu6", "LeakyRelu")
    base = net.spread(16, 64)
    x = net.conv(net.image(_side(net)), net.width(base * 0.7, base), 3, 2, act=act)
    for k, width in enumerate(_stages(net, base, (1.3, 2.0), net.pick(5, 6, 7))):
        for j in range(net.pick(1, 2)):
            c = net.channels(x)
            x = net.conv(x, c, net.pick(3, 3, 5, 7), 2 if k in (1, 2, 4, 5) and not j else 1, c, act=act)
            x = net.conv(x, width, act=act)
    return net.classify(x)


def _dense(net: Sketch) -> str:
    """Each layer reads all before it: batch norms that nothing folds away, and concatenations."""
    growth = net.width(12, 48)
    x = _stem(net, net.width(growth * 1.5, growth * 2.5), "Relu")
    for k in range(4):
        for _ in range(net.pick(2, 3, 4)):
            y = net.conv(net.batch_norm(x, "Relu"), growth * net.pick(4, 4, 3, 2), act="Relu")
            x = net.concat([x, net.conv(y, growth, 3)])
        if k < 3:
            # As if there had been more layers: real ones are wider towards the end.
            x = net.conv(net.batch_norm(x, "Relu"), net.width(growth * 3 * 1.5**k, growth * 6 * 1.5**k))
            x = net.pool(x, "AveragePool")
    return net.classify(net.batch_norm(x, "Relu"))


def _fire(net: Sketch) -> str:
    """Squeezed, then widened by two convolutions side by side."""
    base = net.spread(10, 28)
    x = net.conv(net.image(_side(net)), net.width(48, 104), net.pick(3, 3, 7), 2, act="Relu")
    for width in _stages(net, base, (1.2, 2.0), net.pick(3, 4, 5)):
        if min(net.shape(x)[2:]) > 12:
            x = net.pool(x, kernel=3)
        for _ in range(net.pick(1, 2)):
            y = net.conv(x, width, act="Relu")
            wide = round(width * net.pick(3, 4, 4))
            x = net.concat([net.conv(y, wide, act="Relu"), net.conv(y, wide, 3, act="Relu")])
    return net.classify(net.conv(x, net.pick(10, 100, 1000), act="Relu"))


def _inception(net: Sketch, normed: bool = False) -> str:
    """Four paths of different windows, side by side; the first was `normed` across channels, twice before them."""
    base = net.spread(24, 80)
    x = net.pool(net.conv(net.image(_side(net)), net.width(40, 80), net.pick(7, 7, 3), 2, act="Relu"), kernel=3, pad=1)
    x = net.across(x) if normed else x
    x = net.conv(net.conv(x, net.width(40, 96), act="Relu"), net.width(120, 224), 3, act="Relu")
    x = net.across(x) if normed else x
    for width in _stages(net, base, (1.3, 1.9), 3):
        x = net.pool(x, kernel=3, pad=net.pick(0, 1))
        for _ in range(net.pick(1, 2, 3)):
            x = _paths(net, x, width)
    return net.classify(x)


def _paths(net: Sketch, x: str, width: int) -> str:
    def wide(low: float, high: float) -> int:
        return net.width(max(8, width * low), max(9, width * high))

    long = net.conv(net.conv(x, wide(0.5, 1.5), act="Relu"), wide(1, 3), net.pick(3, 3, 5), act="Relu")
    other = net.conv(x, wide(0.2, 0.6), act="Relu")
    if net.chance(0.3):  # a window in two strokes
        k = net.pick(3, 5, 7)
        other = net.conv(net.conv(other, wide(0.5, 1), (1, k), act="Relu"), wide(0.5, 1), (k, 1), act="Relu")
    else:
        other = net.conv(other, wide(0.4, 1), net.pick(3, 5), act="Relu")
    pooled = net.conv(net.pool(x, net.pick("MaxPool", "MaxPool", "AveragePool"), 3, 1, 1), wide(0.4, 1), act="Relu")
    return net.concat([net.conv(x, wide(0.8, 2), act="Relu"), long, other, pooled])


def _shuffle(net: Sketch) -> str:
    """Half the channels are worked on, then halves are shuffled."""
    base = net.spread(48, 176)
    x = net.pool(net.conv(net.image(_side(net)), net.width(16, 40), 3, 2, act="Relu"), kernel=3, pad=1)
    for width in _stages(net, base, (1.7, 2.1), 3):
        half = max(8, width // 2)
        c = net.channels(x)
        left = net.conv(net.conv(x, c, 3, 2, c), half, act="Relu")
        right = net.conv(net.conv(net.conv(x, half, act="Relu"), half, 3, 2, half), half, act="Relu")
        x = _shuffled(net, net.concat([left, right]))
        for _ in range(net.pick(1, 2, 3)):
            _, c, h, w = net.shape(x)
            left, right = net.split("Split", [x], [(1, c // 2, h, w)] * 2, axis=1, num_outputs=2)
            right = net.conv(net.conv(right, half, act="Relu"), half, 3, 1, half)
            x = _shuffled(net, net.concat([left, net.conv(right, half, act="Relu")]))
    return net.classify(net.conv(x, net.width(512, 1200), act="Relu"))


def _shuffled(net: Sketch, x: str, groups: int = 2) -> str:
    _, c, h, w = net.shape(x)
    x = net.transpose(net.reshape(x, 1, groups, c // groups, h, w), 0, 2, 1, 3, 4)
    return net.reshape(x, 1, c, h, w)


def _grouped(net: Sketch) -> str:
    """1 × 1 convolutions in groups whose channels are shuffled: the first ShuffleNet."""
    groups = net.pick(2, 3, 4, 8)
    step = groups * net.pick(8, 8, 4, 3)
    x = net.pool(net.conv(net.image(_side(net)), 24, 3, 2, act="Relu"), kernel=3, pad=1)
    x = net.conv(x, step * net.pick(3, 5, 8), act="Relu")
    for width in _stages(net, net.spread(100, 260), (1.7, 2.1), 3):
        out = max(step, round(width / step) * step)
        for j in range(net.pick(1, 2)):
            c = net.channels(x)
            inner = max(step, round(out / 4 / step) * step)
            y = _shuffled(net, net.conv(x, inner, 1, 1, groups, act="Relu"), groups)
            y = net.conv(net.conv(y, inner, 3, 1 if j else 2, inner), out, 1, 1, groups)
            x = net.act(net.sum(y, x), "Relu") if j and c == out else net.act(y, "Relu")
    return net.classify(x)


def _next(net: Sketch) -> str:
    """A large depthwise window, then what transformers do between attentions."""
    base = net.spread(32, 120)
    x = net.conv(net.image(_side(net)), net.width(base * 0.9, base * 1.1), 4, 4, pad=0)
    for k, width in enumerate(_stages(net, base, (1.6, 2.1), 4)):
        if k:
            x = net.transpose(net.norm(net.transpose(x, 0, 2, 3, 1)), 0, 3, 1, 2)
            x = net.conv(x, width, 2, 2, pad=0)
        for _ in range(net.pick(1, 1, 2)):
            c = net.channels(x)
            y = net.norm(net.transpose(net.conv(x, c, net.pick(7, 7, 5, 3), 1, c), 0, 2, 3, 1))
            y = net.linear(net.linear(y, c * net.pick(4, 4, 2), "Gelu"), c)
            y = net.transpose(y, 0, 3, 1, 2)
            x = net.sum(net.sum(y, net.weight((c, 1, 1), 0.5, 1.0), "Mul"), x)
    return net.classify(x)


# --- transformers -------------------------------------------------------------------------------------------------


def _vit(net: Sketch) -> str:
    """Patches of a photo, then attention and products, as two libraries write them."""
    patch = net.pick(16, 16, 14, 32, 8)
    head = net.pick(64, 64, 64, 32, 48)
    heads = int(net.pick(2, 3, 4, 6, 8, 10, 12, 14, 16))
    width = head * heads
    side = int(net.pick(224, 224, 192, 160, 256)) // patch * patch
    x = net.conv(net.image(side), width, patch, patch, pad=0)
    tokens = (side // patch) ** 2
    x = net.transpose(net.reshape(x, 1, width, tokens), 0, 2, 1)
    if net.chance(0.7):
        x = net.concat([net.weight((1, 1, width)), x])  # a learned token
    x = net.sum(x, net.weight(net.shape(x)))
    attend = _joined if net.chance(0.5) else _apart
    for _ in range(net.pick(1, 1, 2, 3)):
        x = net.sum(attend(net, net.norm(x), heads), x)
        x = net.sum(_mlp(net, net.norm(x), net.pick("Gelu", "Gelu", "Relu")), x)
    x = net.norm(x)
    if net.chance(0.3):  # what classify does to the cache
        return net.classify(net.reshape(net.transpose(x, 0, 2, 1), 1, width, net.shape(x)[1], 1))
    x = net.add("Gather", [x, net.numbers(0)], (1, 1, width), axis=1)
    return net.linear(net.reshape(x, 1, width), net.pick(10, 100, 1000))


def _text(net: Sketch) -> str:
    """Attention with a mask over a sentence, norms behind the sums."""
    rows = int(net.pick(16, 32, 64, 128, 128, 256, 384))
    head, heads = net.pick(64, 64, 32), int(net.pick(2, 4, 6, 8, 12, 16))
    width = head * heads
    x = net.norm(net.input((1, rows, width)))
    for _ in range(net.pick(1, 2, 2)):
        x = net.norm(net.sum(_separate(net, x, heads, mask=net.chance(0.7)), x))
        x = net.norm(net.sum(_mlp(net, x, net.pick("Gelu", "Gelu", "Relu")), x))
    x = net.add("Gather", [x, net.numbers(0)], (1, 1, width), axis=1)
    return net.linear(net.reshape(x, 1, width), net.pick(2, 10, 1000))


def _mlp(net: Sketch, x: str, act: str) -> str:
    width = net.shape(x)[-1]
    return net.linear(net.linear(x, width * net.pick(4, 4, 4, 2, 3), act), width)


def _joined(net: Sketch, x: str, heads: int) -> str:
    """Query, key and value of one product, taken apart (timm)."""
    _, rows, width = net.shape(x)
    y = net.reshape(net.linear(x, 3 * width), 1, rows, 3, heads, width // heads)
    y = net.transpose(y, 2, 0, 3, 1, 4)
    shape = (1, heads, rows, width // heads)
    q, k, v = (net.add("Gather", [y, net.number(j)], shape, axis=0) for j in range(3))
    return _attended(net, q, net.transpose(k, 0, 1, 3, 2), v)


def _apart(net: Sketch, x: str, heads: int) -> str:
    """As torch's MultiheadAttention is written: positions first, and many changes of shape."""
    _, rows, width = net.shape(x)
    size = width // heads
    y = net.linear(net.transpose(x, 1, 0, 2), 3 * width)
    y = net.add("Unsqueeze", [net.reshape(y, rows, 1, 3, width), net.numbers(0)], (1, rows, 1, 3, width))
    y = net.transpose(y, 3, 1, 2, 0, 4)
    y = net.add("Squeeze", [y, net.numbers(-2)], (3, rows, 1, width))
    parts = [net.add("Gather", [y, net.number(j)], (rows, 1, width), axis=0) for j in range(3)]
    parts = [net.transpose(net.reshape(p, rows, heads, size), 1, 0, 2) for p in parts]
    q, k, v = (net.reshape(p, 1, heads, rows, size) for p in parts)
    attended = _attended(net, q, net.transpose(k, 0, 1, 3, 2), v)
    return net.transpose(net.reshape(attended, rows, 1, width), 1, 0, 2)


def _separate(net: Sketch, x: str, heads: int, mask: bool) -> str:
    """Query, key and value of three products (transformers)."""
    _, rows, width = net.shape(x)
    size = width // heads
    q, k, v = (net.reshape(net.linear(x, width), 1, rows, heads, size) for _ in range(3))
    bias = net.weight((1, 1, rows, rows), -0.1, 0.0) if mask else ""
    return _attended(
        net, net.transpose(q, 0, 2, 1, 3), net.transpose(k, 0, 2, 3, 1), net.transpose(v, 0, 2, 1, 3), bias
    )


def _attended(net: Sketch, q: str, k: str, v: str, mask: str = "") -> str:
    """softmax(q · k / √width) · v, heads side by side again, and a product."""
    _, heads, rows, size = net.shape(q)
    root = net.number(size**-0.25)
    shape = (1, heads, rows, rows)
    flops = 2.0 * heads * rows * rows * size
    scores = net.add("MatMul", [net.sum(q, root, "Mul"), net.sum(k, root, "Mul")], shape, flops)
    if mask:
        scores = net.sum(scores, mask)
    weighed = net.add("MatMul", [net.add("Softmax", [scores], shape, axis=-1), v], (1, heads, rows, size), flops)
    weighed = net.reshape(net.transpose(weighed, 0, 2, 1, 3), 1, rows, heads * size)
    return net.linear(weighed, heads * size)


# --- small and odd ------------------------------------------------------------------------------------------------


def _lenet(net: Sketch) -> str:
    """Small pictures, few channels, products behind."""
    x = net.image(int(net.pick(28, 32, 32, 48, 64)))
    act = net.pick("Relu", "Tanh", "Sigmoid")
    for width in _stages(net, net.spread(6, 32), (1.5, 2.6), net.pick(2, 2, 3)):
        x = net.pool(
            net.conv(x, width, net.pick(3, 5), act=act, pad=net.pick(0, 1, 2)), net.pick("MaxPool", "AveragePool")
        )
    return _wide_head(net, x, net.spread(64, 512))


def _mlp_only(net: Sketch) -> str:
    """Products of all sizes, one row or several."""
    rows = int(net.pick(1, 1, 1, 4, 16, 64))
    x = net.input((rows, net.width(64, 4096)))
    for _ in range(net.pick(3, 5, 7)):
        x = net.linear(x, net.width(32, 4096), net.pick("", "Relu", "Tanh", "Sigmoid"))
    return net.add("Softmax", [x], net.shape(x), axis=-1)


_UNARY = (
    "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish", "Silu", "Gelu", "Softplus", "Relu6",
)  # fmt: skip


def _odd(net: Sketch) -> str:
    """What occurs here and there, alone: norms, activations, sums, products, softmax and data movement."""
    return _between(
        net, (_odd_pool, _odd_norm, _odd_norm, _odd_sum, _odd_sum, _odd_sum, _odd_move, _odd_move, _odd_product)
    )


def _seldom(net: Sketch) -> str:
    """What is older or seldom: norms across channels, and operators that no other family has."""
    return _between(net, (Sketch.across, _seldom_act, _seldom_act, _seldom_sum, _seldom_sum, _seldom_move))


def _between(net: Sketch, parts: Sequence[Callable[[Sketch, str], str]]) -> str:
    """Any of `parts` one after the other, convolutions and pools between them."""
    x = net.conv(net.image(int(net.pick(56, 64, 96, 112, 128, 224))), net.width(8, 96), 3, net.pick(1, 2), act="Relu")
    for k in range(net.pick(8, 12, 16)):
        x = net.pick(*parts)(net, x)
        h = net.shape(x)[2]
        if k % 2 or net.channels(x) * h * h > 1 << 20:
            # From many channels to few and back, as work grows with their product.
            wide = net.width(8, 48) if net.channels(x) > 64 and h > 28 else net.width(48, 384)
            x = net.conv(x, wide, act=net.pick("", "Relu"))
        if k % 4 == 3 and h > 14:
            x = net.pool(x)
    return net.classify(x)


def _odd_pool(net: Sketch, x: str) -> str:
    kernel = net.pick(2, 3, 5)
    return net.pool(x, net.pick("MaxPool", "AveragePool"), kernel, net.pick(1, 2), kernel // 2 if kernel > 2 else 0)


def _odd_norm(net: Sketch, x: str) -> str:
    if net.chance(0.4):
        return net.transpose(net.norm(net.transpose(x, 0, 2, 3, 1)), 0, 3, 1, 2)
    return net.batch_norm(net.pool(x, kernel=3, stride=1, pad=1), net.pick("", "Relu"))


def _odd_sum(net: Sketch, x: str) -> str:
    y = net.act(x, net.pick(*_UNARY))
    op = net.pick("Add", "Mul", "Sub", "Max", "Div")
    if op == "Div":  # never by what is near zero
        return net.sum(x, net.sum(net.act(x, "Sigmoid"), net.weight((1, 1, 1, 1), 1.0, 1.5)), "Div")
    return net.sum(y, net.weight((1, net.channels(x), 1, 1), 0.5, 1.5) if net.chance(0.3) else x, op)


def _odd_move(net: Sketch, x: str) -> str:
    _, c, h, w = net.shape(x)
    if net.chance(0.3) and h * w <= 64 * 64:
        return net.add(
            "Resize", [x, "", net.numbers(1.0, 1.0, 2.0, 2.0)], (1, c, 2 * h, 2 * w), mode=net.pick("nearest", "linear")
        )
    if net.chance(0.5):
        return net.add("Pad", [x, net.numbers(0, 0, 1, 1, 0, 0, 1, 1), net.number(0.0)], (1, c, h + 2, w + 2))
    ends = [net.numbers(0, 0), net.numbers(h - 1, w - 1), net.numbers(2, 3)]
    return net.concat([p := net.add("Slice", [x, *ends], (1, c, h - 1, w - 1)), p])


def _odd_product(net: Sketch, x: str) -> str:
    """Each channel weighted by the others: a product of two tensors, and a softmax of its rows."""
    _, c, h, w = net.shape(x)
    if h * w > 4096:
        return net.pool(x)
    rows = net.reshape(x, 1, c, h * w)
    grams = net.add("MatMul", [rows, net.transpose(rows, 0, 2, 1)], (1, c, c), 2.0 * c * c * h * w)
    grams = net.sum(grams, net.number(1 / (h * w)), "Mul")
    shares = net.add("Softmax", [grams], (1, c, c), axis=-1)
    if net.chance(0.5):
        shares = net.act(shares, "Relu")
    return net.reshape(net.add("MatMul", [shares, rows], (1, c, h * w), 2.0 * c * c * h * w), 1, c, h, w)


#: What is computed before these, so that they give numbers, and none that is very small or large.
_BEFORE = {"Sqrt": "Abs", "Exp": "Tanh"}


def _seldom_act(net: Sketch, x: str) -> str:
    op = net.pick("PRelu", "PRelu", "Gelu", "Erf", "Selu", "Celu", "Softsign", "Exp", "Sqrt", "Abs", "Neg")
    return net.act(net.act(x, _BEFORE.get(op, "")), op)


def _seldom_sum(net: Sketch, x: str) -> str:
    op = net.pick("Sum", "Sum", "Min", "Mean", "Pow", "GlobalMaxPool", "ReduceMax", "ReduceSum")
    if op in ("Sum", "Min", "Mean"):
        return net.sum(net.act(x, "Relu"), x, op)
    if op == "Pow":
        return net.sum(net.act(x, "Tanh"), net.number(2.0), op)
    axes = {} if op == "GlobalMaxPool" else {"keepdims": 1}
    pooled = net.add(op, [x, net.numbers(2, 3)] if axes else [x], (1, net.channels(x), 1, 1), **axes)
    return net.sum(x, net.act(pooled, "Sigmoid"), "Mul")


def _seldom_move(net: Sketch, x: str) -> str:
    _, c, h, w = net.shape(x)
    if h % 2 == 0 and net.chance(0.4):
        return net.add("SpaceToDepth", [x], (1, 4 * c, h // 2, w // 2), blocksize=2)
    if c % 4 == 0 and h * w <= 64 * 64:
        return net.add("DepthToSpace", [x], (1, c // 4, 2 * h, 2 * w), blocksize=2)
    if net.chance(0.5):
        return net.add("Tile", [x, net.numbers(1, 2, 1, 1)], (1, 2 * c, h, w))
    pixel = net.add("Slice", [x, net.numbers(0, 0), net.numbers(1, 1), net.numbers(2, 3)], (1, c, 1, 1))
    return net.sum(x, net.add("Expand", [pixel, net.numbers(1, c, h, w)], (1, c, h, w)))


#: Every family by name. The first round of collecting has one strip of each.
FAMILIES: Mapping[str, Family] = {
    "bottleneck": _bottleneck, "mobile": _mobile, "vgg": _vgg, "vit": _vit, "dense": _dense, "resnet": _resnet,
    "inception": _inception, "shuffle": _shuffle, "separable": _separable, "alex": _alex, "fire": _fire,
    "text": _text, "next": _next, "grouped": _grouped, "lenet": _lenet, "odd": _odd, "mlp": _mlp_only,
    "alex_lrn": partial(_alex, normed=True), "inception_lrn": partial(_inception, normed=True), "seldom": _seldom,
}  # fmt: skip

#: What later strips are drawn from: what most networks are made of is there more than once.
DRAWN: tuple[str, ...] = (
    *FAMILIES, "bottleneck", "bottleneck", "mobile", "mobile", "vgg", "resnet", "inception", "vit", "vit", "alex",
    "resnet", "vgg", "mobile", "lenet", "mlp",
)  # fmt: skip
