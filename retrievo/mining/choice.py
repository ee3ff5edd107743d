"""The choice of negatives: each miner's quota of the candidates that lie in the window and that no rule drops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from retrievo.data.ordering import ranks
from retrievo.data.sampling import random_keys
from retrievo.mining.candidates import Candidates, Judged, Miner, RandomMiner, among
from retrievo.mining.rules import RULES, Rules, Verdicts

_ROWS_AT_ONCE = 1 << 20  # candidates in memory at a time


@dataclass(frozen=True)
class Window:
    """The ranks from which negatives are taken: those after the first `skip`, up to `depth`.

    sampling: `random` draws without replacement, as a pure function of (seed, query id, document id); `top` takes the
    highest-ranked candidates.
    """

    skip: int
    depth: int
    sampling: str
    seed: int


@dataclass
class Tally:
    """Counts of a mining run, for the manifest and the audit.

    dropped: (miner, rule) -> number of candidates that the rule dropped. looked_at: miner -> number of candidates in
    the window. kept: miner -> number of negatives. shared: (miner, other) -> number of candidates in the windows of
    both.
    """

    queries: int = 0
    short: int = 0  # queries with fewer negatives than the quotas ask for
    without: int = 0  # queries without any negative
    unmeasured: int = (
        0  # pairs of a query and a miner that found no relevant document of it, so that margins do not apply
    )
    unscored: int = 0  # candidates in the window without a teacher's score
    looked_at: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    shared: Counter[tuple[str, str]] = field(default_factory=Counter)

    def rule(self, name: str) -> int:
        """The number of candidates that one rule dropped, over all miners."""
        return sum(count for (_, rule), count in self.dropped.items() if rule == name)


class Part(NamedTuple):
    """The outcome for a block of queries: negatives and dropped candidates, by query, miner and rank."""

    negatives: Candidates
    dropped: Candidates
    rules: np.ndarray  # [dropped] index in RULES
    kept_surplus: np.ndarray  # [negatives] see Verdicts
    dropped_surplus: np.ndarray  # [dropped]


def choose(judged: Judged, miners: Sequence[Miner], window: Window, rules: Rules, tally: Tally) -> Iterator[Part]:
    """Takes each miner's quota of negatives, miner after miner, and never the same document of a query twice."""
    size = max(1, _ROWS_AT_ONCE // (window.depth * len(miners)))
    for first in range(0, len(judged), size):
        end = min(first + size, len(judged))
        taken = np.zeros(0, np.uint64)
        seen: dict[str, np.ndarray] = {}  # keys of the windows of this part
        parts = []
        for miner in miners:
            found = miner.upto(first, end)
            verdicts = rules.judge(found)
            inside = _inside(miner, found, window)
            keys = judged.pair_keys(found.query, found.row)
            open_ = inside & (verdicts.rule < 0) & ~among(keys, np.sort(taken))
            kept = _drawn(np.flatnonzero(open_), found, judged, miner, window)
            taken = np.concatenate([taken, keys[kept]])
            seen[miner.name] = keys[inside]
            _count(tally, miner.name, found, verdicts, inside, kept, rules)
            parts.append((found, verdicts, kept, np.flatnonzero(inside & (verdicts.rule >= 0))))
        _count_shared(tally, seen)
        yield _joined(parts, tally, first, end, sum(miner.quota for miner in miners))


def _inside(miner: Miner, found: Candidates, window: Window) -> np.ndarray:
    """Which candidates are in the window; random draws are not ranked, so all of them are."""
    if isinstance(miner, RandomMiner):
        return np.ones(len(found.query), bool)
    return (found.rank > window.skip) & (found.rank <= window.depth)


def _drawn(open_: np.ndarray, found: Candidates, judged: Judged, miner: Miner, window: Window) -> np.ndarray:
    """Positions of the candidates that become negatives, ascending."""
    query = found.query[open_]
    by_rank = window.sampling == "top" or isinstance(miner, RandomMiner)
    first = found.rank[open_] if by_rank else random_keys(window.seed, judged.hashes[query], found.row[open_])
    order = np.lexsort((first, query))
    return np.sort(open_[order[ranks(query[order]) <= miner.quota]]) if len(order) else open_


def _count(
    tally: Tally, name: str, found: Candidates, verdicts: Verdicts, inside: np.ndarray, kept: np.ndarray, rules: Rules
) -> None:
    tally.looked_at[name] += int(inside.sum())
    tally.kept[name] += len(kept)
    for number, count in enumerate(np.bincount(verdicts.rule[inside] + 1, minlength=len(RULES) + 1)[1:]):
        tally.dropped[name, RULES[number]] += int(count)
    relevant = verdicts.rule == RULES.index("relevant")
    if name != RandomMiner.name:
        tally.unmeasured += len(np.unique(found.query)) - len(np.unique(found.query[relevant]))
    if rules.teacher:
        tally.unscored += int((inside & (found.row >= 0) & np.isnan(verdicts.teacher)).sum())


def _count_shared(tally: Tally, seen: dict[str, np.ndarray]) -> None:
    for name, keys in seen.items():
        for other, theirs in seen.items():
            if other != name:
                tally.shared[name, other] += int(among(keys, np.sort(theirs)).sum())


def _joined(
    parts: Sequence[tuple[Candidates, Verdicts, np.ndarray, np.ndarray]], tally: Tally, first: int, end: int, quota: int
) -> Part:
    """The negatives and dropped candidates of all miners, by query; counts queries that end short."""
    kept, kept_surplus = _concat([(found.take(at), verdicts.surplus[at]) for found, verdicts, at, _ in parts])
    lost, lost_values = _concat(
        [(found.take(at), np.stack([v.surplus[at], v.rule[at]], axis=1)) for found, v, _, at in parts]
    )
    sizes = np.bincount(kept.query - first, minlength=end - first)
    tally.queries += end - first
    tally.short += int((sizes < quota).sum())
    tally.without += int((sizes == 0).sum())
    return Part(kept, lost, lost_values[:, 1].astype(np.int8), kept_surplus, lost_values[:, 0])


def _concat(parts: Sequence[tuple[Candidates, np.ndarray]]) -> tuple[Candidates, np.ndarray]:
    """Joins the candidates of several miners and a value of each, ordered by query and within a query by miner."""
    columns = [
        pa.concat_arrays(column) if isinstance(column[0], pa.Array) else np.concatenate(column)
        for column in zip(*(candidates for candidates, _ in parts), strict=True)
    ]
    joined = Candidates(*columns)
    order = np.argsort(joined.query, kind="stable")
    return joined.take(order), np.concatenate([values for _, values in parts])[order]
