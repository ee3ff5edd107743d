"""What a stage leaves for the next: `mine-negatives stage-1 to stage-2` writes what `retrievo train stage-2` reads."""

from __future__ import annotations

import os
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.objectives.data_set import STAGE_SETTINGS
from retrievo.support import console
from retrievo.support.options import options_of
from retrievo.train.config import STAGE_NEGATIVES, TrainConfig

if TYPE_CHECKING:
    from retrievo.support.artifact import Manifest


def trained_stage(stage: Path) -> Manifest:
    """The manifest of a stage that `retrievo train` made.

    Raises: RetrievoError where it is another model, or not trained yet.
    """
    from retrievo.support.artifact import Manifest
    from retrievo.support.errors import RetrievoError

    manifest = Manifest.read(stage, "model")
    if "qrels" not in manifest.inputs:
        raise RetrievoError(
            stage, "was not made by retrievo train", "a trained stage", "pass --source dense --model instead"
        )
    return manifest


def write_stage(stage: Path, following: Path) -> None:
    """Writes the settings of the next stage: the model that the first one STARTED from, its tables, both pools of
    negatives, and the options that stage 1 was given. Settings that are there already stay as they are.
    """
    import tomli_w

    from retrievo.models.source import recorded_model
    from retrievo.support.files import atomic_path

    path = following / STAGE_SETTINGS
    if path.exists():
        console.note(f"{path} is there already and stays as it is")
        return
    manifest = trained_stage(stage)
    model, revision = recorded_model(manifest, "--model")
    named = ("corpus", "queries", "qrels")
    tables: dict[str, Any] = {name: _from(following, manifest.input_path(name, f"--{name}")) for name in named}
    others = [name for name in ("teacher", "topics", "dev-qrels", "dev-run", "dev-queries") if name in manifest.inputs]
    tables |= {name.replace("-", "_"): _from(following, manifest.input_path(name, f"--{name}")) for name in others}
    dense = [name for name in manifest.inputs if name.startswith("batch-teacher-")]
    if dense:
        tables["batch_teacher"] = [_from(following, manifest.input_path(name, "--batch-teacher")) for name in dense]
    pools = [name for name in manifest.inputs if name.startswith("negatives-")]
    negatives = [_from(following, manifest.input_path(name, "--negatives")) for name in pools] + [STAGE_NEGATIVES]
    started_from = {"model": _from(following, Path(model)) if Path(model).exists() else model}
    if revision:
        started_from["revision"] = revision
    settings = started_from | tables | {"negatives": negatives} | _given(manifest)
    with atomic_path(path) as temporary:
        temporary.write_bytes(tomli_w.dumps({"train": settings}).encode())


# the model is stated with its path; other data sets have pools of their own; fixed documents are of one stage
_NOT_GIVEN_ON = ("model", "revision", "mix", "dynamic_negatives")


def _given(manifest: Manifest) -> dict[str, Any]:
    """The options of a training run that are not the defaults."""
    known = {option.name: option.default for option in options_of(TrainConfig) if option.default is not MISSING}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
    recorded = {name: value for name, value in manifest.config.items() if name in plain and name not in _NOT_GIVEN_ON}
    return {name: value for name, value in recorded.items() if value is not None and value != plain[name]}


def _from(folder: Path, path: Path) -> str:
    """A path as a settings file in `folder` writes it: relative where both lie in one place, else absolute."""
    absolute, home = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return os.path.relpath(absolute, home) if absolute.is_relative_to(home.parent) else str(absolute)
