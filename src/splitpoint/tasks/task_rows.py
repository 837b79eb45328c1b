"""The rows of a queue as cells: for people, and for CSV files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from splitpoint.report.table import Column, number_columns
from splitpoint.tasks.task import QueueSummary, TaskPlan, TaskResult
from splitpoint.trace import OTHERS
from splitpoint.units import counted, mbps, ms

#: Within this share of the best there can be, nothing is left to gain; within this one a prediction was right.
_NEAR, _OFF = 0.1, 0.25

COLUMNS: Sequence[str] = (
    "task", "model", "weights", "priority", "arrival_ms", "deadline_ms", "policy", "option", "up_mbps", "edge_ms",
    "transfer_ms", "server_ms", "waiting_ms", "total_ms", "predicted_ms", "started_ms", "ended_ms", "met", "fallback",
    "answer", "note", *OTHERS,
)  # fmt: skip


def record(row: TaskPlan, policy: str, note: str = "") -> Mapping[str, Any]:
    """A row by `COLUMNS`. What is not known of it (the answer of a plan) is empty."""
    task = row.task
    values: dict[str, Any] = {
        "task": task.name, "model": task.model, "weights": task.weights, "priority": task.priority,
        "arrival_ms": task.arrival_s * 1e3, "deadline_ms": task.deadline_s * 1e3 or "", "policy": policy,
        "option": row.option, "met": "" if row.met is None else row.met, "note": note, "fallback": "", "answer": "",
        "predicted_ms": row.total_ms, **dict.fromkeys(OTHERS, ""),
    }  # fmt: skip
    values |= {name: getattr(row, name) for name in COLUMNS if name not in values}
    if isinstance(row, TaskResult):
        values |= {"predicted_ms": row.predicted_ms, "fallback": row.fallback, "answer": row.answer, **row.numbers}
    return {name: round(v, 4) if isinstance(v, float) else v for name, v in values.items()}


def _option(row: TaskPlan) -> str:
    return row.option + (" (finished here)" if isinstance(row, TaskResult) and row.fallback else "")


def _deadline(row: TaskPlan) -> str:
    return "-" if row.met is None else f"{'met' if row.met else 'missed'} ({ms(row.task.deadline_s * 1e3)})"


def _spent(title: str, of: Callable[[TaskPlan], float]) -> Column[TaskPlan]:
    return Column(title, lambda r: ms(of(r)) if of(r) > 0 else "-", keep=True)


#: For people. `edge` is computing and encoding there, as in the other tables; what a plan does not know is empty.
TABLE: Sequence[Column[TaskPlan]] = (
    Column("task", lambda r: r.task.name, right=False, keep=True),
    Column("cut", _option, right=False, keep=True),
    Column("Mbit/s", lambda r: mbps(r.up_mbps)),
    _spent("edge", lambda r: r.edge_ms),
    _spent("transfer", lambda r: r.transfer_ms),
    _spent("server", lambda r: r.server_ms),
    _spent("waiting", lambda r: r.waiting_ms),
    Column("total", lambda r: ms(r.total_ms) if isinstance(r, TaskResult) else ""),
    Column("predicted", lambda r: ms(r.predicted_ms if isinstance(r, TaskResult) else r.total_ms)),
    Column("deadline", _deadline, right=False),
    *number_columns(OTHERS, lambda r: r.numbers if isinstance(r, TaskResult) else {}),
)


def _against_bound(summary: QueueSummary, predicted: bool) -> str:
    """What other cuts and another order could still gain."""
    least, times = ms(summary.bound_ms), summary.makespan_ms / summary.bound_ms
    if times < 1 + _NEAR:
        return f"about as fast as it can be: by the profiles, any cuts in any order take {least} ms or more"
    if predicted:
        return f"by the profiles, any cuts in any order take {least} ms or more: {times:.1f} times as fast at best"
    if summary.makespan_ms <= (1 + _OFF) * summary.predicted_ms:
        why = f"with everything compiled beforehand it could be up to {times:.1f} times as fast"
    elif summary.slower > 1:
        why = f"but requests computed {summary.slower:.1f} times as long as profiled: --fresh profiles anew"
    else:
        why = "no request refutes the profiles: the rest is waiting, the link, and beginning"
    return f"by the profiles, any cuts in any order take {least} ms or more; {why}"


def summary_lines(summary: QueueSummary, *, predicted: bool = False) -> list[str]:
    how = "predicted: " if predicted else ""
    usage = summary.usage
    lines = [
        f"{how}{counted(summary.tasks, 'task')} by {summary.policy} in {ms(summary.makespan_ms)} ms; "
        f"mean {ms(summary.mean_ms)} ms, p95 {ms(summary.p95_ms)} ms",
        f"busy: edge {usage.device:.0%}, link up {usage.link:.0%}, server {usage.server:.0%}",
    ]
    if summary.met or summary.missed:
        lines.append(f"deadlines: {summary.met} met, {summary.missed} missed")
    if summary.bound_ms:
        lines.append(_against_bound(summary, predicted))
    if summary.shared > 1:
        lines.append(
            f"edge and server share cores: while both compute, each takes {summary.shared:.1f} times as long "
            "(measured); the plan counts with it"
        )
    if not predicted:
        more = f", ready to begin after {summary.compile_s:.1f} s" if summary.compile_s >= 0.05 else ""
        again = f", planned again {counted(summary.replans, 'time')}" if summary.replans else ""
        lines.append(
            f"{ms(summary.predicted_ms)} ms were predicted; planned in {ms(summary.planning_ms)} ms{more}{again}"
        )
    if summary.local:
        lines.append(f"{summary.local} finished on the edge because the server was late or gone")
    return lines
