"""What memory that ran out did to the chunks of a model: the bytes that come out depend on it, so it is recorded."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from retrievo.support import console


class Splits:
    """How often a model computed rows, and the tokens of a chunk each time that memory left fewer than asked for."""

    def __init__(self) -> None:
        self.calls = 0
        self.tokens: dict[int, int] = {}  # of the call of this number, from 0

    def stats(self, name: str = "chunk_tokens_of_calls") -> dict[str, Any]:
        """For a manifest; empty where all chunks fitted."""
        return {name: {str(call): tokens for call, tokens in self.tokens.items()}} if self.tokens else {}


_noting: ContextVar[Splits | None] = ContextVar("_noting", default=None)


@contextlib.contextmanager
def noted_splits() -> Iterator[Splits]:
    """Notes whose chunks are halved while this is open."""
    token = _noting.set(noted := Splits())
    try:
        yield noted
    finally:
        _noting.reset(token)


def begin_call() -> Splits:
    """Where a model that computes rows notes what becomes of its chunks."""
    noting = _noting.get() or Splits()
    noting.calls += 1
    return noting


@functools.cache
def say_halved(tokens: int) -> None:
    """Once, however many shards it befalls."""
    console.warn(f"out of memory: computed anew in chunks of {tokens:,} tokens; --chunk-tokens {tokens} spares the try")
