"""What a trained stage leaves for the next one, also where an earlier version trained it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from retrievo.commands.stages import write_stage
from retrievo.support.artifact import MANIFEST, Input


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A stage whose manifest has the names of the first version."""
    inputs = {}
    for name in ("corpus", "queries", "qrels", "topics", "negatives-1"):
        (tmp_path / f"{name}.parquet").write_text(name)
        inputs[name] = Input.of(tmp_path / f"{name}.parquet").record(tmp_path)
    (tmp_path / "stage-1").mkdir()
    config = {"model": "bert", "loss": ["group", "infonce"], "hard_share": 0.5, "topic_count": 7, "warmup": 0.2}
    told = {"kind": "model", "format": 1, "created_by": "retrievo 0", "command": "", "config": config}
    (tmp_path / "stage-1" / MANIFEST).write_text(json.dumps(told | {"inputs": inputs}))
    return tmp_path / "stage-1"


def test_options_of_earlier_names_go_on_under_their_present_ones(trained: Path) -> None:
    mined = {name: Input.of(trained.parent / f"{name}.parquet") for name in ("corpus", "queries", "qrels")}
    (trained.parent / "stage-2").mkdir()
    write_stage(trained, trained.parent / "stage-2", mined)
    settings = tomllib.loads((trained.parent / "stage-2" / "train.toml").read_text())["train"]
    assert settings["loss"] == ["listwise", "infonce"]
    assert (settings["hard_negative_ratio"], settings["warmup_ratio"]) == (0.5, 0.2)
    assert (settings["query_clusters"], settings["query_cluster_count"]) == ("../topics.parquet", 7)
