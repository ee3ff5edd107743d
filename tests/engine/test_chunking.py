"""Chunks are as large as was asked or measured, and shrink where memory runs out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import Feed, config
from tiny import finetune, finetune_batch

from retrievo.engine.chunking import ChunkTokens
from retrievo.engine.loop import fit
from retrievo.engine.step import GraphMemory
from retrievo.learning.batch import Chunk
from retrievo.support.errors import RetrievoError

CPU = torch.device("cpu")


class Small(type(finetune())):  # type: ignore[misc]
    """A model for which memory runs out above so many tokens."""

    room = 8

    def encode(self, chunk: Chunk) -> Any:
        if chunk.input_ids.numel() > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().encode(chunk)


def small(room: int) -> Any:
    objective = finetune()
    objective.__class__, Small.room = Small, room
    return objective


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_memory_that_runs_out_takes_the_kept_graphs_first_and_then_halves_the_chunks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(small(16), Feed(), config(max_steps=3, chunk_tokens=64, dtype="fp32"), folder=tmp_path / "small", device=CPU)
    told = capsys.readouterr().err
    assert "no graphs are kept from here on" in told
    assert "chunks have 16 tokens from here on (--chunk-tokens 16)" in told
    assert [line["chunk_tokens"] for line in lines(tmp_path / "small")] == [16, 16, 16]
    fit(finetune(), Feed(), config(max_steps=3, chunk_tokens=16, dtype="fp32"), folder=tmp_path / "plain", device=CPU)
    assert [line["loss"] for line in lines(tmp_path / "small")] == [line["loss"] for line in lines(tmp_path / "plain")]


def test_a_text_that_does_not_fit_alone_is_an_error_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match=r"do not fit into the memory of the device; pass --graph-memory 0"):
        fit(small(1), Feed(), config(max_steps=1, chunk_tokens=64), folder=tmp_path, device=CPU)


def test_auto_measures_once_and_the_choice_goes_on_after_a_restart(tmp_path: Path) -> None:
    options = {"chunk_tokens": "auto", "save_every": 1}
    fit(finetune(), Feed(), config(max_steps=2, **options), folder=tmp_path, device=CPU)
    chosen = {line["chunk_tokens"] for line in lines(tmp_path)}
    assert len(chosen) == 1
    state = json.loads((tmp_path / "checkpoints" / "step-000002" / "state.json").read_text())
    assert {state["chunks"]["tokens"]} == chosen


def test_what_does_not_fit_is_not_chosen() -> None:
    chunks = ChunkTokens(None, GraphMemory(0))
    assert chunks.measure(finetune(), finetune_batch([3, 2, 4]), torch.float32) >= 1024
    assert chunks.measure(small(1), finetune_batch([3, 2, 4]), torch.float32) == chunks.tokens, "measured once"
