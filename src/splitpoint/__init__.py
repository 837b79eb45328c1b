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
    from splitpoint.calibration.calibrations import Calibration as Calibration
    from splitpoint.calibration.codec_trials import calibrate as calibrate
    from splitpoint.calibration.files import load_calibration as load_calibration, save_calibration as save_calibration
    from splitpoint.codecs import Codec as Codec, open_codec as open_codec
    from splitpoint.engines import Engine as Engine, Session as Session, open_engine as open_engine
    from splitpoint.errors import (
        BusyError as BusyError,
        CutError as CutError,
        EngineError as EngineError,
        InputError as InputError,
        MissingExtraError as MissingExtraError,
        ModelError as ModelError,
        ProtocolError as ProtocolError,
        RefusedError as RefusedError,
        ServerError as ServerError,
        SplitpointError as SplitpointError,
        StorageError as StorageError,
        UsageError as UsageError,
        VerifyError as VerifyError,
    )
    from splitpoint.graph import Cut as Cut, Graph as Graph, Node as Node
    from splitpoint.images import InputSpec as InputSpec, classify as classify, read_image as read_image
    from splitpoint.link import Link as Link
    from splitpoint.measured_cuts import compare as compare
    from splitpoint.models import load as load
    from splitpoint.models.model import Model as Model, Segment as Segment
    from splitpoint.models.torch import export as export
    from splitpoint.planning.constraints import Constraints as Constraints
    from splitpoint.planning.files import load_plan as load_plan, save_plan as save_plan
    from splitpoint.planning.planner import Planner as Planner, plan as plan
    from splitpoint.planning.plans import Option as Option, Plan as Plan
    from splitpoint.predict.learn.files import load_latency as load_latency
    from splitpoint.predict.price.prediction import predict_latency as predict_latency
    from splitpoint.profile.files import load_profile as load_profile, save_profile as save_profile
    from splitpoint.profile.measure import profile_model as profile_model
    from splitpoint.profile.profiles import Profile as Profile
    from splitpoint.runtime.adapt.controller import Watching as Watching
    from splitpoint.runtime.client.edge import Edge as Edge
    from splitpoint.runtime.client.edge_requests import EdgeStats as EdgeStats
    from splitpoint.runtime.client.edge_settings import AutoPlan as AutoPlan, ModelPolicy as ModelPolicy
    from splitpoint.runtime.client.timeouts import Patience as Patience
    from splitpoint.runtime.client.whole_model import Local as Local
    from splitpoint.runtime.client.wire_remote import WireSettings as WireSettings
    from splitpoint.runtime.codec_choice import FrameBudget as FrameBudget
    from splitpoint.runtime.events import Event as Event
    from splitpoint.runtime.result import Request as Request, Result as Result
    from splitpoint.runtime.server.server import Server as Server
    from splitpoint.security import Security as Security, ServerSecurity as ServerSecurity
    from splitpoint.segments import (
        Check as Check,
        Manifest as Manifest,
        load_manifest as load_manifest,
        split as split,
        verify as verify,
    )
    from splitpoint.tensors import TensorSpec as TensorSpec
    from splitpoint.trace import Recorder as Recorder, Span as Span, Trace as Trace
    from splitpoint.wire import Limits as Limits

_require_system()
_turn_telemetry_off()  # before anything imports ONNX Runtime, or what else would report to its maker

#: Room → its public names. A room is imported when one of them is asked for: NumPy and all else that takes time is
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
    "predict.price.prediction": "predict_latency",
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
    "runtime.codec_choice": "FrameBudget",
    "runtime.events": "Event",
    "runtime.result": "Request Result",
    "runtime.server.server": "Server",
    "security": "Security ServerSecurity",
    "segments": "Check Manifest load_manifest split verify",
    "tensors": "TensorSpec",
    "trace": "Recorder Span Trace",
    "wire": "Limits",
}
_HOME = {name: f"splitpoint.{room}" for room, names in _ROOMS.items() for name in names.split()}
if not TYPE_CHECKING:  # type checkers know only lists of words, and take the imports above
    __all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)
