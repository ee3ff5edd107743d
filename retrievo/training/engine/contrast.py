"""Whether training had anything to learn from: a run whose queries meet no negative ends like any other, untrained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from retrievo.distributed.collectives import as_rank_0_says
from retrievo.support import console
from retrievo.support.errors import RetrievoError
from retrievo.training.objectives.objective import CONTESTED

_UNITS = {"pairs": "queries", "documents": "documents"}


class Contrast:
    """What the lines of a log say of the rows of all steps, and of those that had nothing to be told apart from."""

    def __init__(self) -> None:
        self.steps = 0
        self.moved = False  # whether any gradient was not 0
        self.rows: Counter[str] = Counter()  # by what contrasts them
        self.without: Counter[str] = Counter()
        self.unit = "rows"

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts a line of the log; lines of validations say nothing."""
        if "gradient_norm" not in record:
            return
        self.steps += 1
        self.moved |= record["gradient_norm"] > 0
        for name in record:
            if name.endswith(CONTESTED):
                count, unit = next((record[unit], _UNITS[unit]) for unit in _UNITS if unit in record)
                self.unit = unit
                self.rows[name] += count
                self.without[name] += round((1 - record[name]) * count)

    def check(self, folder: Path, device: torch.device, *, ends: bool = True) -> None:
        """Raises RetrievoError on all ranks where nothing was learned so far, by the log of rank 0; warns at the end.

        Gradients of 0 are an error at the end only: momentum contrast begins with an empty queue.
        """
        never = bool(self.rows) and all(self.without[name] == self.rows[name] for name in self.rows)
        if as_rank_0_says(self.steps > 0 and (never or (ends and not self.moved)), device):
            why = f"none of the {self.unit} had a negative" if never else "the gradient was 0"
            fix = "raise --batch-size, add negatives, or check what is judged relevant"
            raise RetrievoError(folder, f"nothing was learned in {self.steps:,} steps: {why}", None, fix)
        if ends:
            self._tell()

    def _tell(self) -> None:
        """Warns, on the lead process, of rows that taught a loss nothing."""
        for name, count in self.without.items():
            if count:
                of = f"{count:,} of {self.rows[name]:,} {self.unit} of all steps ({count / self.rows[name]:.1%})"
                loss = name.removesuffix(CONTESTED)
                console.warn(
                    f"{of} had nothing that the loss {loss} could tell their positive from: they taught nothing"
                )
