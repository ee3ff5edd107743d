"""The objectives by name and their options. Standard library only: the command line reads this before torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from retrievo.learning.losses import LOSSES
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Options):
    """Contrastive fine-tuning of queries against documents."""

    loss: tuple[str, ...] = option("What is minimized.", default=("infonce",), choices=tuple(LOSSES))
    loss_weight: tuple[float, ...] = option("Weight of each loss.", default=(1.0,), minimum=0)
    temperature: float = option("Divides the scores.", default=1.0, above=0)
    learn_temperature: bool = option("Train the temperature too, from --temperature on.", default=False)

    def check(self) -> None:
        super().check()
        if len(self.loss) != len(self.loss_weight):
            found = f"{len(self.loss_weight)} weights for {len(self.loss)} losses"
            raise UsageError("--loss-weight", found, "one for each --loss")


class Choice(NamedTuple):
    """The options of an objective, and where its class lies."""

    config: type
    target: str  # "module:Class"


OBJECTIVES = {
    "finetune": Choice(FinetuneConfig, "retrievo.objectives.finetune:Finetune"),
}
