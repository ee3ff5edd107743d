"""`retrievo cache`: what the user's cache folder holds, and room again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrievo.data.options import json_option
from retrievo.support.options import Options, option
from retrievo.support.sizes import bytes_of
from retrievo.support.verbs import verb

if TYPE_CHECKING:
    from retrievo.data.cache_entries import Inventory

_PRUNES = {"prune": ("True",)}


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Options):
    """Options of `retrievo cache`."""

    prune: bool = option(
        "Remove what was kept, least recently used first: all of it, or as much as --older-than and --max-size say.",
        default=False,
        decides_output=True,
    )
    older_than: float | None = option(
        "Days since its last use from which an entry is removed.", default=None, minimum=0, only=_PRUNES
    )
    max_size: str | None = option(
        "Size that the cache may keep, as in 20GB; entries that were used longest ago go first.",
        default=None,
        only=_PRUNES,
    )
    json: bool = json_option()

    def check(self) -> None:
        if self.max_size is not None:
            bytes_of("--max-size", self.max_size)


@verb(CacheConfig)
def cache(config: CacheConfig) -> Inventory:
    """What the cache holds, after what is to go has gone; an entry that is being made or used stays.

    Raises: RetrievoError where the cache can't be read.
    """
    from retrievo.data.cache_entries import inventory, prune

    if not config.prune:
        return inventory()
    limit = None if config.max_size is None else bytes_of("--max-size", config.max_size)
    return prune(older_than=config.older_than, max_size=limit)
