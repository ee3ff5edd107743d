"""How much of each of several corpora: standard library only, for option tables read it."""

from __future__ import annotations

from collections.abc import Sequence

from retrievo.support.errors import UsageError

UNIFORM, EQUAL = "uniform", "equal"
_EXPECTED = "uniform, equal, alpha=0.5, or a weight for each as in 3,1"


def shares(mix: str, sizes: Sequence[int]) -> list[float]:
    """The share of each corpus or data set of so many rows; they sum to 1.

    uniform: of each row alike. equal: of each corpus alike (Contriever's 50/50, Izacard et al. 2021, table 5).
    alpha=a: in proportion to size^a, between the two (Conneau & Lample 2019, section 3.1). 3,1: these weights.
    Raises: UsageError for what is none of these, and for another number of weights.
    """
    weights = _weights(mix, sizes)
    if len(weights) != len(sizes):
        raise UsageError("--mix", f"found {len(weights)} weights for {len(sizes)} of them", "one for each")
    return [weight / sum(weights) for weight in weights]


def _weights(mix: str, sizes: Sequence[int]) -> list[float]:
    if mix == UNIFORM:
        return [float(size) for size in sizes]
    if mix == EQUAL:
        return [1.0 for _ in sizes]
    name, _, alpha = mix.rpartition("=")
    try:
        if name == "alpha":
            return [size ** float(alpha) for size in sizes]
        weights = [float(part) for part in mix.split(",")]
    except ValueError:
        weights = []
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise UsageError("--mix", f"found '{mix}'", _EXPECTED)
    return weights


def check_mix(mix: str) -> None:
    """Raises UsageError for what is no mix, whatever the number of corpora."""
    _weights(mix, [1])


def apportioned(total: int, parts: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, in proportion to shares: the largest remainders are rounded up (Hamilton)."""
    exact = [total * part for part in parts]
    counts = [int(amount) for amount in exact]
    order = sorted(range(len(parts)), key=lambda place: counts[place] - exact[place])
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts
