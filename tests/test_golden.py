"""Losses and gradients are those of the public reference implementations, on tiny models with fixed inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from retrievo.models.condenser import HEAD_FILE, CondenserHead, MaskedEncoder
from retrievo.models.encoder import Encoder
from retrievo.models.encoder_spec import EncoderSpec
from retrievo.training.batch import Batch, Rows
from retrievo.training.engine.gradient_cache import gradient_step
from retrievo.training.objectives.contriever import MomentumContrast
from retrievo.training.objectives.masked_lm import CoCondenser, MaskedLanguageModel
from retrievo.training.objectives.objective import Objective
from retrievo.training.objectives.simclr import SimClr
from retrievo.training.objectives.table import OBJECTIVES, CoCondenserConfig, ContrieverConfig, MlmConfig, SimClrConfig

HOME = Path(os.environ.get("RETRIEVO_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden"))
CHUNK_TOKENS = 40  # a few spans: the gradient cache is at work


def check_condenser(folder: Path, case: dict[str, Any]) -> None:
    """The three losses and all gradients of coCondenser; the late loss is that of plain masked language modeling."""
    encoder, batch, expected = masked_encoder(folder, case["skip_from"]), span_batch(case), case["expected"]
    assert encoder.condenser is not None
    assert len(encoder.condenser.layers) == case["n_head_layers"]
    longest = encoder.spec.document_max_length
    objective = CoCondenser(CoCondenserConfig(max_length=longest, late_mlm=case["late_mlm"]), encoder)
    stats = step(objective, batch)
    assert_loss(stats["loss"], expected["cocondenser_loss"])
    assert_loss(stats["contrastive_loss"], expected["contrastive_loss"])
    assert_loss(stats["local_loss"], expected["condenser_loss"])
    assert_norms(reference_norms(objective), expected["grad_norms"])
    if case["late_mlm"]:
        stats = step(MaskedLanguageModel(MlmConfig(max_length=longest), encoder), batch)
        assert_loss(stats["loss"], expected["late_mlm_loss"])


def check_moco(folder: Path, case: dict[str, Any]) -> None:
    """Five steps of momentum contrast, and the in-batch loss of the weights that they start from."""
    expected, batches = case["expected"], [view_batch(parts) for parts in case["batches"]]
    common = {name: case[name] for name in ("temperature", "label_smoothing")} | {"window": 16}
    in_batch = SimClr(SimClrConfig(**common), mean_encoder(folder, case["normalize"]))
    for batch, loss in zip(batches, expected["inbatch_losses"], strict=True):
        assert_loss(step(in_batch, batch)["loss"], loss)
    config = ContrieverConfig(**common, momentum=case["momentum"], queue_size=case["queue_size"])
    objective = MomentumContrast(config, mean_encoder(folder, case["normalize"]))
    objective.queue.copy_(torch.tensor(case["queue_init"]).T)
    objective.queued.fill_(case["queue_size"])  # as if filled; the next key takes the first place
    optimizer = torch.optim.SGD(objective.encoder.parameters(), lr=case["sgd_lr"])
    for batch, loss in zip(batches, expected["moco_losses"], strict=True):
        assert_loss(step(objective, batch)["loss"], loss)
        optimizer.step()
        objective.after_step()
    assert_norms({"final": objective.queue.norm().item()}, {"final": expected["final_queue_norm"]})
    assert_norms({"sum": objective.queue.sum().item()}, {"sum": expected["queue_sum"]})
    found = {name: parameter.norm().item() for name, parameter in objective.encoder.backbone.named_parameters()}
    assert_norms(found, {name: norm for name, norm in expected["query_param_norms"].items() if "pooler" not in name})


# kind of case (the first word of its folder's name) -> its check, and the objective that such cases are for
CHECKS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "condenser": check_condenser,
    "moco": check_moco,
}
OBJECTIVE_OF = {"condenser": "cocondenser", "moco": "contriever"}


def test_golden_values_of_the_reference_implementations(capsys: pytest.CaptureFixture[str]) -> None:
    cases = sorted(path.parent for path in HOME.rglob("case.json"))
    if not cases:
        pytest.skip(f"no golden cases below {HOME} (set RETRIEVO_GOLDEN)")
    checked, waiting = 0, []
    for folder in cases:
        kind = folder.name.split("-")[0]
        if OBJECTIVE_OF[kind] not in OBJECTIVES:
            waiting.append(folder.name)
            continue
        CHECKS[kind](folder, json.loads((folder / "case.json").read_text()))
        checked += 1
    later = f" ({', '.join(waiting)}: no such objective yet)" if waiting else ""
    with capsys.disabled():
        print(f"\ngolden: {checked} cases checked{later}")
    assert checked


def numbered_words(size: int) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"word-{number}": number for number in range(size)}, "word-1"))
    words.post_processor = TemplateProcessing("word-2 $A word-3", special_tokens=[("word-2", 2), ("word-3", 3)])
    names = {"pad_token": "word-0", "cls_token": "word-2", "sep_token": "word-3", "mask_token": "word-4"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def mean_encoder(folder: Path, normalize: bool) -> Encoder:
    model = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
    longest = model.config.max_position_embeddings
    lengths = {"query_max_length": longest, "document_max_length": longest}
    spec = EncoderSpec(pooling="mean", normalize=normalize, **lengths)
    return Encoder(model, numbered_words(model.config.vocab_size), spec)


def view_batch(parts: list[Any]) -> Batch:
    """Padded queries and keys as flat rows, keys first."""
    query_ids, query_mask, key_ids, key_mask = map(torch.tensor, parts)
    rows = {}
    for name, ids, mask in (("document", key_ids, key_mask), ("query", query_ids, query_mask)):
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
        rows[name] = Rows(ids[mask == 1], offsets)
    return Batch(rows=rows, counts={"documents": len(query_ids)})


def masked_encoder(folder: Path, early_layer: int) -> MaskedEncoder:
    model = BertForMaskedLM.from_pretrained(folder, local_files_only=True)
    size, longest = model.config.vocab_size, model.config.max_position_embeddings
    spec = EncoderSpec(query_max_length=longest, document_max_length=longest)
    tokenizer = numbered_words(size)
    head = CondenserHead.load(folder / HEAD_FILE, model.base_model, early_layer)
    return MaskedEncoder(model, tokenizer, spec, head)


def span_batch(case: dict[str, Any]) -> Batch:
    """The padded inputs of a case as flat rows."""
    ids, mask, labels = (torch.tensor(case[name]) for name in ("input_ids", "attention_mask", "labels"))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    chosen = labels[mask == 1]
    counts = {"documents": len(ids) // 2, "spans": len(ids), "masked": int((chosen >= 0).sum())}
    return Batch(rows={"span": Rows(ids[mask == 1], offsets)}, labels={"span": chosen}, counts=counts)


def step(objective: Objective, batch: Batch) -> dict[str, torch.Tensor]:
    return gradient_step(objective, batch, step=0, seed=0, chunk_tokens=CHUNK_TOKENS)


def reference_norms(objective: Objective) -> dict[str, float]:
    """Norms of the gradients by the names of the reference."""
    return {
        name.removeprefix("encoder.")
        .replace("backbone.", "lm.bert.")
        .replace("language_model.", "lm.")
        .replace("condenser.layers.", "c_head."): parameter.grad.norm().item()
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None
    }


def assert_loss(found: torch.Tensor, expected: float) -> None:
    assert found.item() == pytest.approx(expected, rel=1e-4)


def assert_norms(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(found[name] - value) <= 1e-3 * abs(value) + 1e-6, name
