"""`make check`: src has at most so many lines. Growth is a decision: the commit that grows changes a number here.

Counted are all lines of all Python files of the package, blank ones and comments too: what a reader scrolls through.
"""

from __future__ import annotations

import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src" / "splitpoint"

#: All files together.
TOTAL = 57_590
#: Each file, but for those below, which have what they had when the budget was made.
FILE = 700
LARGER = {
    "graph.py": 708,
    "wire.py": 884,
}


def complaints(lines: dict[str, int]) -> list[str]:
    """What is over the budget, or in it without need, a sentence each.

    >>> complaints({"wire.py": 884, "new.py": 701} | dict.fromkeys(LARGER, 701))[0]
    'new.py has 701 lines, its ceiling is 700: split it, or raise its number in scripts/line_budget.py'
    """
    total = sum(lines.values())
    over = [
        f"{name} has {count} lines, its ceiling is {LARGER.get(name, FILE)}: split it, or raise its number in "
        "scripts/line_budget.py"
        for name, count in lines.items()
        if count > LARGER.get(name, FILE)
    ]
    if total > TOTAL:
        over.append(f"src has {total} lines, its ceiling is {TOTAL}: take some out, or say in the commit why it grows")
    spare = [f"{name} needs no number of its own any more" for name in LARGER if lines.get(name, 0) <= FILE]
    return over + spare


def main() -> int:
    """Prints what is over the budget, or what is left of it; the exit status."""
    files = sorted(SRC.rglob("*.py"))
    lines = {str(path.relative_to(SRC)): len(path.read_text().splitlines()) for path in files}
    wrong = complaints(lines)
    for sentence in wrong:
        print(sentence)
    if not wrong:
        print(f"src has {sum(lines.values())} of {TOTAL} lines")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
