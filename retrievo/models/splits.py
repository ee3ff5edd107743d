"""Records how chunks were halved when memory ran out, since the output's bytes depend on the chunk size."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar

from retrievo.support import console
from retrievo.support.values import Values


class Splits:
    """The number of calls that computed rows, and the tokens per chunk of each call whose chunks were halved."""

    def __init__(self) -> None:
        self.calls = 0
        self.tokens: dict[int, int] = {}  # of the call of this number, from 0

    def stats(self, name: str = "chunk_tokens_of_calls") -> Values:
        """The entry for a manifest; empty where no chunk was halved."""
        return {name: {str(call): tokens for call, tokens in self.tokens.items()}} if self.tokens else {}


_noting: ContextVar[Splits | None] = ContextVar("_noting", default=None)


@contextlib.contextmanager
def noted_splits() -> Iterator[Splits]:
    """Records the calls whose chunks are halved within this block."""
    token = _noting.set(noted := Splits())
    try:
        yield noted
    finally:
        _noting.reset(token)


def begin_call() -> Splits:
    """The record in which the current call enters its halved chunks."""
    noting = _noting.get() or Splits()
    noting.calls += 1
    return noting


@functools.cache
def say_halved(tokens: int) -> None:
    """Warns once, however many shards are affected."""
    console.warn(
        f"out of memory: recomputed in chunks of {tokens:,} tokens; pass --chunk-tokens {tokens} to avoid this"
    )
