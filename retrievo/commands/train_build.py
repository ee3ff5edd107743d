"""Builds the parts of a training run from its options: data sets, model, objective and feed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from retrievo.commands.train_config import OF_THE_MODEL, OF_THE_QUERY, TrainConfig
from retrievo.models.model_reference import FIXED_DOCUMENTS, shows_titles
from retrievo.support.errors import RetrievoError, UsageError
from retrievo.support.options import options_of
from retrievo.training.feeds.dataset_config import STAGE_SETTINGS
from retrievo.training.objectives.table import CROSS_ENCODER, objective_class

if TYPE_CHECKING:
    from pathlib import Path

    from retrievo.data.corpus import Corpus
    from retrievo.retrieval.embeddings import Embeddings
    from retrievo.support.artifact import Input
    from retrievo.training.feeds.finetune import GroupFeed, TrainingData
    from retrievo.training.feeds.mixed import MixedFeed
    from retrievo.training.feeds.samplers import Drawing
    from retrievo.training.objectives.objective import Objective


def data_sets(config: TrainConfig) -> list[TrainingData]:
    """Reads the data sets: that of the options, then those of --extra-dataset.

    Raises: UsageError for a data set without the teacher that a loss needs.
    """
    from retrievo.support.artifact import Input
    from retrievo.training.feeds.dataset_config import open_data_set
    from retrievo.training.feeds.finetune import TrainingData

    known = {option.name for option in options_of(TrainConfig)}
    chosen = [config, *(open_data_set(path, known) for path in config.extra_dataset)]
    for path, data_set in zip(config.extra_dataset, chosen[1:], strict=True):
        for name in ("teacher", "batch_teacher"):
            if getattr(config, name) and not getattr(data_set, name):
                raise UsageError(
                    f"--extra-dataset {path}", f"has no {name}", None, f"give its {STAGE_SETTINGS} one too"
                )
        if config.kind == CROSS_ENCODER and (data_set.query_prefix or data_set.document_prefix):
            raise UsageError(
                f"--extra-dataset {path}", "has a prefix", None, "leave it out: cross-encoders read bare texts"
            )
    titles = shows_titles(config.model, config.title_template)
    data = [TrainingData(data_set, config.min_relevance, titles=titles) for data_set in chosen]
    if config.document_embeddings is not None:
        path = _fixed_documents(config.document_embeddings, config.model, config.revision, data[0].corpus).path
        data[0].inputs[FIXED_DOCUMENTS] = Input.of(path)
    return data


def _fixed_documents(path: Path, model: str, revision: str | None, corpus: Corpus) -> Embeddings:
    """Opens the fixed vectors of the documents of a corpus.

    Raises: RetrievoError where they are of another corpus or model, or are truncated.
    """
    from retrievo.models.model_reference import model_name, model_record
    from retrievo.retrieval.embeddings import Embeddings

    found = Embeddings(path)
    _, read = model_record(model, revision)
    prints = {name: recorded["fingerprint"] for name, recorded in found.manifest.inputs.items()}
    fix = f"retrievo encode --model {model} --corpus {corpus.path} --output EMBEDDINGS"
    if found.role != "document" or prints.get("corpus") != corpus.input.fingerprint:
        raise RetrievoError(found.path, "does not hold the documents of this corpus", str(corpus.path), fix)
    if not read or prints.get("model") != read["model"].fingerprint:
        problem = f"was not made by the model that is trained, but by {model_name(found.manifest)}"
        raise RetrievoError(found.path, problem, model, fix)
    if found.manifest.config.get("truncate_dim") is not None:
        raise RetrievoError(found.path, f"has vectors truncated to {found.dim} dimensions", "untruncated vectors", fix)
    return found


def inputs_of(data: Sequence[TrainingData], extra: Sequence[Path]) -> dict[str, Input]:
    """The inputs by name, including settings files of data sets, since they set prefixes of texts."""
    from retrievo.support.artifact import Input
    from retrievo.training.feeds.dataset_config import settings_of

    inputs = dict(data[0].inputs)
    for number, (path, data_set) in enumerate(zip(extra, data[1:], strict=True), start=1):
        inputs |= {f"extra-dataset-{number}-{name}": found for name, found in data_set.inputs.items()}
        settings = settings_of(path)
        inputs |= {f"extra-dataset-{number}": Input.of(settings)} if settings.is_file() else {}
    return inputs


def model_objective_feed(config: TrainConfig, data: Sequence[TrainingData]) -> tuple[Any, Objective, Any]:
    """The model of the chosen kind, its objective and its feed."""
    if config.kind == CROSS_ENCODER:
        return _cross_encoder(config, data)
    return (_encoder if config.document_embeddings is None else _query_encoder)(config, data)


def _encoder(config: TrainConfig, data: Sequence[TrainingData]) -> tuple[Any, Objective, Any]:
    """An encoder, its objective and its feed."""
    from retrievo.models.bidirectional import attend_both_ways
    from retrievo.models.encoder import Encoder
    from retrievo.models.lora import add_adapters
    from retrievo.training.feeds.finetune import TrainingFeed
    from retrievo.training.objectives.finetune import Finetune

    name = _start(config.model, data, config.seed)
    options = {name: getattr(config, name) for name in OF_THE_MODEL}
    if name != config.model:
        options["pooling"] = config.pooling or "cls"
    encoder = Encoder.load(name, config.revision, **options)
    if config.bidirectional:
        attend_both_ways(encoder)
    if config.lora_rank:
        add_adapters(encoder, config.lora_rank, config.lora_alpha or 2 * config.lora_rank, config.seed)
    objective = Finetune(config, encoder)
    drawing, collator, feeds = _drawing(config), objective.collator(), []
    for data_set in data:
        clusters = data_set.clusters_of_queries(config.query_cluster_count, config.seed)
        feeds.append(TrainingFeed(data_set, encoder, collator, drawing, clusters))
    return encoder, objective, _mixed(feeds, config.mix, config.seed)


def _query_encoder(config: TrainConfig, data: Sequence[TrainingData]) -> tuple[Any, Objective, Any]:
    """An untied encoder of which the side of queries is trained against fixed document vectors, and its batches."""
    from retrievo.models.encoder import Encoder
    from retrievo.models.lora import add_adapters
    from retrievo.training.feeds.finetune import TrainingFeed
    from retrievo.training.objectives.adore import FixedDocuments

    assert config.document_embeddings is not None
    vectors = _fixed_documents(config.document_embeddings, config.model, config.revision, data[0].corpus)
    options = {name: getattr(config, name) for name in OF_THE_QUERY} | {"tied": False}
    encoder = Encoder.load(config.model, config.revision, **options, pooling=vectors.manifest.config.get("pooling"))
    if config.lora_rank:
        add_adapters(encoder, config.lora_rank, config.lora_alpha or 2 * config.lora_rank, config.seed)
    documents = FixedDocuments(vectors, data[0].corpus.identities.whole, data[0].empty.nonzero()[0])
    objective = objective_class("adore")(config, encoder, documents)
    drawing = dataclasses.replace(_drawing(config), negatives_per_query=0)
    return encoder, objective, TrainingFeed(data[0], encoder, objective.collator(), drawing)


def _cross_encoder(config: TrainConfig, data: Sequence[TrainingData]) -> tuple[Any, Objective, Any]:
    """A cross-encoder, its objective and its feed."""
    from retrievo.models.cross_encoder import CrossEncoder
    from retrievo.training.feeds.pairs import PairFeed

    options: dict[str, Any] = {"max_length": config.max_length, "title_template": config.title_template}
    model = CrossEncoder.load(_start(config.model, data, config.seed), config.revision, train=True, **options)
    objective = objective_class(f"{CROSS_ENCODER}-{config.pair_loss}")(config, model)
    feeds = [PairFeed(data_set, model, objective.collator(), _drawing(config)) for data_set in data]
    return model, objective, _mixed(feeds, config.mix, config.seed)


def _mixed(feeds: Sequence[GroupFeed], mix: str, seed: int) -> GroupFeed | MixedFeed:
    """The only feed, or a mix of several feeds."""
    from retrievo.training.feeds.mixed import MixedFeed

    return MixedFeed(feeds, mix, seed) if len(feeds) > 1 else feeds[0]


def _start(model: str, data: Sequence[TrainingData], seed: int) -> str:
    """The model from which training starts: an existing one, or a random one with a vocabulary of this corpus."""
    from retrievo.models.scratch import scratch_folder, scratch_size

    if scratch_size(model) is None:
        return model
    return str(scratch_folder(model, [data_set.corpus for data_set in data], seed))


def _drawing(config: TrainConfig) -> Drawing:
    """How the groups of a step are drawn."""
    from retrievo.training.feeds.samplers import Drawing

    return Drawing(
        config.batch_size,
        config.negatives_per_query,
        config.seed,
        config.hard_negative_ratio,
        config.balanced_margins,
    )
