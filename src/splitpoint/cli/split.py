"""splitpoint split: head.onnx, tail.onnx and a manifest."""

from __future__ import annotations

from pathlib import Path

import click

from splitpoint.calibration.tables import tables_of
from splitpoint.cli.console import put_json
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.codecs import calibration_for, calibration_option
from splitpoint.cli.options.model_options import Opening, model_options
from splitpoint.cli.options.output import json_option, output_option
from splitpoint.segments import split
from splitpoint.units import size


@verb(
    ("two files for any ONNX runtime", "split zoo:lenet5 --at conv2 -o parts"),
    ("cut where half of the computing is done", "split yolo.onnx --at middle --shape images=1,3,640,640 -o parts"),
)
@click.argument("model")
@click.option("--at", required=True, metavar="CUT", help="A layer, node, tensor, cut number, input, output or middle.")
@output_option("Folder to write.", metavar="DIR", folder=True, required=True)
@calibration_option
@json_option
@model_options
def command(model: str, at: str, output: Path, calib: Path | None, as_json: bool, opening: Opening) -> None:
    """Write head.onnx, tail.onnx and manifest.json for MODEL cut at CUT.

    Plain ONNX Runtime (or any other runtime) runs both files; the manifest names the tensors between them.
    """
    loaded = opening.load(model)
    calibration = calibration_for(model, calib, loaded)
    manifest = split(loaded, at, output, tables_of(calibration, loaded) if calibration else None)
    if as_json:
        put_json(manifest)
        return
    for name in ("head.onnx", "tail.onnx"):
        if name in (manifest.head, manifest.tail):
            click.echo(f"wrote {output / name} ({size((output / name).stat().st_size)})")
    for pinned in manifest.tables:
        click.echo(f"wrote {output / pinned.file} ({size(pinned.nbytes)}), the tables of {pinned.tensor}")
    click.echo(f"wrote {output / 'manifest.json'}")
    between = ", ".join(map(str, manifest.crossing)) or "nothing"
    click.echo(f"between them: {between} ({size(sum(t.nbytes for t in manifest.crossing))})")
    if manifest.shapes:
        click.echo(f"and the shape vectors {', '.join(manifest.shapes)}")
