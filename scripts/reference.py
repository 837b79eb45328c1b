"""What the documentation's reference has from the code, as Markdown: API, command line, errors, files.

    python scripts/reference.py cli        # prints one of them

A page of docs/reference has the line ``<!-- generated: cli -->`` where such a part stands. `filled` puts it there:
docs/conf.py does so when the site is built, and tests/integration/test_documentation.py when links are checked.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

import splitpoint
from splitpoint.cli import options, verbs
from splitpoint.documents import Documents
from splitpoint.errors import SplitpointError

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "splitpoint"


def filled(text: str) -> str:
    """`text` of a page with what it asks to be generated. KeyError for a part that there is not."""
    return re.sub(r"^<!-- generated: (\w+) -->$", lambda found: PARTS[found[1]](), text, flags=re.M)


# --- the command line -------------------------------------------------------------------------------------------------


def cli() -> str:
    """A section a verb, with its usage, its help, and every option as click itself prints it."""
    context = click.Context(verbs.group, info_name="splitpoint", show_default=True)
    lines = []
    for title, names in verbs.TASKS.items():
        lines.append(f"## {title}\n")
        lines += [line for name in names for line in _command(verbs.group, name, context)]
    return "\n".join(lines)


def _command(group: click.Group, name: str, above: click.Context) -> Iterator[str]:
    command = group.get_command(above, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=above, show_default=True)
    path = context.command_path
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"### {path}\n\n```text\n{path} {usage}\n```\n"
    older = [old for old, now in verbs.ALIASES.items() if now == name and path == f"splitpoint {name}"]
    yield _told(command.help or "") + "".join(f"\nAlso typed `splitpoint {old}`, its older name.\n" for old in older)
    yield f"```{{program}} {path}\n```\n"
    listed: dict[str, list[str]] = {}
    for param in command.get_params(context):
        if isinstance(param, click.Option) and not param.hidden and not param.is_eager:
            names, text = param.get_help_record(context) or ("", "")
            names = re.sub(r" ?/ ?(?=-)", ", ", names)
            text = re.sub(r" *\[default: \"\"\]", "", text)
            listed.setdefault(options.section_of(param), []).append(f":::{{option}} {names}\n{_prose(text)}\n:::\n")
    for title in sorted(listed, key=list(options.SECTIONS).index) if options.SECTIONS else listed:
        if len(listed) > 1:
            yield f"**{title}**\n" if title.endswith("ptions") else f"**{title} options**\n"
        yield from listed[title]
    examples = [f"# {about}\nsplitpoint {words}" for about, words in getattr(command, "examples", ())]
    if examples:
        yield "\n".join(["```shell", *examples, "```\n"])
    yield _told(command.epilog or "")
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            yield from _command(command, inner, context)


def _told(text: str) -> str:
    """A command's help: paragraphs, and as they are those that click must not wrap (``\\b``) or that show commands."""
    blocks = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text.partition("\f")[0])):
        if block.startswith("\b"):
            blocks.append(f"```text\n{inspect.cleandoc(block[1:].strip(chr(10)))}\n```")
        elif block.strip():
            blocks.append(_prose(block))
    return "\n\n".join(blocks) + "\n"


def _prose(text: str) -> str:
    """Help as Markdown: nothing in it is markup but backticks, and options are code."""
    parts = re.split(r"(`[^`]+`)", text)
    for k in range(0, len(parts), 2):
        plain = re.sub(r"([\\*_<>\[\]#|$~])", r"\\\1", parts[k])
        parts[k] = re.sub(r"(?<![\w-])(--[a-z][\w-]*|SPLITPOINT(?:\\_[A-Z]+)+)", _as_code, plain)
    return "".join(parts)


def _as_code(found: re.Match[str]) -> str:
    return f"`{found[1]}`".replace("\\", "")


# --- the library ------------------------------------------------------------------------------------------------------

#: What the page has under one heading. A public name that is nowhere here stands under the last one.
GROUPS: Mapping[str, str] = {
    "Models and cuts": "load Model Segment Graph Node Cut TensorSpec InputSpec read_image classify export split verify "
    "Check Manifest load_manifest",
    "Measuring": "profile_model Profile load_profile save_profile Link calibrate Calibration load_calibration "
    "save_calibration predict_latency load_latency",
    "Planning": "plan Planner Plan Option Constraints load_plan save_plan compare",
    "Running": "Server Edge Request Result Event Trace Span Recorder EdgeStats AutoPlan ModelPolicy Watching Patience "
    "FrameBudget Local WireSettings Limits",
    "Security": "Security ServerSecurity",
    "Engines and codecs": "Engine Session open_engine Codec open_codec",
    "Errors": "",
    "Others": "",
}


def grouped() -> dict[str, list[str]]:
    """The public names by heading, each once."""
    groups = {title: names.split() for title, names in GROUPS.items()}
    known = {name for names in groups.values() for name in names}
    for name in splitpoint.__all__:
        if name not in known:
            value = getattr(splitpoint, name)
            is_error = isinstance(value, type) and issubclass(value, SplitpointError)
            groups["Errors" if is_error else "Others"].append(name)
    return {title: names for title, names in groups.items() if names}


def api() -> str:
    """Every public name, with its signature, its docstring and its members."""
    lines = ["```{py:module} splitpoint\n```\n"]
    for title, names in grouped().items():
        lines.append(f"## {title}\n")
        for name in names:
            lines += [f"### {name}\n", _described(name, getattr(splitpoint, name))]
    return "\n".join(lines)


#: The doors of the rooms that have a contract for what others add, and what each has beside the public names.
DOORS: Mapping[str, str] = {
    "engines": "KernelTimer Reopenable",
    "codecs": "",
    "transports": "Connection Listener",
    "runtime.client": "RemoteProvider Remote RemoteTail RemoteCall TailAnswer Offer Encoding Abortable",
}


def contracts() -> str:
    """Every door as its docstring has it, and the members of its protocols."""
    lines = []
    for room, names in DOORS.items():
        module = importlib.import_module(f"splitpoint.{room}")
        lines += [f"## {room}\n", f"```{{py:module}} splitpoint.{room}\n```\n", _markdown(module.__doc__ or "") + "\n"]
        for name in names.split():
            lines += [f"### {name}\n", _class(name, getattr(module, name))]
    return "\n".join(lines)


def _described(name: str, value: Any) -> str:
    if isinstance(value, type):
        return _class(name, value)
    return _object("function", _signature(name, _definition(value)), _markdown(value.__doc__ or ""))


def _class(name: str, cls: type) -> str:
    kind = "exception" if issubclass(cls, BaseException) else "class"
    members = [_object("attribute", _field(f), _markdown(f.doc)) for f in fields_of(cls)]
    members += list(_members(cls))
    init = next((n for n in _body(cls) if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        signature = _signature(name, init, bound=True, returns=False)
    elif kind == "exception" or getattr(cls, "_is_protocol", False):
        signature = name
    else:
        signature = f"{name}({_arguments(cls)})\n:single-line-parameter-list:"
    return _object(kind, signature, "\n\n".join([_markdown(ast.get_docstring(_node(cls)) or ""), *members]), 4)


def _members(cls: type) -> Iterator[str]:
    """The attributes that `__init__` documents, the properties and the methods; those of our own bases, too."""
    seen = set()
    for base in _ours(cls):
        for node in _body(base):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                for attribute in _attributes(node.body):
                    if attribute.name not in seen:
                        yield _object("attribute", _field(attribute), _markdown(attribute.doc))
                    seen.add(attribute.name)
    for base in _ours(cls):
        for node in _body(base):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.name in seen:
                continue
            decorators = {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
            if "overload" in decorators:
                continue
            seen.add(node.name)
            doc = _markdown(ast.get_docstring(node) or "")
            if decorators & {"property", "cached_property"}:
                returns = f": {ast.unparse(node.returns)}" if node.returns else ""
                yield _object("property", node.name + returns, doc)
            else:
                kind = next((k for k in ("classmethod", "staticmethod") if k in decorators), "method")
                yield _object(kind, _signature(node.name, node, bound=kind != "staticmethod"), doc)


def _object(kind: str, signature: str, text: str, fence: int = 3) -> str:
    """A directive of Sphinx's Python domain: an anchor, an entry of the index and of the search."""
    if kind in ("attribute", "property"):
        name, _, rest = signature.partition(": ")
        annotation, _, default = rest.partition(" = ")
        signature = (
            name + (f"\n:type: {annotation}" if annotation else "") + (f"\n:value: {default}" if default else "")
        )
    colons = ":" * fence
    return f"{colons}{{py:{kind}}} {signature}\n\n{text}\n{colons}\n"


def _signature(name: str, node: ast.FunctionDef, *, bound: bool = False, returns: bool = True) -> str:
    arguments = node.args
    if bound:
        if arguments.posonlyargs:
            arguments = ast.arguments(**dict(ast.iter_fields(arguments)) | {"posonlyargs": arguments.posonlyargs[1:]})
        else:
            arguments = ast.arguments(**dict(ast.iter_fields(arguments)) | {"args": arguments.args[1:]})
    result = f" -> {ast.unparse(node.returns)}" if returns and node.returns else ""
    return f"{name}({ast.unparse(arguments)}){result}"


def _arguments(cls: type) -> str:
    """The parameters of a dataclass or struct: their types are in the list of its fields."""
    fields = list(fields_of(cls))
    only = getattr(getattr(cls, "__struct_config__", None), "kw_only", False) or getattr(
        getattr(cls, "__dataclass_params__", None), "kw_only", False
    )
    shown = [f.name + (f"={f.default}" if f.default else "") for f in fields]
    return ", ".join((["*"] if only and shown else []) + shown)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field or attribute as the source has it."""

    name: str
    type: str
    default: str
    doc: str


def _field(field: Field) -> str:
    kind = f": {field.type}" if field.type else ""
    return field.name + kind + (f" = {field.default}" if field.default and kind else "")


def fields_of(cls: type) -> Iterator[Field]:
    """The fields of a dataclass, struct or protocol, those of its bases first, each with the text under it."""
    seen: dict[str, Field] = {}
    for base in reversed(_ours(cls)):
        body = _body(base)
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_":
                kind = ast.unparse(node.annotation)
                if not kind.startswith(("ClassVar", "Final")):
                    default = ast.unparse(node.value) if node.value else ""
                    seen[node.target.id] = Field(node.target.id, kind, _default(default, base), _text(after))
    yield from seen.values()


def _default(text: str, cls: type) -> str:
    """A default as a reader needs it: what a constant is, what a factory makes."""
    if text.startswith("field("):
        found = re.search(r"default_factory=(\w+)", text)
        return f"{found[1]}()" if found else ""
    value = vars(sys.modules[cls.__module__]).get(text)
    return repr(value) if isinstance(value, (int, float, str)) else text


def _attributes(body: Sequence[ast.stmt]) -> Iterator[Field]:
    for node, after in zip(body, [*body[1:], None], strict=True):
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        if isinstance(target, ast.Attribute) and not target.attr.startswith("_") and _text(after):
            kind = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            yield Field(target.attr, re.sub(r"^Final\[(.*)\]$", r"\1", kind), "", _text(after))


def _text(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return inspect.cleandoc(node.value.value)
    return ""


def _ours(cls: type) -> list[type]:
    return [base for base in cls.__mro__ if base.__module__.startswith("splitpoint.")]


_TREES: dict[str, ast.Module] = {}


def _tree(module: str) -> ast.Module:
    if module not in _TREES:
        _TREES[module] = ast.parse(inspect.getsource(sys.modules[module]))
    return _TREES[module]


def _node(cls: type) -> ast.ClassDef:
    return next(n for n in ast.walk(_tree(cls.__module__)) if isinstance(n, ast.ClassDef) and n.name == cls.__name__)


def _body(cls: type) -> list[ast.stmt]:
    return _node(cls).body


def _definition(function: Callable[..., Any]) -> ast.FunctionDef:
    """Where a function is written; what is public may be a bound method, such as `load_profile`."""
    of = getattr(function, "__self__", None)
    body = _body(type(of)) if of is not None else _tree(function.__module__).body
    node = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == function.__name__)
    if of is None:
        return node
    fields = dict(ast.iter_fields(node.args)) | {"args": node.args.args[1:]}
    node = ast.copy_location(ast.FunctionDef(**dict(ast.iter_fields(node)) | {"args": ast.arguments(**fields)}), node)
    if isinstance(of, Documents):  # T is what this kind of document holds
        text = re.sub(r"\bT\b", of.holds.__name__, ast.unparse(node))
        found = ast.parse(text).body[0]
        assert isinstance(found, ast.FunctionDef)
        return found
    return node


def _markdown(doc: str) -> str:
    """A docstring as Markdown: examples are fenced, public names are links."""
    lines: list[str] = []
    fenced = example = False
    for line in inspect.cleandoc(doc).splitlines():
        if line.startswith("```"):
            fenced = not fenced
        if not fenced and not example and line.startswith(">>> "):
            example = True
            lines.append("```pycon")
        elif example and not line.strip():
            example = False
            lines.append("```")
        lines.append(line if fenced or example or line.startswith(("    ", "```")) else _linked(line))
    return "\n".join([*lines, "```"] if example else lines)


def _linked(line: str) -> str:
    line = re.sub(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)", _link, line)
    return re.sub(r"(?<![\w`.])([A-Z][a-z]\w+Error)\b(?![\w`.])", _link_error, line)


def _link(found: re.Match[str]) -> str:
    name, _, member = found[1].removeprefix("splitpoint.").partition(".")
    value = getattr(splitpoint, name, None) if name in splitpoint.__all__ else None
    if value is None or (member and not _documents(value, member)):
        return found[0]
    return f"{{py:obj}}`{found[1]} <splitpoint.{name}{'.' * bool(member)}{member}>`"


def _link_error(found: re.Match[str]) -> str:
    public = found[1] in splitpoint.__all__
    return f"{{py:exc}}`{found[1]} <splitpoint.{found[1]}>`" if public else found[0]


def _documents(cls: Any, member: str) -> bool:
    if not isinstance(cls, type):
        return False
    return any(f"}} {member}" in text.splitlines()[0].replace("(", "\n") + "\n" for text in _members(cls)) or any(
        member == f.name for f in fields_of(cls)
    )


# --- errors -----------------------------------------------------------------------------------------------------------


def errors() -> str:
    """The error tree as a table, in order, each with its parent."""
    lines = ["| error | exit status | is a | what went wrong |", "|---|---|---|---|"]
    public = set(splitpoint.__all__)
    for cls in _subtree(SplitpointError):
        name = cls.__name__
        shown = f"{{py:exc}}`{name} <splitpoint.{name}>`" if name in public else f"`{name}`"
        parent = "" if cls is SplitpointError else f"`{cls.__mro__[1].__name__}`"
        doc = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        lines.append(f"| {shown} | {cls.exit_code} | {parent} | {doc} |")
    return "\n".join(lines) + "\n"


def _subtree(cls: type[SplitpointError]) -> Iterator[type[SplitpointError]]:
    """Those of errors.py: a few rooms have private kinds of their own, which leave them as one of these."""
    yield cls
    for below in cls.__subclasses__():
        if below.__module__ == "splitpoint.errors":
            yield from _subtree(below)


# --- files ------------------------------------------------------------------------------------------------------------


def documents() -> list[Documents[Any]]:
    """Every kind of JSON file of ours, in the order of a project: profile, link, calibration, plan, and the others."""
    there: dict[str, Documents[Any]] = {}
    for path in sorted(SRC.rglob("*.py")):
        if "Documents(" in path.read_text() and path.name != "documents.py":
            room = ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
            module = importlib.import_module(f"splitpoint.{room}")
            there |= {d.what: d for d in vars(module).values() if isinstance(d, Documents)}
    first = ("a profile", "a link", "a calibration", "a plan", "a manifest", "a latency file")
    return sorted(there.values(), key=lambda d: (first.index(d.what) if d.what in first else len(first), d.what))


def files() -> str:
    """Every kind of JSON file: its command, its members and theirs."""
    lines, known = [], set[type]()
    for document in documents():
        title = document.what.partition(" ")[2].capitalize()
        lines.append(f"## {title}\n")
        made_by = document.made_by.replace(" -o", " -o FILE")
        older = "".join(f" Files of format {number} are read, too." for number in document.older)
        lines.append(
            f"JSON, written by `{made_by}`. Its member `format` is {document.format}.{older} At most "
            f"{document.most_bytes >> 20} MiB are read.\n"
        )
        lines += _struct(document.holds, known, title="")
    return "\n".join(lines)


def _struct(cls: type, known: set[type], title: str) -> Iterator[str]:
    known.add(cls)
    if title:
        yield f"### {title}\n"
    yield _without_examples(_markdown(ast.get_docstring(_node(cls)) or "")) + "\n"
    array = getattr(getattr(cls, "__struct_config__", None), "array_like", False)
    if array:
        yield "In the file it is a list, with these in this order:\n"
    hints = typing.get_type_hints(cls, include_extras=True)
    inside: list[type] = []
    yield "| member | holds | if it is missing | meaning |\n|---|---|---|---|"
    for field in fields_of(cls):
        default = f"`{field.default}`" if field.default else "(required)"
        meaning = _linked(" ".join(field.doc.split()))
        yield f"| `{field.name}` | {_said(hints[field.name], inside)} | {default} | {meaning} |".replace(
            " |  |", " | |"
        )
    yield ""
    for one in inside:
        if one not in known:
            yield from _struct(one, known, one.__name__)


def _without_examples(text: str) -> str:
    return re.sub(r"```pycon\n.*?\n```\n?", "", text, flags=re.S)


_WORDS = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    bytes: "text (base64)",
    type(None): "null",
}


def _said(hint: Any, inside: list[type]) -> str:
    """A type in the words of JSON; structs in it are links, and are put `inside`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _said(arguments[0], inside) + _bounds(arguments[1:])
    if origin is typing.Literal:
        return " or ".join(f"`{value!r}`".replace("'", '"') for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_said(a, inside) for a in arguments)
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if origin is tuple and Ellipsis not in arguments:
            return f"list: {', '.join(_said(a, inside) for a in arguments)}"
        return f"list of {_said(arguments[0], inside)}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"object: {_said(arguments[0], inside)} → {_said(arguments[1], inside)}"
    if isinstance(hint, type) and (issubclass(hint, msgspec.Struct) or dataclasses.is_dataclass(hint)):
        if hint not in inside:
            inside.append(hint)
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return _WORDS.get(hint, f"`{getattr(hint, '__name__', hint)}`")


def _bounds(metas: Sequence[Any]) -> str:
    words = []
    for meta in metas:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            value = getattr(meta, name, None)
            if value is not None and abs(value) < 1 << 40:
                words.append(f"{sign} {value:,}")
        if getattr(meta, "max_length", None):
            words.append(f"at most {meta.max_length:,} long")
    return f" ({', '.join(words)})" if words else ""


#: Tables as CSV: the heading, where its rows are, and the list of its columns.
TABLES: Sequence[tuple[str, str, str]] = (
    ("splitpoint inspect --csv", "report.layer_table", "LayerRow"),
    ("splitpoint profile --csv", "report.layer_study", "CostRow"),
    ("splitpoint sweep --csv", "report.sweep_table", "SweepRow"),
    ("splitpoint predict --csv", "report.prediction_table", "PriceRow"),
    ("splitpoint tasks --csv", "tasks.task_rows", ""),
    ("splitpoint plan --front", "report.front", ""),
    ("splitpoint lab run -o: summary.csv", "lab.experiment", ""),
)


def tables() -> str:
    """The columns of every CSV file, in order, and what its rows say of themselves."""
    lines = []
    for title, room, row in TABLES:
        module = importlib.import_module(f"splitpoint.{room}")
        lines += [
            f"### `{title}`\n",
            "```text",
            *_wrapped(getattr(module, "COLUMNS", None) or module._COLUMNS),
            "```\n",
        ]
        if row:
            cls = getattr(module, row)
            lines.append(_without_examples(_markdown(ast.get_docstring(_node(cls)) or "")) + "\n")
            lines += [f"* {_names(f.name, cls)}: {_linked(' '.join(f.doc.split()))}" for f in fields_of(cls) if f.doc]
            lines.append("")
    return "\n".join(lines)


def _names(name: str, cls: type) -> str:
    """`name`, and those before it that its text is about: they have none of their own and its type."""
    fields = list(fields_of(cls))
    at = next(k for k, f in enumerate(fields) if f.name == name)
    first = at
    prefix = name.partition("_")[0] + "_"
    while first and not fields[first - 1].doc and fields[first - 1].name.startswith(prefix):
        first -= 1
    return ", ".join(f"`{f.name}`" for f in fields[first : at + 1])


def _wrapped(names: Sequence[str], width: int = 96) -> Iterator[str]:
    line = ""
    for name in names:
        if line and len(line) + 1 + len(name) > width:
            yield line + ","
            line = ""
        line += ("," if line else "") + name
    yield line


PARTS: Mapping[str, Callable[[], str]] = {
    "cli": cli, "api": api, "contracts": contracts, "errors": errors, "files": files, "tables": tables,
}  # fmt: skip

if __name__ == "__main__":
    print(PARTS[sys.argv[1]]())
