"""Verbs as functions: `train(TrainConfig(...))` and `train(model=..., corpus=...)` are one call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from retrievo.support import console
from retrievo.support.errors import UsageError
from retrievo.support.options import Options
from retrievo.support.settings import Layer, resolve

Fields = ParamSpec("Fields")
Config = TypeVar("Config", bound=Options)
Given = TypeVar("Given", contravariant=True)
Outcome = TypeVar("Outcome", covariant=True)
Result = TypeVar("Result")


class Verb(Protocol[Given, Fields, Outcome]):
    """A function that takes its Config, or the Config's fields as keywords.

    The last form is for what a Config converts, such as text for a path.
    """

    @overload
    def __call__(self, config: Given, /) -> Outcome: ...

    @overload
    def __call__(self, *args: Fields.args, **fields: Fields.kwargs) -> Outcome: ...

    @overload
    def __call__(self, **fields: Any) -> Outcome: ...


def verb(
    config: Callable[Fields, Config],
) -> Callable[[Callable[[Config], Result]], Verb[Config, Fields, Result]]:
    """Lets a function of a Config take the Config's fields too, with the defaults and checks of the command line.

    config: the class. A `retrievo.toml` in the working folder is not read: that is for what a person types.
    """
    kind = cast("type[Config]", config)

    def decorated(function: Callable[[Config], Result]) -> Verb[Config, Fields, Result]:
        name = getattr(function, "__name__", "")

        @functools.wraps(function)
        def called(given: Config | None = None, /, **fields: Any) -> Result:
            return function(config_of(kind, f"{name}()", given, fields))

        annotation = f"{kind.__name__} | None"
        first = inspect.Parameter("config", inspect.Parameter.POSITIONAL_ONLY, default=None, annotation=annotation)
        parameters = [first, *inspect.signature(kind).parameters.values()]
        called.__signature__ = inspect.signature(function).replace(parameters=parameters)  # type: ignore[attr-defined]
        return cast("Verb[Config, Fields, Result]", called)

    return decorated


def config_of(kind: type[Config], where: str, given: Config | None, fields: Mapping[str, Any]) -> Config:
    """The Config that was given, or the one that the command line would make of these options; None = unset.

    where: what error messages call the call.

    Raises: UsageError for both together, a Config of another kind, unknown fields, and values that are not allowed.
    """
    if given is not None and fields:
        raise UsageError(where, f"was given a Config and '{next(iter(fields))}'", "one of them")
    if given is not None:
        if not isinstance(given, kind):
            raise UsageError(where, f"was given {type(given).__name__}", f"a {kind.__name__}, or its fields by name")
        return given
    chosen = {name: value for name, value in fields.items() if value is not None}
    layers = [Layer(where, chosen, typed=True), *kind.layers(chosen), *kind.manifest_layers(chosen)]
    resolved = resolve(kind, layers)
    for warning in resolved.warnings:
        console.warn(warning)
    return resolved.config
