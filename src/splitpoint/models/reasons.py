"""What ONNX Runtime says went wrong, without its error codes and the places in its own C++ source."""

from __future__ import annotations

import re

#: A place in its source, such as ``/onnxruntime_src/…/gemm.cc:12``. A function's name or whole signature follows.
_PLACE = re.compile(r"(?:[\w.+-]*/[\w./+-]*)?[\w+-]+\.(?:cc|cpp|cxx|cu|cuh|h|hh|hpp|inc):\d+:? ")
#: What a signature may have behind its parameters.
_SUFFIX = re.compile(r" ?(?:const|noexcept|mutable|&&?)(?=[ :])")
_ENFORCED = re.compile(r"^[^.]{1,200}? was false\. (?=\S)")
_RUNNING = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'([^']*)' Status Message: ")
_INVALID = re.compile(r'This is an invalid model\. In Node, \("([^"]*)", ([^,]+), "[^"]*", -?\d+\) : .*? , Error ')
#: Longer than this is no sentence.
_MOST = 300


def reason_of(exc: BaseException) -> str:
    """The news in an exception of ONNX Runtime, in one line.

    >>> print(reason_of(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : /src/core/model.cc:256 ns::Model::Model(int&&, "
    ...     "const ns::Options&) Unsupported model IR version: 15, max supported IR version: 14")))
    Unsupported model IR version: 15, max supported IR version: 14
    """
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    text = lines[0] if lines else type(exc).__name__
    if text.endswith("following indices"):  # which, the second line says
        text = " ".join(lines[:2])
    # "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for …": the last part is the news.
    text = text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
    while place := _PLACE.search(text):
        text = text[: place.start()] + _ENFORCED.sub("", _behind_signature(text[place.end() :]))
    text = _INVALID.sub(r"node \1 (\2): ", _RUNNING.sub(r"node \2 (\1): ", text))
    text = text.removeprefix("This is an invalid model. ").strip() or type(exc).__name__
    return text if len(text) <= _MOST else text[: _MOST - 1] + "…"


def _behind_signature(text: str) -> str:
    """What follows the function that `text` begins with: a name, or all of ``R ns::f<T>(A, B) const [with T = …]``."""
    start = text.find("(")
    before = text[:start] if start > 0 else " "
    if before.endswith(" ") or ("::" not in before and " " in before):
        return text.partition(" ")[2] or text
    at = _closed(text, start)
    while at < len(text):
        if suffix := _SUFFIX.match(text, at):
            at = suffix.end()
        elif text.startswith(" [with ", at):
            at = _closed(text, at + 1)
        elif text.startswith(("::", ">", "("), at):  # a lambda inside it
            opening = text.find("(", at)
            if opening < 0 or " " in text[at:opening]:
                at = len(text) if " " not in text[at:] else text.index(" ", at)
            else:
                at = _closed(text, opening)
        else:
            break
    return text[at:].strip()


def _closed(text: str, opening: int) -> int:
    """Behind the bracket that closes the one at `opening`; the end of the text where none does."""
    left, right, depth = text[opening], {"(": ")", "[": "]"}[text[opening]], 0
    for at in range(opening, len(text)):
        depth += (text[at] == left) - (text[at] == right)
        if not depth:
            return at + 1
    return len(text)
