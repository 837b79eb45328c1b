"""The files in deploy/: checked by the tools that read them, and their commands run here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import crop_photos
import pytest
from pages import ROOT, Reader

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SPLITPOINT = Path(sys.executable).with_name("splitpoint")


def dockerfile(word: str, target: str) -> list[str]:
    """ENTRYPOINT or CMD, as the last stage up to `target` says it."""
    text = (DEPLOY / "Dockerfile").read_text()
    upto = re.split(rf"^FROM .* AS {target}$", text, flags=re.MULTILINE)
    stage = upto[1].split("\nFROM ")[0] if word == "CMD" else upto[0]
    return list(json.loads(re.findall(rf"^{word} (\[.*\])$", stage, re.MULTILINE)[-1]))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_understands_each_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/splitpoint/bin/splitpoint", str(SPLITPOINT)))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # How much a service could do, from 0 to 10; without any hardening it is 9.6.
    said = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True).stdout
    if int(re.findall(r"^systemd (\d+)", said)[0]) >= 250:
        asked = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(copy)]
        told = subprocess.run(asked, capture_output=True, text=True)
        assert told.returncode == 0, told.stdout.splitlines()[-1]


def systemd(unit: str) -> str:
    """The command of a unit, in one line."""
    text = (DEPLOY / "systemd" / unit).read_text().replace("\\\n", " ")
    return re.findall(r"^ExecStart=/opt/splitpoint/bin/(.*)$", text, re.MULTILINE)[0]


def compose(service: str) -> str:
    """What a service of the compose file runs: its command, or else the image's."""
    text = (DEPLOY / "compose.yaml").read_text().split(f"\n  {service}:\n")[1].split("\n\n")[0]
    words = re.findall(r"^      - (?!\./|\w+-cache)(.*)$", text, re.MULTILINE)
    return " ".join(dockerfile("ENTRYPOINT", service) + (words or dockerfile("CMD", service)))


SIDES = {
    "systemd": (systemd("splitpoint-server.service"), systemd("splitpoint-camera.service")),
    "docker": (compose("server"), compose("edge")),
}


def test_the_cameras_settings_are_those_that_its_unit_reads() -> None:
    settings = (DEPLOY / "systemd" / "camera.env").read_text()
    read = re.findall(r"\$\{(SPLITPOINT_\w+)\}", systemd("splitpoint-camera.service"))
    assert re.findall(r"^(SPLITPOINT_\w+)=.", settings, re.MULTILINE) == sorted(read, key=settings.index)


@pytest.mark.parametrize("way", SIDES)
def test_the_commands_of_both_sides_run_together(way: str, tmp_path: Path) -> None:
    """The server's, then the edge's, with secrets and models where the files say that they are."""
    secrets, models, frames = (tmp_path / name for name in ("secrets", "models", "frames"))
    models.mkdir()
    shutil.copy(ROOT / "src/splitpoint/zoo/lenet5.onnx", models / "net.onnx")
    crop_photos.write_crops(frames, 3)
    here = {
        "${CREDENTIALS_DIRECTORY}": str(secrets), "/run/secrets": str(secrets), "/srv/splitpoint/models": str(models),
        "serve /models": f"serve {models}", "--cloud=": "--cloud ",
    }  # fmt: skip
    settings = {"SERVER": "localhost", "MODEL": "net", "SOURCE": str(frames)}
    server, edge = SIDES[way]
    for place, path in here.items():
        server, edge = server.replace(place, path), edge.replace(place, path)
    for name, value in settings.items():
        edge = re.sub(r"\$\{SPLITPOINT_" + name + r"(:-[^}]*)?\}", value, edge)
    with Reader(tmp_path, {}) as reader:
        reader.type(f"splitpoint keys {secrets} --host localhost", ["…"])
        reader.type(server, ["…", "serving on 0.0.0.0:3277 …"])
        printed = reader.type(f"{edge} --budget 1s", ["…"])
    rows = [json.loads(line) for line in printed if line.startswith("{")]
    assert [Path(row["input"]).name for row in rows] == ["photo000.jpg", "photo001.jpg", "photo002.jpg"]
