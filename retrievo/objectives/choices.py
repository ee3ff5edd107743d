"""The objectives by name and their options. Standard library only: the command line reads this before torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from retrievo.learning.losses import LOSSES
from retrievo.support.errors import UsageError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Contrastive fine-tuning of queries against documents."""

    loss: tuple[str, ...] = ("infonce",)  # rows of LOSSES
    loss_weight: tuple[float, ...] = (1.0,)  # one for each loss
    temperature: float = 1.0  # divides the inner products
    learn_temperature: bool = False  # the temperature is then where training starts

    def __post_init__(self) -> None:
        for name in self.loss:
            if name not in LOSSES:
                raise UsageError("--loss", f"found '{name}'", None, did_you_mean(name, LOSSES))
        if len(self.loss) != len(self.loss_weight):
            found = f"{len(self.loss_weight)} weights for {len(self.loss)} losses"
            raise UsageError("--loss-weight", found, "one for each --loss")
        if not self.temperature > 0:
            raise UsageError("--temperature", f"found {self.temperature}", "more than 0")


class Choice(NamedTuple):
    """The options of an objective, and where its class lies."""

    config: type
    target: str  # "module:Class"


OBJECTIVES = {
    "finetune": Choice(FinetuneConfig, "retrievo.objectives.finetune:Finetune"),
}
