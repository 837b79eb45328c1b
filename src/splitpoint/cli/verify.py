"""splitpoint verify: every cut's two halves against the whole model."""

from __future__ import annotations

import click

from splitpoint.cli.console import progress, put_json
from splitpoint.cli.options.model_options import Here, cuts_option, running_options
from splitpoint.cli.options.output import json_option
from splitpoint.errors import VerifyError
from splitpoint.inputs import read_inputs
from splitpoint.segments import RELATIVE_TOLERANCE, Check, random_note, select, verify
from splitpoint.units import counted


@click.command()
@click.argument("model")
@cuts_option
@click.option("--tolerance", type=click.FloatRange(0, 1), default=RELATIVE_TOLERANCE, show_default=True,
              help="Largest difference, as a share of how much the output changes between inputs.")  # fmt: skip
@json_option
@running_options
def command(
    model: str, cuts: str, tolerance: float, as_json: bool, here: Here
) -> None:  # fmt: skip
    """Run the two halves of MODEL's cuts against the whole model on at least two inputs: --input images, .npy or .npz,
    or made-up ones (beside one .npz file: like those in it).

    Exit status 1 if any cut differs, or if the output does not depend on the input: then a match proves nothing.
    """
    loaded = here.opening.load(model, photos=True)
    chosen = select(loaded, cuts)
    note = random_note(loaded)
    inputs = here.opening.inputs
    # One file of values is what others are made like.
    alone = len(inputs) == 1 and inputs[0].suffix in (".npy", ".npz")
    samples = [read_inputs(loaded, path) for path in inputs] if inputs and not alone else None
    bad: list[Check] = []
    worst: Check | None = None
    with progress() as bar:
        task = bar.add_task("verifying", total=len(chosen))
        for check in verify(loaded, here.choice.open(), chosen, samples, tolerance):
            bar.advance(task)
            worst = check if worst is None or check.error >= worst.error else worst
            if not check.ok:
                bad.append(check)
            if as_json:
                cut = check.cut
                told = {"cut": cut.name, "index": cut.index, "crossing": [str(t) for t in cut.crossing]}
                put_json(told | {"verdict": check.verdict, "error": check.error, "output": check.output})
            elif not check.ok:
                bar.console.print(f"✗ {check}", style="red", highlight=False)
    if bad:
        counts = {v: sum(c.verdict == v for c in bad) for v in ("different", "inconclusive")}
        kinds = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        hint = note
        if not hint and counts["inconclusive"]:
            hint = ": the output hardly depends on the input, so equality proves nothing (untrained weights?)"
        raise VerifyError(f"{len(bad)} of {len(chosen)} cuts of {loaded.name} failed ({kinds}){hint}")
    if note:
        click.echo(f"{loaded.name}{note}: this time they were", err=True)
    if not as_json and not loaded.inputs:
        click.echo(f"{loaded.name} has no inputs: its one answer is the same at {counted(len(chosen), 'cut')}")
    elif not as_json and worst:
        click.echo(
            f"{loaded.name}: {len(chosen)} cuts equal the whole model on {len(samples or (1, 2))} inputs; "
            f"worst difference {worst.error:.1e} of the output's own change (at {worst.cut.name})"
        )
