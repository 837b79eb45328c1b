"""An experiment as a file: model, cuts, link, device, server, requests. TOML, checked field by field.

docs/lab.md has every field. Those that ship (`names`) are beside this file: scenarios/step.toml has an event, too.
"""

from __future__ import annotations

from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Literal

import msgspec

from splitpoint.codecs import open_codec
from splitpoint.engines import ENGINES
from splitpoint.engines.stretch import check_factor
from splitpoint.errors import InputError, SplitpointError, UsageError, nearest
from splitpoint.files import named, read_text
from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace
from splitpoint.link.parse import parse_link
from splitpoint.models.names import is_named
from splitpoint.parsing import MalformedError, parse_toml
from splitpoint.text import plain

#: The longest that ships has a kilobyte.
_MOST_BYTES = 1 << 20


class DeviceOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The emulated device; `slowdown` 1 is this machine as it is. `method`: ``stretched`` (each run of the engine takes
    longer), ``quota`` or ``stop`` (a limit for the whole process), ``limit`` (whichever of these two works here)."""

    slowdown: float = 1.0
    threads: int = 1
    engine: str = next(iter(ENGINES))
    method: Literal["stretched", "limit", "quota", "stop"] = "stretched"

    @property
    def stretched(self) -> bool:
        """Whether it is slower by an engine that waits."""
        return self.method == "stretched" and self.slowdown > 1


class ServerOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the server is started."""

    device: str = "cpu"
    threads: int = 1
    engine: str = next(iter(ENGINES))


class LinkEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that happens `at_s` seconds after the first measured request: the link stalls for `seconds`, is cut
    and refuses connections for `seconds`, swallows everything for `seconds`, becomes `link`, or changes `count` bytes
    that go ``"up"`` or ``"down"``, after `after_nbytes` others (``corrupt``)."""

    at_s: float
    do: Literal["stall", "cut", "blackhole", "link", "corrupt"]
    seconds: float = 0.0
    link: str = ""
    direction: Literal["", "up", "down"] = ""
    after_nbytes: int = 0
    count: int = 1


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is run, and on what. `at` are cut names, as `--at` takes them; `plan` is a plan's file instead of them.

    `inputs` is ``photos`` (those of the zoo), ``synthetic`` (drawn with `seed`), or files and folders. `checksum` has
    every frame carry one.
    """

    name: str = ""
    title: str = ""
    model: str
    at: tuple[str, ...] = ()
    plan: str = ""
    link: str
    codec: str = "raw"
    checksum: bool = False
    requests: int = 20
    warm_up: int = 2
    inputs: str | tuple[str, ...] = "photos"
    seed: int = 0
    device: DeviceOptions = DeviceOptions()
    server: ServerOptions = ServerOptions()
    events: tuple[LinkEvent, ...] = ()
    folder: str = ""
    source: str = ""
    """Where its files are, and its text; both not in the file."""

    def __post_init__(self) -> None:
        for field, low, high in (("requests", 1, 1_000_000), ("warm_up", 0, 1_000_000)):
            value = getattr(self, field)
            if not low <= value <= high:
                raise UsageError(f"{field} must be from {low} to {high}, not {value}")
        for field, threads in (("device.threads", self.device.threads), ("server.threads", self.server.threads)):
            if not 1 <= threads <= 1024:
                raise UsageError(f"{field} must be from 1 to 1024, not {threads}")
        for field, engine in (("device.engine", self.device.engine), ("server.engine", self.server.engine)):
            if engine not in ENGINES:  # a file of somebody else's imports no module
                raise UsageError(f"{field} is one of {', '.join(ENGINES)}, not {engine}{nearest(engine, ENGINES)}")
        check_factor(self.device.slowdown, least=1.0)
        if bool(self.at) == bool(self.plan):
            raise UsageError('give either at = ["middle", …] or plan = "FILE"')
        for event in self.events:
            if not (isfinite(event.at_s) and event.at_s >= 0 and isfinite(event.seconds) and event.seconds >= 0):
                raise UsageError("an event's at_s and seconds must be 0 or more")
            if (event.do == "link") != bool(event.link):
                raise UsageError('an event has a link if, and only if, it does "link"')
            if (event.do == "corrupt") != bool(event.direction):
                raise UsageError('an event has a direction if, and only if, it does "corrupt"')
            if event.after_nbytes < 0 or not 1 <= event.count <= 1_000_000:
                raise UsageError("an event's after_nbytes must be 0 or more, and its count from 1 to 1000000")

    def path(self, file: str) -> Path:
        """A file that the scenario names: in its folder or below. InputError for one that is elsewhere."""
        try:
            return named(file, Path(self.folder))
        except ValueError as exc:
            raise InputError(f"the scenario's file {exc}") from exc

    @property
    def located(self) -> str:
        """The model, as `load` takes it. InputError for one that a file may not name: it would run code, or is
        elsewhere."""
        if is_named(self.model):
            return self.model
        if Path(self.model).suffix not in (".onnx", ".pt2"):
            raise InputError(
                f"model is zoo:, torchvision:, timm: or hf:NAME, or an .onnx or .pt2 file beside the scenario, not "
                f"{self.model}"
            )
        return str(self.path(self.model))

    def shaped(self, text: str = "") -> Link | LinkTrace:
        """The link (or that of an event). Files are looked for beside the scenario."""
        text = text or self.link
        if Path(text).suffix.lower() in (".json", ".csv"):
            text = str(self.path(text))
        return parse_link(text)


_OURS = frozenset({"folder", "source"})


def _shipped() -> Path:
    return Path(str(resources.files("splitpoint"))) / "lab" / "scenarios"


def names() -> list[str]:
    """The scenarios that ship, the slowest link first."""
    order = ("cat1", "3g", "4g", "wifi", "wifi5", "lan")
    shipped = {p.stem for p in _shipped().glob("*.toml")}
    return [n for n in order if n in shipped] + sorted(shipped - set(order))


def find(name: str) -> Path:
    """The file of a scenario that ships, or `name` itself if it is a file. UsageError if it is neither."""
    if Path(name).suffix == ".toml" or Path(name).is_file():
        return Path(name)
    if name in names():
        return _shipped() / f"{name}.toml"
    hint = nearest(name, names()) or f" (there are: {', '.join(names())})"
    raise UsageError(f"no scenario is called {name}{hint}; or name a .toml file")


def load_scenario(path: Path) -> Scenario:
    """The scenario in `path`. InputError names the file and the field that is wrong."""
    try:
        source = read_text(path, _MOST_BYTES, "TOML")
        fields = parse_toml(source)
    except MalformedError as exc:
        raise InputError(f"{path} is not TOML: {exc}") from exc
    for field in _OURS & fields.keys():
        raise InputError(f"{path}: Object contains unknown field `{field}`")
    fields.setdefault("name", plain(path.stem))
    try:
        scenario = msgspec.convert({**fields, "folder": str(path.parent), "source": source}, Scenario)
        for event in scenario.events:
            if event.link:
                scenario.shaped(event.link)
        scenario.shaped()
        inputs = (scenario.inputs,) if isinstance(scenario.inputs, str) else scenario.inputs
        for file in (scenario.plan, *inputs):
            scenario.path(file)
        open_codec(scenario.codec)
        _ = scenario.located
    except msgspec.ValidationError as exc:
        raise InputError(f"{path}: {_hinted(plain(str(exc), 500))}") from exc
    except SplitpointError as exc:
        raise InputError(f"{path}: {exc}") from exc
    return scenario


def _hinted(said: str) -> str:
    """msgspec's sentence, with the field that was probably meant."""
    wrong = said.partition("unknown field `")[2].partition("`")[0]
    fields = {f for s in (Scenario, DeviceOptions, ServerOptions, LinkEvent) for f in s.__struct_fields__} - _OURS
    return said + (nearest(wrong, fields) if wrong else "")
