"""Which of several options is the best, and which of them nobody could tell apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from splitpoint.link import Link
from splitpoint.planning.advice import ALIKE, margin
from splitpoint.planning.plans import Option, kept, value

#: A split that promises less than this share, and less than the error bars, is not worth it.
DOUBTFUL = 0.05
#: Between those that are `ALIKE`, the simpler.
_SIMPLER = {"device": 0, "server": 1, "jpeg": 2, "opponent": 2, "split": 3}


def least(options: Iterable[Option], objective: str) -> Option | None:
    """The best of what is allowed; or a simpler kind of option that nobody could tell from it."""
    allowed = [o for o in options if not o.refused]
    if not allowed:
        return None
    best = min(allowed, key=lambda o: _rank(o, objective))
    near = [o for o in allowed if _as_good(o, best, objective)]
    return min(near, key=lambda o: (_SIMPLER[o.kind], *_rank(o, objective)))


def rows(options: Sequence[Option], best: Option, objective: str, splits: int) -> tuple[Option, ...]:
    """The table's rows in order: the plain baselines, the best `splits`, each at another cut; `best`."""
    plain = [next((o for o in options if o.kind == kind), None) for kind in ("device", "server", "jpeg", "opponent")]
    ranked = sorted((o for o in options if o.kind == "split"), key=lambda o: (bool(o.refused), *_rank(o, objective)))
    first = {o.on_edge: o for o in reversed(ranked)}
    table = [o for o in plain if o is not None] + [o for o in ranked if first[o.on_edge] is o][:splits]
    return tuple(table) if best in table else (*table, best)


def pareto(options: Sequence[Option]) -> Sequence[Option]:
    """Those that no other is as fast as, as small on the uplink and as faithful, and better in one of these; the
    fastest first. An option that is not exact and whose agreement is not known is none of them."""
    known = [(o, share) for o in options if (share := kept(o)) is not None]
    points = [(o.total.ms, o.up_nbytes, -share, o) for o, share in known]
    front: list[tuple[float, int, float, Option]] = []
    for point in sorted(points, key=lambda p: p[:3]):
        if not any(other[1] <= point[1] and other[2] <= point[2] for other in front):
            front.append(point)
    return [point[3] for point in front]


def nearly(option: Option, other: Option, link: Link) -> bool:
    """Whether `other`, which is as simple or simpler, keeps nothing busy for longer, as far as anybody knows."""
    if _SIMPLER[other.kind] > _SIMPLER[option.kind]:
        return False
    slack = ALIKE * option.total.ms
    return all(a <= b + slack for a, b in zip(_busy(other, link), _busy(option, link), strict=True))


def _busy(option: Option, link: Link) -> list[float]:
    """For how long each host and the link are busy with it."""
    network = link.up_ms(option.up_nbytes) + link.down_ms(option.down_nbytes)
    return [*(host.compute.ms + host.encode.ms for host in option.hosts), network]


def _rank(option: Option, objective: str) -> tuple[float, float, int]:
    return value(option, objective), option.total.ms, _SIMPLER[option.kind]


def _as_good(option: Option, best: Option, objective: str) -> bool:
    """Whether `option` is as good as `best`, as far as anybody knows."""
    low, more = value(best, objective), value(option, objective)
    if more <= low * (1 + ALIKE):
        return True
    if objective != "latency" or best.kind != "split" or option.kind == "split":
        return False
    # Two halves have two wake-ups, two caches to fill: a split must show that it gains more than its error bars.
    return more <= low * (1 + DOUBTFUL) and more - low <= margin(best, option, objective)
