"""`retrievo encode`: encodes texts into an embeddings folder, shard by shard, in one process or several.

A shard is a pure function of its rows, the model and the token budget, whichever process encodes it. A killed run
therefore resumes with the missing shards, with any number of processes, and produces the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievo.data.options import (
    corpus_option,
    data_option,
    force_option,
    of_data,
    output_option,
    queries_option,
    restart_option,
    threads_option,
)
from retrievo.distributed.environment import started_together
from retrievo.models.compute import Computes
from retrievo.models.options import (
    chunk_tokens_option,
    device_option,
    dtype_option,
    model_option,
    pooling_option,
    revision_option,
)
from retrievo.support import console
from retrievo.support.conditions import only_without
from retrievo.support.errors import UsageError
from retrievo.support.options import Options, option
from retrievo.support.verbs import verb

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from retrievo.data.tables import Table
    from retrievo.models.encoder import Encoder
    from retrievo.models.tokens import Tokenized
    from retrievo.support.artifact import Manifest, Output


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(Computes, Options):
    """Options of `retrievo encode`."""

    model: str = model_option(affects_output=False)
    revision: str | None = revision_option()
    data: Path | None = data_option("corpus", applies=only_without("queries"))
    corpus: Path | None = corpus_option(default=None, alternative="texts", shown=True)
    queries: Path | None = queries_option(default=None, alternative="texts", shown=True)
    output: Path = output_option("Embeddings folder to write.")
    pooling: str | None = pooling_option()
    truncate_dim: int | None = option(
        "Number of leading dimensions to keep, for models trained with --matryoshka.",
        default=None,
        minimum=1,
        hidden_default="all",
        group="Model",
    )
    storage_dtype: str = option(
        "Number format of the stored vectors.",
        default="float16",
        choices=("float16", "float32"),
        shown=True,
        group="Precision and memory",
    )
    dtype: str = dtype_option()
    chunk_tokens: int | str = chunk_tokens_option()
    device: str = device_option(shown=True)
    threads: int | None = threads_option()
    processes: int | None = option(
        "Number of processes that encode on this machine. For several machines, use torchrun.",
        default=None,
        minimum=1,
        affects_output=False,
        hidden_default="one per accelerator",
        group="Machine",
    )
    force: bool = force_option()
    restart: bool = restart_option()

    def recipe(self) -> Mapping[str, Any]:
        return of_data(self.data, "corpus") if self.queries is None else {}

    def check(self) -> None:
        if (self.corpus is None) == (self.queries is None):
            raise UsageError("encode", "needs one of --corpus and --queries", None, "pass --corpus CORPUS")

    @property
    def role(self) -> str:
        """The role of the texts: `document` or `query`."""
        return "document" if self.corpus is not None else "query"


@verb(EncodeConfig)
def encode(config: EncodeConfig) -> Manifest:
    """Encodes every text, resumes a killed run, or finds the output finished.

    Raises: RetrievoError for a model or a table that can't be read.
    """
    from retrievo.data.shards import shard_bounds
    from retrievo.data.tables import CORPUS, QUERIES, Table
    from retrievo.distributed.collectives import barrier, process_group, rank
    from retrievo.models.devices import prepare_cpu, resolve_device

    prepare_cpu(config.threads)
    table = Table(config.corpus, CORPUS) if config.corpus else Table(_required(config.queries), QUERIES)
    table.check_not_empty()
    shards = len(shard_bounds(table.rows))
    if (processes := _processes(config.processes, resolve_device(config.device), shards)) > 1:
        return _encode_together(config, table, processes)
    with process_group(resolve_device(config.device)) as device:
        output = _output(config, table, device)
        finished = output.already_finished(lead=rank() == 0, barrier=barrier)
        return finished or _encode_shards(config, table, output, device)


def _processes(wanted: int | None, device: str, shards: int) -> int:
    """The number of processes to start; 1 = this process encodes, alone or as one of those that torchrun started.

    Raises: UsageError for more processes than GPUs.
    """
    import torch

    if started_together() > 1:
        return 1
    accelerators = torch.cuda.device_count() if device == "cuda" else 1
    if device == "cuda" and wanted is not None and wanted > accelerators:
        raise UsageError("--processes", f"found {wanted:,}", f"at most {accelerators:,}, one for each GPU")
    return min(wanted or accelerators, shards)


def _encode_together(config: EncodeConfig, table: Table, processes: int) -> Manifest:
    """Encodes with several processes, among which the cores of a CPU are divided."""
    import torch

    from retrievo.distributed.launch import run_together
    from retrievo.models.devices import resolve_device
    from retrievo.support.artifact import Manifest

    device = torch.device(resolve_device(config.device))
    if finished := _output(config, table, device).already_finished():
        return finished
    shared = max(1, torch.get_num_threads() // processes) if device.type == "cpu" else None
    run_together(encode, replace(config, processes=1, threads=config.threads or shared), processes=processes)
    return Manifest.read(config.output, "embeddings")


def _required(path: Path | None) -> Path:
    assert path is not None
    return path


def _output(config: EncodeConfig, table: Table, device: torch.device) -> Output:
    from retrievo.models.inference import compute_record
    from retrievo.models.model_reference import model_record
    from retrievo.retrieval.embeddings import ANY_SHARD
    from retrievo.support.artifact import Output

    model_config, model_inputs = model_record(config.model, config.revision)
    record = config.record() | model_config | {"role": config.role}
    record["pooling"] = _pooling(config.model, config.revision, config.pooling)
    record |= compute_record(config.compute, device)
    inputs = model_inputs | {"corpus" if config.corpus else "queries": table.input}
    return Output(
        config.output,
        "embeddings",
        record,
        inputs,
        force=config.force,
        restart=config.restart,
        in_place=True,
        unfinished=(ANY_SHARD,),
    )


def _pooling(model: str, revision: str | None, given: str | None) -> str:
    """The pooling of the vectors: as the folder states it, as a flag sets it, or as the opened model has it by default.

    It is recorded because vectors are compatible only with the same pooling, and queries are encoded with it.
    """
    from retrievo.models.checkpoints import locate
    from retrievo.models.encoder import Encoder
    from retrievo.models.loading import read_folder

    stated = read_folder(locate(model, revision), model, ("pooling",) if given else ()).stated
    known = stated.get("pooling") or given
    return str(known or Encoder.load(model, revision, notify=lambda notice: None).spec.pooling)


def _encode_shards(config: EncodeConfig, table: Table, output: Output, device: torch.device) -> Manifest:
    """Encodes this process's share of the shards; the lead process begins and finishes the folder."""
    from retrievo.data.shards import shard_bounds
    from retrievo.distributed.collectives import barrier, rank, world_size
    from retrievo.models.encoder import Encoder
    from retrievo.models.inference import prepared
    from retrievo.models.tokens import warn_of_texts_without_tokens
    from retrievo.retrieval.embeddings import (
        CHUNK_TOKENS,
        EMPTY,
        TRUNCATED,
        WITHOUT_TOKENS,
        embeddings_stats,
        shard_metadata,
        shard_name,
    )

    with output.build_together(lead=rank() == 0, barrier=barrier) as folder:
        encoder = Encoder.load(config.model, config.revision, as_stated=True, pooling=config.pooling)
        encoder = prepared(encoder, config.dtype, device)
        encoder.truncate(config.truncate_dim)
        own = list(enumerate(shard_bounds(table.rows)))[rank() :: world_size()]
        _encode_missing(config, table, encoder, folder, own)
        barrier()
        if rank() != 0:
            return output.manifest({})
        stats = embeddings_stats(table.rows, encoder.dim, config.storage_dtype, config.role, encoder.spec.similarity)
        shards = [shard_metadata(folder / shard_name(number)) for number in range(len(shard_bounds(table.rows)))]
        stats["truncated"] = sum(int(shard[TRUNCATED]) for shard in shards)
        split = {str(number): int(shard[CHUNK_TOKENS]) for number, shard in enumerate(shards) if CHUNK_TOKENS in shard}
        stats |= {"chunk_tokens_of_shards": split} if split else {}
        if empty := sum(int(shard.get(EMPTY, 0)) for shard in shards):
            console.warn(f"{table.path}: {empty:,} {config.role} texts are empty; they are encoded all the same")
        without = sum(int(shard.get(WITHOUT_TOKENS, 0)) for shard in shards)
        warn_of_texts_without_tokens(table.path, without, config.role)
        manifest = output.finish(stats)
    _summary(config, manifest, encoder.spec.max_length(config.role))
    return manifest


def _encode_missing(
    config: EncodeConfig,
    table: Table,
    encoder: Encoder,
    folder: Path,
    own: list[tuple[int, tuple[int, int]]],
) -> None:
    """Encodes the missing shards; the next one is read and tokenized, and the last one written, in the meantime.

    Every shard begins with the token budget of the config, even if chunks of an earlier shard did not fit in memory:
    the result depends on the shard's rows and the memory alone, not on the shards that this process encoded before.
    """
    from retrievo.models.splits import noted_splits
    from retrievo.models.vectors import encode_tokens
    from retrievo.retrieval.embeddings import CHUNK_TOKENS, EMPTY, TRUNCATED, WITHOUT_TOKENS, shard_name, write_shard

    missing = [(number, bounds) for number, bounds in own if not (folder / shard_name(number)).exists()]
    total = sum(end - first for _, (first, end) in own)
    there = total - sum(end - first for _, (first, end) in missing)
    with console.progress("encoding", total, "texts", there) as tick, ThreadPoolExecutor(1) as writer:
        written = None
        shards = _ahead(_tokenized(table, encoder, config.role, [bounds for _, bounds in missing]))
        for (number, _), (ids, rows, empty) in zip(missing, shards, strict=True):
            with noted_splits() as splits:
                vectors = encode_tokens(encoder, config.role, rows.tokens, rows.offsets, config.compute, tick)
            if written is not None:
                written.result()
            counts = {EMPTY: empty, WITHOUT_TOKENS: rows.without_tokens}
            metadata = {TRUNCATED: str(rows.truncated)} | {name: str(count) for name, count in counts.items() if count}
            if splits.tokens:
                metadata[CHUNK_TOKENS] = str(splits.tokens[0])
            written = writer.submit(
                write_shard, folder / shard_name(number), ids, vectors.astype(config.storage_dtype), metadata
            )
        if written is not None:
            written.result()


def _tokenized(
    table: Table, encoder: Encoder, role: str, bounds: list[tuple[int, int]]
) -> Iterator[tuple[pa.Array, Tokenized, int]]:
    """Ids and tokens of each shard, and the number of its empty texts."""
    from retrievo.data.text_identity import is_empty

    tokenization = encoder.tokenization(role)
    names = [name for name in ("id", "title", "text") if table.has(name)]
    for rows in table.slices(names, bounds):
        titles = rows["title"].to_pylist() if "title" in names else None
        texts = rows["text"].to_pylist()
        shown = titles if "{title}" in (tokenization.title_template or "") else None
        empty = sum(is_empty(text) and (not shown or is_empty(shown[at])) for at, text in enumerate(texts))
        yield rows["id"].combine_chunks(), tokenization.tokenize(texts, titles), empty


def _ahead(items: Iterator[tuple[pa.Array, Tokenized, int]]) -> Iterator[tuple[pa.Array, Tokenized, int]]:
    """Yields the items, making the next one in a thread while one is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def _summary(config: EncodeConfig, manifest: Manifest, max_length: int) -> None:
    rows, role, seconds = manifest.stats["rows"], manifest.stats["role"], manifest.seconds or 0.0
    share = manifest.stats["truncated"] / max(1, rows)
    facts = {
        "output": f"{config.output} ({rows:,} {role} vectors of {manifest.stats['dim']} dimensions)",
        "truncated": f"{share:.1%} of the texts, at {max_length} tokens",
        "took": f"{console.seconds(seconds)} ({rows / max(seconds, 1e-9):,.0f} texts/s)",
    }
    console.summary("encoded", facts, *(_searches(config) if role == "document" else ()))


def _searches(config: EncodeConfig) -> Iterator[str]:
    """The commands that search the embeddings of documents, fused with a BM25 index of the same folder."""
    from retrievo.support.artifact import MANIFEST

    beside = config.output.parent / "bm25"
    indexes = [*([beside] if (beside / MANIFEST).is_file() else []), config.output]
    flags = " ".join(f"--index {path}" for path in indexes)
    yield f'retrievo search "..." {flags}'
    if config.data is not None and (config.data / "queries.parquet").is_file():
        yield f"retrievo search {flags} --data {config.data} --output run.parquet"
