"""Options that several verbs share: a module a group, each a decorator that gives the command one parsed parameter."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

F = TypeVar("F", bound=Callable[..., Any])


def together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """One decorator of several, which stand in this order in the help."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def gathered(name: str, make: Callable[..., Any], *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Options as the one parameter `name`: what `make` makes of the values of those it has parameters for.

    They are `options`, and what stands above in the list of decorators.
    """
    own = tuple(signature(make).parameters)

    def decorate(function: F) -> F:
        @wraps(function)
        def command(*args: Any, **values: Any) -> Any:
            values[name] = make(**{option: values.pop(option) for option in own if option in values})
            return function(*args, **values)

        return cast(F, together(*options)(command))

    return decorate


def given(name: str) -> bool:
    """Whether the user gave the option with this parameter's name, rather than leaving it at its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
