"""splitpoint cache: what this device has fetched and exported."""

from __future__ import annotations

from pathlib import Path

import click

from splitpoint.cli.console import put_json
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.output import json_option, result_option, save_json
from splitpoint.cli.options.server_options import cache_option
from splitpoint.machine import default_cache
from splitpoint.runtime.client.blob_cache import clear as delete
from splitpoint.runtime.client.blob_cache import usage
from splitpoint.units import counted, size


@verb(
    ("how much there is, and where", "cache"),
    ("delete it", "cache --clear"),
)
@click.option("--clear", is_flag=True, help="Delete all of it. It is fetched or exported again when needed.")
@result_option
@json_option
@cache_option
def command(clear: bool, output: Path | None, as_json: bool, cache: Path | None) -> None:
    """Show how much is cached and where; --clear deletes what splitpoint put there, and nothing else."""
    folder = cache or default_cache(lambda note: click.echo(note, err=True))
    kinds = usage(folder)
    total = sum(nbytes for _, nbytes in kinds.values())
    cleared = delete(folder) if clear else 0
    data = {
        "folder": str(folder),
        "kinds": {kind: {"files": files, "bytes": nbytes} for kind, (files, nbytes) in kinds.items()},
        "cleared": cleared,
    }
    save_json(output, data)
    if as_json:
        put_json(data)
        return
    click.echo(f"{folder}: {counted(sum(files for files, _ in kinds.values()), 'file')}, {size(total)}")
    for kind, (files, nbytes) in kinds.items():
        click.echo(f"  {kind:<10} {counted(files, 'file'):>12}  {size(nbytes):>10}")
    if clear:
        click.echo(f"cleared: {counted(cleared, 'file')}")
