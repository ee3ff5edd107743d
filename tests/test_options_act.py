"""Every option of every command acts: it changes output bytes, a statistic, an error, or a resource that is counted.

One row for each option. `Acts` runs a command twice, once with the option's flag and once without, and compares what
came out: never the record of the options (manifests, model cards, settings files), and never what is said on the way.
`Refused` is for options whose effect on this machine is an error, `Counted` for those that leave every byte alone.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import json
import os
import re
import shlex
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
import torch
import typer

from retrievo.cli import COMMANDS
from retrievo.support.options import Option, options_of
from tests.conftest import FILLERS, TOPICS, Outcome, run_here

pytest.importorskip("faiss")
pytest.importorskip("peft")

RECORDS = ("manifest.json", "begin.json", "README.md", "train.toml", "metrics.png", "config.json", "retrievo.json")
RECORDED = ("learning_rate", "chunk_tokens", "memory_bytes")  # in the log: told by options, or by the clock

# ------------------------------------------------------------------------------------------------------ what is there


def write_dataset(
    folder: Path, count: int, seed: int, own: bool = False, letter: str = "d", echo: bool = False
) -> Path:
    """Documents of 24 to 34 words, every fourth one nearly its neighbor; queries of their words, each with two judged
    documents, of grades 2 and 1.

    own: queries have the ids of documents. letter: what ids begin with. echo: queries are the documents' very texts.
    """
    rng = np.random.default_rng(seed)
    words = [f"{topic}{number}" for topic in TOPICS for number in range(8)]
    texts: list[str] = []
    for row in range(count):
        if row % 4 == 3:
            texts.append(texts[-1].replace("the", "of", 1) + " plot")
            continue
        chosen = rng.choice(words, 6)
        drawn = rng.choice([*chosen, *FILLERS], rng.integers(24, 34))
        texts.append(" ".join(f"{word}." if place % 7 == 6 else str(word) for place, word in enumerate(drawn)))
    ids = [f"{letter}{row // 2}#{row % 2}" for row in range(count)]
    titles = ["" if echo else f"wing{row % 8} heat{row // 8}" for row in range(count)]
    queries = [" ".join([*text.replace(".", "").split()[:5], "over the wings"]) for text in texts]
    queries = texts if echo else queries
    (folder / "qrels").mkdir(parents=True)
    pq.write_table(pa.table({"id": ids, "title": titles, "text": texts}), folder / "corpus.parquet")
    query_ids = ids if own else [f"q{row}" for row in range(count)]
    pq.write_table(pa.table({"id": query_ids, "text": queries}), folder / "queries.parquet")
    for split, rows in (("train", range(count)), ("test", range(0, count, 2))):
        pairs = [(query_ids[row], ids[(row + step) % count], 2 - step) for row in rows for step in (0, 1)]
        columns = [list(column) for column in zip(*pairs, strict=True)]
        names = ["query_id", "doc_id", "relevance"]
        table = pa.table([*columns[:2], pa.array(columns[2], pa.int32())], names)
        pq.write_table(table, folder / "qrels" / f"{split}.parquet")
    return folder


TABLES = "--corpus {small} --queries {small} --qrels {small}/qrels/train.parquet"
STEPS = "--batch-size 8 --max-steps 2 --learning-rate 1e-2 --warmup-ratio 0 --dtype float32"
TRAIN = f"train --model {{tiny}} {TABLES} --negatives {{negatives.parquet}} --negatives-per-query 1"
PRETRAIN = f"pretrain --model {{tiny}} --corpus {{small}} {STEPS} --output {{folder}}/out"
VIEWS = f"{PRETRAIN} --window 24 --objective"

# made when first asked for, with `--output` where it belongs
MADE = {
    "negatives.parquet": f"mine-negatives {TABLES} --source run --run {{bm25.trec}} --samples 8",
    "bm25": "index --type bm25 --corpus {small} --term-vectors",
    "bm25.trec": "search --index {bm25} --queries {small} --depth 12",
    "dense-negatives.parquet": f"mine-negatives {TABLES} --source run --run {{dense.trec}} --samples 8",
    "model": f"{TRAIN} {STEPS} --pooling mean",
    "other-model": f"{TRAIN} {STEPS} --pooling mean --seed 9",
    "vectors": "encode --model {model} --corpus {small} --dtype fp32",
    "vectors-32": "encode --model {model} --corpus {small} --dtype fp32 --storage-dtype float32",
    "asked": "encode --model {model} --queries {small} --dtype fp32",
    "other-vectors": "encode --model {tiny} --pooling cls --corpus {small} --dtype fp32",
    "other-asked": "encode --model {tiny} --pooling cls --queries {small} --dtype fp32",
    "dense.trec": "search --index {vectors} --queries {small} --depth 12 --dtype fp32",
    "ranker": f"{TRAIN} {STEPS} --kind cross-encoder",
    "teacher.trec": "rerank --run {negatives.parquet} --qrels {small}/qrels/train.parquet --model {ranker} "
    "--corpus {small} --queries {small} --dtype fp32",
    "other-teacher.trec": "rerank --run {negatives.parquet} --qrels {small}/qrels/train.parquet --model {model} "
    "--corpus {small} --queries {small} --dtype fp32",
    "cloud": "import vectors {files}/cloud.npy {files}/cloud.txt",
    "more": "import vectors {files}/more.npy {files}/more.txt",
    "points": "import vectors {files}/points.npy {files}/points.txt --role query",
    "lists": "index --type IVF16,PQ2x4 --embeddings {cloud}",
    "graph": "index --type hnsw --embeddings {cloud}",
}

BASES = {
    "import-of": "import --output {folder}/out",
    "import-vectors-of": "import vectors {files}/cloud.npy --output {folder}/out",
    "train-of": f"{TRAIN} {STEPS} --output {{folder}}/out",
    "mine-of": f"mine-negatives {TABLES} --depth 12 --samples 3 --output {{folder}}/out.parquet",
    "mine-index": f"mine-negatives {TABLES} --source index --depth 12 --samples 3 --output {{folder}}/out.parquet",
    "encode-queries": "encode --model {model} --dtype fp32 --output {folder}/out",
    "export-of": "export --output {folder}/out",
    "search-of": "search --queries {small} --depth 8 --dtype fp32 --output {folder}/run.trec",
    "search-typed-of": "search --index {bm25} --depth 3",
    "import": "import csv {files}/table.csv --output {folder}/out",
    "import-jsonl": "import jsonl {files}/table.jsonl --output {folder}/out",
    "import-pairs": "import pairs {files}/pairs.jsonl --output {folder}/out",
    "import-trec": "import trec {files}/trec --output {folder}/out",
    "import-text": "import text {files}/texts --output {folder}/out",
    "import-vectors": "import vectors {files}/cloud.npy {files}/cloud.txt --output {folder}/out",
    "pretrain": f"{VIEWS} simclr",
    "pretrain-ict": f"{VIEWS} ict",
    "pretrain-contriever": f"{VIEWS} contriever --queue-size 8 --max-steps 4",
    "pretrain-mlm": f"{PRETRAIN} --objective mlm --max-length 20",
    "pretrain-pieces": f"{PRETRAIN} --objective mlm --max-length 20 --model scratch:tiny --max-steps 1",
    "pretrain-condenser": f"{PRETRAIN} --objective condenser --max-length 20",
    "pretrain-cocondenser": f"{PRETRAIN} --objective cocondenser --max-length 12 --condenser-steps 1 --max-steps 1",
    "pretrain-epochs": "pretrain --model {tiny} --corpus {small} --objective mlm --max-length 20 --batch-size 16 "
    "--dtype float32 --output {folder}/out",
    "train": f"{TRAIN} {STEPS} --pooling mean --output {{folder}}/out",
    "train-epochs": f"{TRAIN} --batch-size 16 --dtype float32 --pooling mean --output {{folder}}/out",
    "train-ranker": f"{TRAIN} {STEPS} --kind cross-encoder --output {{folder}}/out",
    "train-query-side": f"train --model {{model}} {TABLES} {STEPS} --document-embeddings {{vectors}} "
    "--output {folder}/out",
    "mine-negatives": f"mine-negatives {TABLES} --source run --run {{dense.trec}} --depth 12 --samples 3 "
    "--output {folder}/out.parquet",
    "mine-bm25": f"mine-negatives {TABLES} --source bm25 --depth 12 --samples 3 --output {{folder}}/out.parquet",
    "mine-dense": f"mine-negatives {TABLES} --source dense --model {{model}} --depth 12 --samples 3 --dtype fp32 "
    "--output {folder}/out.parquet",
    "encode": "encode --model {model} --corpus {small} --dtype fp32 --output {folder}/out",
    "index": "index --embeddings {cloud} --output {folder}/out",
    "index-bm25": "index --type bm25 --corpus {small} --output {folder}/out",
    "export": "export {vectors} --output {folder}/out",
    "search": "search --index {vectors} --queries {small} --depth 8 --dtype fp32 --output {folder}/run.trec",
    "search-bm25": "search --index {bm25} --queries {small} --depth 8 --output {folder}/run.trec",
    "search-both": "search --index {bm25} --index {vectors} --queries {small} --depth 8 --dtype fp32 "
    "--output {folder}/run.trec",
    "search-lists": "search --index {lists} --queries {points} --depth 8 --output {folder}/run.trec",
    "search-graph": "search --index {graph} --queries {points} --depth 8 --output {folder}/run.trec",
    "search-typed": "search 'wing1 over heat2' --index {bm25} --depth 3",
    "rerank": "rerank --run {bm25.trec} --model {ranker} --corpus {small} --queries {small} --depth 3 --dtype fp32 "
    "--output {folder}/run.trec",
    "pseudo-label": "pseudo-label --run {files}/scored.trec --output {folder}/out",
    "evaluate": "evaluate --run {bm25.trec} --qrels {small}",
    "evaluate-two": "evaluate --run {bm25.trec} {dense.trec} --qrels {small} --baseline {bm25.trec}",
    "evaluate-suite": "evaluate --suite {suite} --model {model} --depth 6 --dtype fp32 --output {folder}/out",
    "evaluate-known": "evaluate --known-item title --known-items 12 --corpus {small} --model {model} --depth 6 "
    "--dtype fp32 --output {folder}/out",
    "pretrain-data": f"pretrain --model {{tiny}} {STEPS} --window 24 --objective simclr --output {{folder}}/out",
    "train-data": f"train --model {{tiny}} {STEPS} --pooling mean --output {{folder}}/out",
    "mine-data": "mine-negatives --source bm25 --depth 12 --samples 3 --output {folder}/out.parquet",
    "encode-data": "encode --model {model} --dtype fp32 --output {folder}/out",
    "index-data": "index --output {folder}/out",
    "search-data": "search --index {bm25} --depth 8 --output {folder}/run.trec",
    "rerank-data": "rerank --run {bm25.trec} --model {ranker} --depth 3 --dtype fp32 --output {folder}/run.trec",
    "evaluate-data": "evaluate --run {bm25.trec}",
    "cache": "cache",
    "run": "run {files}/recipe.toml --output {folder}/out",
    "demo": "demo --output {folder}/out",
}


def write_files(folder: Path) -> Path:
    """Sources for importers, vectors, a scored run and a recipe."""
    folder.mkdir()
    rows = [(f"k{row}", f"title {row}", f"wing{row} é text {row}", f"other {row}") for row in range(4)]
    (folder / "table.csv").write_text("id,title,text,more\n" + "".join(",".join(row) + "\n" for row in rows))
    names = ("id", "title", "text", "more")
    (folder / "table.jsonl").write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    names = ("more", "query", "answer", "neg")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    (folder / "texts").mkdir()
    (folder / "texts" / "one.txt").write_text(" ".join(f"word{number}" for number in range(250)))
    (folder / "trec").mkdir()
    (folder / "trec" / "docs.sgml").write_text("<DOC>\n<DOCNO> d1 </DOCNO>\n<TEXT>\nwing flow\n</TEXT>\n</DOC>\n")
    topic = "<top>\n<num> Number: 1\n<title> wing\n<desc> Description:\nflow over it\n<narr> Narrative:\nheat\n</top>\n"
    (folder / "trec" / "topics.txt").write_text(topic)
    rng = np.random.default_rng(3)
    for name, count in (("cloud", 600), ("more", 50), ("points", 12)):
        np.save(folder / f"{name}.npy", rng.standard_normal((count, 8)).astype(np.float32))
        (folder / f"{name}.txt").write_text("".join(f"{name}{row}\n" for row in range(count)))
    scored = [("q0", "d0#0", 9.0), ("q0", "d1#0", 2.5), ("q0", "d2#0", -2.5), ("q0", "d3#0", -9.0), ("q1", "d0#0", 3.0)]
    lines = [f"{query} Q0 {document} 0 {score} x\n" for query, document, score in [*scored, ("q1", "d4#0", -3.0)]]
    (folder / "scored.trec").write_text("".join(lines))
    (folder / "other.trec").write_text("".join(lines[:4]))
    (folder / "judged.txt").write_text("q0 0 d0#0 1\n")
    (folder / "other.csv").write_text("id,title,text,more\nk1,one,two,three\n")
    (folder / "other.txt").write_text("".join(f"other{row}\n" for row in range(600)))
    odd = [("q0", "q0", 9), ("q0", "d9#0", 8), ("q0", "d0#0", 8), ("q4", "d2#0", 8), ("q4", "d1#0", 8)]
    (folder / "odd.trec").write_text("".join(f"{query} Q0 {document} 0 {score} x\n" for query, document, score in odd))
    for number, words in enumerate((["wing0"], ["nowhere"]), start=1):
        table = pa.table({"query_id": [f"q{row}" for row in range(40)], "answers": [words] * 40})
        pq.write_table(table, folder / f"answers-{number}.parquet")
    return folder


RECIPE = """
[variables]
depth = 4
shards = 1
[steps.vectors]
command = "search"
index = "{index}"
queries = "{queries}"
depth = "{{depth}}"
[steps.other]
command = "index"
embeddings = "{index}"
shards = "{{shards}}"
"""


COMMAND = functools.cache(typer.main.get_command)  # 0.1 s each time


DATASETS: dict[str, dict[str, Any]] = {
    "small": {"count": 40, "seed": 1},
    "other": {"count": 20, "seed": 2},
    "reworded": {"count": 40, "seed": 5},
    "apart": {"count": 20, "seed": 6, "letter": "e"},
    "echo": {"count": 20, "seed": 1, "echo": True},
}


class Bench:
    """Runs lines, each once, over files that are made when a line first names them."""

    def __init__(self, home: Path, tiny: Path, decoder: Path):
        self.home, self.runs = home, 0
        self.made: dict[str, str] = {"tiny": str(tiny), "decoder": str(decoder)}
        self.done: dict[tuple[object, ...], Any] = {}
        self.repeated: set[tuple[str, str]] = set()

    def named(self, name: str) -> str:
        """The path of what `{name}` in a line stands for."""
        if name not in self.made:
            path = self.home / name
            if name in MADE:
                outcome = run_here(*self.words(MADE[name]), "--output", path)
                assert outcome.code == 0, f"{MADE[name]}: {outcome.err}"
            elif name == "files":
                write_files(path)
                recipe = RECIPE.format(index=self.named("vectors"), queries=self.named("asked"))
                (path / "recipe.toml").write_text(recipe)
            elif name in ("suite", "suite-of-one"):
                for number, part in enumerate(("one", "two")[: 1 if name == "suite-of-one" else 2]):
                    write_dataset(path / part, 16, seed=7 + number, own=True)
            elif name == "median":  # of the scores of a run
                scores = [float(line.split()[4]) for line in Path(self.named("dense.trec")).read_text().splitlines()]
                path = repr(float(np.median(scores)))  # type: ignore[assignment]
            else:
                write_dataset(path, **DATASETS[name])
            self.made[name] = str(path)
        return self.made[name]

    def words(self, line: str, folder: Path | None = None) -> list[str]:
        """A line with its names filled in, as a shell would split it."""

        def filled(found: re.Match[str]) -> str:
            if found[1] in ("title", "text"):  # of a template
                return found[0]
            return str(folder) if found[1] == "folder" else self.named(found[1])

        return [re.sub(r"\{([a-z.\d-]+)\}", filled, word) for word in shlex.split(line)]

    def fresh(self) -> Path:
        """A folder of its own."""
        self.runs += 1
        folder = self.home / "runs" / str(self.runs)
        folder.mkdir(parents=True)
        return folder

    def here(self, line: str, folder: Path) -> Outcome:
        """Runs a line in a folder that is there."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("retrievo.training.engine.logs.draw", lambda *paths: None)  # most of the time of two steps
            patch.setattr("torch.cuda.is_available", lambda: False)
            patch.setattr("typer.main.get_command", COMMAND)
            patch.setattr("os.fsync", lambda file: None)
            patch.setattr("torch.cuda.manual_seed_all", lambda seed: None)  # notes down where it was called
            patch.chdir(self.home)
            torch.set_num_threads(1)
            return run_here(*self.words(line, folder))

    def ran(self, line: str, *, spy: str = "", then: str = "", typed: str = "", again: int = 0) -> Done:
        """What a line and the one after it came to, worked out once."""
        line = re.sub(" +", " ", line).strip()
        key = (line, spy, then, typed, again)
        if key not in self.done:
            folder = self.fresh()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "stdin", io.StringIO(typed))
                self.words(line, folder)  # what it names is made before anything is counted
                counted = spied(patch, spy) if spy else None
                outcome = self.here(line, folder)
                found = None if then else everything(folder)
                if then and outcome.code == 0:
                    before = {path for path in folder.rglob("*") if path.is_file()}
                    outcome = self.here(then, folder)
                    found = everything(folder, but=before)
            shown = outcome.out.replace(str(folder), "FOLDER")
            self.done[key] = Done(folder, outcome, (outcome.code, shown, found), counted)
        return self.done[key]

    def comes_out_again(self, base: str, line: str, before: Done, *, then: str, typed: str) -> None:
        """Once for each base: the same line gives the same, or no difference would say anything."""
        if (base, then) not in self.repeated:
            self.repeated.add((base, then))
            same = self.ran(line, then=then, typed=typed, again=1)
            assert same.seen == before.seen, f"what comes out differs by itself: {line}"


@dataclass(frozen=True)
class Done:
    folder: Path
    outcome: Outcome
    seen: tuple[int, str, dict[str, object] | None]  # exit code, standard output, files; no record of the options
    counted: list[object] | None

    @property
    def told(self) -> str:
        return self.outcome.err


def everything(folder: Path, but: set[Path] = frozenset()) -> dict[str, object]:  # type: ignore[assignment]
    """What the files hold, without the records of options in or beside them."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path in but or not path.is_file() or path.name in RECORDS or "checkpoints" in path.parts:
            continue
        if path.name == "metrics.jsonl":
            found[name] = [unrecorded(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".parquet":
            table = pq.read_table(path).replace_schema_metadata(None)
            found[name] = (table.schema.names, table.to_pylist())
        elif path.suffix in (".json", ".md") or "bm25" in path.parts:
            continue  # settings of models and tokenizers, the audit, and what Lucene writes otherwise each time
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def unrecorded(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in RECORDED and "second" not in name}


# ------------------------------------------------------------------------------------------------------------- spies


@dataclass(frozen=True)
class Spy:
    """What is counted: something of each call of a function, which is called all the same."""

    target: str  # module:name
    what: Callable[..., object] = lambda result, *args, **options: 1


def first(result: object, value: object = None, *rest: object, **options: object) -> object:
    return value


SPIES = {
    "threads of torch": Spy("torch:set_num_threads", first),
    "threads of Java": Spy("retrievo.retrieval.bm25:JavaThreads", first),
    "threads of faiss": Spy("faiss:omp_set_num_threads", first),
    "chunks": Spy("retrievo.models.inference:cut_chunks", lambda result, *args: len(result)),
    "forward passes": Spy("retrievo.models.encoder:Encoder.encode"),
    "layers": Spy("transformers.models.bert.modeling_bert:BertAttention.forward"),
    "pages given back": Spy("retrievo.retrieval.embeddings:release_pages"),
    "scans": Spy("retrievo.retrieval.exact:_BatchSearch"),
}


def spied(patch: pytest.MonkeyPatch, name: str) -> list[object]:
    """The list in which the calls of a spy will stand."""
    spy, counted = SPIES[name], []  # type: ignore[var-annotated]
    module, _, attribute = spy.target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = attribute.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real = getattr(owner, last)

    def call(*args: Any, **options: Any) -> Any:
        try:
            result = real(*args, **options)
        except BaseException:  # as a forward pass that is computed again, up to what is wanted
            counted.append("cut short")
            raise
        counted.append(spy.what(result, *args, **options))
        return result

    patch.setattr(owner, last, call)
    return counted


# ------------------------------------------------------------------------------------------------------------- probes


@dataclass(frozen=True)
class Acts:
    """With `flags`, something else comes out of the line `base` than without them, or than with `instead`.

    beside: flags of both. then: a line whose output is looked at, where the option acts on what is made later.
    typed: standard input. base: a name in BASES; the command's own where empty.
    """

    flags: str
    base: str = ""
    beside: str = ""
    instead: str = ""
    then: str = ""
    typed: str = ""

    def check(self, bench: Bench, command: str) -> None:
        base = f"{BASES[self.base or command]} {self.beside}"
        options = {"then": self.then, "typed": self.typed}
        before = bench.ran(f"{base} {self.instead}", **options)
        assert before.outcome.code == 0, before.told
        after = bench.ran(f"{base} {self.flags}", **options)
        assert after.outcome.code == 0, after.told
        assert after.seen != before.seen, f"{self.flags} changed nothing of: {base} {self.instead}"
        assert any((before.seen[1], before.seen[2])), "nothing came out that could differ"
        bench.comes_out_again(self.base or command, f"{base} {self.instead}", before, **options)


@dataclass(frozen=True)
class Refused:
    """The line `base` is done, and with `flags` it ends in an error that says so."""

    flags: str
    said: str
    base: str = ""
    beside: str = ""
    instead: str = ""

    def check(self, bench: Bench, command: str) -> None:
        base = f"{BASES[self.base or command]} {self.beside}"
        before = bench.ran(f"{base} {self.instead}")
        assert before.outcome.code == 0, before.told
        after = bench.ran(f"{base} {self.flags}")
        assert after.outcome.code in (1, 2), after.outcome
        assert self.said in after.told


@dataclass(frozen=True)
class Counted:
    """With `flags`, a resource is used otherwise than without them; `value` is among what was counted only then."""

    flags: str
    spy: str
    base: str = ""
    beside: str = ""
    instead: str = ""
    value: object = None

    def check(self, bench: Bench, command: str) -> None:
        base = f"{BASES[self.base or command]} {self.beside}"
        before, after = (bench.ran(f"{base} {flags}", spy=self.spy) for flags in (self.instead, self.flags))
        assert before.outcome.code == after.outcome.code == 0, before.told + after.told
        assert after.counted, "nothing was counted"
        assert sorted(map(str, after.counted)) != sorted(map(str, before.counted))
        if self.value is not None:
            assert self.value in after.counted
            assert self.value not in before.counted


@dataclass(frozen=True)
class Does:
    """A function that checks by itself; its name says what."""

    what: Callable[[Bench, str], None]

    def check(self, bench: Bench, command: str) -> None:
        self.what(bench, command)


# -------------------------------------------------------------------------------------------- probes that are functions


def forces(changed: str, base: str = "", beside: str = "") -> Does:
    """A finished output is kept from another command, unless it is forced."""

    def check(bench: Bench, command: str) -> None:
        line = f"{BASES[base or command]} {beside}"
        folder = bench.fresh()
        assert bench.here(line, folder).code == 0
        before = everything(folder)
        refused = bench.here(f"{line} {changed}", folder)
        assert (refused.code, "--force" in refused.err) == (1, True), refused
        assert everything(folder) == before
        forced = bench.here(f"{line} {changed} --force", folder)
        assert forced.code == 0, forced.err
        assert everything(folder) != before

    return Does(check)


def lands_where_it_says(base: str = "", name: str = "out") -> Does:
    def check(bench: Bench, command: str) -> None:
        done = bench.ran(BASES[base or command] + " ")
        assert done.outcome.code == 0, done.told
        assert name in [path.name for path in done.folder.iterdir()]

    return Does(check)


def asks_the_hub(base: str = "") -> Does:
    """The revision is that of the download."""

    def check(bench: Bench, command: str) -> None:
        asked: list[object] = []

        def download(name: str, *args: object, revision: str | None = None, **options: object) -> str:
            asked.append(revision)
            raise OSError("no network here")

        line = f"{BASES[base or command]} --model some-one/some-model"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("huggingface_hub.snapshot_download", download)
            codes = [bench.here(f"{line} {flags}", bench.fresh()).code for flags in ("", "--revision moved")]
        assert (codes, asked[0], asked[-1]) == ([1, 1], None, "moved")

    return Does(check)


def checkpoints(flags: str, expected: list[str], beside: str = "--max-steps 3") -> Does:
    """Which checkpoints lie in the folder: only the last one without the flags."""

    def check(bench: Bench, command: str) -> None:
        found = []
        for more in ("", flags):
            done = bench.ran(f"{BASES[command]} {beside} {more}")
            assert done.outcome.code == 0, done.told
            found.append(sorted(path.name[-1] for path in (done.folder / "out" / "checkpoints").glob("step-*")))
        assert found[1] == expected != found[0]

    return Does(check)


def _cut_early(patch: pytest.MonkeyPatch) -> None:
    """Shards of a few rows, also where the number of shards is counted."""
    for module in ("data.shards", "retrieval.embeddings"):
        patch.setattr(f"retrievo.{module}.shard_bounds", lambda rows: [(0, 9), (9, rows)])


def begins_anew(target: str, beside: str = "") -> Does:
    """The second call of a function is stopped by Ctrl-C: the same command has one call left, with --restart both."""

    def check(bench: Bench, command: str) -> None:
        module, _, attribute = target.partition(":")
        *owner, name = attribute.split(".")
        place = getattr(importlib.import_module(module), owner[0]) if owner else importlib.import_module(module)
        real, line = getattr(place, name), f"{BASES[command]} {beside}"
        found = []
        for flags in ("", "--restart"):
            folder, calls, stops = bench.fresh(), [0], [True]

            def call(*args: Any, calls: list[int] = calls, stops: list[bool] = stops, **options: Any) -> Any:
                calls[0] += 1
                if stops[0] and calls[0] == 2:
                    raise KeyboardInterrupt
                return real(*args, **options)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(place, name, call)
                _cut_early(patch)
                patch.setattr("retrievo.commands.rerank.PAIRS_PER_SHARD", 60)
                assert bench.here(line, folder).code == 130
                calls[0], stops[0] = 0, False
                done = bench.here(f"{line} {flags}", folder)
            assert done.code == 0, done.err
            found.append(calls[0])
        assert found == [1, 2]

    return Does(check)


def writes_for_tensorboard(bench: Bench, command: str) -> None:
    written: list[object] = []

    class Writer:
        def __init__(self, *args: object, **options: object) -> None:
            written.append("opened")

        def add_scalar(self, *args: object, **options: object) -> None:
            written.append("scalar")

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *args, **options: None

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", module)
        assert bench.here(BASES[command], bench.fresh()).code == 0
        assert written == []
        assert bench.here(f"{BASES[command]} --tensorboard", bench.fresh()).code == 0
    assert "scalar" in written


def makes_batches_ahead(bench: Bench, command: str) -> None:
    """m: a batch is asked for, s: a step is computed."""
    orders = []
    for ahead in (0, 1):
        events: list[str] = []

        class Pool(ThreadPoolExecutor):
            def submit(self, *args: Any, **options: Any) -> Any:
                events.append("m")  # noqa: B023
                return super().submit(*args, **options)

        def step(*args: Any, **options: Any) -> Any:
            events.append("s")  # noqa: B023
            return gradient_step(*args, **options)

        from retrievo.training.engine.gradient_cache import gradient_step

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("retrievo.training.engine.loop.ThreadPoolExecutor", Pool)
            patch.setattr("retrievo.training.engine.loop.gradient_step", step)
            done = bench.here(f"{BASES[command]} --max-steps 3 --prefetch {ahead}", bench.fresh())
        assert done.code == 0, done.err
        orders.append("".join(events))
    assert orders == ["msmsms", "mmsmss"]


def goes_on(bench: Bench, command: str) -> None:
    folder = bench.fresh()
    codes = [bench.here(f"{BASES[command]} {more}", folder).code for more in ("", "--max-steps 3")]
    assert codes == [0, 1]
    assert bench.here(f"{BASES[command]} --max-steps 3 --continue", folder).code == 0
    assert len((folder / "out" / "metrics.jsonl").read_text().splitlines()) == 3


def trains_in_its_stage(bench: Bench, command: str) -> None:
    folder = bench.fresh()
    small = bench.named("small")
    settings: dict[str, Any] = {"model": bench.named("tiny"), "corpus": small, "queries": small}
    settings |= {
        "qrels": f"{small}/qrels/train.parquet",
        "negatives": [bench.named("negatives.parquet")],
        "pooling": "mean",
        "max_steps": 1,
        "batch_size": 4,
    }
    (folder / "stage").mkdir()
    (folder / "stage" / "train.toml").write_bytes(tomli_w.dumps({"train": settings}).encode())
    done = bench.here("train {folder}/stage", folder)
    assert done.code == 0, done.err
    assert (folder / "stage" / "model.safetensors").is_file()
    assert len((folder / "stage" / "metrics.jsonl").read_text().splitlines()) == 1


def verifies_and_trains_nothing(bench: Bench, command: str) -> None:
    folder, seen = bench.fresh(), []

    def verify(assemble: Callable[[], Any], *args: object, **options: object) -> list[Any]:
        seen.append(assemble()[1])
        return [Check("one way and another", 0.25)]

    with pytest.MonkeyPatch.context() as patch:  # the real one takes 10 s: tests/commands/test_train.py
        patch.setattr("retrievo.training.engine.verify.verify", verify)
        done = bench.here(f"{BASES[command]} --verify-gradients", folder)
    assert done.code == 0, done.err
    assert "2.5e-01" in done.out
    assert len(seen) == 1
    assert not (folder / "out").exists()


@dataclass(frozen=True)
class Check:
    name: str
    difference: float


def mines_for_the_next_stage(bench: Bench, command: str) -> None:
    folder = bench.fresh()
    done = bench.here("mine-negatives {model} to {folder}/next --depth 8 --samples 2 --dtype fp32", folder)
    assert done.code == 0, done.err
    assert {"negatives.parquet", "train.toml"} <= {path.name for path in (folder / "next").iterdir()}


def shows_doubtful_pairs(bench: Bench, command: str) -> None:
    counts = []
    for asked in (0, 1, 5):
        done = bench.ran(f"{BASES[command]} --audit {asked}")
        assert done.outcome.code == 0, done.told
        text = (done.folder / "out.audit.md").read_text()
        counts.append(sum(line.startswith("**") for line in text.splitlines()))
    assert counts[0] == 0 < counts[1] < counts[2]


def starts_processes(bench: Bench, command: str) -> None:
    started = []

    def together(function: Callable[[Any], object], config: Any, *, processes: int) -> None:
        started.append(processes)
        function(config)

    with pytest.MonkeyPatch.context() as patch:  # real ones take seconds: tests/commands/test_encode.py
        patch.setattr("retrievo.distributed.launch.run_together", together)
        _cut_early(patch)
        for flags in ("", "--processes 2"):
            done = bench.here(f"{BASES[command]} {flags}", bench.fresh())
            assert done.code == 0, done.err
    assert started == [2]


def grows(bench: Bench, command: str) -> None:
    folder = bench.fresh()
    assert bench.here(BASES[command], folder).code == 0
    search = "search --index {folder}/out --queries {points} --depth 650 --output {folder}/run.trec --force"
    counts = []
    for line in (None, "index --embeddings {more} --output {folder}/out --add"):
        if line:
            done = bench.here(line, folder)
            assert done.code == 0, done.err
        done = bench.here(search, folder)
        assert done.code == 0, done.err
        counts.append(len((folder / "run.trec").read_text().splitlines()))
    assert counts == [12 * 600, 12 * 650]


def keeps_words(bench: Bench, command: str) -> None:
    """RM3 needs them."""
    codes = []
    for flags in ("", "--term-vectors"):
        done = bench.ran(f"{BASES['index-bm25']} {flags}", then=f"{SEARCHED} --rm3")
        codes.append(done.outcome.code)
    assert codes == [1, 0]


def exports_again(bench: Bench, command: str) -> None:
    folder = bench.fresh()
    lines = [f"export {{{name}}} --output {{folder}}/out" for name in ("vectors", "other-vectors")]
    assert [bench.here(line, folder).code for line in lines] == [0, 1]
    before = everything(folder)
    assert bench.here(f"{lines[1]} --force", folder).code == 0
    assert everything(folder) != before


def makes_changed_steps_anew(flags: str, made: list[str]) -> Does:
    """Two finished steps whose options changed: nothing begins without the flag."""

    def check(bench: Bench, command: str) -> None:
        folder = bench.fresh()
        line = "run {files}/recipe.toml --output {folder}/out"
        assert bench.here(line, folder).code == 0

        def times() -> dict[str, int]:
            paths = [folder / "out" / "vectors.parquet", folder / "out" / "other" / "manifest.json"]
            return {path.relative_to(folder / "out").parts[0].split(".")[0]: path.stat().st_mtime_ns for path in paths}

        before, changed = times(), f"{line} --set depth=2 shards=2"
        only = "" if len(made) == 2 else "--only vectors"
        assert bench.here(f"{changed} {only}", folder).code == 1
        assert times() == before
        done = bench.here(f"{changed} {only} {flags}", folder)
        assert done.code == 0, done.err
        assert [name for name, time in times().items() if time != before[name]] == made

    return Does(check)


def leaves_in_the_cache(flags: str, left: set[str], beside: str = "") -> Does:
    """Of an entry of 3,000 bytes that was used ten days ago, and one of 1,000 bytes that was used now."""

    def check(bench: Bench, command: str) -> None:
        from retrievo.data import cache

        found = []
        for more in (beside, f"{beside} {flags}"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", str(bench.fresh()))
                patch.setattr(cache, "_USED", {})
                for name, size, days in (("old", 3_000, 10), ("new", 1_000, 0)):
                    cache.cached(f"tokens-1/{name}", lambda folder, s=size: fill(folder, s), [])  # type: ignore[misc]
                    done = cache.cache_folder() / "tokens-1" / name / cache.DONE
                    os.utime(done, (time.time() - days * 86_400,) * 2)
                for mark in cache._USED.values():  # as at the end of a process
                    mark.release()
                cache._USED.clear()
                listed = bench.here(f"cache {more}", bench.home)
                assert listed.code == 0, listed.err
                there = cache.cache_folder() / "tokens-1"
                found.append({path.parent.name for path in there.glob("*/tokens.npy")})
        assert found == [set() if beside else {"old", "new"}, left]

    return Does(check)


def fill(folder: Path, size: int) -> None:
    (folder / "tokens.npy").write_bytes(bytes(size))


def ranks_across_corpora(bench: Bench, command: str) -> None:
    """Indexes of two corpora are refused, unless it is said that both are meant."""
    folder = bench.fresh()
    assert bench.here("index --type bm25 --corpus {apart} --output {folder}/index", folder).code == 0
    line = "search --index {bm25} --index {folder}/index --queries {small} --depth 8 --output {folder}/run.trec"
    refused, done = (bench.here(f"{line} {flags}", folder) for flags in ("", "--across-corpora"))
    assert (refused.code, done.code) == (1, 0), refused.err + done.err


def reads_the_recipe(bench: Bench, command: str) -> None:
    folder = bench.fresh()
    text = (Path(bench.named("files")) / "recipe.toml").read_text()
    (folder / "other.toml").write_text(text.replace("[steps.other]", "[steps.renamed]"))
    done = bench.here("run {folder}/other.toml", folder)
    assert done.code == 0, done.err
    assert (folder / "other" / "renamed").is_dir()
    assert not (folder / "other" / "other").exists()


ROAD = "retrievo.commands.demo."


def walked(flags: str, bench: Bench) -> list[tuple[str, Any]]:
    """Verbs and Configs of the demo's steps, which only say that they were asked."""
    asked: list[tuple[str, Any]] = []

    def asks(name: str) -> Callable[..., None]:
        return lambda config: asked.append((name, config))

    with pytest.MonkeyPatch.context() as patch:
        for verb in ("index", "search", "encode", "pretrain", "mine_negatives", "train"):
            patch.setattr(ROAD + verb, asks(verb))
        patch.setattr("retrievo.commands.demo_corpus.installed_packages", list)
        patch.setattr(
            "retrievo.commands.demo_corpus.make_dataset",
            lambda folder, packages, *, seed, force: asked.append(("dataset", (seed, force))),
        )
        patch.setattr(ROAD + "_Road.untrained", lambda road: asked.append(("untrained", road.config.seed)))
        patch.setattr(ROAD + "_Road.weights", lambda road, indexes: (1.0, 1.0))
        patch.setattr(ROAD + "_Road.resolved", lambda road, config, typed: typed)
        patch.setattr(ROAD + "evaluate", lambda config: "evaluation")
        patch.setattr(ROAD + "claims", lambda home: ())
        patch.setattr(ROAD + "Report.print", lambda report, *, as_json: asked.append(("printed", as_json)))
        folder = bench.fresh()
        for _ in range(2):
            done = bench.here(f"{BASES['demo']} {flags}", folder)
            assert done.code == 0, done.err
    return asked


def reaches_every_step(flags: str, name: str, value: object, verbs: tuple[str, ...]) -> Does:
    """All verbs that have the option get it; each verb's own row shows that it acts there."""

    def check(bench: Bench, command: str) -> None:
        for given, expected in (("", False), (flags, True)):
            found = [
                (config if isinstance(config, dict) else vars(config)).get(name, value)
                for verb, config in walked(given, bench)
                if verb in verbs
            ]
            assert len(found) >= len(verbs)
            assert (set(found) == {value}) == expected, found

    return Does(check)


def takes_fewer_steps(bench: Bench, command: str) -> None:
    full, quick = (
        [vars(config)["max_steps"] for verb, config in walked(flags, bench) if verb == "pretrain"]
        for flags in ("", "--quick")
    )
    assert quick < full


def walks_again_where_forced(bench: Bench, command: str) -> None:
    once, twice = ([name for name, _ in walked(flags, bench)].count("dataset") for flags in ("", "--force"))
    assert (once, twice) == (1, 2)


def prints_json(bench: Bench, command: str) -> None:
    printed = [dict(walked(flags, bench))["printed"] for flags in ("", "--json")]
    assert printed == [False, True]


def draws_the_dataset(bench: Bench, command: str) -> None:
    assert dict(walked("--seed 5", bench))["dataset"][0] == 5
    assert dict(walked("--seed 5", bench))["untrained"] == 5
    assert dict(walked("", bench))["dataset"][0] == 0


def puts_all_below(bench: Bench, command: str) -> None:
    outputs = [config.output for verb, config in walked("", bench) if getattr(config, "output", None)]
    assert outputs
    assert all("out" in path.parts and bench.home in path.parents for path in outputs)


# ----------------------------------------------------------------------------------------------------------- the rows

Probe = Acts | Refused | Counted | Does

ON_CUDA = Refused("--device cuda", "torch sees no CUDA device")
DECODER = "--model {decoder} --pooling mean"
KL = "--loss kl --teacher {teacher.trec} --temperature 1"
DEV = "--dev-qrels {small}/qrels/test.parquet --dev-run {bm25.trec}"
ENCODED = "encode --model {folder}/out --corpus {small} --dtype fp32 --output {folder}/vectors"
ASKED = "encode --model {folder}/out --queries {small} --dtype fp32 --output {folder}/vectors"
SEARCHED = "search --index {folder}/out --queries {small} --depth 30 --output {folder}/run.trec"

# of the training loop: training/engine/config.py
FIT: dict[str, Probe] = {
    "optimizer": Acts("--optimizer asam"),
    "learning_rate": Acts("--learning-rate 1e-3"),
    "schedule": Acts("--schedule constant"),
    "warmup_ratio": Acts("--warmup-ratio 0.5"),
    "weight_decay": Acts("--weight-decay 0.5"),
    "beta1": Acts("--beta1 0.5"),
    "beta2": Acts("--beta2 0.5"),
    "epsilon": Acts("--epsilon 1e-3"),
    "asam_rho": Acts("--asam-rho 2", beside="--optimizer asam"),
    "asam_eta": Acts("--asam-eta 0.5", beside="--optimizer asam"),
    "max_steps": Acts("--max-steps 1"),
    "seed": Acts("--seed 1"),
    "dtype": Acts("--dtype bfloat16"),
    "chunk_tokens": Acts("--chunk-tokens 64"),
    "activation_memory": Counted("--activation-memory 0", "forward passes"),
    "gradient_checkpointing": Counted("--gradient-checkpointing", "layers", instead="--activation-memory 0"),
    "max_grad_norm": Acts("--max-grad-norm 1e-3"),
    "save_every": checkpoints("--save-every 1", ["2", "3"]),
    "keep_checkpoints": checkpoints("--keep-checkpoints 3", ["1", "2", "3"], beside="--max-steps 3 --save-every 1"),
    "restart": begins_anew("retrievo.training.engine.loop:gradient_step", "--save-every 1"),
    "tensorboard": Does(writes_for_tensorboard),
    "prefetch": Does(makes_batches_ahead),
    "device": ON_CUDA,
    "threads": Counted("--threads 3", "threads of torch", value=3),
}

# of models that are opened: those that the rows below do not say otherwise
PROBES: dict[str, dict[str, Probe]] = {
    "import": {
        "format": Acts("text {files}/texts", base="import-of", instead="csv {files}/table.csv"),
        "source": Acts("csv {files}/other.csv", base="import-of", instead="csv {files}/table.csv"),
        "ids": Acts("{files}/other.txt", base="import-vectors-of", instead="{files}/cloud.txt"),
        "output": lands_where_it_says(),
        "encoding": Acts("--encoding latin-1"),
        "role": Acts("--role query", base="import"),
        "similarity": Acts(
            "--similarity cosine",
            base="import-vectors",
            then="search --index {folder}/out --queries {points} --depth 5 --output {folder}/run.trec",
        ),
        "id_column": Acts("--id-column more"),
        "text_column": Acts("--text-column more"),
        "title_column": Acts("--title-column more"),
        "number_lines": Acts("--number-lines"),
        "header": Acts("--no-header", beside="--id-column 1 --text-column 3 --title-column 2"),
        "query_column": Acts("--query-column more", base="import-pairs"),
        "positive_column": Acts("--positive-column more", base="import-pairs"),
        "negative_column": Acts("--negative-column more", base="import-pairs"),
        "dev_ratio": Acts("--dev-ratio 0.5", base="import-pairs"),
        "topic_field": Acts("--topic-field narrative", base="import-trec"),
        "passage_words": Acts("--passage-words 60", base="import-text"),
        "stride": Acts("--stride 50", base="import-text"),
        "force": forces("--text-column more"),
    },
    "pretrain": FIT
    | {
        "window": Acts("--window 16"),
        "crop_shortest": Acts("--crop-shortest 0.45"),
        "crop_longest": Acts("--crop-longest 0.2"),
        "delete": Acts("--delete 0.3"),
        "replace": Acts("--replace 0.3"),
        "mask": Acts("--mask 0.3"),
        "temperature": Acts("--temperature 1"),
        "label_smoothing": Acts("--label-smoothing 0.3"),
        "pooling": Acts("--pooling cls"),
        "normalize": Acts("--normalize"),
        "momentum": Acts("--momentum 0.2", base="pretrain-contriever"),
        "queue_size": Acts("--queue-size 16", base="pretrain-contriever"),
        "keep_query": Acts("--keep-query 1", base="pretrain-ict"),
        "symmetric": Acts("--symmetric"),
        "max_length": Acts("--max-length 12", base="pretrain-mlm"),
        "sentence_boundaries": Acts("--sentence-boundaries", base="pretrain-pieces"),
        "mask_probability": Acts("--mask-probability 0.4", base="pretrain-mlm"),
        "whole_word": Acts("--no-whole-word", base="pretrain-pieces"),
        "early_layer": Acts("--early-layer 0", base="pretrain-condenser"),
        "head_layers": Acts("--head-layers 1", base="pretrain-condenser"),
        "late_mlm": Acts("--no-late-mlm", base="pretrain-condenser"),
        "weight": Acts("--weight mlm=0.5", base="pretrain-cocondenser"),
        "objective": Acts("--objective ict"),
        "model": Acts("--model {model}"),
        "revision": asks_the_hub(),
        "data": Acts("--data {other}", base="pretrain-data", instead="--data {small}"),
        "corpus": Acts("--corpus {other}"),
        "mix": Acts("--mix equal", beside="--corpus {other}"),
        "held_out": Acts("--held-out 4"),
        "validate_every": Acts("--validate-every 2", beside="--held-out 4"),
        "show_views": Acts("--show-views 2", instead="--show-views 1"),
        "output": lands_where_it_says(),
        "title_template": Acts("--title-template {text}"),
        "query_max_length": Acts("--query-max-length 4", then=ASKED),
        "document_max_length": Acts("--document-max-length 8", then=ENCODED),
        "batch_size": Acts("--batch-size 4"),
        "epochs": Acts("--epochs 1", base="pretrain-epochs", instead="--epochs 2"),
        "bidirectional": Acts("--bidirectional", beside=DECODER),
        "condenser_steps": Acts("--condenser-steps 0", base="pretrain-cocondenser"),
        "continue_": Does(goes_on),
        "force": forces("--seed 1"),
    },
    "train": FIT
    | {
        "stage": Does(trains_in_its_stage),
        "data": Acts("--data {reworded}", base="train-data", instead="--data {small}"),
        "split": Acts("--split test", base="train-data", beside="--data {small}"),
        "corpus": Acts("--corpus {reworded}"),
        "queries": Acts("--queries {reworded}"),
        "qrels": Acts("--qrels {small}/qrels/test.parquet"),
        "negatives": Acts("--negatives {dense-negatives.parquet}"),
        "teacher": Acts("--teacher {other-teacher.trec}", beside="--loss kl", instead="--teacher {teacher.trec}"),
        "batch_teacher": Acts(
            "--batch-teacher {other-asked} {other-vectors}",
            beside="--loss batch-margin-mse",
            instead="--batch-teacher {asked} {vectors}",
        ),
        "query_clusters": Acts("--query-clusters {asked}"),
        "query_prefix": Acts("--query-prefix 'wing '"),
        "document_prefix": Acts("--document-prefix 'wing '"),
        "refresh_every": Acts("--refresh-every 1", beside="--max-steps 3"),
        "refresh_depth": Acts("--refresh-depth 4", beside="--max-steps 3 --refresh-every 1"),
        "dev_qrels": Acts("--dev-qrels {small}/qrels/train.parquet", beside="--dev-run {bm25.trec}", instead=DEV),
        "dev_run": Acts("--dev-run {dense.trec}", beside="--dev-qrels {small}/qrels/test.parquet", instead=DEV),
        "dev_queries": Acts("--dev-queries {reworded}", beside=DEV),
        "dev_depth": Acts("--dev-depth 2", beside=DEV),
        "dev_metric": Acts("--dev-metric recall@2", beside=DEV),
        "validate_every": Acts("--validate-every 2", beside=DEV),
        "patience": Acts("--patience 1", beside=f"{DEV} --learning-rate 1e-9 --max-steps 4"),
        "pair_loss": Acts("--pair-loss binary", base="train-ranker"),
        "loss": Acts("--loss supcon"),
        "loss_weight": Acts("--loss-weight 2"),
        "temperature": Acts("--temperature 7"),
        "learn_temperature": Acts("--learn-temperature"),
        "label_smoothing": Acts("--label-smoothing 0.3"),
        "teacher_temperature": Acts("--teacher-temperature 3", beside=KL),
        "soft_label_scope": Acts("--soft-label-scope group", beside=KL),
        "matryoshka": Acts("--matryoshka 8,32"),
        "dynamic_negatives": Acts("--dynamic-negatives 3", base="train-query-side"),
        "kind": Acts("--kind cross-encoder", base="train-of", instead="--kind dense"),
        "model": Acts("--model {model}"),
        "revision": asks_the_hub(),
        "extra_dataset": Acts("--extra-dataset {other}"),
        "mix": Acts("--mix 1,9", beside="--extra-dataset {other} --max-steps 4"),
        "document_embeddings": Acts("--document-embeddings {vectors-32}", base="train-query-side"),
        "output": lands_where_it_says(),
        "batch_size": Acts("--batch-size 4"),
        "negatives_per_query": Acts("--negatives-per-query 2"),
        "hard_negative_ratio": Acts("--hard-negative-ratio 0.2"),
        "balanced_margins": Acts("--balanced-margins 2", beside=KL),
        "query_cluster_count": Acts("--query-cluster-count 5", beside="--query-clusters {asked}"),
        "epochs": Acts("--epochs 0.4", base="train-epochs", instead="--epochs 0.8"),
        "min_relevance": Acts("--min-relevance 2"),
        "max_length": Acts("--max-length 9", base="train-ranker"),
        "query_max_length": Acts("--query-max-length 4"),
        "document_max_length": Acts("--document-max-length 8"),
        "title_template": Acts("--title-template {text}"),
        "pooling": Acts("--pooling cls"),
        "normalize": Acts("--normalize"),
        "similarity": Acts("--similarity cosine"),
        "tied": Acts("--no-tied"),
        "bidirectional": Acts("--bidirectional", beside=DECODER),
        "lora_rank": Acts("--lora-rank 2"),
        "lora_alpha": Acts("--lora-alpha 32", beside="--lora-rank 2"),
        "fsdp": Refused("--fsdp", "found one process"),
        "verify_gradients": Does(verifies_and_trains_nothing),
        "force": forces("--seed 1"),
    },
    "mine-negatives": {
        "stages": Does(mines_for_the_next_stage),
        "source": Acts("--source random", base="mine-of", instead="--source bm25"),
        "model": Acts("--model {other-model}", base="mine-dense"),
        "revision": asks_the_hub("mine-dense"),
        "index": Acts("--index {vectors}", base="mine-index", instead="--index {bm25}"),
        "run": Acts("--run {bm25.trec}"),
        "data": Acts("--data {reworded}", base="mine-data", instead="--data {small}"),
        "split": Acts("--split test", base="mine-data", beside="--data {small}"),
        "corpus": Acts("--corpus {reworded}", base="mine-bm25"),
        "queries": Acts("--queries {other}"),
        "qrels": Acts("--qrels {small}/qrels/test.parquet"),
        "output": lands_where_it_says(name="out.parquet"),
        "depth": Acts("--depth 4"),
        "skip": Acts("--skip 5"),
        "samples": Acts("--samples 2"),
        "sampling": Acts("--sampling top"),
        "min_relevance": Acts("--min-relevance 2"),
        "min_score": Acts("--min-score {median}"),
        "max_score": Acts("--max-score {median}"),
        "margin": Acts("--margin 0.0"),
        "relative_margin": Acts("--relative-margin 0.05"),
        "margin_to": Acts("--margin-to highest", beside="--margin 0.0"),
        "near_duplicate": Acts("--near-duplicate 0.3"),
        "teacher": Acts(
            "--teacher {other-teacher.trec}", beside="--max-teacher-score 0", instead="--teacher {teacher.trec}"
        ),
        "max_teacher_score": Acts(
            "--max-teacher-score -9", beside="--teacher {teacher.trec}", instead="--max-teacher-score 9"
        ),
        "audit": Does(shows_doubtful_pairs),
        "language": Acts("--language fr", base="mine-bm25"),
        "k1": Acts("--k1 3", base="mine-bm25"),
        "b": Acts("--b 1", base="mine-bm25"),
        "title_template": Acts("--title-template {text}", base="mine-bm25"),
        "dtype": Acts("--dtype bf16", base="mine-dense"),
        "chunk_tokens": Counted("--chunk-tokens 64", "chunks", base="mine-dense"),
        "device": Refused("--device cuda", "torch sees no CUDA device", base="mine-dense"),
        "threads": Counted("--threads 3", "threads of Java", base="mine-bm25", value=3),
        "seed": Acts("--seed 1"),
        "force": forces("--samples 2"),
    },
    "encode": {
        "model": Acts("--model {other-model}"),
        "revision": asks_the_hub(),
        "data": Acts("--data {other}", base="encode-data", instead="--data {small}"),
        "corpus": Acts("--corpus {other}"),
        "queries": Acts("--queries {other}", base="encode-queries", instead="--queries {small}"),
        "output": lands_where_it_says(),
        "pooling": Acts("--pooling mean", beside="--model {tiny}", instead="--pooling cls"),
        "truncate_dim": Acts("--truncate-dim 8"),
        "storage_dtype": Acts("--storage-dtype float32"),
        "dtype": Acts("--dtype bf16"),
        "chunk_tokens": Counted("--chunk-tokens 64", "chunks"),
        "device": ON_CUDA,
        "threads": Counted("--threads 3", "threads of torch", value=3),
        "processes": Does(starts_processes),
        "restart": begins_anew("retrievo.models.vectors:encode_tokens"),
        "force": forces("--truncate-dim 8"),
    },
    "index": {
        "type": Acts("--type sq8"),
        "embeddings": Acts("--embeddings {vectors}"),
        "data": Acts("--data {other}", base="index-data", instead="--data {small}", then=SEARCHED),
        "corpus": Acts("--corpus {other}", base="index-bm25", then=SEARCHED),
        "output": lands_where_it_says(),
        "shards": Acts("--shards 2"),
        "add": Does(grows),
        "language": Acts("--language fr", base="index-bm25", then=SEARCHED),
        "title_template": Acts("--title-template {text}", base="index-bm25", then=SEARCHED),
        "term_vectors": Does(keeps_words),
        "heap": Refused("--heap 77m", "heap", base="index-bm25"),
        "threads": Counted("--threads 3", "threads of Java", base="index-bm25", value=3),
        "force": forces("--shards 2"),
    },
    "export": {
        "embeddings": Acts("{other-vectors}", base="export-of", instead="{vectors}"),
        "output": lands_where_it_says(),
        "force": Does(exports_again),
    },
    "search": {
        "question": Acts("'flow2 the heat1'", base="search-typed-of", instead="'wing1 over heat2'"),
        "interactive": Acts("--interactive", base="search-typed-of", typed="wing3 flow1\n\n", instead="'wing1 heat2'"),
        "index": Acts("--index {vectors}", base="search-of", instead="--index {bm25}"),
        "run": Acts("--run {dense.trec}", base="search-bm25"),
        "queries": Acts("--queries {other}", base="search-bm25"),
        "judged": Acts("--judged {small}/qrels/test.parquet", base="search-bm25"),
        "output": lands_where_it_says(name="run.trec"),
        "depth": Acts("--depth 3", base="search-bm25"),
        "fuse": Acts("--fuse minmax", base="search-both"),
        "fuse_weights": Acts("--fuse-weights 5,1", base="search-both"),
        "across_corpora": Does(ranks_across_corpora),
        "tune_on": Acts("--tune-on {small}", base="search-both"),
        "tune_metric": Acts("--tune-metric recall@3", base="search-both", beside="--tune-on {small}"),
        "feedback": Acts("--feedback average"),
        "feedback_depth": Acts("--feedback-depth 1", beside="--feedback average"),
        "feedback_weight": Acts("--feedback-weight 0.9", beside="--feedback rocchio"),
        "feedback_from": Acts("--feedback-from fused", base="search-both", beside="--feedback average"),
        "rerank": Acts("--rerank {ranker}", base="search-bm25"),
        "rerank_depth": Acts("--rerank-depth 8", base="search-bm25", beside="--rerank {ranker}"),
        "doc_aggregate": Acts("--doc-aggregate max", base="search-bm25"),
        "doc_separator": Acts("--doc-separator :", base="search-bm25", beside="--doc-aggregate max"),
        "k1": Acts("--k1 3", base="search-bm25"),
        "b": Acts("--b 1", base="search-bm25"),
        "language": Refused("--language fr", "was built with", base="search-bm25"),
        "rm3": Acts("--rm3", base="search-bm25"),
        "rm3_documents": Acts("--rm3-documents 1", base="search-bm25", beside="--rm3"),
        "rm3_words": Acts("--rm3-words 2", base="search-bm25", beside="--rm3"),
        "rm3_weight": Acts("--rm3-weight 0.1", base="search-bm25", beside="--rm3"),
        "heap": Refused("--heap 77m", "heap", base="search-bm25"),
        "nprobe": Acts("--nprobe 1", base="search-lists"),
        "ef_search": Acts("--ef-search 1", base="search-graph"),
        "rescore": Acts("--rescore 0", base="search-lists"),
        "recall_target": Acts("--recall-target 0.2", base="search-lists"),
        "memory": Counted("--memory 64MB", "pages given back"),
        "batch_size": Counted("--batch-size 9", "scans"),
        "dtype": Acts("--dtype bf16"),
        "chunk_tokens": Counted("--chunk-tokens 64", "chunks"),
        "device": ON_CUDA,
        "threads": Counted("--threads 3", "threads of torch", value=3),
        "data": Acts("--data {reworded}", base="search-data", instead="--data {small}"),
        "split": Acts("--split train", base="search-data", beside="--data {small}"),
        "corpus": Acts("--corpus {reworded}", base="search-typed"),
        "json": Acts("--json", base="search-typed"),
        "force": forces("--depth 3"),
    },
    "rerank": {
        "run": Acts("--run {dense.trec}"),
        "model": Acts("--model {model}"),
        "revision": asks_the_hub(),
        "data": Refused(
            "--data {reworded}", "was made from another corpus", instead="--data {small}", base="rerank-data"
        ),
        "corpus": Refused("--corpus {reworded}", "was made from another corpus"),
        "queries": Acts("--queries {reworded}"),
        "qrels": Acts("--qrels {small}/qrels/train.parquet"),
        "output": lands_where_it_says(name="run.trec"),
        "depth": Acts("--depth 2"),
        "min_relevance": Acts("--min-relevance 2", beside="--qrels {small}/qrels/train.parquet"),
        "max_length": Acts("--max-length 9"),
        "restart": begins_anew("retrievo.commands.rerank:CrossEncoderScorer.scores"),
        "activation": Acts("--activation sigmoid"),
        "dtype": Acts("--dtype bf16"),
        "chunk_tokens": Counted("--chunk-tokens 64", "chunks"),
        "device": ON_CUDA,
        "threads": Counted("--threads 3", "threads of torch", value=3),
        "force": forces("--depth 2"),
    },
    "pseudo-label": {
        "run": Acts("--run {files}/other.trec"),
        "qrels": Acts("--qrels {files}/judged.txt"),
        "corpus": Acts("--corpus {reworded}", beside="--queries {echo}", instead="--corpus {echo}"),
        "queries": Acts("--queries {small}", beside="--corpus {echo}", instead="--queries {echo}"),
        "output": lands_where_it_says(),
        "positive_above": Acts("--positive-above 0.99"),
        "negative_below": Acts("--negative-below 0.01"),
        "scores": Refused("--scores probabilities", "pass --scores logits"),
        "force": forces("--positive-above 0.99"),
    },
    "evaluate": {
        "run": Acts("--run {dense.trec}"),
        "data": Acts("--data {other}", base="evaluate-data", instead="--data {small}"),
        "split": Acts("--split train", base="evaluate-data", beside="--data {small}"),
        "qrels": Acts("--qrels {small}/qrels/train.parquet"),
        "metrics": Acts("--metrics p@3"),
        "baseline": Acts("--baseline {dense.trec}"),
        "reference_run": Acts(
            "--reference-run {dense.trec}", beside="--metrics nb-recall-1@3", instead="--reference-run {bm25.trec}"
        ),
        "convention": Acts("--convention beir", beside="--run {files}/odd.trec"),
        "missing": Acts("--missing skip", beside="--run {files}/odd.trec"),
        "exclude_self": Acts("--exclude-self", beside="--run {files}/odd.trec"),
        "min_relevance": Acts("--min-relevance 2"),
        "answers": Acts(
            "--answers {files}/answers-2.parquet",
            beside="--metrics answer-recall@1 --corpus {small}",
            instead="--answers {files}/answers-1.parquet",
        ),
        "corpus": Refused(
            "--corpus {reworded}",
            "is another corpus than",
            beside="--metrics answer-recall@1 --answers {files}/answers-1.parquet",
        ),
        "per_query": Acts("--per-query {folder}/values.parquet"),
        "report": Acts("--report {folder}/page.html"),
        "changed": Acts("--changed 0", base="evaluate-two"),
        "seed": Acts("--seed 1", base="evaluate-two", beside="--json"),
        "format": Acts("--format csv"),
        "json": Acts("--json"),
        "force": forces("--metrics p@3", beside="--per-query {folder}/values.parquet"),
        "suite": Acts("--suite {suite-of-one}", base="evaluate-suite"),
        "known_item": Acts("--known-item span", base="evaluate-known"),
        "known_items": Acts("--known-items 5", base="evaluate-known"),
        "model": Acts("--model {other-model}", base="evaluate-suite"),
        "revision": asks_the_hub("evaluate-suite"),
        "output": lands_where_it_says("evaluate-suite"),
        "depth": Acts("--depth 2", base="evaluate-suite"),
        "exclude_self_of": Acts("--exclude-self-of one", base="evaluate-suite"),
        "dtype": Acts("--dtype bf16", base="evaluate-suite"),
        "chunk_tokens": Counted("--chunk-tokens 64", "chunks", base="evaluate-suite"),
        "device": Refused("--device cuda", "torch sees no CUDA device", base="evaluate-suite"),
        "threads": Counted("--threads 3", "threads of torch", base="evaluate-suite", value=3),
    },
    "cache": {
        "prune": leaves_in_the_cache("--prune", set()),
        "older_than": leaves_in_the_cache("--older-than 5", {"new"}, beside="--prune"),
        "max_size": leaves_in_the_cache("--max-size 2KB", {"new"}, beside="--prune"),
        "json": Acts("--json"),
    },
    "run": {
        "file": Does(reads_the_recipe),
        "output": lands_where_it_says(),
        "set_": Acts("--set depth=2"),
        "only": Acts("--only vectors"),
        "force": makes_changed_steps_anew("--force", ["vectors", "other"]),
        "redo": makes_changed_steps_anew("--redo vectors", ["vectors"]),
        "dry_run": Acts("--dry-run"),
    },
    "demo": {
        "output": Does(puts_all_below),
        "seed": reaches_every_step("--seed 5", "seed", 5, ("pretrain", "mine_negatives", "train")),
        "device": reaches_every_step("--device cpu", "device", "cpu", ("search", "encode", "train")),
        "threads": reaches_every_step(
            "--threads 3", "threads", 3, ("index", "search", "encode", "mine_negatives", "train")
        ),
        "quick": Does(takes_fewer_steps),
        "json": Does(prints_json),
        "force": Does(walks_again_where_forced),
    },
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_decoder: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), tiny_model, tiny_decoder)


ROWS = [(command, name, probe) for command, probes in PROBES.items() for name, probe in probes.items()]


@pytest.mark.parametrize(
    ("command", "probe"), [(c, p) for c, _, p in ROWS], ids=[f"{command}-{name}" for command, name, _ in ROWS]
)
def test_an_option_acts(command: str, probe: Probe, bench: Bench) -> None:
    probe.check(bench, command)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_row_that_types_its_flag_alone(command: str) -> None:
    declared = {option.name: option for option in options_of(COMMANDS[command].config)}
    assert PROBES[command].keys() == declared.keys()
    for name, probe in PROBES[command].items():
        if not isinstance(probe, Does):
            assert types_only(declared[name], probe.flags), f"{command} {name}: {probe.flags}"


def types_only(option: Option, flags: str) -> bool:
    """Whether flags are those of one option."""
    typed = [word for word in shlex.split(flags) if word.startswith("--")]
    if option.declaration.positional:
        return not typed
    return typed in ([option.flag], [option.flag.replace("--", "--no-", 1)])
