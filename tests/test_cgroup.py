"""What control groups of both versions let a process have."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitpoint import cgroup

# --- control groups ---------------------------------------------------------------------------------------------------

#: A line of /proc/self/mountinfo: the group that is mounted, where, and what it is.
V2 = "29 24 0:26 {mounted} {place} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "30 24 0:27 {mounted} {place} rw shared:5 - cgroup cgroup rw,{names}"


def tree(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    other = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
    (root / "proc/self/mountinfo").write_text("\n".join([other, "nonsense", *mounts]) + "\n")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


G = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        pytest.param(
            "0::/a/b\n", [V2.format(mounted="/", place="/" + G)],
            {f"{G}/a/b/cpu.max": "50000 100000\n", f"{G}/a/b/memory.max": "943718400\n"},
            (0.5, 900 << 20), id="version 2",
        ),
        pytest.param(
            "0::/a/b/c\n", [V2.format(mounted="/", place="/" + G)],
            {
                f"{G}/a/b/c/cpu.max": "400000 100000", f"{G}/a/b/cpu.max": "150000 100000",
                f"{G}/a/cpu.max": "max 100000",
                f"{G}/a/b/c/memory.max": "max", f"{G}/a/b/memory.max": "3000", f"{G}/a/memory.max": "2000",
            },
            (1.5, 2000), id="the smallest of all parents",
        ),
        pytest.param(
            "0::/\n", [V2.format(mounted="/", place="/" + G)],
            {f"{G}/cpu.max": "25000 50000", f"{G}/memory.max": "4096"},
            (0.5, 4096), id="in a namespace of its own",
        ),
        pytest.param(
            "0::/../../docker/ab\n", [V2.format(mounted="/../..", place="/" + G)],
            {f"{G}/cpu.max": "100000 100000", f"{G}/memory.max": "8192", "docker/ab/memory.max": "1"},
            (1.0, 8192), id="a path that leads out of the namespace",
        ),
        pytest.param(
            "4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n0::/system.slice\n",
            [
                V1.format(mounted="/docker/ab", place=f"/{G}/cpu,cpuacct", names="cpu,cpuacct"),
                V1.format(mounted="/docker/ab", place=f"/{G}/memory", names="memory"),
            ],
            {
                f"{G}/cpu,cpuacct/cpu.cfs_quota_us": "50000\n", f"{G}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                f"{G}/memory/memory.limit_in_bytes": "943718400\n",
            },
            (0.5, 900 << 20), id="version 1, a container's part of it",
        ),
        pytest.param(
            "4:cpu,memory:/x\n", [V1.format(mounted="/", place=f"/{G}/both\\040here", names="memory,cpu")],
            {
                f"{G}/both here/cpu.cfs_quota_us": "-1", f"{G}/both here/cpu.cfs_period_us": "100000",
                f"{G}/both here/x/cpu.cfs_quota_us": "200000", f"{G}/both here/x/cpu.cfs_period_us": "100000",
                f"{G}/both here/x/memory.limit_in_bytes": "9223372036854771712",
                f"{G}/both here/memory.limit_in_bytes": "12345",
            },
            (2.0, 12345), id="version 1, together, and a blank in the name",
        ),
        pytest.param(
            "3:memory:/\n2:cpu:/\n0::/\n",
            [
                V1.format(mounted="/", place=f"/{G}/cpu", names="cpu"),
                V1.format(mounted="/", place=f"/{G}/pids", names="pids"),
                V2.format(mounted="/", place=f"/{G}/unified"),
            ],
            {f"{G}/cpu/cpu.cfs_quota_us": "-1", f"{G}/cpu/cpu.cfs_period_us": "100000", f"{G}/pids/cpu.max": "1 1"},
            (0.0, 0), id="no limit",
        ),
        pytest.param(
            "0::/a\n", [V2.format(mounted="/", place="/" + G)],
            {
                f"{G}/a/cpu.max": "ten 0", f"{G}/a/memory.max": "9" * 5000,
                f"{G}/cpu.max": "100 0", f"{G}/memory.max": "",
            },
            (0.0, 0), id="nonsense",
        ),
        pytest.param("", [], {}, (0.0, 0), id="none"),
        pytest.param("nonsense\n::\n0\n", [V2.format(mounted="", place="")], {}, (0.0, 0), id="nonsense in /proc"),
    ],
)  # fmt: skip
def test_the_smallest_limit_of_the_group_and_all_above_counts(
    groups: str, mounts: list[str], files: dict[str, str], expected: tuple[float, int], tmp_path: Path
) -> None:
    assert cgroup.limits(tree(tmp_path, groups, mounts, files)) == expected


def test_without_proc_nothing_is_limited(tmp_path: Path) -> None:
    assert cgroup.limits(tmp_path) == (0.0, 0)
