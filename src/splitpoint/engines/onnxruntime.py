"""ONNX Runtime behind the engine contract."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any, NoReturn

import msgspec
import numpy as np

from splitpoint.engines import underway
from splitpoint.engines.process_memory import give_back, resident_bytes
from splitpoint.engines.quantised import rewrites_int8, shifted, with_uint8_activations
from splitpoint.engines.stretch import slowdown, stretched
from splitpoint.engines.wheels import for_device, load
from splitpoint.errors import EngineError, InputError, SplitpointError, StorageError, nearest
from splitpoint.files import temporary_folder
from splitpoint.lifetime import foreign, watch
from splitpoint.machine import usable_cores
from splitpoint.models.model import Segment
from splitpoint.models.reasons import reason_of
from splitpoint.models.weights import give_weights
from splitpoint.tensors import Array
from splitpoint.text import listed


@dataclass(frozen=True, slots=True)
class Provider:
    """A `--device` name: the execution provider behind it, and the package that has it or what else it takes."""

    provider: str
    packages: str = ""
    otherwise: str = ""


#: Device name → provider.
DEVICES: Mapping[str, Provider] = {
    "cpu": Provider("CPUExecutionProvider", "onnxruntime"),
    "cuda": Provider("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": Provider("TensorrtExecutionProvider", "onnxruntime-gpu tensorrt"),
    "openvino": Provider("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "directml": Provider("DmlExecutionProvider", otherwise="the package onnxruntime-directml on Windows has it"),
    "migraphx": Provider("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    # Since 2.0 onnxruntime-qnn is a plugin beside the package onnxruntime, which nothing here registers.
    "qnn": Provider("QNNExecutionProvider", otherwise="an ONNX Runtime built with it has it"),
    "coreml": Provider("CoreMLExecutionProvider", otherwise="the package onnxruntime on macOS has it"),
    "xnnpack": Provider("XnnpackExecutionProvider", otherwise="a build of ONNX Runtime with --use_xnnpack has it"),
    "acl": Provider("ACLExecutionProvider", otherwise="a build of ONNX Runtime with --use_acl has it"),
}


def install_line(device: str) -> str:
    """What to type for `device`, in this environment and on this machine, or where else its provider is to be had."""
    known = DEVICES[device]
    return known.otherwise or for_device(device, *known.packages.split())


class OnnxRuntimeEngine:
    """Compiles segments with ONNX Runtime at its full optimisation level, with spinning off.

    Spinning threads steal the cores the other half needs (measured: +4.1 ms against +0.3 ms with edge and server
    on the same two cores), and a device's battery.
    """

    name = opened_as = "onnxruntime"

    def __init__(self, device: str = "cpu", threads: int = 0) -> None:
        if device not in DEVICES:
            raise EngineError(f"no device is called {device}{nearest(device, DEVICES)} (known: {', '.join(DEVICES)})")
        provider = DEVICES[device].provider
        if provider not in load().get_available_providers():
            raise EngineError(
                f"the installed ONNX Runtime has no {device} support ({provider}): {install_line(device)}"
            )
        self.device = device
        if threads < 0:
            raise EngineError(f"the number of threads must be 0 (one a core) or more, not {threads}")
        # ONNX Runtime's own 0 would count cores this process may not use.
        self.threads = threads or usable_cores()
        self.slowdown = slowdown()

    def compile(self, segment: Segment) -> OnnxRuntimeSession:
        session = OnnxRuntimeSession(segment, self)
        if self.slowdown > 1:  # all of a run: what of it is Python is a fifth of 0.3 ms after a rest
            session.run = stretched(session.run, self.slowdown)  # type: ignore[method-assign]
        return session

    def kernel_times(
        self, segment: Segment, inputs: Mapping[str, Array], runs: int, warm: int
    ) -> list[tuple[str, float]]:
        """By ONNX Runtime's own profiler, which needs a file: without room for temporary ones nothing is known."""
        try:
            with temporary_folder() as folder:
                session = OnnxRuntimeSession(segment, self, profile_to=str(folder / "kernels"))
                try:
                    for _ in range(warm + runs):
                        session.run(inputs)
                    path = session.end_profiling()
                finally:
                    session.close()
                with open(path, "rb") as file:
                    kernels = _kernel_medians(msgspec.json.decode(file.read()), warm, warm + runs)
                    return [(kernel, ms * self.slowdown) for kernel, ms in kernels]
        except (StorageError, OSError, msgspec.DecodeError):  # no folder, or a full one
            return []

    def __repr__(self) -> str:
        return f"OnnxRuntimeEngine(device={self.device!r}, threads={self.threads})"


class OnnxRuntimeSession:
    def __init__(self, segment: Segment, engine: OnnxRuntimeEngine, profile_to: str = "") -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        if profile_to:
            options.enable_profiling, options.profile_file_prefix = True, profile_to
        options.log_severity_level = 4
        options.intra_op_num_threads = engine.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        held = give_weights(options, segment.proto, segment.weights)
        provider = DEVICES[engine.device].provider
        proto, self._shifted = segment.proto, frozenset[str]()
        if rewrites_int8(engine.device):
            proto, self._shifted = with_uint8_activations(proto)
        give_back()
        before = resident_bytes()
        try:
            if engine.device == "cpu":
                _share_workspace()
                options.add_session_config_entry("session.use_env_allocators", "1")
            try:
                self._session = _session(proto, options, engine.device)
            except (ort.capi.onnxruntime_pybind11_state.Fail, ort.capi.onnxruntime_pybind11_state.InvalidGraph):
                self._session = _session(_unsized(proto), options, engine.device)
        except Exception as exc:  # ONNX Runtime's exceptions share no base of their own
            raise EngineError(f"ONNX Runtime cannot build this segment: {reason_of(exc)}") from exc
        if provider not in self._session.get_providers():
            raise EngineError(
                f"ONNX Runtime could not start {provider} and would have used the CPU without a word: "
                f"are {engine.device}'s own libraries installed? ({install_line(engine.device)})"
            )
        self.inputs, self.outputs = segment.inputs, segment.outputs
        self._int8 = {t.name: t for t in segment.inputs if t.name in self._shifted}
        self._names = [t.name for t in segment.outputs]
        self._run: Any = self._session.run
        self._options = ort.RunOptions
        watch(self)
        give_back()  # what building has left behind, which is no session's
        self.nbytes = max(resident_bytes() - before, segment.nbytes)
        del held, options  # ONNX Runtime has copied every weight
        give_back()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            feed = {t.name: inputs[t.name] for t in self.inputs}
        except KeyError as exc:
            raise InputError(f"input {exc.args[0]} is missing (this segment needs: {listed(self.inputs)})") from exc
        # One a run: once it was told to end, it would end the next one too.
        options, thread = self._options(), underway.get_ident()
        try:
            for name in self._shifted.intersection(feed):
                feed[name] = shifted(self._int8[name].check(feed[name]))
            underway.noted[thread] = options
            values = self._run(self._names, feed, options)
        except SplitpointError:  # closed, or a wrong input
            raise
        except Exception as exc:
            if options.terminate:
                raise EngineError("this run was given up") from exc
            for spec in self.inputs:  # a wrong input is the usual reason: say which
                spec.check(inputs[spec.name])
            raise EngineError(f"ONNX Runtime failed: {reason_of(exc)}") from exc
        finally:
            underway.noted.pop(thread, None)
        outputs: dict[str, Array] = dict(zip(self._names, values, strict=True))
        for name in self._shifted.intersection(outputs):
            outputs[name] = shifted(outputs[name])
        return outputs

    def end_profiling(self) -> str:
        """The file that ONNX Runtime wrote, if it was made with `profile_to`."""
        return str(self._session.end_profiling()) if self._session is not None else _closed()

    def forked(self) -> None:
        """In a forked child the threads are the parent's: taking it apart would wait for ever, so it is never freed."""
        if self._session is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._run = _foreign

    def close(self) -> None:
        self._run = _closed
        self._session = None
        give_back()


@cache
def _share_workspace() -> None:
    """One workspace for all sessions of this process, made at the first of them.

    A session's own keeps for ever what its largest batch took: six tails of a 19 MB network held 330 MB of it here. A
    shared one grows to what the runs at one time need. It is as fast, and faster for large batches.

    It grows by what is asked for: doubled, one request that was too large would have all later ones ask for as much,
    and what the first run took would never be given back.
    """
    import onnxruntime as ort

    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    unlimited, as_requested, default = 0, 1, -1
    ort.create_and_register_allocator(where, ort.OrtArenaCfg(unlimited, as_requested, default, default))


def shrink_workspace() -> None:
    """Gives what the shared workspace holds and no run uses back to the system: it has grown to the largest run."""
    if _share_workspace.cache_info().currsize:
        import onnxruntime as ort

        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        _idle_session().run(None, {"x": np.zeros(1, np.float32)}, options)
        give_back()


@cache
def _idle_session() -> Any:
    """A session that computes nothing: ONNX Runtime shrinks a workspace only at the end of a run."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "idle", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.use_env_allocators", "1")
    return _session(model, options, "cpu")


def _kernel_medians(events: list[dict[str, Any]], warm: int, runs: int) -> list[tuple[str, float]]:
    """(name, median ms a run) of each kernel over all `runs` but the first `warm`, in order of execution."""
    times: dict[str, list[float]] = {}
    for event in sorted((e for e in events if e.get("cat") == "Node"), key=lambda e: float(e["ts"])):
        if str(event["name"]).endswith("_kernel_time"):
            times.setdefault(str(event["name"]).removesuffix("_kernel_time"), []).append(float(event["dur"]) / 1e3)
    # One in the body of a loop runs several times a run.
    return [(name, median(t[len(t) * warm // runs :]) * max(1, len(t) // runs)) for name, t in times.items()]


def _session(proto: Any, options: Any, device: str) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(
        proto.SerializeToString(),
        options,
        providers=_providers(device),
        enable_fallback=0,  # it would print, and try again with the CPU
    )


def _providers(device: str) -> list[str]:
    """The device's provider, and those that ONNX Runtime needs below it for operators it does not have."""
    below = {"cpu": (), "tensorrt": ("cuda", "cpu")}.get(device, ("cpu",))
    return [DEVICES[name].provider for name in (device, *below)]


def _unsized(proto: Any) -> Any:
    """`proto` with inputs of free sizes: with fixed ones ONNX Runtime refuses a graph for a branch that these sizes
    would not take (silero-vad's two sampling rates)."""
    free = type(proto).FromString(proto.SerializeToString())
    for value in free.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}.{axis}"
    return free


def _closed(*_: object) -> NoReturn:
    raise EngineError("this session is closed")


def _foreign(*_: object) -> NoReturn:
    raise foreign("session")
