"""`retrievo cache`: lists the entries of the user's cache folder, and removes them on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrievo.data.options import json_option
from retrievo.support.conditions import only_with
from retrievo.support.options import Options, option
from retrievo.support.sizes import bytes_of
from retrievo.support.verbs import verb

if TYPE_CHECKING:
    from retrievo.data.cache_entries import Inventory


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Options):
    """Options of `retrievo cache`."""

    prune: bool = option(
        "Remove cache entries, least recently used first. All are removed unless --older-than or --max-size is given.",
        default=False,
        decides_output=True,
        shown=True,
        group="Data",
    )
    older_than: float | None = option(
        "Age in days since the last use from which entries are removed.",
        default=None,
        minimum=0,
        applies=only_with("prune"),
        shown=True,
        group="Data",
    )
    max_size: str | None = option(
        "Maximum size of the cache, as in 20GB. Least recently used entries are removed first.",
        default=None,
        applies=only_with("prune"),
        shown=True,
        group="Data",
    )
    json: bool = json_option(shown=True)

    def check(self) -> None:
        if self.max_size is not None:
            bytes_of("--max-size", self.max_size)


@verb(CacheConfig)
def cache(config: CacheConfig) -> Inventory:
    """The entries of the cache, after pruning if requested; entries that are being made or used are kept.

    Raises: RetrievoError where the cache can't be read.
    """
    from retrievo.data.cache_entries import inventory, prune

    if not config.prune:
        return inventory()
    limit = None if config.max_size is None else bytes_of("--max-size", config.max_size)
    return prune(older_than=config.older_than, max_size=limit)
