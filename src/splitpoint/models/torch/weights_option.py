"""Weights for a PyTorch module: what ``--weights`` says, state files, and downloads that fail.

Weights come from safetensors or ``torch.load(weights_only=True)``: neither runs anything a file says.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from splitpoint.errors import MissingExtraError, ModelError, UsageError

GIVE_WEIGHTS = "give weights with --weights FILE (.safetensors, .pt or .pth), or take --weights random[:seed]"


@dataclass(frozen=True, slots=True)
class WeightsOption:
    """What `--weights` says: the library's default ones, a file, or a seed."""

    path: Path | None = None
    seed: int | None = None

    @property
    def default(self) -> bool:
        """Whether the library's own weights are wanted."""
        return self.path is None and self.seed is None

    @classmethod
    def parse(cls, text: str | None) -> WeightsOption:
        if text is None:
            return cls()
        word, colon, seed = text.partition(":")
        if word == "random":
            if colon and not seed.isdecimal():
                raise UsageError(f"--weights {text}: the seed must be a whole number, as in random:7")
            return cls(seed=int(seed) % 2**63 if colon else 0)
        path = Path(text)
        if not path.is_file():
            raise ModelError(f"--weights {text}: no such file (it may also be random or random:SEED)")
        return cls(path=path)

    def __str__(self) -> str:
        if self.path is not None:
            return f"weights from {self.path.name}"
        return "default weights" if self.default else f"random weights, seed {self.seed}"


def load_file(model: Any, path: Path, drop: tuple[str, ...] = ()) -> None:
    """Put the weights in `path` into `model`; ModelError names what does not fit."""
    state = {k: v for k, v in _read_state(path).items() if not k.startswith(drop or ("\0",))}
    own = model.state_dict()
    for prefix in ("module.", "model."):  # what DataParallel and training loops put before every name
        before_all = (all(k.startswith(prefix) for k in names) for names in (state, own))
        if state and tuple(before_all) == (True, False):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    tied = _tied(model)
    # A norm's counter of batches is not a weight; old files do not have it.
    missing = [k for k in own if state.keys().isdisjoint(tied[k]) and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    wrong = [k for k in state if k in own and tuple(state[k].shape) != tuple(own[k].shape)]
    problems = []
    if missing:
        problems.append(f"{len(missing)} weights are missing ({_few(missing)})")
    if extra:
        problems.append(f"{len(extra)} are not the model's ({_few(extra)})")
    if wrong:
        k = wrong[0]
        got, want = list(state[k].shape), list(own[k].shape)
        problems.append(f"{len(wrong)} have another shape ({k} is {got}, the model needs {want})")
    if problems:
        raise ModelError(f"{path} does not hold this model's weights: {'; '.join(problems)}")
    model.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file as read

            try:
                return dict(read(path))
            except SafetensorError as exc:
                raise ModelError(f"{path} is not a safetensors file: {exc}") from exc
        # weights_only: an unpickler that knows tensors and containers and nothing that runs.
        state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - cannot run code
    except ImportError as exc:
        raise MissingExtraError("safetensors", "torch", "read .safetensors weights") from exc
    except ModelError:
        raise
    except Exception as exc:  # UnpicklingError, RuntimeError, OSError, EOFError …: all "not such a file"
        why = first_line(exc)
        if "weights_only" in str(exc):  # torch's advice is to load it with what may run code
            why = "it holds Python objects, which could run code, or is damaged"
        raise ModelError(
            f"{path} is not a file of plain weights, a state_dict saved with torch.save or safetensors ({why})"
        ) from exc
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError(f"{path} holds no state_dict: save the weights with torch.save(model.state_dict(), FILE)")
    return {str(k): v for k, v in state.items()}


def _tied(model: Any) -> dict[str, list[str]]:
    """Weight name → all names of the same tensor (GPT-2's head is its embedding)."""
    names: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    return {n: same for same in names.values() for n in same}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def first_line(exc: BaseException) -> str:
    """The first line of what went wrong, short enough for one sentence."""
    text = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
    return text if len(text) <= 200 else text[:197] + "…"


def download(name: str, load: Callable[[], Any], advice: str = GIVE_WEIGHTS) -> Any:
    """`load()`, with every way a download fails turned into a ModelError that gives `advice`."""
    waiting = socket.getdefaulttimeout()
    with _hub() as absent:
        try:
            socket.setdefaulttimeout(30)  # torch.hub sets none: a host that swallows packets would hold for ever
            return load()
        except Exception as exc:
            if not _is_network(exc):
                raise
            reason = f"no connection to {absent}" if absent and not isinstance(exc, URLError) else first_line(exc)
            raise ModelError(f"{name} is not on this machine and cannot be downloaded ({reason}): {advice}") from exc
        finally:
            socket.setdefaulttimeout(waiting)


@contextmanager
def _hub() -> Iterator[str]:
    """Inside, the Hugging Face hub is asked only if its host answers; yields the host's name if it does not.

    The hub's own client tries an absent host for 25 to 50 s (measured) before it looks into its cache.
    """
    try:
        constants: Any = import_module("huggingface_hub.constants")
    except ImportError:
        yield ""
        return
    target = urlsplit(getproxies().get("https") or constants.ENDPOINT)
    host = target.hostname or ""
    port = target.port or (80 if target.scheme == "http" else 443)
    offline, bars = constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_PROGRESS_BARS
    absent = host
    with suppress(OSError):
        if not offline:
            socket.create_connection((host, port), timeout=5).close()
        absent = ""
    constants.HF_HUB_OFFLINE = offline or bool(absent)
    constants.HF_HUB_DISABLE_PROGRESS_BARS = True
    try:
        yield absent
    finally:
        constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_PROGRESS_BARS = offline, bars


def _is_network(exc: BaseException) -> bool:
    """Whether a failed connection or a missing file is behind `exc`.

    urllib's and the hub's errors are OSErrors; those of the hub's HTTP client are known by where they come from.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in seen:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    hub = ("httpx", "httpx2", "httpcore", "huggingface_hub")
    return any(isinstance(c, OSError) or type(c).__module__.partition(".")[0] in hub for c in seen)
