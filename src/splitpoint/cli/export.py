"""splitpoint export: PyTorch → ONNX, once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from splitpoint.cli.console import put_json, say, waiting
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.model_options import parse_shapes
from splitpoint.cli.options.output import json_option, output_option
from splitpoint.models.names import SHORT_NAMES, with_weights
from splitpoint.units import size


@verb(
    ("with its trained weights", "export torchvision:resnet50 -o resnet50.onnx"),
    (
        "a function of yours that returns a module, and its weights",
        "export my_nets:make --weights trained.safetensors -o mine.onnx",
    ),
)
@click.argument("model")
@output_option("The file to write.", metavar="FILE.onnx", required=True)
@json_option
@click.option("--weights", metavar="FILE|random[:SEED]", help="Instead of the library's default pretrained weights.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,320,320", help="Another input size.")
@click.option("--input-spec", type=click.Path(path_type=Path), metavar="FILE", help="Another input contract.")
def command(
    model: str, output: Path, as_json: bool, weights: str | None, shapes: tuple[str, ...], input_spec: Path | None
) -> None:  # fmt: skip
    """Export MODEL to FILE.onnx: the only step that needs PyTorch.

    Image models get uint8 NHWC input with normalisation inside the graph; layers keep their module paths. A free
    batch is proven at 1, 2 and 3, or fixed at 1 with a word about why.
    """
    from splitpoint.images import InputSpec
    from splitpoint.models.torch import export

    spec = InputSpec.from_file(input_spec) if input_spec else None
    model, named = with_weights(model)
    say(f"exporting {model} with PyTorch, once: mostly 10 to 60 s")
    with waiting(f"exporting {model}") as now:
        report = export(
            SHORT_NAMES.get(model, model), output, weights=named or weights, shapes=parse_shapes(shapes),
            input_spec=spec, progress=lambda text: now(f"{model}: {text}"),
        )  # fmt: skip
    if as_json:
        put_json({**asdict(report), "path": str(report.path)})
        return
    click.echo(str(report))
    click.echo(f"wrote {output} ({size(report.nbytes)})")
