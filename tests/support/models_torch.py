"""Small PyTorch networks for the export's tests: each function returns (module, example inputs)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Residual(nn.Module):
    """Folded batch norms, dropouts and identities in every place, an in-place ReLU called twice, an unused head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Identity()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Identity()
        self.drop = nn.Dropout(0.5)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 5))
        self.last = nn.Identity()
        self.auxiliary = nn.Sequential(nn.Linear(5, 5), nn.ReLU())

    def forward(self, x: Any) -> Any:
        x = self.stem(self.first(x))
        y = self.relu(self.bn(self.conv(x)))
        y = self.drop(y + self.skip(x))  # what Dropout hands on is made by the parent's own addition
        z = y * 2  # younger than what `drop` hands on, and not what it hands on
        return self.last(self.head(self.pool(self.relu(z))))


def residual() -> Any:
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        for norm in (model.stem[1], model.bn):  # statistics that show when a folding is wrong
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
    return model, torch.randn(2, 3, 8, 8)


class Same(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.reshape(x.shape[0], 8, 8, 8).to(torch.float32)


class Vanishing(nn.Module):
    """Modules whose operators the optimiser takes away: a reshape to the same shape, padding folded into a Conv."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.same = Same()
        self.pad = nn.ZeroPad2d(1)
        self.padded = nn.Conv2d(8, 4, 3)
        self.swap = nn.ModuleList([nn.Identity(), nn.Dropout(0.5)])

    def forward(self, x: Any) -> Any:
        y = torch.tanh(self.same(self.conv(x)))
        return self.swap[1](self.swap[0](self.padded(self.pad(y))))


def vanishing() -> Any:
    torch.manual_seed(1)
    return Vanishing(), torch.randn(2, 3, 8, 8)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, left: Any, right: Any) -> Any:
        both = torch.relu(self.body(left) + right)
        return {"out": both, "aux": both.mean(dim=1)}


def named() -> Any:
    torch.manual_seed(1)
    return Named(), {"left": torch.randn(2, 6), "right": torch.randn(2, 4)}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.attention(x, x, x)


def pair() -> Any:
    torch.manual_seed(1)
    return Pair(), torch.randn(2, 5, 8)


class OneAtATime(nn.Module):
    """Its Python looks at the batch, so torch.export cannot leave it free."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.body(x) if x.shape[0] == 1 else torch.cat([self.body(row[None]) for row in x])


def one_at_a_time() -> Any:
    torch.manual_seed(1)
    return OneAtATime(), torch.randn(1, 4)


class WritesOver(nn.Module):
    """Throws the activation's result away and relies on its having written over the input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        y = self.body(x)
        self.relu(y)
        return y


def writes_over() -> Any:
    torch.manual_seed(1)
    return WritesOver(), torch.randn(2, 4)


class Deaf(nn.Module):
    """Ignores its input, up to a factor that no float32 shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return torch.ones_like(x) + 0 * self.body(x)


def deaf() -> Any:
    return Deaf(), torch.randn(2, 4)


class Branches(nn.Module):
    """Decides by value in Python: not exportable."""

    def forward(self, x: Any) -> Any:
        return x * 2 if x.sum() > 0 else x - 1


def branches() -> Any:
    return Branches(), torch.randn(2, 4)


class Shrinks(nn.Module):
    """Deep, without norms, and initialised so small that nothing of the input arrives: random weights need help."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(12):
            layer = nn.Linear(8, 8)
            with torch.no_grad():
                layer.weight.mul_(1e-2)
            layers += [layer, nn.Tanh()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(8, 3)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


def shrinks() -> Any:
    torch.manual_seed(1)
    return Shrinks(), torch.randn(2, 8)


def not_a_module() -> Any:
    return 3


def fails() -> Any:
    raise ValueError("the data set is on the other disk")


class Remembers(nn.Module):
    """Changes a buffer, and adds it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("state", torch.zeros(1, 4))

    def forward(self, x: Any) -> Any:
        self.state.add_(x.mean(0, keepdim=True))
        return self.fc(x) + self.state


class Keeps(nn.Module):
    """Adds its last answer, which is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.last: Any = None

    def forward(self, x: Any) -> Any:
        made, last = self.fc(x), self.last
        self.last = made.detach()
        return made if last is None or last.shape != made.shape else made + last


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return nn.functional.dropout(self.fc(x), 0.5, training=True)


class Nothing(nn.Module):
    """Takes no inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self) -> Any:
        return torch.tanh(self.weight)


def small() -> Any:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU())


def remembers() -> Any:
    return Remembers(), (torch.randn(2, 4),)


def keeps() -> Any:
    return Keeps(), (torch.randn(2, 4),)


def draws() -> Any:
    return Draws(), (torch.randn(2, 4),)


def nothing() -> Any:
    return Nothing(), ()


def scripted() -> Any:
    return torch.jit.script(small()), (torch.randn(2, 4),)


def scripted_inside() -> Any:
    return nn.Sequential(nn.Linear(4, 4), torch.jit.script(small())), (torch.randn(2, 4),)


def quantised() -> Any:
    return torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}), (torch.randn(2, 4),)


def parallel() -> Any:
    return nn.DataParallel(small()), (torch.randn(2, 4),)
