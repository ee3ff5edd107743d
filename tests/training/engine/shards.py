"""What each process of test_fsdp.py does."""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ranks import GROUPS as EVERY
from ranks import Feed
from tiny import LONGEST, finetune_batch, rows
from torch import nn

from retrievo.distributed.collectives import barrier, process_group, rank
from retrievo.distributed.fsdp import own_part, shard
from retrievo.models.cross_encoder import CrossEncoder
from retrievo.models.encoder import Encoder
from retrievo.models.lora import add_adapters
from retrievo.training.batch import Batch, Rows
from retrievo.training.engine.config import FitConfig
from retrievo.training.engine.loop import fit
from retrievo.training.objectives.cross_encoder import BinaryCrossEncoder, GroupCrossEncoder
from retrievo.training.objectives.finetune import Finetune
from retrievo.training.objectives.objective import Objective
from retrievo.training.objectives.table import CrossEncoderConfig, FinetuneConfig

GROUPS = EVERY[:4]
STEPS, STOP = len(GROUPS), 2  # at the third one rank 1 has no rows
WHOLE, SHARDED = "whole", "sharded"


def encoder(model: Path, tied: bool = True, **options: Any) -> Objective:
    return Finetune(FinetuneConfig(**options), Encoder.load(model, pooling="mean", tied=tied, notify=lambda text: None))


def with_dropout(objective: Objective) -> Objective:
    for part in objective.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.2
    return objective


def with_adapters(objective: Any) -> Objective:
    add_adapters(objective.encoder, 2, 4, 0)
    return objective


def learned_temperature(model: Path) -> Objective:
    return encoder(model, temperature=0.5, learn_temperature=True)


def cross_encoder(model: Path, kind: type[Any] = GroupCrossEncoder) -> Objective:
    objective: Objective = kind(CrossEncoderConfig(), CrossEncoder.load(model, train=True))
    return objective


def queries(step: int, of: slice) -> Batch:
    return finetune_batch(GROUPS[step], step, of)


def pairs(step: int, of: slice) -> Batch:
    """Groups of pairs, the part of one rank."""
    random = np.random.default_rng(step)
    groups = [rows(list(random.integers(1, LONGEST + 1, size)), random) for size in GROUPS[step]][of]
    sizes = [group.size for group in groups]
    lengths = torch.cat([torch.zeros(1, dtype=torch.int64), *(group.lengths for group in groups)])
    tokens = torch.cat([torch.zeros(0, dtype=torch.int64), *(group.tokens for group in groups)])
    return Batch(
        rows={"pair": Rows(tokens, lengths.cumsum(0))},
        counts={"pairs": len(groups), "candidates": sum(sizes)},
        groups=torch.tensor(sizes, dtype=torch.int64),
    )


Case = tuple[Callable[[Path], Objective], Callable[[int, slice], Batch], dict[str, Any]]
QUICK: dict[str, Case] = {
    "learned temperature": (learned_temperature, queries, {"activation_memory": "300KB"}),
    "untied, dropout": (lambda model: with_dropout(encoder(model, tied=False)), queries, {}),
    "gradient checkpointing": (lambda model: with_dropout(encoder(model)), queries, {"gradient_checkpointing": True}),
    "binary cross-encoder": (lambda model: cross_encoder(model, BinaryCrossEncoder), pairs, {}),
}
SLOW: dict[str, Case] = {
    "all graphs kept": (encoder, queries, {"activation_memory": "1GB"}),
    "adapters": (lambda model: with_adapters(encoder(model)), queries, {}),
    "asam": (learned_temperature, queries, {"optimizer": "asam"}),
    "cross-encoder": (cross_encoder, pairs, {}),
}
CASES = QUICK | SLOW
STOPPED = "learned temperature"  # the case that also stops on the way and goes on


def train(case: str, model: Path, folder: Path, *, sharded: bool, steps: int = STEPS) -> Objective:
    """Trains a case, or goes on with it, until `steps` of all steps are done."""
    make, batches, options = CASES[case]
    objective = make(model)
    if rank():  # what other ranks start from must not matter
        for parameter in objective.parameters():
            nn.init.zeros_(parameter)
    # clipping keeps early steps alike; plain AdamW would blow up differences where a gradient is nearly zero
    usual = {"max_steps": STEPS, "learning_rate": 1e-2, "epsilon": 1e-3, "chunk_tokens": 30}
    usual |= {} if "gradient_checkpointing" in options else {"activation_memory": "0"}
    config = FitConfig(**usual | options, dtype="float32", save_every=STOP)
    done: list[int] = []
    if sharded:
        shard(objective, torch.device("cpu"))
    fit(
        objective,
        Feed(batches, [len(group) for group in GROUPS]),
        config,
        folder=folder,
        device=torch.device("cpu"),
        progress=lambda record: done.append(record["step"]),
        every=[(1, lambda step: None)],
        enough=lambda: steps in done,
    )
    return objective


def compare(folder: Path, model: Path, cases: list[str]) -> None:
    """Trains cases with whole weights and with cut ones, and tells how many bytes of weights this rank held, and how
    many references there are to the process group after its end.
    """
    torch.set_num_threads(1)
    held = {}
    with process_group("cpu"):
        group = dist.group.WORLD
        for case in cases:
            for kind in (WHOLE, SHARDED):
                objective = train(case, model, folder / case / kind, sharded=kind == SHARDED)
                held[f"{case}/{kind}"] = sum(own_part(parameter).nbytes for parameter in objective.parameters())
        if STOPPED in cases:
            stop(folder / "stopped", model)
        path = folder / f"held-{rank()}.json"
    del objective
    gc.collect()
    path.write_text(json.dumps(held | {"group": sys.getrefcount(group) - 1}))


def stop(folder: Path, model: Path) -> None:
    """Leaves a run that stopped while its weights were cut; goes on from there with cut weights and with whole ones."""
    train(STOPPED, model, folder / "alone", sharded=True, steps=STOP)
    if rank() == 0:
        for then in (WHOLE, SHARDED):
            shutil.copytree(folder / "alone", folder / then)
    barrier()
    for then in (WHOLE, SHARDED):
        train(STOPPED, model, folder / then, sharded=then == SHARDED)
