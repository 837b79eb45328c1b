"""splitpoint split: head.onnx, tail.onnx and a manifest."""

from __future__ import annotations

from pathlib import Path

import click

from splitpoint.cli.options.model_options import Opening, model_options
from splitpoint.cli.options.output import output_option
from splitpoint.segments import split
from splitpoint.units import size


@click.command()
@click.argument("model")
@click.option("--at", required=True, metavar="CUT", help="A layer, node, tensor, cut number, input, output or middle.")
@output_option("Folder to write.", metavar="DIR", folder=True, required=True)
@model_options
def command(model: str, at: str, output: Path, opening: Opening) -> None:
    """Write head.onnx, tail.onnx and manifest.json for MODEL cut at CUT.

    Plain ONNX Runtime (or any other runtime) runs both files; the manifest names the tensors between them.
    """
    loaded = opening.load(model)
    manifest = split(loaded, at, output)
    for name in ("head.onnx", "tail.onnx"):
        if name in (manifest.head, manifest.tail):
            click.echo(f"wrote {output / name} ({size((output / name).stat().st_size)})")
    click.echo(f"wrote {output / 'manifest.json'}")
    between = ", ".join(map(str, manifest.crossing)) or "nothing"
    click.echo(f"between them: {between} ({size(sum(t.nbytes for t in manifest.crossing))})")
    if manifest.shapes:
        click.echo(f"and the shape vectors {', '.join(manifest.shapes)}")
