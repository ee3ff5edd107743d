"""Chunks are as large as was asked or measured, and shrink where memory runs out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import Feed, config
from tiny import finetune, finetune_batch

from retrievo.support.errors import RetrievoError
from retrievo.training.batch import Chunk
from retrievo.training.engine.chunk_size import ChunkTokens
from retrievo.training.engine.gradient_cache import GraphMemory
from retrievo.training.engine.loop import fit

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
    tmp_path: Path, said: Callable[[], str]
) -> None:
    fit(small(16), Feed(), config(max_steps=3, chunk_tokens=64, dtype="fp32"), folder=tmp_path / "small", device=CPU)
    told = said()
    assert "no graphs are kept from here on" in told
    assert "chunks have 16 tokens from here on (--chunk-tokens 16)" in told
    assert [line["chunk_tokens"] for line in lines(tmp_path / "small")] == [16, 16, 16]
    fit(finetune(), Feed(), config(max_steps=3, chunk_tokens=16, dtype="fp32"), folder=tmp_path / "plain", device=CPU)
    assert [line["loss"] for line in lines(tmp_path / "small")] == [line["loss"] for line in lines(tmp_path / "plain")]


def test_a_text_that_does_not_fit_alone_is_an_error_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RetrievoError, match=r"one text is too long: pass --gradient-checkpointing, or a shorter max"):
        fit(small(1), Feed(), config(max_steps=1, chunk_tokens=64), folder=tmp_path, device=CPU)


def options_of(advice: str) -> dict[str, Any]:
    """What a message says to type, as a Config takes it."""
    typed = re.findall(r"--(\S+) (\d+)", advice)
    return {name.replace("-", "_"): value if name == "activation-memory" else int(value) for name, value in typed}


def test_of_several_processes_each_goes_on_with_the_options_that_the_error_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    given: dict[str, Any] = {"max_steps": 4, "chunk_tokens": 64, "dtype": "fp32", "save_every": 1}
    monkeypatch.setattr("retrievo.training.engine.chunk_size.world_size", lambda: 2)
    fit(finetune(), Feed(), config(**given | {"max_steps": 2}), folder=tmp_path, device=CPU)
    errors: list[str] = []
    for _ in range(3):
        try:
            fit(small(16), Feed(), config(**given), folder=tmp_path, device=CPU, restart=2)
            break
        except RetrievoError as error:
            errors.append(str(error))
            given |= options_of(str(error))
    assert [options_of(error) for error in errors] == [
        {"activation_memory": "0", "chunk_tokens": 32},
        {"chunk_tokens": 16},
    ]
    assert "from step 3 on, --chunk-tokens is 16; it was 64" in said()
    assert [line["chunk_tokens"] for line in lines(tmp_path) if "loss" in line] == [64, 64, 16, 16]
    changes = [line for line in lines(tmp_path) if "changed" in line]
    assert changes[-1] == {"step": 2, "changed": {"chunk_tokens": [64, 16], "activation_memory": ["1GB", "0"]}}


def until(step: int, objective: Any, folder: Path, **given: Any) -> None:
    """Trains to a step, as if the run of four steps were cut off there."""
    reached: list[int] = []
    options = config(max_steps=4, dtype="fp32", **given)
    every = [(step, reached.append)]
    fit(objective, Feed(), options, folder=folder, device=CPU, every=every, enough=lambda: bool(reached))


def test_a_run_that_goes_on_keeps_what_memory_left_it_until_it_is_told_otherwise(tmp_path: Path) -> None:
    until(1, small(16), tmp_path, chunk_tokens=64)
    until(2, finetune(), tmp_path, chunk_tokens=64)  # the same command again
    until(3, finetune(), tmp_path, chunk_tokens=32)
    until(4, finetune(), tmp_path, chunk_tokens=32, activation_memory="1MB")
    steps = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["chunk_tokens"] for line in steps] == [16, 16, 32, 32]
    assert [line["graph_bytes"] for line in steps] == [0, 0, 0, 1 << 20]


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
