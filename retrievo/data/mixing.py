"""Mixing proportions of several corpora (standard library only, because Config modules import it)."""

from __future__ import annotations

from collections.abc import Sequence

from retrievo.support.errors import UsageError

UNIFORM, EQUAL = "uniform", "equal"
_EXPECTED = "uniform, equal, alpha=0.5, or a weight for each as in 3,1"


def shares(mix: str, sizes: Sequence[int]) -> list[float]:
    """The sampling proportion of each corpus or data set, given its number of rows; proportions sum to 1.

    uniform: every row is equally likely.
    equal:   every corpus is equally likely (Contriever's 50/50, Izacard et al. 2021, table 5).
    alpha=a: proportional to size^a, which lies between the two (Conneau & Lample 2019, section 3.1).
    3,1:     proportional to these weights.
    Raises: UsageError for any other text, and where the number of weights differs from that of the corpora.
    """
    weights = _weights(mix, sizes)
    if len(weights) != len(sizes):
        raise UsageError(
            "--mix", f"found {len(weights)} weights for {len(sizes)} corpora or data sets", "one weight for each"
        )
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
    """Raises UsageError where a text is not a valid mix for any number of corpora."""
    _weights(mix, [1])


def apportioned(total: int, parts: Sequence[float]) -> list[int]:
    """Integers that sum to `total`, in proportion to `parts`, by the largest-remainder method (Hamilton)."""
    exact = [total * part for part in parts]
    counts = [int(amount) for amount in exact]
    order = sorted(range(len(parts)), key=lambda place: counts[place] - exact[place])
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts
