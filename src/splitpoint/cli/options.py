"""Options that several verbs share, parsed into the library's values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from splitpoint.errors import UsageError
from splitpoint.images import InputSpec
from splitpoint.machine import keep_to_memory
from splitpoint.models import load
from splitpoint.models.input_values import listed
from splitpoint.models.model import Model
from splitpoint.security import OPEN, client_security, server_security
from splitpoint.tensors import load_arrays

_FILE = click.Path(path_type=Path)

F = TypeVar("F", bound=Callable[..., Any])

shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=1,3,640,640",
    help="Fix an input's free dimensions; may be given once an input.",
)


allow_domain_option = click.option(
    "--allow-domain",
    "allow_domains",
    multiple=True,
    metavar="DOMAIN",
    help="Run all operators of this domain: for a model, of someone you trust, with others than ONNX's and the usual "
    "ones of com.microsoft.",
)


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
        told = self._values(photos)
        loaded = load(
            model, shapes=parse_shapes(self.shapes), weights=self.weights, input_spec=self.input_spec, values=told,
            allow_domains=self.allow_domains,
        )  # fmt: skip
        assumed = loaded.graph.assumed
        if any(name != "batch" for name in assumed):
            free = ", ".join(f"{name} = {size}" for name, size in assumed.items())
            click.echo(f"{loaded.name}: free dimension assumed: {free} (--shape fixes it)", err=True)
        kept = {n: v for n, v in loaded.values.items() if n not in told and "" not in told}
        if kept:
            click.echo(f"{loaded.name}: as given before, {listed(kept)} (--value gives others)", err=True)
        return loaded

    def on(self, model: Model) -> Model:
        """The server's `model`, whose photos and values are as they are given here."""
        if self.input_spec is not None:
            model = model.with_input_spec(InputSpec.from_file(self.input_spec))
        told = self._values()
        return model.with_values(told) if told else model

    def refuse_local(self) -> None:
        """UsageError for options that would change nothing, because the model is the server's."""
        if self.shapes or self.weights:
            raise UsageError("--shape and --weights are for a model on this device; here the server's is used as it is")

    def _values(self, photos: bool = False) -> dict[str, Any]:
        """Values by input: of files, and of --value, which counts more."""
        found: dict[str, Any] = {}
        for path in self.inputs:
            if path.suffix in (".npy", ".npz"):
                for name, array in load_arrays(path).items():
                    found.setdefault(name, array)
            elif not photos:
                raise UsageError(f"--input takes values from an .npy or .npz file, and {path} is none")
        return found | parse_values(self.values)


def model_options(function: F) -> F:
    """--shape, --weights, --input-spec, --input, --value, --allow-domain: how MODEL is loaded, as the one parameter
    `opening`."""

    @wraps(function)
    def opened(
        *args: Any, shapes: tuple[str, ...], weights: str | None, input_spec: Path | None, values: tuple[str, ...],
        inputs: tuple[Path, ...], allow_domains: tuple[str, ...], **others: Any,
    ) -> Any:  # fmt: skip
        opening = Opening(shapes, weights, input_spec, values, inputs, allow_domains)
        return function(*args, opening=opening, **others)

    result = cast(F, opened)
    for option in (
        allow_domain_option,
        click.option("--value", "values", multiple=True, metavar="NAME=NUMBER[,…]",
                     help="A real value for an input that must make sense: --value sr=16000. Given once, it is kept."),
        click.option("--input", "inputs", multiple=True, type=_FILE, metavar="FILE",
                     help="Real inputs (.npz by name, .npy for the only one), where made-up ones make no sense."),
        click.option("--input-spec", type=_FILE, metavar="FILE",
                     help="How photos become the model's input (JSON or TOML); see docs/input-spec.md."),
        click.option("--weights", metavar="FILE|random[:SEED]",
                     help="Weights of a PyTorch model, instead of its default pretrained ones."),
        shape_option,
    ):  # fmt: skip
        result = option(result)
    return result


def engine_options(function: F) -> F:
    """--device, --threads: what computes here."""
    for option in (
        click.option("--threads", type=click.IntRange(0, 1024), default=0, metavar="N",
                     help="Compute threads (default: one per core)."),
        click.option("--device", default="cpu", metavar="NAME",
                     help="cpu, cuda, tensorrt, openvino, coreml, … (default: cpu; see splitpoint doctor)."),
    ):  # fmt: skip
        function = option(function)
    return function


def cloud_option(required: bool = True) -> Callable[[F], F]:
    """--cloud, and how to speak with it: the command gets `security` too."""

    def decorate(function: F) -> F:
        return click.option(
            "--cloud",
            required=required,
            metavar="[tls://]HOST[:PORT]",
            help="The server that runs the other half (port 3277).",
        )(security_options(function))

    return decorate


def security_options(function: F) -> F:
    """--tls, --ca, --tls-cert, --tls-key, --token-file, --server-name, as the one parameter `security`."""

    @wraps(function)
    def secured(
        *args: Any, tls: bool, ca: Path | None, tls_cert: Path | None, tls_key: Path | None, token_file: Path | None,
        server_name: str, cloud: str | None, **others: Any,
    ) -> Any:  # fmt: skip
        made = OPEN
        if cloud is not None:
            keep_to_memory()  # what is run here is what a server says
            made = client_security(
                tls=tls, ca=ca, certificate=tls_cert, key=tls_key, token_file=token_file, server_name=server_name
            )
        elif tls or ca or tls_cert or tls_key or token_file or server_name:
            raise UsageError("--tls, --ca, --tls-cert, --token-file and --server-name need a server: --cloud HOST")
        return function(*args, cloud=cloud, security=made, **others)

    result = cast(F, secured)
    for option in (
        click.option("--server-name", default="", metavar="NAME",
                     help="The name in the server's certificate, where it is not the address's."),
        click.option("--token-file", type=_FILE, metavar="FILE",
                     help="The server's token (or SPLITPOINT_TOKEN_FILE, SPLITPOINT_TOKEN)."),
        click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key (or SPLITPOINT_TLS_KEY)."),
        click.option("--tls-cert", type=_FILE, metavar="FILE",
                     help="This device's certificate, for a server that wants one (or SPLITPOINT_TLS_CERT)."),
        click.option("--ca", type=_FILE, metavar="FILE",
                     help="TLS, with a server whose certificate this authority has signed (or SPLITPOINT_CA)."),
        click.option("--tls", is_flag=True,
                     help="TLS, with a server whose certificate an authority known to this system has signed."),
    ):  # fmt: skip
        result = option(result)
    return result


def server_security_options(function: F) -> F:
    """--tls-cert, --tls-key, --client-ca, --token-file, --insecure, as the one parameter `security`."""

    @wraps(function)
    def secured(
        *args: Any, tls_cert: Path | None, tls_key: Path | None, client_ca: Path | None, token_file: Path | None,
        insecure: bool, **others: Any,
    ) -> Any:  # fmt: skip
        made = server_security(
            certificate=tls_cert, key=tls_key, client_ca=client_ca, token_file=token_file, insecure=insecure
        )
        return function(*args, security=made, **others)

    result = cast(F, secured)
    for option in (
        click.option("--insecure", is_flag=True,
                     help="Serve other machines without TLS and a token or client certificates."),
        click.option("--token-file", type=_FILE, metavar="FILE",
                     help="Devices must know the token in it (or SPLITPOINT_TOKEN_FILE, SPLITPOINT_TOKEN)."),
        click.option("--client-ca", type=_FILE, metavar="FILE",
                     help="Devices must have a certificate that this authority has signed (or SPLITPOINT_CLIENT_CA)."),
        click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key (or SPLITPOINT_TLS_KEY)."),
        click.option("--tls-cert", type=_FILE, metavar="FILE",
                     help="TLS, with this certificate and its chain (or SPLITPOINT_TLS_CERT); see splitpoint keys."),
    ):  # fmt: skip
        result = option(result)
    return result


cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="DIR",
    envvar="SPLITPOINT_CACHE",
    help="Where blobs are kept.",
)
codec_choice_option = click.option(
    "--codec",
    "codecs",
    multiple=True,
    metavar="NAME|TENSOR=NAME",
    help="How what crosses travels: raw (default), fp16, int8, int4, each also with +zstd, jpeg:QUALITY; for all that "
    "it takes, or for one tensor (may be given several times).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def parse_shapes(shapes: tuple[str, ...]) -> Mapping[str, tuple[int, ...]]:
    """``("images=1,3,640,640",)`` → ``{"images": (1, 3, 640, 640)}``; UsageError for anything else."""
    parsed: dict[str, tuple[int, ...]] = {}
    for text in shapes:
        name, equals, numbers = text.rpartition("=")
        try:
            parsed[name] = tuple(int(n) for n in numbers.replace("x", ",").split(","))
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UsageError(f"--shape is NAME=1,3,640,640, not {text}")
    return parsed


def parse_codecs(codecs: tuple[str, ...]) -> str | Mapping[str, str]:
    """``("int8",)`` → ``"int8"``; ``("h=int8", "image=jpeg:90")`` → by tensor; ``"raw"`` if there are none.

    UsageError for anything else. Whether there are such codecs and tensors is seen when they are used.
    """
    if not codecs:
        return "raw"
    if len(codecs) == 1 and "=" not in codecs[0]:
        return codecs[0]
    by_name: dict[str, str] = {}
    for text in codecs:
        name, equals, codec = text.rpartition("=")
        if not equals or not name or not codec:
            raise UsageError(f"--codec is one codec for all, or TENSOR=CODEC for each, not {' and '.join(codecs)}")
        if name in by_name:
            raise UsageError(f"--codec names tensor {name} twice")
        by_name[name] = codec
    return by_name


def parse_values(values: tuple[str, ...]) -> dict[str, Any]:
    """``("sr=16000", "sizes=1,16")`` → ``{"sr": 16000, "sizes": [1, 16]}``; UsageError for anything else."""
    parsed: dict[str, Any] = {}
    for text in values:
        name, equals, words = text.rpartition("=")
        numbers = [_number(word.strip()) for word in words.split(",")]
        if not equals or not name or None in numbers:
            raise UsageError(f"--value is NAME=NUMBER or NAME=NUMBER,NUMBER,…, not {text}")
        parsed[name] = numbers[0] if len(numbers) == 1 else numbers
    return parsed


def _number(word: str) -> int | float | bool | None:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        with suppress(ValueError, OverflowError):
            return kind(word)
    return None
