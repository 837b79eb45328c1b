"""The honest table as cells and lines, and the plan as a picture: what each kind of option costs by bandwidth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from splitpoint.planning.advice import rate
from splitpoint.planning.constraints import percent
from splitpoint.planning.plans import Option, Plan, RateRange, value
from splitpoint.planning.sensitivity import Curves
from splitpoint.report.files import bare, picture
from splitpoint.text import end_of
from splitpoint.units import mbps, ms, size

#: Titles of the table, and those that are never left out when the terminal is narrow; nor is the objective's own.
TITLES: Sequence[str] = ("", "option", "ms ± band", "edge", "net", "server", "up", "req/s", "quality", "mJ")
_KEPT = frozenset(TITLES[:6])
_OWN = {"bytes": "up", "throughput": "req/s", "energy": "mJ"}
#: Characters: between columns; of an option's name at most while other columns still fit; of it at least.
_GAP, _NAMES, _LEAST = 3, 34, 12


def fitted(plan: Plan, width: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Titles and rows that fit a terminal of `width`: columns left out, the last one first, and options in few words.

    Options are shortened inside their names: what kind of option it is, and its codec, are always there. The best has
    an arrow, what a constraint rules out a cross.
    """
    full = [cells(option, best=option == plan.best) for option in plan.options]
    shown = tuple(t for t in TITLES if t != "mJ" or any(o.energy_mj is not None for o in plan.options))
    widths = {t: max([len(t), *(len(r[i]) for r in full)]) for i, t in enumerate(TITLES)}
    longest, widths["option"] = widths["option"], min(widths["option"], _NAMES)
    kept = _KEPT | {_OWN.get(plan.objective, "")}
    spare = [t for t in shown if t not in kept]
    while spare and sum(widths[t] + _GAP for t in shown) > width:
        gone = spare.pop()
        shown = tuple(t for t in shown if t != gone)
    room = max(_LEAST, width - sum(widths[t] + _GAP for t in shown if t != "option") - _GAP)
    places = [TITLES.index(t) for t in shown]
    fitting = []
    for option, row in zip(plan.options, full, strict=True):
        words = row if longest <= room else (row[0], in_few_words(option, room), *row[2:])
        fitting.append(tuple(words[i] for i in places))
    return shown, fitting


def in_few_words(option: Option, room: int) -> str:
    """An option in at most `room` characters, the front of a layer's name left out: ``split …project.norm, int4``."""
    if option.kind != "split":
        return end_of(option.label.removeprefix("all on the ").removesuffix(" input"), room)
    codecs = " + ".join(dict.fromkeys(option.codecs))
    how = "" if codecs in ("raw", "") else f", {codecs}"
    name = end_of(option.cut, max(4, room - len("split ") - len(how)))
    return end_of(f"split {name}{how}", room)


def cells(option: Option, *, best: bool) -> tuple[str, ...]:
    """One row by `TITLES`. Behind ± is the larger half of the band; ``edge`` is computing and encoding; ``net`` both
    ways with the round trip. What was not measured has a ~ before it."""
    mark = "→" if best else "×" if option.refused else " "
    stages = option.stages
    edge = stages["edge"].ms + stages["encode"].ms
    link = stages["up"].ms + stages["down"].ms
    here, there = ("~" if host.modelled else "" for host in (option.hosts[0], option.hosts[-1]))
    return (
        mark,
        option.label.replace("split after ", "split: ", 1),
        f"{ms(option.total.ms)} ± {_error(option.total.error)}",
        here + ms(edge) if option.on_edge else "-",
        "-" if option.kind == "device" else ms(link),
        "-" if option.kind == "device" else there + ms(stages["server"].ms),
        "-" if option.kind == "device" else ("" if option.sized else "~") + size(option.up_nbytes),
        rate(option.throughput),
        quality(option),
        "-" if option.energy_mj is None else ms(option.energy_mj),
    )


def _error(error: float) -> str:
    return f"{error:.0f}" if error >= 9.5 else f"{error:.1f}" if error >= 0.095 else f"{error:.2f}"


def quality(option: Option) -> str:
    """How good the answer is: exact, as calibrated (and at least so good, with 95 % confidence), or not measured."""
    if option.exact:
        return "exact"
    known = option.quality
    if known is None:
        return "not measured"
    if known.agreement is None:
        return f"error {known.error:.1%}"
    least = f"≥ {100 * (1 - known.bound):.3g} %"
    if known.least is not None:
        return f"{percent(known.agreement)} alike, {least}"
    return f"{round(known.agreement * known.inputs)}/{known.inputs} same, {least}"


def seed_lines(plan: Plan) -> tuple[str, ...]:
    """What Neurosurgeon's replica printed: bandwidth, best latency, best partition point.

    Where something else than latency is made least, the latency is that of the plan and not called the best.
    """
    place = {
        "device": "output (all on the edge)", "server": "input (all on the server)",
        "jpeg": "input (a JPEG, all on the server)",
    }  # fmt: skip
    where = place.get(plan.best.kind, plan.best.cut)
    return (
        f"bandwidth: {mbps(plan.link.up_mbps)} Mbit/s",
        f"{'best latency' if plan.objective == 'latency' else 'latency of the plan'}: {ms(plan.best.total.ms)} ms",
        f"best partition point: {where}",
    )


def proof(plan: Plan) -> str:
    """How good the best is, as a sentence."""
    what = {
        "latency": "faster", "throughput": "faster at its slowest stage", "energy": "more frugal",
        "bytes": "leaner", "server-time": "easier on the server",
    }[plan.objective]  # fmt: skip
    if plan.bound < 1e-3 * value(plan.best, plan.objective):
        return "how near that is to the best possible is not known: the limits leave no bound but zero"
    by = "" if plan.gap < 5e-4 else f" by more than {plan.gap * 100:.2g} %"
    among = "".join(f", {said}" for said in plan.constraints)
    return f"no placement of the nodes is {what}{by} with these codecs{among} (proven, for these profiles)"


def legend(plan: Plan) -> str:
    """What the band and the mark of times that were not measured mean."""
    mark = "~ modelled, not measured (a longer profile measures more cuts)\n" * any(o.modelled for o in plan.options)
    return mark + "± holds four times in five, while machines and link are as above"


def refusals(plan: Plan) -> list[str]:
    """Why each option with a cross is ruled out."""
    return [f"× {o.label}: {o.refused}" for o in plan.options if o.refused]


def range_lines(ranges: Sequence[RateRange]) -> list[tuple[str, str]]:
    """(uplink rates, what is best there), a line a range."""
    lines, last = [], len(ranges) - 1
    for k, stretch in enumerate(ranges):
        low, high = _mbps(stretch.up_mbps_from), _mbps(stretch.up_mbps_to)
        rates = f"{low} to {high}"
        if last == 0:
            rates = f"from {rates}"
        elif k in (0, last):
            rates = f"above {low}" if k else f"below {high}"
        lines.append((f"{rates} Mbit/s", stretch.label))
    return lines


def _mbps(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}" if rate >= 0.1 else f"{rate:.2g}"


# --- the picture ------------------------------------------------------------------------------------------------------

#: Kind → (label, colour, dashes), in the order of the legend.
_LINES: Mapping[str, tuple[str, str, str]] = {
    "device": ("all on the edge", "#4c78a8", "-"),
    "server": ("all on the server, raw input", "#e45756", "-"),
    "jpeg": ("all on the server, JPEG", "#b279a2", "--"),
    "opponent": ("all on the server, another picture (priced only)", "#9d9d9d", ":"),
    "split": ("best split", "#54a24b", "-"),
}

_AXIS = {
    "latency": "milliseconds a request", "throughput": "milliseconds a request (slowest stage)",
    "energy": "millijoules a request", "bytes": "bytes a request", "server-time": "milliseconds on the server",
}  # fmt: skip


def draw(plan: Plan, curves: Curves, path: Path, measured: Sequence[tuple[str, float]] = ()) -> None:
    """A PNG: the objective by uplink bandwidth, a line a kind, the plan bold, and what was `measured` of kinds at the
    plan's link. MissingExtraError without matplotlib."""
    with picture(path, size=(10.0, 6.2)) as (figure, [axes]):
        _lines(axes, plan, curves)
        _changes(axes, plan, curves)
        top = axes.get_ylim()[1]
        for kind, value in measured:
            if value < top:
                axes.plot([plan.link.up_mbps], [value], "D", color=_LINES[kind][1], markersize=9, mec="white", zorder=6)
        if measured:
            axes.plot([], [], "D", color="#555555", markersize=7, label="measured")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def _lines(axes: Any, plan: Plan, curves: Curves) -> None:
    from matplotlib.ticker import FuncFormatter

    best = curves.values["best"]
    known = [b for b in best if isfinite(b)]
    jpeg = plan.option("jpeg")
    axes.plot(curves.rates, best, color="black", linewidth=5, alpha=0.28, solid_capstyle="round", label="the plan")
    for kind, (text, colour, dashes) in _LINES.items():
        if kind not in curves.values or not any(isfinite(v) for v in curves.values[kind]):
            continue
        note = " (ruled out, see the table)" if kind == "jpeg" and jpeg is not None and jpeg.refused else ""
        axes.plot(curves.rates, curves.values[kind], color=colour, linestyle=dashes, linewidth=1.7, label=text + note)
    axes.set_xscale("log")
    axes.set_xlim(curves.rates[0], curves.rates[-1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.set_xlabel("uplink, Mbit/s (all else being equal)")
    axes.set_ylabel(_AXIS[plan.objective])
    # A slow link makes minutes of the raw input: what is decided on lies near the plan.
    alone = [v for v in curves.values.get("device", ()) if isfinite(v)]
    top = 1.75 * max([*known, *alone], default=1.0)
    least = [min(values) for values in curves.values.values() if isfinite(min(values))]
    top = max(top, min(1.5 * max(least, default=0.0), 20 * top))
    axes.set_ylim(0, top if top > 0 else 1.0)
    axes.axvline(plan.link.up_mbps, color="#888888", linewidth=1, linestyle=":")
    name = plan.link.name or "this link"
    axes.annotate(
        f" {name}: {_mbps(plan.link.up_mbps)} Mbit/s", (plan.link.up_mbps, 0), (0, 4), textcoords="offset points",
        fontsize=8.5, color="#555555", ha="left" if plan.link.up_mbps < 100 else "right",
    )  # fmt: skip
    here, there = (_short(host, 100) for host in (plan.hosts[0], plan.hosts[-1]))
    axes.set_title(f"{plan.model}\ndevice: {here}\nserver: {there}", fontsize=10)
    bare(axes, "top", "right")
    axes.grid(axis="y", alpha=0.25)


def _changes(axes: Any, plan: Plan, curves: Curves) -> None:
    """Each stretch of the plan by name, above its line; a dot where the answer changes."""
    import numpy as np

    log = np.log(curves.rates)
    best = np.array([v if isfinite(v) else np.nan for v in curves.values["best"]])
    top = axes.get_ylim()[1]
    shown = [r for r in plan.sensitivity if r.kind != "none"]
    for k, stretch in enumerate(shown):
        middle = float(np.sqrt(stretch.up_mbps_from * stretch.up_mbps_to))
        y = float(np.interp(np.log(middle), log, best))
        if stretch is not plan.sensitivity[0]:
            edge = stretch.up_mbps_from
            axes.plot([edge], [np.interp(np.log(edge), log, best)], "o", color="black", markersize=5)
            axes.annotate(
                _mbps(edge), (edge, float(np.interp(np.log(edge), log, best))), (0, -13),
                textcoords="offset points", ha="center", fontsize=8,
            )  # fmt: skip
        if len(shown) == 1:
            # One name for all rates stands on its line: a line up to a name would look like the link's.
            axes.annotate(
                _short(stretch.label, 44), (middle, y), (0, 7), textcoords="offset points", fontsize=8.5, ha="center",
            )  # fmt: skip
            return
        # Names go up in steps from right to left, so that neighbours do not meet.
        height = top * (0.97 - 0.065 * (k % 7))
        ha = "left" if k == 0 else "right" if stretch is shown[-1] else "center"
        x = curves.rates[0] * 1.1 if ha == "left" else curves.rates[-1] / 1.1 if ha == "right" else middle
        axes.annotate(
            _short(stretch.label, 44), (middle, y), (x, height), fontsize=8.5, ha=ha, va="top", zorder=5,
            bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.8},
        )  # fmt: skip


def _short(text: str, width: int = 48) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
