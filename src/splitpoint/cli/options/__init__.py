"""Options that several verbs share: a module a group, each a decorator that gives the command one parsed parameter."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

F = TypeVar("F", bound=Callable[..., Any])

#: The groups of options in a verb's help, in their order; the first has what no group of several verbs has.
OWN, MODEL, ENGINE, CONNECTION, PLANNING, OUTPUT = SECTIONS = (
    "Options", "Model", "Engine", "Connection", "Planning", "Output",
)  # fmt: skip


def together(*options: Callable[[Any], Any], section: str = "") -> Callable[[F], F]:
    """One decorator of several, which stand in this order in the help, in that `section` of it."""

    def decorate(function: F) -> F:
        before = len(getattr(function, "__click_params__", ()))
        for option in reversed(options):
            function = option(function)
        if section:
            for param in getattr(function, "__click_params__", ())[before:]:
                vars(param).setdefault("section", section)
        return function

    return decorate


def section_of(param: click.Parameter) -> str:
    """The section of a verb's help that an option stands in."""
    return str(vars(param).get("section", OWN))


def gathered(
    name: str, make: Callable[..., Any], *options: Callable[[Any], Any], section: str = ""
) -> Callable[[F], F]:
    """Options as the one parameter `name`: what `make` makes of the values of those it has parameters for.

    They are `options`, and what stands above in the list of decorators.
    """
    own = tuple(signature(make).parameters)

    def decorate(function: F) -> F:
        @wraps(function)
        def command(*args: Any, **values: Any) -> Any:
            values[name] = make(**{option: values.pop(option) for option in own if option in values})
            return function(*args, **values)

        return cast(F, together(*options, section=section)(command))

    return decorate


def given(name: str) -> bool:
    """Whether the user gave the option with this parameter's name, rather than leaving it at its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
