"""splitpoint export: PyTorch → ONNX, once."""

from __future__ import annotations

from pathlib import Path

import click

from splitpoint.cli.console import waiting
from splitpoint.cli.options.model_options import parse_shapes
from splitpoint.cli.options.output import output_option
from splitpoint.models.names import SHORT_NAMES, with_weights
from splitpoint.units import size


@click.command()
@click.argument("model")
@output_option("The file to write.", metavar="FILE.onnx", required=True)
@click.option("--weights", metavar="FILE|random[:SEED]", help="Instead of the library's default pretrained weights.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,320,320", help="Another input size.")
@click.option("--input-spec", type=click.Path(path_type=Path), metavar="FILE", help="Another input contract.")
def command(model: str, output: Path, weights: str | None, shapes: tuple[str, ...], input_spec: Path | None) -> None:
    """Export MODEL to FILE.onnx: the only step that needs PyTorch.

    Image models get uint8 NHWC input with normalisation inside the graph; layers keep their module paths. A free
    batch is proven at 1, 2 and 3, or fixed at 1 with a word about why.
    """
    from splitpoint.images import InputSpec
    from splitpoint.models.torch import export

    spec = InputSpec.from_file(input_spec) if input_spec else None
    model, named = with_weights(model)
    with waiting(f"exporting {model} …") as say:
        report = export(
            SHORT_NAMES.get(model, model), output, weights=named or weights, shapes=parse_shapes(shapes),
            input_spec=spec, progress=lambda text: say(f"{model}: {text}"),
        )  # fmt: skip
    click.echo(str(report))
    click.echo(f"wrote {output} ({size(report.nbytes)})")
