"""`retrievo mine-negatives`: finds documents that a retriever ranks high for a query and that are not judged relevant.

It composes commands: index or encode, search, then a choice from the run. `mine-negatives stage-1 to stage-2` takes its
options from the manifest of stage 1 and writes `stage-2/train.toml` for `retrievo train stage-2`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retrievo.commands.encode import EncodeConfig, encode
from retrievo.commands.index import IndexConfig, index
from retrievo.commands.search.config import SearchConfig
from retrievo.commands.search.run import searched
from retrievo.commands.stages import trained_stage, write_stage
from retrievo.commands.train_config import STAGE_NEGATIVES
from retrievo.data.options import (
    K1,
    OF_DATA,
    B,
    check_tables,
    corpus_option,
    data_option,
    force_option,
    min_relevance_option,
    of_data,
    output_option,
    qrels_option,
    queries_option,
    seed_option,
    split_option,
    threads_option,
    title_template_option,
)
from retrievo.models.compute import Computes
from retrievo.models.options import chunk_tokens_option, device_option, dtype_option, model_option, revision_option
from retrievo.support import console
from retrievo.support.conditions import only_with
from retrievo.support.errors import UsageError, did_you_mean
from retrievo.support.options import Options, option
from retrievo.support.settings import Layer
from retrievo.support.values import Values
from retrievo.support.verbs import verb
from retrievo.training.feeds.dataset_config import TABLES

if TYPE_CHECKING:
    import pyarrow as pa

    from retrievo.data.corpus import Corpus, Queries
    from retrievo.data.qrels import Qrels
    from retrievo.mining.candidates import Judged, RandomMiner, RunMiner
    from retrievo.mining.choice import Tally
    from retrievo.mining.rules import Filters
    from retrievo.support.artifact import Input, Manifest, Output

DROPPED_FILE, AUDIT_FILE = "dropped.parquet", "audit.md"  # in the work folder
BM25, DENSE, INDEX, RUN, RANDOM = "bm25", "dense", "index", "run", "random"
SOURCES = (BM25, DENSE, INDEX, RUN, RANDOM)
_OF_BM25 = only_with("source", BM25)


class NegativeSource(NamedTuple):
    """A source of negatives and its quota for each query (None = `--samples`)."""

    name: str
    quota: int | None

    @classmethod
    def parse(cls, text: str) -> NegativeSource:
        """Reads `bm25` or `bm25:10`.

        Raises: UsageError for a name that is not in `SOURCES`, and for a quota that is no number above 0.
        """
        name, colon, quota = text.partition(":")
        if name not in SOURCES:
            raise UsageError("--source", f"found '{text}'", None, did_you_mean(name, SOURCES))
        if colon and not (quota.isdecimal() and int(quota)):
            raise UsageError("--source", f"found '{text}'", f"a number above 0 after the colon, as in {name}:10")
        return cls(name, int(quota) if colon else None)


@dataclass(frozen=True, kw_only=True)
class MineConfig(Computes, Options):
    """Options of `retrievo mine-negatives`."""

    stages: tuple[str, ...] = option(
        "Two stages, as in stage-1 to stage-2. The model of the first stage mines negatives for the next one.",
        default=(),
        positional=True,
        shown=True,
        affects_output=False,
        decides_output=True,
        group="Data",
    )
    source: tuple[str, ...] = option(
        "Where negatives come from. The sources are bm25, dense (--model), index (--index), run (--run) and random; "
        "several may have quotas, as in bm25:10,dense:20.",
        default=(BM25,),
        check=NegativeSource.parse,
        shown=True,
        group="Negatives",
    )
    model: str | None = model_option(default=None, applies=only_with("source", DENSE), affects_output=False, shown=True)
    revision: str | None = revision_option()
    index: tuple[Path, ...] = option(
        "Existing index or embeddings folders to search.",
        default=(),
        applies=only_with("source", INDEX),
        group="Negatives",
    )
    run: tuple[Path, ...] = option(
        "Runs or tables of negatives to draw from.", default=(), applies=only_with("source", RUN), group="Negatives"
    )
    data: Path | None = data_option(*TABLES)
    split: str = split_option("train")
    corpus: Path = corpus_option(default=None, hidden_default=OF_DATA)
    queries: Path = queries_option(default=None, hidden_default=OF_DATA)
    qrels: Path = qrels_option(default=None, split="training split", hidden_default="the --split of --data")
    output: Path = output_option("Table of negatives to write (.parquet).")
    depth: int = option(
        "Number of documents retrieved per query.", default=200, minimum=1, shown=True, group="Negatives"
    )
    skip: int = option(
        "Number of top ranks to skip, where relevant documents without a judgment are most likely.",
        default=0,
        minimum=0,
        group="Negatives",
    )
    samples: int = option(
        "Number of negatives per query, from each source without a quota.",
        default=30,
        minimum=1,
        shown=True,
        group="Negatives",
    )
    sampling: str = option(
        "How negatives are chosen from the ranking: at random, or from the top.",
        default="random",
        choices=("random", "top"),
        group="Negatives",
    )
    min_relevance: int = min_relevance_option()
    min_score: float | None = option("Drop candidates that score less.", default=None, group="Negatives")
    max_score: float | None = option("Drop candidates that score more.", default=None, group="Negatives")
    margin: float | None = option(
        "Drop candidates that do not score at least this much less than the positive.", default=None, group="Negatives"
    )
    relative_margin: float | None = option(
        "Drop candidates that do not score less than the positive by this fraction of its score. 0.05 is 5%.",
        default=None,
        minimum=0,
        group="Negatives",
    )
    margin_to: str = option(
        "Which relevant document of the query margins are measured from: the one with the lowest or the highest score.",
        default="lowest",
        choices=("lowest", "highest"),
        group="Negatives",
    )
    near_duplicate: float | None = option(
        "Drop candidates whose similarity to a relevant document is at least this (Jaccard index of 3-word shingles).",
        default=None,
        above=0,
        maximum=1,
        group="Negatives",
    )
    teacher: Path | None = option(
        "Run with a teacher's scores of the candidates, as from retrievo rerank.", default=None, group="Negatives"
    )
    max_teacher_score: float | None = option(
        "Drop candidates that the teacher scores higher than this.", default=None, group="Negatives"
    )
    audit: int = option(
        "Number of doubtful pairs to show in the audit page.",
        default=20,
        minimum=0,
        affects_output=False,
        group="Output",
    )
    language: str = option(
        "Language of the analyzer (stemming and stop words), as in en, de or zh.",
        default="en",
        applies=_OF_BM25,
        group="BM25",
    )
    k1: float = option(
        "BM25 k1 (saturation of the term frequency).", default=K1, minimum=0, applies=_OF_BM25, group="BM25"
    )
    b: float = option(
        "BM25 b (document length normalization).", default=B, minimum=0, maximum=1, applies=_OF_BM25, group="BM25"
    )
    title_template: str = title_template_option(applies=_OF_BM25, group="BM25")
    dtype: str = dtype_option()
    chunk_tokens: int | str = chunk_tokens_option()
    device: str = device_option()
    threads: int | None = threads_option()
    seed: int = seed_option("choice of negatives")
    force: bool = force_option()

    def recipe(self) -> Mapping[str, Any]:
        return of_data(self.data, *TABLES, split=self.split)

    def check(self) -> None:
        _check_stages(self.stages)
        check_tables(**{name: getattr(self, name) for name in TABLES})
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names) or not names:
            raise UsageError("--source", f"found '{' '.join(self.source)}'", "each source once")
        if DENSE in names and self.model is None:
            raise UsageError("--source dense", "needs a model", None, "pass --model FOLDER")
        if INDEX in names and not self.index:
            raise UsageError("--source index", "needs an index", None, "pass --index FOLDER")
        if RUN in names and not self.run:
            raise UsageError("--source run", "needs a run", None, "pass --run FILE")
        if (self.teacher is None) != (self.max_teacher_score is None):
            raise UsageError("--teacher", "goes with --max-teacher-score", "both or none")
        if self.output.suffix != ".parquet":
            raise UsageError("--output", f"found '{self.output}'", "a file that ends in .parquet")
        if self.skip >= self.depth:
            raise UsageError("--skip", f"found {self.skip}", f"less than --depth ({self.depth})")

    @property
    def sources(self) -> list[NegativeSource]:
        """The sources in the order of their miners."""
        return [NegativeSource.parse(text) for text in self.source]

    @classmethod
    def manifest_layers(cls, typed: Mapping[str, Any]) -> list[Layer]:
        """The options that `stage-1 to stage-2` takes from the manifest of stage 1."""
        stages = typed.get("stages", ())
        _check_stages(stages)  # before missing options are reported
        if not stages:
            return []
        manifest = trained_stage(Path(stages[0]))
        tables = {name: str(manifest.input_path(name, f"--{name}")) for name in ("corpus", "queries", "qrels")}
        mined = {"source": DENSE, "model": stages[0], "output": str(Path(stages[2]) / STAGE_NEGATIVES)}
        relevance = {"min_relevance": manifest.config["min_relevance"]}
        return [Layer(f"manifest of {stages[0]}", tables | mined | relevance)]


def _check_stages(stages: Sequence[str]) -> None:
    found = f"found '{' '.join(stages)}'"
    if stages and (len(stages) != 3 or stages[1] != "to"):
        raise UsageError("mine-negatives", found, "two stages, as in: stage-1 to stage-2")
    if stages and Path(stages[0]).resolve() == Path(stages[2]).resolve():
        raise UsageError("mine-negatives", found, "another folder for the next stage, as in: stage-1 to stage-2")


@verb(MineConfig)
def mine_negatives(config: MineConfig) -> Manifest:
    """Mines, or finds the negatives finished; between stages it also writes the settings of the next one.

    Beside the table of negatives lie the dropped candidates with their rules, and the audit. Of several processes each
    encodes its share of the corpus; the lead one does the rest.
    Raises: RetrievoError for tables that can't be read or a stage that was not trained.
    """
    from retrievo.data.corpus import Corpus, Queries
    from retrievo.data.finding import training_split
    from retrievo.data.qrels import Qrels
    from retrievo.models.model_reference import model_record, shows_titles
    from retrievo.support.artifact import Output

    titles = shows_titles(config.model, None if config.model else config.title_template)
    corpus, queries = Corpus(config.corpus, titles=titles), Queries(config.queries)
    qrels = Qrels.read(training_split(config.qrels))
    model_config, model_inputs = model_record(config.model, config.revision) if config.model else ({}, {})
    inputs = {"corpus": corpus.input, "queries": queries.input, "qrels": qrels.input, **model_inputs}
    inputs |= _drawn(config.index, config.run, config.teacher)
    record = config.record() | model_config
    beside = {DROPPED_FILE: config.output.with_suffix(".dropped.parquet")}
    beside[AUDIT_FILE] = config.output.with_suffix(".audit.md")
    output = Output(
        config.output,
        "negatives",
        record,
        inputs,
        force=config.force,
        single_file=True,
        resumes=True,
        companions=beside,
    )
    finished = output.already_finished(lead=console.is_lead())
    manifest = finished or _mine(config, corpus, queries, qrels, model_inputs, output)
    if config.stages and console.is_lead():
        tables = {name: inputs[name] for name in ("corpus", "queries", "qrels")}
        write_stage(Path(config.stages[0]), Path(config.stages[2]), tables)
    return manifest


def _mine(
    config: MineConfig,
    corpus: Corpus,
    queries: Queries,
    qrels: Qrels,
    model: Mapping[str, Input],
    output: Output,
) -> Manifest:
    """Mines in the lead process, after all processes have encoded the corpus where a model searches it."""
    from retrievo.data.origin import read_now, warn_of_other_judgments, warn_of_others

    warn_of_other_judgments(qrels.input, config.queries, read_now("queries", queries.input))
    pairs = _relevant_pairs(qrels, queries, config.min_relevance)
    with console.inner_steps():
        vectors = _embeddings(config, corpus, model) if config.model is not None else None
    if not console.is_lead():
        return output.manifest({})
    for path in (*config.run, *([config.teacher] if config.teacher else [])):
        warn_of_others(path, corpus=corpus.input, queries=queries.input)
    for path in config.index:
        warn_of_others(path, corpus=corpus.input)
    with output.build() as folder, console.inner_steps():
        work = _Work(config, corpus, _judged_queries(queries, pairs, folder), pairs, folder, vectors)
        manifest = output.finish(work.write(output))
    following = config.stages[2] if config.stages else f"... --negatives {config.output}"
    _summary(config.output, manifest, output.elapsed, f"retrievo train {following}")
    return manifest


def _drawn(indexes: Sequence[Path], runs: Sequence[Path], teacher: Path | None) -> dict[str, Input]:
    """The indexes and runs to read, as inputs for the manifest."""
    from retrievo.data.finding import table_files
    from retrievo.support.artifact import Input

    named = {f"run-{number}": path for number, path in enumerate(runs, start=1)}
    named |= {"teacher": teacher} if teacher else {}
    read = {name: Input.of(path, table_files(path, "run")) for name, path in named.items()}
    return {f"index-{number}": Input.of(path) for number, path in enumerate(indexes, start=1)} | read


def _called(paths: Sequence[Path]) -> dict[Path, str]:
    """The name of each index and run in the table of negatives: its own name, or its path where names collide."""
    from retrievo.data.run_files import run_name
    from retrievo.evaluation.comparison import run_names

    return dict(zip(paths, run_names(paths, [run_name(path) for path in paths]), strict=True))


def _relevant_pairs(qrels: Qrels, queries: Queries, min_relevance: int) -> pa.Table:
    """The relevant (query_id, doc_id) pairs of the queries of the table.

    Raises: RetrievoError where there are no such pairs.
    """
    import pyarrow.compute as pc

    from retrievo.support.errors import RetrievoError

    grades = qrels.table["relevance"]
    there = pc.is_in(qrels.table["query_id"], value_set=queries.ids)
    pairs = qrels.table.filter(pc.and_(pc.greater_equal(grades, min_relevance), there)).select(["query_id", "doc_id"])
    if not pairs.num_rows:
        raise RetrievoError(
            qrels.path,
            "has no relevant document for any query of the table",
            None,
            "check --queries and --min-relevance",
        )
    return pairs


def _judged_queries(queries: Queries, pairs: pa.Table, folder: Path) -> Path:
    """Writes a table of the queries that have a relevant document, since training uses only those."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from retrievo.support.files import atomic_path

    judged = pc.is_in(queries.ids, value_set=pc.unique(pairs["query_id"]))
    table = pa.table({"id": queries.ids, "text": pa.array(queries.texts, pa.string())}).filter(judged)
    with atomic_path(folder / "queries.parquet") as temporary:
        pq.write_table(table, temporary)
    return folder / "queries.parquet"


class _Work:
    """The work of one command: miners for the judged queries, and the choice of negatives."""

    def __init__(
        self,
        config: MineConfig,
        corpus: Corpus,
        queries: Path,
        pairs: pa.Table,
        folder: Path,
        vectors: Path | None,
    ):
        from retrievo.data.corpus import Queries
        from retrievo.data.ordering import flat_strings
        from retrievo.mining.candidates import Judged

        self.config, self.corpus, self.table, self.folder, self.vectors = config, corpus, queries, folder, vectors
        self.searched = folder / "searched"  # finished searches, which a killed command finds again
        self.searched.mkdir(exist_ok=True)
        self.queries = Queries(queries)
        self.judged = Judged(corpus, flat_strings(self.queries.ids), self.queries.texts, pairs)

    def miners(self) -> Iterator[RandomMiner | RunMiner]:
        """Makes the miners in their order; the runs that they search are kept in the work folder."""
        from retrievo.mining.candidates import RandomMiner, RunMiner, in_order

        config = self.config
        called = _called([*config.index, *config.run, *(Path(source.name) for source in config.sources)])
        for name, quota in config.sources:
            wanted = quota or config.samples
            if name == RANDOM:
                yield RandomMiner(self.judged, wanted, config.seed)
            elif name == RUN:
                for number, path in enumerate(config.run):
                    ordered = in_order(path, self.judged, config.depth, self.folder / f"run-{number}.parquet")
                    yield RunMiner(self.judged, wanted, ordered, called[path])
            elif name == INDEX:
                for number, path in enumerate(config.index):
                    yield RunMiner(self.judged, wanted, self.search(path, f"index-{number}"), called[path])
            elif name == BM25:
                index = _bm25_index(config, self.corpus)
                yield RunMiner(self.judged, wanted, self.search(index, BM25, k1=config.k1, b=config.b), BM25)
            else:
                assert self.vectors is not None
                yield RunMiner(self.judged, wanted, self.search(self.vectors, DENSE), DENSE)

    def search(self, index: Path, name: str, **bm25: float) -> Path:
        """The run of the judged queries on an index, searched now unless it is finished already."""
        from retrievo.support.artifact import Input, Manifest
        from retrievo.support.files import remove

        config, run = self.config, self.searched / f"{name}.parquet"
        if run.exists() and Manifest.read(run, "run").inputs["index"]["fingerprint"] != Input.of(index).fingerprint:
            remove(run)  # the index has changed since
        shared = asdict(config.compute) | bm25
        searched(SearchConfig(index=(index,), queries=self.table, output=run, depth=config.depth, **shared), alone=True)
        return run

    def write(self, output: Output) -> Values:
        """Writes negatives, dropped candidates and audit into the folder; returns the stats for the manifest."""
        import pyarrow as pa

        from retrievo.data.tables import NEGATIVES, TableWriter
        from retrievo.mining.audit import Doubts, report
        from retrievo.mining.choice import Tally, Window, choose
        from retrievo.mining.rules import DROPPED, RULES, Rules, read_teacher

        config, tally, doubts = self.config, Tally(), Doubts(self.config.audit)
        window = Window(config.skip, config.depth, config.sampling, config.seed)
        teacher = read_teacher(config.teacher, self.judged) if config.teacher else None
        rules, miners = Rules(self.judged, self._filters(), teacher), list(self.miners())
        with (
            TableWriter(self.folder / config.output.name, NEGATIVES.arrow) as writer,
            TableWriter(self.folder / DROPPED_FILE, DROPPED) as dropped,
        ):
            for part in choose(self.judged, miners, window, rules, tally):
                writer.write(part.negatives.table(self.judged))
                named = pa.array(RULES).take(pa.array(part.rules))
                dropped.write(part.dropped.table(self.judged).append_column("rule", named))
                doubts.add(part)
            stats = _stats(tally, writer.rows, self.judged)
            writer.close(output.manifest(stats))
            dropped.close(dataclasses.replace(output.manifest(stats), kind="dropped-candidates"))
        text = report(config.output.name, tally, doubts, self.judged, self.queries.texts, self.corpus)
        (self.folder / AUDIT_FILE).write_text(text, encoding="utf-8")
        self._warn(tally)
        return stats

    def _filters(self) -> Filters:
        from retrievo.mining.rules import Filters

        names = ("min_score", "max_score", "margin", "relative_margin", "near_duplicate", "max_teacher_score")
        return Filters(**{name: getattr(self.config, name) for name in names}, positive=self.config.margin_to)

    def _warn(self, tally: Tally) -> None:
        if tally.unmeasured and (self.config.margin is not None or self.config.relative_margin is not None):
            console.warn(f"margins do not apply to {tally.unmeasured:,} rankings without a relevant document")
        if self.judged.lost:
            console.warn(f"left out {self.judged.lost:,} judgments of documents that are not in the corpus")
        if tally.unscored:
            console.warn(f"the teacher has no score for {tally.unscored:,} candidates, which are kept")


def _stats(tally: Tally, negatives: int, judged: Judged) -> Values:
    """The stats of the manifest."""
    from retrievo.mining.rules import RULES

    counts = {"negatives": negatives, "queries": tally.queries, "short": tally.short, "without": tally.without}
    counts |= {"queries_that_are_documents": judged.documents} if judged.documents else {}
    dropped = {rule: count for rule in RULES if (count := tally.rule(rule))}
    return {**counts, "candidates": dict(tally.looked_at), "kept": dict(tally.kept), "dropped": dropped}


def _bm25_index(config: MineConfig, corpus: Corpus) -> Path:
    """The BM25 index of the corpus in the user's cache, named after its inputs and options."""
    from retrievo.data.cache import cache_folder, made_by_verb
    from retrievo.data.ids import hash_texts
    from retrievo.support.artifact import MANIFEST

    key = hash_texts([f"{config.language}\0{config.title_template}"])[0]
    path = cache_folder() / "bm25" / f"{corpus.input.fingerprint}-{key:016x}"
    made = IndexConfig(
        type=BM25,
        corpus=config.corpus,
        output=path,
        language=config.language,
        title_template=config.title_template,
        threads=config.threads,
    )
    with made_by_verb(path, MANIFEST):
        index(made)
    return path


def _embeddings(config: MineConfig, corpus: Corpus, model: Mapping[str, Input]) -> Path:
    """The embeddings of the corpus, beside a model that retrievo trained, or in the user's cache for other models.

    The folder is named after its inputs and number formats, so that mining with other ones makes another folder.
    """
    from retrievo.data.cache import cache_folder, made_by_verb
    from retrievo.data.ids import hash_texts
    from retrievo.models.devices import resolve_device
    from retrievo.models.inference import compute_record
    from retrievo.support.artifact import MANIFEST, has_manifest

    assert config.model is not None
    made_by = model["model"].fingerprint if model else "nothing"  # which encode refuses
    home = Path(config.model) if has_manifest(Path(config.model)) else cache_folder()
    record = compute_record(config.compute, resolve_device(config.device))
    path = home / "embeddings" / f"{corpus.input.fingerprint}-{made_by}-{hash_texts([json.dumps(record)])[0]:016x}"
    # the lead process waits for another command before it meets the others of its own in `encode`
    with made_by_verb(path, MANIFEST) if console.is_lead() else contextlib.nullcontext():
        encode(
            EncodeConfig(
                model=config.model,
                revision=config.revision,
                corpus=config.corpus,
                output=path,
                **asdict(config.compute),
            )
        )
    return path


def _summary(output: Path, manifest: Manifest, seconds: float, following: str) -> None:
    from retrievo.data.text_identity import self_retrieval

    stats = manifest.stats
    by_source = ", ".join(f"{count:,} {name}" for name, count in stats["kept"].items())
    dropped = ", ".join(f"{count:,} {rule}" for rule, count in stats["dropped"].items())
    facts = {
        "output": f"{output} ({stats['negatives']:,} negatives of {stats['queries']:,} queries: {by_source})",
        "dropped": dropped or "nothing",
        "short": f"{stats['short']:,} queries have fewer than requested, {stats['without']:,} of them none",
        **self_retrieval(stats.get("queries_that_are_documents", 0), stats["queries"]),
        "audit": output.with_suffix(".audit.md"),
        "took": console.seconds(seconds),
    }
    console.summary("mined", facts, following)
