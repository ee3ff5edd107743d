"""Settings for the next stage, which `mine-negatives stage-1 to stage-2` writes and `train stage-2` reads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrievo.commands.train_config import STAGE_NEGATIVES, TrainConfig
from retrievo.support import console
from retrievo.support.options import options_of
from retrievo.support.values import Values
from retrievo.training.engine.config import ValidationConfig
from retrievo.training.feeds.dataset_config import STAGE_SETTINGS, open_data_set, settings_of

if TYPE_CHECKING:
    from retrievo.support.artifact import Input, Manifest


# Names of options, inputs and losses in manifests of the first version, and their present names.
_EARLIER_OPTIONS = {
    "topics": "query_clusters",
    "topic_count": "query_cluster_count",
    "hard_share": "hard_negative_ratio",
    "warmup": "warmup_ratio",
    "max_gradient_norm": "max_grad_norm",
    "graph_memory": "activation_memory",
    "also": "extra_dataset",
    "fixed_documents": "document_embeddings",
    "shard": "fsdp",
}
_EARLIER_LOSSES = {"multi-positive": "supcon", "group": "listwise", "pairwise": "ranknet"}
_EARLIER_KINDS = {"encoder": "dense"}


def _with_present_names(manifest: Manifest) -> Manifest:
    """A manifest whose options, losses and inputs have their present names."""
    if manifest.options > 1:
        return manifest
    config = {_EARLIER_OPTIONS.get(name, name): value for name, value in manifest.config.items()}
    config["loss"] = [_EARLIER_LOSSES.get(name, name) for name in config.get("loss", ["infonce"])]
    config["kind"] = _EARLIER_KINDS.get(config.get("kind", ""), config.get("kind", "dense"))
    inputs = {
        re.sub(r"(^|-)topics$", r"\1query-clusters", re.sub(r"^also-", "extra-dataset-", name)): recorded
        for name, recorded in manifest.inputs.items()
    }
    return replace(manifest, config=config, inputs=inputs)


def trained_stage(stage: Path) -> Manifest:
    """The manifest of a stage that `retrievo train` made.

    Raises: RetrievoError where the folder is no model, or was not made by `retrievo train`.
    """
    from retrievo.support.artifact import Manifest
    from retrievo.support.errors import RetrievoError

    manifest = _with_present_names(Manifest.read(stage, "model"))
    if "qrels" not in manifest.inputs:
        raise RetrievoError(
            stage, "was not made by retrievo train", "a trained stage", "pass --source dense --model instead"
        )
    return manifest


def write_stage(stage: Path, following: Path, mined: Mapping[str, Input]) -> None:
    """Writes the settings of the next stage, unless its settings file exists.

    The next stage starts from the model from which stage 1 STARTED. It gets the tables for which negatives were mined,
    both pools of negatives, and the options of stage 1.

    mined: the corpus, the queries and the qrels. If they are an `--extra-dataset` of stage 1, pools, teachers and
    prefixes are those of that data set; if stage 1 did not use them, there are none.
    """
    import tomli_w

    from retrievo.models.model_reference import recorded_model
    from retrievo.support.files import atomic_path

    path = following / STAGE_SETTINGS
    if path.exists():
        console.note(f"{path} exists and is kept as it is")
        return
    manifest = trained_stage(stage)
    model, revision = recorded_model(manifest, "--model")
    whose = _whose(manifest, mined)
    tables: Values = {name: _from(following, found.path) for name, found in mined.items()}
    beside, pools = _beside(manifest, whose, following)
    started_from = {"model": _from(following, Path(model)) if Path(model).exists() else model}
    if revision:
        started_from["revision"] = revision
    given = _given(manifest) if whose == "" else _given_elsewhere(manifest, whose, beside)
    settings = started_from | tables | beside | {"negatives": [*pools, STAGE_NEGATIVES]} | given
    with atomic_path(path) as temporary:
        temporary.write_bytes(tomli_w.dumps({"train": settings}).encode())


def _whose(manifest: Manifest, mined: Mapping[str, Input]) -> str | None:
    """The prefix of the inputs of the data set that was mined for: "" for the first one; None for an unknown data set.

    Other queries or judgments of a data set's corpus count as the same data set.
    """
    starts = [
        "",
        *(name.removesuffix("corpus") for name in manifest.inputs if re.fullmatch(r"extra-dataset-\d+-corpus", name)),
    ]
    for names in (tuple(mined), ("corpus",)):
        for start in starts:
            if all(_is_same(manifest, start + name, mined[name]) for name in names):
                return start
    return None


def _is_same(manifest: Manifest, name: str, given: Input) -> bool:
    """Whether a given table has the content or the path of a recorded input."""
    recorded = manifest.inputs[name]
    place = os.path.abspath(manifest.home / recorded["path"])
    return recorded["fingerprint"] == given.fingerprint or place == os.path.abspath(given.path)


def _beside(manifest: Manifest, whose: str | None, following: Path) -> tuple[Values, list[str]]:
    """The other inputs of a data set, such as teachers, query clusters and validation tables; and its pools."""
    if whose is None:
        return {}, []

    def found(name: str) -> str:
        return _from(following, manifest.input_path(whose + name, f"--{name}"))

    own = [name.removeprefix(whose) for name in manifest.inputs if name.startswith(whose)]
    named = ("teacher", "query-clusters", "dev-qrels", "dev-run", "dev-queries")
    tables: Values = {name.replace("-", "_"): found(name) for name in named if name in own}
    if dense := [name for name in own if name.startswith("batch-teacher-")]:
        tables["batch_teacher"] = [found(name) for name in dense]
    return tables, [found(name) for name in own if name.startswith("negatives-")]


# the model is written with its path, a mix concerns several data sets, and fixed documents belong to one stage
_NOT_GIVEN_ON = ("model", "revision", "mix", "dynamic_negatives")


def _given(manifest: Manifest) -> Values:
    """The options of a training run that differ from the defaults."""
    known = {option.name: option.default for option in options_of(TrainConfig) if option.default is not MISSING}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
    recorded = {name: value for name, value in manifest.config.items() if name in plain and name not in _NOT_GIVEN_ON}
    return {name: value for name, value in recorded.items() if value is not None and value != plain[name]}


def _given_elsewhere(manifest: Manifest, whose: str | None, beside: Mapping[str, object]) -> Values:
    """The options for a data set other than the first one, with the prefixes of its settings file."""
    apart = {known.name for known in options_of(ValidationConfig)} | {"query_prefix", "document_prefix"}
    apart |= set() if "query_clusters" in beside else {"query_cluster_count"}
    given = {name: value for name, value in _given(manifest).items() if name not in apart}
    settings = (whose or "").removesuffix("-")
    if settings not in manifest.inputs:
        return given
    path = settings_of(manifest.input_path(settings, "--extra-dataset"))
    data_set = open_data_set(path, {known.name for known in options_of(TrainConfig)})
    prefixes = {"query_prefix": data_set.query_prefix, "document_prefix": data_set.document_prefix}
    return given | {name: text for name, text in prefixes.items() if text is not None}


def _from(folder: Path, path: Path) -> str:
    """A path as a settings file in `folder` states it: relative if both have the same parent folder, else absolute."""
    absolute, home = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return os.path.relpath(absolute, home) if absolute.is_relative_to(home.parent) else str(absolute)
