"""When an option applies: a predicate over the other options of its command, with the words that say it.

Checks, manifests, help and documentation read the same condition. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condition:
    """What must hold of the other options.

    said:      what follows "applies only", as in `with --loss kl`; worked out when it is asked for.
    needs:     the options that the predicate reads; a Config without them does not restrict the option.
    predicate: the values of options by name -> whether the option applies.
    """

    said: Callable[[], str]
    needs: tuple[str, ...]
    predicate: Callable[[Mapping[str, Any]], bool]

    def holds(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the option applies beside these values."""
        return not all(name in chosen for name in self.needs) or self.predicate(chosen)

    def __and__(self, other: Condition) -> Condition:
        def both(chosen: Mapping[str, Any]) -> bool:
            return self.holds(chosen) and other.holds(chosen)

        return Condition(lambda: f"{self} and {other}", (), both)

    def __str__(self) -> str:
        return self.said()


def only_with(name: str, *values: str | Callable[[], Iterable[str]]) -> Condition:
    """An option applies where another has one of these values, or is given at all where none are named.

    values: names, or what gives them once all tables are there. A list has a value where one of its items does;
    `name:detail` is its name.
    """

    def named() -> tuple[str, ...]:
        return tuple(name for value in values for name in ([value] if isinstance(value, str) else value()))

    return Condition(lambda: _said("with", name, named()), (name,), lambda chosen: _meets(chosen[name], named()))


def only_without(name: str) -> Condition:
    """An option applies where another is not given."""
    return Condition(lambda: _said("without", name), (name,), lambda chosen: not _meets(chosen[name], ()))


def only_where(said: str, *needs: str, holds: Callable[..., bool]) -> Condition:
    """An option applies where a predicate holds of the values of some options, in their order."""
    return Condition(lambda: said, needs, lambda chosen: holds(*(chosen[name] for name in needs)))


def _said(preposition: str, name: str, values: tuple[str, ...] = ()) -> str:
    *first, last = values or ("",)
    listed = f"{', '.join(first)} or {last}" if first else last
    return f"{preposition} {flag_of(name)} {listed}".rstrip()


def _meets(chosen: Any, values: tuple[str, ...]) -> bool:
    if not values:
        return not is_off(chosen) and chosen != ()
    items = chosen if isinstance(chosen, tuple) else (chosen,)
    return any(item in values or str(item).partition(":")[0] in values for item in items)


def is_off(value: Any) -> bool:
    """Whether an option was not given; 0 is a value."""
    return value is None or value is False


def flag_of(name: str) -> str:
    """What is typed for a field of a Config."""
    return "--" + name.rstrip("_").replace("_", "-")
