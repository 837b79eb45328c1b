"""splitpoint pull: fetch what a device needs, before it is needed."""

from __future__ import annotations

from pathlib import Path

import click

from splitpoint.cli.options.model_options import allow_domain_option
from splitpoint.cli.options.server_options import cache_option, cloud_option
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.security import Security
from splitpoint.units import size


@click.command()
@click.argument("model", required=False)
@cloud_option()
@click.option("--at", metavar="CUT", help="Only what the head of this cut needs (default: the whole model).")
@click.option("--model-hash", metavar="HEX", help="Refuse any model but the one with this fingerprint.")
@cache_option
@allow_domain_option
def command(
    model: str | None, cloud: str, security: Security, at: str | None, model_hash: str | None, cache: Path | None,
    allow_domains: tuple[str, ...],
) -> None:  # fmt: skip
    """Fetch MODEL's graph and weights from a server into the cache.

    What is there already is not fetched again, and `run` then starts without fetching.
    """
    models = ModelPolicy(pinned=model_hash, allow_domains=allow_domains)
    with Edge(cloud, model, at="cut:input", cache=cache, models=models, security=security) as edge:
        fetched = edge.pull(at)
        if edge.cache.unkept is not None:
            raise edge.cache.unkept
        click.echo(f"{edge.model.name} {edge.model.fingerprint[:12]}: fetched {size(fetched)} into {edge.cache.folder}")
