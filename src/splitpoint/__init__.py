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

What is listed in `__all__` is the public interface. All submodules are private, but for the doors of those rooms that
have a contract for what others add: `codecs`, `engines`, `transports`, and `runtime.client` (where tails are computed).
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
    from splitpoint.measured_cuts import compare
    from splitpoint.models import load
    from splitpoint.models.model import Model, Segment
    from splitpoint.models.torch import export
    from splitpoint.planning.constraints import Constraints
    from splitpoint.planning.files import load_plan, save_plan
    from splitpoint.planning.planner import Planner, plan
    from splitpoint.planning.plans import Option, Plan
    from splitpoint.predict.learn.files import load_latency
    from splitpoint.predict.price.prediction import predict as predict_latency
    from splitpoint.profile.files import load_profile, save_profile
    from splitpoint.profile.measure import profile_model
    from splitpoint.profile.profiles import Profile
    from splitpoint.runtime.adapt.controller import Watching
    from splitpoint.runtime.client.edge import Edge
    from splitpoint.runtime.client.edge_requests import EdgeStats
    from splitpoint.runtime.client.edge_settings import AutoPlan, ModelPolicy
    from splitpoint.runtime.client.timeouts import Patience
    from splitpoint.runtime.client.whole_model import Local
    from splitpoint.runtime.client.wire_remote import WireSettings
    from splitpoint.runtime.events import Event
    from splitpoint.runtime.result import Request, Result
    from splitpoint.runtime.server.server import Server
    from splitpoint.security import Security, ServerSecurity
    from splitpoint.segments import Check, Manifest, split, verify
    from splitpoint.tensors import TensorSpec
    from splitpoint.trace import Recorder, Span, Trace
    from splitpoint.wire import Limits

_require_system()
_turn_telemetry_off()  # before anything imports ONNX Runtime, or what else would report to its maker

__all__ = [
    "AutoPlan",
    "BusyError",
    "Calibration",
    "Check",
    "Codec",
    "Constraints",
    "Cut",
    "CutError",
    "Edge",
    "EdgeStats",
    "Engine",
    "EngineError",
    "Event",
    "Graph",
    "InputError",
    "InputSpec",
    "Limits",
    "Link",
    "Local",
    "Manifest",
    "MissingExtraError",
    "Model",
    "ModelError",
    "ModelPolicy",
    "Node",
    "Option",
    "Patience",
    "Plan",
    "Planner",
    "Profile",
    "ProtocolError",
    "Recorder",
    "RefusedError",
    "Request",
    "Result",
    "Security",
    "Segment",
    "Server",
    "ServerError",
    "ServerSecurity",
    "Session",
    "Span",
    "SplitpointError",
    "StorageError",
    "TensorSpec",
    "Trace",
    "UsageError",
    "VerifyError",
    "Watching",
    "WireSettings",
    "calibrate",
    "classify",
    "compare",
    "export",
    "load",
    "load_calibration",
    "load_latency",
    "load_plan",
    "load_profile",
    "open_codec",
    "open_engine",
    "plan",
    "predict_latency",
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
    "measured_cuts": "compare",
    "models": "load",
    "models.model": "Model Segment",
    "models.torch": "export",
    "planning.constraints": "Constraints",
    "planning.files": "load_plan save_plan",
    "planning.planner": "Planner plan",
    "planning.plans": "Option Plan",
    "predict.learn.files": "load_latency",
    "predict.price.prediction": "predict_latency=predict",
    "profile.files": "load_profile save_profile",
    "profile.measure": "profile_model",
    "profile.profiles": "Profile",
    "runtime.adapt.controller": "Watching",
    "runtime.client.edge": "Edge",
    "runtime.client.edge_settings": "AutoPlan ModelPolicy",
    "runtime.client.edge_requests": "EdgeStats",
    "runtime.client.timeouts": "Patience",
    "runtime.client.whole_model": "Local",
    "runtime.client.wire_remote": "WireSettings",
    "runtime.events": "Event",
    "runtime.result": "Request Result",
    "runtime.server.server": "Server",
    "security": "Security ServerSecurity",
    "segments": "Check Manifest split verify",
    "tensors": "TensorSpec",
    "trace": "Recorder Span Trace",
    "wire": "Limits",
}
#: Name → the module and what it is called there: ``predict_latency=predict`` stands beside the room `predict`.
_HOME = {
    name.partition("=")[0]: (f"splitpoint.{room}", name.rpartition("=")[2])
    for room, names in _ROOMS.items()
    for name in names.split()
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _HOME[name]
    value = globals()[name] = getattr(import_module(module), there)
    return value


def __dir__() -> list[str]:
    return list(__all__)
