"""How MODEL is loaded: --shape, --weights, --input-spec, --input, --value, --allow-domain; and which cuts of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from splitpoint.calibration.calibrations import Calibration
from splitpoint.cli.console import fetching, waiting
from splitpoint.cli.options import MODEL, gathered, together
from splitpoint.cli.options.codecs import calibration_for
from splitpoint.cli.options.engine import EngineChoice, engine_options
from splitpoint.cli.options.server_options import cache_option
from splitpoint.engines import Engine
from splitpoint.errors import MissingExtraError, UsageError
from splitpoint.images import InputSpec
from splitpoint.models import load
from splitpoint.models.foreign import MODEL_SUFFIXES
from splitpoint.models.input_values import listed
from splitpoint.models.model import Model
from splitpoint.models.names import full_name, with_weights
from splitpoint.security import Security
from splitpoint.tensors import load_arrays

if TYPE_CHECKING:
    from splitpoint.runtime.client.edge import Edge

T = TypeVar("T")
_FILE = click.Path(path_type=Path)

allow_domain_option = together(
    click.option("--allow-domain", "allow_domains", multiple=True, metavar="DOMAIN",
                 help="Run all operators of this domain: for a model, of someone you trust, with others than ONNX's "
                      "and the usual ones of com.microsoft."),
    section=MODEL,
)  # fmt: skip


@dataclass(frozen=True)
class Opening:
    """How MODEL is opened: what `model_options` were given."""

    shapes: tuple[str, ...] = ()
    weights: str | None = None
    input_spec: Path | None = None
    values: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    allow_domains: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything was said that describes one model."""
        return self != Opening(allow_domains=self.allow_domains)

    def load(self, model: str, *, photos: bool = False) -> Model:
        """The model, with a line about what was assumed, and one about values that an earlier command was given.

        With `photos` an input may also be one: it says nothing that is needed here.
        """
        values = self._values(photos)
        # An export takes 10 to 60 s; what is in the cache is there before a word of it.
        exporting = f"exporting {model} with PyTorch, kept for the next time; mostly 10 to 60 s"
        with waiting(exporting) if is_exported(model) else nullcontext():
            loaded = load(
                model, shapes=parse_shapes(self.shapes), weights=self.weights, input_spec=self.input_spec,
                values=values, allow_domains=self.allow_domains,
            )  # fmt: skip
        assumed = loaded.graph.assumed
        if any(name != "batch" for name in assumed):
            free = ", ".join(f"{name} = {size}" for name, size in assumed.items())
            click.echo(f"{loaded.name}: free dimension assumed: {free} (--shape fixes it)", err=True)
        kept = {n: v for n, v in loaded.values.items() if n not in values and "" not in values}
        if kept:
            click.echo(f"{loaded.name}: as given before, {listed(kept)} (--value gives others)", err=True)
        return loaded

    def on(self, model: Model) -> Model:
        """The server's `model`, whose photos and values are as they are given here."""
        if self.input_spec is not None:
            model = model.with_input_spec(InputSpec.from_file(self.input_spec))
        values = self._values()
        return model.with_values(values) if values else model

    def here(self, model: str | None) -> Model | None:
        """MODEL if it is on this machine, or is said to have other weights than its own, loaded; None if it is one of
        the server's. UsageError for options that would change nothing then, with what works instead."""
        if model is not None and (self.weights or is_local(model)):
            try:
                return self.load(model)
            except MissingExtraError as exc:
                ours = with_weights(model)[0]
                raise UsageError(f"{exc}; or take the server's as it is: {ours} without weights") from exc
        if self.weights:
            raise UsageError("--weights are those of a MODEL: name it, as in alexnet@random:0")
        if self.shapes:
            raise UsageError("--shape is for a model on this machine; here the server's is used as it is")
        return None

    def _values(self, photos: bool = False) -> dict[str, Any]:
        """Values by input: of files, and of --value, which counts more."""
        arrays: dict[str, Any] = {}
        for path in self.inputs:
            if path.suffix in (".npy", ".npz"):
                for name, array in load_arrays(path).items():
                    arrays.setdefault(name, array)
            elif not photos:
                raise UsageError(f"--input takes values from an .npy or .npz file, and {path} is none")
        return arrays | parse_values(self.values)


#: As the one parameter `opening`.
model_options = gathered(
    "opening",
    Opening,
    click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,640,640",
                 help="Fix an input's free dimensions; may be given once an input."),
    click.option("--weights", metavar="FILE|random[:SEED]",
                 help="Weights of a PyTorch model, instead of its default pretrained ones; with several MODELs "
                      "MODEL@random[:SEED] or MODEL@FILE for each."),
    click.option("--input-spec", type=_FILE, metavar="FILE",
                 help="How photos become the model's input (JSON or TOML); see docs/input-spec.md."),
    click.option("--input", "inputs", multiple=True, type=_FILE, metavar="FILE",
                 help="Real inputs (.npz by name, .npy for the only one), where made-up ones make no sense."),
    click.option("--value", "values", multiple=True, metavar="NAME=NUMBER[,…]",
                 help="A real value for an input that must make sense: --value sr=16000. Given once, it is kept."),
    allow_domain_option,
    section=MODEL,
)  # fmt: skip


@dataclass(frozen=True)
class Here:
    """What computes here, how MODEL is opened, and where what a server hands out is kept."""

    choice: EngineChoice
    opening: Opening
    cache: Path | None = None

    def edge(self, model: Model | str | None, cloud: str, security: Security, **more: Any) -> Edge:
        """The server, reached; nothing is cut yet."""
        from splitpoint.runtime.client.edge import Edge
        from splitpoint.runtime.client.edge_settings import ModelPolicy

        models = ModelPolicy(allow_domains=self.opening.allow_domains)
        return Edge(
            cloud, model, at="cut:input", cache=self.cache, security=security, models=models,
            on_progress=fetching("fetching weights"), **more,
        )  # fmt: skip

    @contextmanager
    def reached(
        self, model: str, cloud: str, security: Security, engine: Engine, calib: Path | None
    ) -> Iterator[tuple[Edge, Calibration | None]]:
        """The same for MODEL, whether it is here or there, with its calibration (`calibration_for`): inputs are made as
        `opening` says."""
        local = self.opening.here(model)
        calibration = calibration_for(model, calib, local)
        with self.edge(local or model, cloud, security, engine=engine, calibration=calibration) as edge:
            if local is None:
                edge.prepare(self.opening.on)
            yield edge, calibration


#: As the one parameter `here`: of what runs a model here; and of what also reaches a server.
running_options = gathered("here", Here, engine_options, model_options)
device_options = gathered("here", Here, cache_option, engine_options, model_options)

cuts_option = click.option("--cuts", default="chain", metavar="chain|all|N|FILE", show_default=True,
                           help="Single-tensor cuts, every topological prefix, N spread over all, or just those that a "
                                "file names, one a line (inspect --names).")  # fmt: skip


def is_exported(name: str) -> bool:
    """Whether MODEL is PyTorch's: it is exported when it is needed for the first time."""
    text = full_name(name)
    if text.startswith("zoo:") or text.endswith(".onnx"):
        return False
    from splitpoint.models.torch import is_torch_source

    return is_torch_source(text)


def is_local(name: str) -> bool:
    """Whether MODEL is on this machine, or is said to have weights that the server's may not have."""
    if with_weights(name)[1] is not None:
        return True
    path = Path(name)
    if path.suffix in (".onnx", ".pt2") or name.startswith("zoo:"):
        return True
    return path.suffix.lower() in MODEL_SUFFIXES and path.exists()  # of another framework: loading it says so


def parse_shapes(shapes: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """``("images=1,3,640,640",)`` → ``{"images": (1, 3, 640, 640)}``; UsageError for anything else."""

    def sizes(numbers: str) -> tuple[int, ...]:
        return tuple(int(n) for n in numbers.replace("x", ",").split(","))

    return _by_name(shapes, sizes, "--shape is NAME=1,3,640,640")


def parse_values(values: Sequence[str]) -> dict[str, Any]:
    """``("sr=16000", "sizes=1,16")`` → ``{"sr": 16000, "sizes": [1, 16]}``; UsageError for anything else."""

    def one_or_several(words: str) -> Any:
        numbers = [_number(word.strip()) for word in words.split(",")]
        return numbers[0] if len(numbers) == 1 else numbers

    return _by_name(values, one_or_several, "--value is NAME=NUMBER or NAME=NUMBER,NUMBER,…")


def _by_name(texts: Sequence[str], convert: Callable[[str], T], form: str) -> dict[str, T]:
    parsed: dict[str, T] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            parsed[name] = convert(value)
        except ValueError:
            name = ""
        if not name:
            raise UsageError(f"{form}, not {text}")
    return parsed


def _number(word: str) -> int | float | bool:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    with suppress(ValueError):
        return int(word)
    return float(word)
