"""What a server has done and has to do, as numbers: what a metrics exporter reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitpoint.runtime.histogram import Histogram

#: Where a request's time goes on the server, in order.
STAGES = ("decode", "queue", "compute", "encode")


@dataclass(frozen=True, slots=True)
class RunnerStats:
    """Of what computes tails: requests that wait for a worker, tails in memory and their bytes, and how many were
    compiled and have left memory since it began."""

    waiting: int = 0
    workers: int = 0
    utilisation: float = 0.0
    tails: int = 0
    tail_bytes: int = 0
    compiled: int = 0
    evicted: int = 0


@dataclass(frozen=True, slots=True)
class ServerStats:
    """A moment of a server: counters since it was made, gauges as of now, histograms of its answers.

    Every INFER that came is in `received`, and in exactly one of `answered`, `refused` (by why: ``busy``, ``input``,
    ``late`` …), `failed` (computing it went wrong), `dropped` (its connection ended first) and `in_flight`.
    `batches`: how many runs answered one request, two, three … `stages` (`STAGES`) are those of all that were answered.
    """

    received: int
    answered: int
    refused: Mapping[str, int]
    failed: int
    dropped: int
    in_flight: int
    batches: Mapping[int, int]
    stages: Mapping[str, Histogram]
    bytes_in: int = 0
    """Of all frames, after HELLO."""
    bytes_out: int = 0
    request_bytes: int = 0
    """Memory of requests that are received or computed."""
    connections: int = 0
    arrivals: int = 0
    """Connections that have not said yet who they are."""
    turned_away: int = 0
    """Connections that were not let in."""
    opening: int = 0
    """Tails that wait to be compiled."""
    runner: RunnerStats = field(default_factory=RunnerStats)
