"""The libraries that splitpoint builds on do not report to their makers: each is told so before it is imported.

ONNX Runtime 1.29 and later counts its users on Linux (docs/security.md). It reads its variable once, when it is
imported, and nothing undoes that afterwards (tried with 1.32: `disable_telemetry_events` neither removes the files that
it writes under the user's cache nor keeps it from looking up its maker's host).
"""

from __future__ import annotations

import os
import sys
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:  # all that is imported here comes before Ctrl-C is one word
    from collections.abc import Mapping

#: Variable → the value that says no. A variable that is set already is the user's own word, and stays.
OFF: Mapping[str, str] = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # transformers asks a service of the hub to convert a model that has no safetensors.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_ORT = "ORT_DISABLE_TELEMETRY"
#: The first ONNX Runtime that reports from Linux.
_SINCE = (1, 29)


def turn_off() -> None:
    """Sets the variables, for this process and those it starts. Importing splitpoint does it.

    Warns if ONNX Runtime was imported before, with its telemetry on: then only its user can turn it off.
    """
    if _ORT not in os.environ and _reports(sys.modules.get("onnxruntime")):
        # What it reports of sessions ends here; what it did and will do for having been imported does not.
        sys.modules["onnxruntime"].disable_telemetry_events()
        warnings.warn(
            "onnxruntime was imported before splitpoint, and reports to its maker: "
            f"import splitpoint first, or set {_ORT}=1",
            RuntimeWarning,
            stacklevel=2,
        )
    for name, value in OFF.items():
        os.environ.setdefault(name, value)


def set_by_user() -> list[str]:
    """Those of the variables that were set to something else than this: ``["ORT_DISABLE_TELEMETRY=0"]``."""
    return [f"{name}={os.environ[name]}" for name, value in OFF.items() if os.environ.get(name, value) != value]


def _reports(onnxruntime: object) -> bool:
    version = str(getattr(onnxruntime, "__version__", "0")).split(".")
    return sys.platform != "win32" and tuple(int(part) if part.isdigit() else 0 for part in version[:2]) >= _SINCE
