"""splitpoint pull: fetch what a device needs, before it is needed."""

from __future__ import annotations

from pathlib import Path

import click

from splitpoint.cli.console import put_json, steps
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.model_options import allow_domain_option
from splitpoint.cli.options.output import json_option, result_option, save_json
from splitpoint.cli.options.server_options import cache_option, cloud_option
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.security import Security
from splitpoint.units import size


@verb(
    ("the whole model, so that the edge can do without the server", "pull yolo --cloud SERVER"),
    ("what the head of one cut needs", "pull yolo --cloud SERVER --at features.7"),
)
@click.argument("model", required=False)
@cloud_option()
@click.option("--at", metavar="CUT", help="Only what the head of this cut needs (default: the whole model).")
@click.option("--model-hash", metavar="HEX", help="Refuse any model but the one with this fingerprint.")
@result_option
@json_option
@cache_option
@allow_domain_option
def command(
    model: str | None, cloud: str, security: Security, at: str | None, model_hash: str | None, output: Path | None,
    as_json: bool, cache: Path | None,
    allow_domains: tuple[str, ...],
) -> None:  # fmt: skip
    """Fetch MODEL's graph and weights from a server into the cache.

    What is there already is not fetched again, and `run` then starts without fetching.
    """
    models = ModelPolicy(pinned=model_hash, allow_domains=allow_domains)
    with (
        steps(f"fetching {model or 'the model'} from {cloud}", size) as on_progress,
        Edge(
            cloud, model, at="cut:input", cache=cache, models=models, security=security, on_progress=on_progress
        ) as edge,
    ):  # fmt: skip
        fetched = edge.pull(at)
        if edge.cache.unkept is not None:
            raise edge.cache.unkept
        its = edge.model
        data = {"model": its.name, "fingerprint": its.fingerprint, "fetched": fetched, "cache": str(edge.cache.folder)}
        save_json(output, data)
        if as_json:
            put_json(data)
            return
        click.echo(f"{edge.model.name} {edge.model.fingerprint[:12]}: fetched {size(fetched)} into {edge.cache.folder}")
