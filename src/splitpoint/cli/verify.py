"""splitpoint verify: every cut's two halves against the whole model."""

from __future__ import annotations

from pathlib import Path

import click

from splitpoint.cli.console import progress, put_json
from splitpoint.cli.options import engine_options, json_option, load_model, model_options
from splitpoint.engines import open_engine
from splitpoint.errors import VerifyError
from splitpoint.inputs import read_inputs
from splitpoint.segments import RELATIVE_TOLERANCE, Check, select, verify


@click.command(short_help="Prove that cut models give the whole model's answer.")
@click.argument("model")
@click.option(
    "--cuts",
    default="chain",
    metavar="chain|all|N",
    help="Single-tensor cuts, every topological prefix, or N spread over all (default: chain).",
)
@click.option(
    "--input",
    "inputs",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="An image, .npy or .npz; give at least two. Made-up inputs otherwise.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=RELATIVE_TOLERANCE,
    show_default=True,
    help="Largest difference, as a share of how much the output changes between inputs.",
)
@json_option
@engine_options
@model_options
def command(
    model: str, cuts: str, inputs: tuple[Path, ...], tolerance: float, as_json: bool, device: str, threads: int,
    shapes: tuple[str, ...], weights: str | None, input_spec: Path | None,
) -> None:  # fmt: skip
    """Run the two halves of MODEL's cuts against the whole model on at least two inputs.

    Exit status 1 if any cut differs, or if the output does not depend on the input: then a match proves nothing.
    """
    loaded = load_model(model, shapes, weights, input_spec)
    chosen = select(loaded, cuts)
    samples = [read_inputs(loaded, path) for path in inputs] or None
    bad: list[Check] = []
    worst: Check | None = None
    with progress() as bar:
        task = bar.add_task("verifying", total=len(chosen))
        for check in verify(loaded, open_engine(device=device, threads=threads), chosen, samples, tolerance):
            bar.advance(task)
            worst = check if worst is None or check.error >= worst.error else worst
            if not check.ok:
                bad.append(check)
            if as_json:
                put_json(_row(check))
            elif not check.ok:
                bar.console.print(f"✗ {check}", style="red", highlight=False)
    if bad:
        kinds = ", ".join(f"{sum(c.verdict == v for c in bad)} {v}" for v in ("different", "inconclusive")
                          if any(c.verdict == v for c in bad))  # fmt: skip
        hint = ""
        if any(c.verdict == "inconclusive" for c in bad):
            hint = ": the output hardly depends on the input, so equality proves nothing (untrained weights?)"
        raise VerifyError(f"{len(bad)} of {len(chosen)} cuts of {loaded.name} failed ({kinds}){hint}")
    if not as_json and worst:
        click.echo(
            f"{loaded.name}: {len(chosen)} cuts equal the whole model on {len(samples or (1, 2))} inputs; "
            f"worst difference {worst.error:.1e} of the output's own change (at {worst.cut.name})"
        )


def _row(check: Check) -> dict[str, object]:
    return {
        "cut": check.cut.name,
        "index": check.cut.index,
        "crossing": [str(t) for t in check.cut.crossing],
        "verdict": check.verdict,
        "error": check.error,
        "output": check.output,
    }
