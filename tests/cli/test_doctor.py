"""splitpoint doctor: this machine, and a server."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from commands import Serving, fails, ok


def test_doctor_says_what_this_machine_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "doctor")
    assert "onnxruntime" in text
    assert re.search(r"cuda      (yes|no   .*pip uninstall -y onnxruntime && .*pip install onnxruntime-gpu\n)", text)
    assert "telemetry  off" in text


def test_doctor_reaches_a_server(serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "doctor", "--cloud", serving.address)
    assert "reachable" in text
    assert "lenet5" in text


def test_something_else_on_the_port(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                peer.recv(4096)

        thread = threading.Thread(target=greet)
        thread.start()
        message = fails(capsys, 6, "doctor", "--cloud", f"127.0.0.1:{listening.getsockname()[1]}")
        thread.join()
    assert "SSH-2.0" in message
