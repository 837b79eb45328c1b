"""Split inference: run the first part of a neural network on the device and the rest on a server.

```python
import splitpoint as sp

model = sp.load("zoo:efficientnet_lite0")
print(model.graph.cut("blocks.5"))                       # what would cross there
with sp.Server([model], engine=sp.open_engine(), port=0) as server:
    with sp.Edge(server.address, at="blocks.5") as edge:
        result = edge.infer(image)                       # uint8[1,224,224,3]
        print(result.outputs["logits"].argmax(), result.trace)
```

Where processes fork (pre-forking web servers, multiprocessing), make the `Edge` after the fork, in each of them.
"""

from __future__ import annotations

from splitpoint.system import require_system as _require_system
from splitpoint.telemetry import turn_off as _turn_telemetry_off

TYPE_CHECKING = False  # the one of `typing`, whose import takes as long as all of Python's own start
if TYPE_CHECKING:
    from splitpoint.calibration.calibrations import Calibration
    from splitpoint.calibration.codec_trials import calibrate
    from splitpoint.calibration.files import load_calibration, save_calibration
    from splitpoint.codecs import Codec, open_codec
    from splitpoint.engines import Engine, Session, open_engine
    from splitpoint.errors import (
        BusyError,
        CutError,
        EngineError,
        InputError,
        MissingExtraError,
        ModelError,
        ProtocolError,
        RefusedError,
        ServerError,
        SplitpointError,
        StorageError,
        UsageError,
        VerifyError,
    )
    from splitpoint.graph import Cut, Graph, Node
    from splitpoint.images import InputSpec, classify, read_image
    from splitpoint.link import Link
    from splitpoint.models import load
    from splitpoint.models.model import Model, Segment
    from splitpoint.planning.constraints import Constraints
    from splitpoint.planning.files import load_plan, save_plan
    from splitpoint.planning.planner import Planner, plan
    from splitpoint.planning.plans import Option, Plan
    from splitpoint.profile.files import load_profile, save_profile
    from splitpoint.profile.measure import profile_model
    from splitpoint.profile.profiles import Profile
    from splitpoint.runtime.client.edge import Edge
    from splitpoint.runtime.client.whole_model import Local
    from splitpoint.runtime.result import Request, Result
    from splitpoint.runtime.server.server import Server
    from splitpoint.segments import Check, Manifest, split, verify
    from splitpoint.tensors import TensorSpec
    from splitpoint.trace import Recorder, Span, Trace

_require_system()
_turn_telemetry_off()  # before anything imports ONNX Runtime, or what else would report to its maker

__all__ = [
    "BusyError",
    "Calibration",
    "Check",
    "Codec",
    "Constraints",
    "Cut",
    "CutError",
    "Edge",
    "Engine",
    "EngineError",
    "Graph",
    "InputError",
    "InputSpec",
    "Link",
    "Local",
    "Manifest",
    "MissingExtraError",
    "Model",
    "ModelError",
    "Node",
    "Option",
    "Plan",
    "Planner",
    "Profile",
    "ProtocolError",
    "Recorder",
    "RefusedError",
    "Request",
    "Result",
    "Segment",
    "Server",
    "ServerError",
    "Session",
    "Span",
    "SplitpointError",
    "StorageError",
    "TensorSpec",
    "Trace",
    "UsageError",
    "VerifyError",
    "calibrate",
    "classify",
    "load",
    "load_calibration",
    "load_plan",
    "load_profile",
    "open_codec",
    "open_engine",
    "plan",
    "profile_model",
    "read_image",
    "save_calibration",
    "save_plan",
    "save_profile",
    "split",
    "verify",
]

#: Room → its names among these. A room is imported when one of them is asked for: NumPy and all else that takes time is
#: not loaded by whoever only looks for the version, or presses Ctrl-C while the command line starts.
_ROOMS = {
    "calibration.files": "load_calibration save_calibration",
    "calibration.codec_trials": "calibrate",
    "calibration.calibrations": "Calibration",
    "codecs": "Codec open_codec",
    "engines": "Engine Session open_engine",
    "errors": "BusyError CutError EngineError InputError MissingExtraError ModelError ProtocolError RefusedError "
    "ServerError SplitpointError StorageError UsageError VerifyError",
    "graph": "Cut Graph Node",
    "images": "InputSpec classify read_image",
    "link": "Link",
    "models": "load",
    "models.model": "Model Segment",
    "planning.constraints": "Constraints",
    "planning.files": "load_plan save_plan",
    "planning.planner": "Planner plan",
    "planning.plans": "Option Plan",
    "profile.files": "load_profile save_profile",
    "profile.measure": "profile_model",
    "profile.profiles": "Profile",
    "runtime.client.edge": "Edge",
    "runtime.client.whole_model": "Local",
    "runtime.result": "Request Result",
    "runtime.server.server": "Server",
    "segments": "Check Manifest split verify",
    "tensors": "TensorSpec",
    "trace": "Recorder Span Trace",
}
_HOME = {name: f"splitpoint.{room}" for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
