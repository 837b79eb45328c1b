"""Options that name what is written: every one takes a dash, which is standard output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from commands import commands, fails, ok

from splitpoint.cli import main
from splitpoint.cli.options.output import OUTPUT, OUTPUT_FOLDER
from splitpoint.cli.verbs import VERBS, Verbs, group

#: Options and arguments that name what is read, or a cache.
_READ = {
    "--ca", "--cache", "--calib", "--calibration", "--client-ca", "--edge", "--images", "--input", "--input-spec",
    "--inputs", "--labels", "--measured", "--plan", "--tls-cert", "--tls-key", "--token-file", "--traces", "file",
    "folder",
    "images", "inputs",
}  # fmt: skip


def test_every_option_that_names_a_file_to_write_takes_a_dash() -> None:
    assert isinstance(group, Verbs)
    written = set()
    for name, command in commands():
        for param in command.params:
            flag = max(param.opts, key=len)
            if param.type in (OUTPUT, OUTPUT_FOLDER):
                written.add(f"{name} {flag}")
            elif isinstance(param.type, click.Path):
                assert flag in _READ, f"{name} {flag} is a path: give it the type OUTPUT, or add it to what is read"
    assert {w.split()[0] for w in written} <= set(VERBS)
    assert {"profile --output", "run --output", "export --output", "tasks --csv", "split --output"} <= written


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["inspect", "zoo:lenet5", "--csv", "-"], b"row,cut,at,"),
        (["inspect", "zoo:lenet5", "--xlsx", "/dev/stdout"], b"PK"),
        (["inspect", "zoo:lenet5", "--names", "/dev/fd/1"], b"normalize\n"),
        (["link", "--link", "wifi", "-o", "-"], b"{"),
        (["profile", "zoo:lenet5", "--budget", "0.3s", "--threads", "1", "-o", "-"], b"{"),
        (["profile", "zoo:lenet5", "--budget", "0.3s", "--threads", "1", "--png", "-"], b"\x89PNG"),
        (["predict", "zoo:lenet5", "--on", "neurosurgeon-edge", "-o", "-"], b"{"),
    ],
)
def test_a_dash_is_standard_output_and_holds_the_file_alone(
    words: list[str], begins: bytes, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    if "--png" in words:
        pytest.importorskip("matplotlib")
    if "--xlsx" in words:
        pytest.importorskip("openpyxl")
    assert main(words) == 0
    out, err = capfdbinary.readouterr()
    assert out.startswith(begins), out[:100]
    assert b"wrote" not in out
    assert b"wrote /dev/" in err
    if begins == b"{":
        import json

        assert json.loads(out)
    assert not Path("-").exists()
    print("as before")  # and what others print comes out where it did
    assert capfdbinary.readouterr().out == b"as before\n"


def test_two_files_do_not_both_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "zoo:lenet5", "--csv", "-", "--names", "/dev/stdout"]) == 2
    assert "standard output takes one file" in capsys.readouterr().err
    assert main(["inspect", "zoo:lenet5", "--csv", "-", "--nonsense"]) == 2
    print("as before")
    assert capsys.readouterr().out == "as before\n"


def test_a_folder_cannot_be_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", "zoo:lenet5", "--at", "pool1", "-o", "-"]) == 2
    assert "name a folder" in capsys.readouterr().err
    assert not Path("-").exists()


def test_a_closed_standard_output_is_said() -> None:
    ran = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -m splitpoint inspect zoo:lenet5 --names - >&-', sys.executable],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 7
    assert "/dev/stdout cannot be written: it is closed" in ran.stderr


def test_o_is_output_everywhere_and_out_still_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    short = {name: param.opts for name, command in commands() for param in command.params if "-o" in param.opts}
    assert len(short) >= 10
    assert {tuple(opts[:3]) for opts in short.values()} == {("-o", "--output", "--out")}
    assert ok(capsys, "link", "--link", "wifi", "--out", "-") == ok(capsys, "link", "--link", "wifi", "-o", "-")
    assert "No such option" in fails(capsys, 2, "link", "--outp", "-")
    assert "'--out'" in fails(capsys, 2, "demo", "--out", "-"), "what was typed, where there is none"
