"""Detects runs that had nothing to learn from: without negatives a run would end as usual, with an untrained model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from retrievo.distributed.collectives import as_rank_0_says
from retrievo.support import console
from retrievo.support.errors import RetrievoError
from retrievo.training.objectives.objective import WITH_NEGATIVE

_UNITS = {"pairs": "queries", "documents": "documents"}


class NegativeCounts:
    """Counts, from the lines of a log, the rows of all steps and those that met no negative, for each loss."""

    def __init__(self) -> None:
        self.steps = 0
        self.moved = False  # whether the gradient was above 0 in any step
        self.rows: Counter[str] = Counter()  # by the name of the metric, which names the loss
        self.without: Counter[str] = Counter()
        self.unit = "rows"

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts a line of the log; lines of validations are skipped."""
        if "gradient_norm" not in record:
            return
        self.steps += 1
        self.moved |= record["gradient_norm"] > 0
        for name in record:
            if name.endswith(WITH_NEGATIVE):
                count, unit = next((record[unit], _UNITS[unit]) for unit in _UNITS if unit in record)
                self.unit = unit
                self.rows[name] += count
                self.without[name] += round((1 - record[name]) * count)

    def check(self, folder: Path, device: torch.device, *, ends: bool = True) -> None:
        """Raises RetrievoError on all ranks if nothing was learned so far, by the log of rank 0; warns at the end.

        Gradients of 0 are an error at the end only, because momentum contrast begins with an empty queue.
        """
        never = bool(self.rows) and all(self.without[name] == self.rows[name] for name in self.rows)
        if as_rank_0_says(self.steps > 0 and (never or (ends and not self.moved)), device):
            why = f"none of the {self.unit} had a negative" if never else "the gradient was 0"
            fix = "raise --batch-size, add negatives, or check the relevance judgments"
            raise RetrievoError(folder, f"nothing was learned in {self.steps:,} steps: {why}", None, fix)
        if ends:
            self._warn()

    def _warn(self) -> None:
        """Warns, on the lead process, of rows from which a loss learned nothing."""
        for name, count in self.without.items():
            if count:
                share = f"{count:,} of {self.rows[name]:,} {self.unit} of all steps ({count / self.rows[name]:.1%})"
                loss = name.removesuffix(WITH_NEGATIVE)
                console.warn(f"the loss {loss} learned nothing from {share}: they had no negative that it can use")
