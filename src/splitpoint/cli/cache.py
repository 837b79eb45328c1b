"""splitpoint cache: what this device has fetched and exported."""

from __future__ import annotations

from pathlib import Path

import click

from splitpoint.cli.options import cache_option
from splitpoint.machine import default_cache
from splitpoint.report.units import size


@click.command(short_help="Show or clear what this device has fetched and exported.")
@click.option("--clear", is_flag=True, help="Delete all of it. It is fetched or exported again when needed.")
@cache_option
def command(clear: bool, cache: Path | None) -> None:
    """Show how much is cached and where; --clear deletes it."""
    folder = cache or default_cache()
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()] if folder.is_dir() else []
    total = sum(p.stat().st_size for p in files)
    kinds: dict[str, list[int]] = {}
    for path in files:
        kinds.setdefault(path.relative_to(folder).parts[0], []).append(path.stat().st_size)
    click.echo(f"{folder}: {len(files)} files, {size(total)}")
    for kind, sizes in kinds.items():
        click.echo(f"  {kind:<10} {len(sizes):>6} files  {size(sum(sizes)):>10}")
    if clear:
        for path in files:
            path.unlink(missing_ok=True)
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
        click.echo("cleared")
