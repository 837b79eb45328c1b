"""splitpoint cache: what this device has fetched and exported."""

from __future__ import annotations

from pathlib import Path

import click

from splitpoint.cli.options.server_options import cache_option
from splitpoint.machine import default_cache
from splitpoint.runtime.client.blob_cache import clear as delete
from splitpoint.runtime.client.blob_cache import usage
from splitpoint.units import size


@click.command()
@click.option("--clear", is_flag=True, help="Delete all of it. It is fetched or exported again when needed.")
@cache_option
def command(clear: bool, cache: Path | None) -> None:
    """Show how much is cached and where; --clear deletes what splitpoint put there, and nothing else."""
    folder = cache or default_cache(lambda note: click.echo(note, err=True))
    kinds = usage(folder)
    total = sum(nbytes for _, nbytes in kinds.values())
    click.echo(f"{folder}: {sum(files for files, _ in kinds.values())} files, {size(total)}")
    for kind, (files, nbytes) in kinds.items():
        click.echo(f"  {kind:<10} {files:>6} files  {size(nbytes):>10}")
    if clear:
        click.echo(f"cleared: {delete(folder)} files")
