"""`retrievo demo`: every step from documents to a comparison, on the documentation of the Python installation.

A composition of verbs: each step is a command that a user could type, is printed as such, and recognizes its own
finished work when the demo is run again after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retrievo.commands.encode import EncodeConfig, encode
from retrievo.commands.evaluate import EvaluateConfig, evaluate
from retrievo.commands.index import IndexConfig, index
from retrievo.commands.mine_negatives import MineConfig, mine_negatives
from retrievo.commands.pretrain import PretrainConfig, pretrain
from retrievo.commands.search.config import SearchConfig
from retrievo.commands.search.run import search
from retrievo.commands.train import train
from retrievo.commands.train_config import TrainConfig
from retrievo.data.options import force_option, json_option, output_option, seed_option, threads_option
from retrievo.models.options import device_option
from retrievo.support import console
from retrievo.support.commandline import as_typed
from retrievo.support.options import Options, option
from retrievo.support.settings import Layer, resolve
from retrievo.support.values import Values
from retrievo.support.verbs import verb

if TYPE_CHECKING:
    from retrievo.evaluation.comparison import Evaluation

METRICS = ("mrr@10", "ndcg@10", "recall@100")
RUNS = ("bm25", "untrained", "pretrained", "stage-1", "stage-2", "fusion")
CLAIMS = (  # (better, worse) in mrr@10
    ("pretrained", "untrained"),
    ("stage-1", "pretrained"),
    ("stage-2", "stage-1"),
    ("fusion", "bm25"),
)
SPEC: Values = {
    "similarity": "cosine",
    "normalize": True,
    "query_max_length": 24,
    "document_max_length": 48,
    "pooling": "mean",
}
BM25_WEIGHTS = (1.0, 2.0, 4.0, 8.0)  # of BM25 beside 1 for the vectors; the development queries choose among them
QUESTION = "find all files that match a pattern"
DATASET, DONE, REPORT = "docstrings", "demo.json", "report.html"


@dataclass(frozen=True)
class Plan:
    """How much the demo does.

    Pre-training is the contrast of crops (SimCLR): a minute of it teaches a model that starts from nothing, while a
    minute of masked language modeling makes all its vectors alike, out of which fine-tuning does not find.
    """

    model: str = "scratch:small"
    crops: int = 128  # documents in a step of pre-training
    crop_steps: int = 120
    batch: int = 64
    steps: int = 150
    depth: int = 100
    packages: tuple[str, ...] | None = None  # None: the standard library and what retrievo installs
    minutes: int = 10  # that all of it takes on 2 cores


FULL = Plan()
QUICK = Plan(crop_steps=40, steps=40, packages=("python", "numpy", "networkx"), minutes=3)


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Options):
    """Options of `retrievo demo`."""

    output: Path | None = output_option(
        "Folder to write everything to.",
        default=None,
        shown=True,
        hidden_default="retrievo-demo, or retrievo-demo-quick with --quick",
    )
    quick: bool = option(
        "Finish in about 3 minutes, with fewer documents and steps.", default=False, shown=True, group="Data"
    )
    seed: int = seed_option("everything that is random")
    device: str = device_option(shown=True)
    threads: int | None = threads_option(shown=True)
    json: bool = json_option(shown=True)
    force: bool = force_option()

    @property
    def home(self) -> Path:
        """The folder for everything that the demo makes."""
        return self.output or Path("retrievo-demo-quick" if self.quick else "retrievo-demo")


class Step(NamedTuple):
    """A part of the demo: what it does, its share of the whole time in percent, and the call that does it."""

    name: str
    share: float
    run: Callable[[], None]


class Claim(NamedTuple):
    """That one run is better than another in mrr@10, and what was found."""

    better: str
    worse: str
    values: tuple[float, float]
    p: float  # of the paired randomization test

    def __str__(self) -> str:
        found = f"{self.better} {self.values[0]:.4f}, {self.worse} {self.values[1]:.4f} (p = {self.p:.2g})"
        if self.values[0] <= self.values[1]:
            return f"does not hold: {self.better} > {self.worse}: {found}"
        return f"{'holds' if self.p < 0.05 else 'holds, but may be chance'}: {self.better} > {self.worse}: {found}"


@dataclass(frozen=True)
class Report:
    """What the demo found."""

    home: Path
    evaluation: Evaluation
    claims: tuple[Claim, ...]
    seconds: float

    def print(self, *, as_json: bool = False) -> None:
        """The table and what became of each claim; then where everything lies."""
        from retrievo.evaluation.formats import print_evaluation

        print_evaluation(self.evaluation, "json" if as_json else "table")
        for claim in self.claims:
            console.note(str(claim))
        facts = {
            "output": f"{self.home} (dataset, models, negatives, indexes, runs)",
            "report": (self.home / REPORT).resolve().as_uri(),
            "took": console.seconds(self.seconds),
        }
        question = f'retrievo search "{QUESTION}" --index {self.home / "bm25"}'
        console.summary("demo", facts, f"{question} --index {self.home / 'embeddings-stage-2'}")


@verb(DemoConfig)
def demo(config: DemoConfig) -> Report:
    """Makes a corpus, answers a question, trains in two rounds and compares; resumes where it was stopped.

    Raises: RetrievoError where the output folder holds other work.
    """
    return walk(config, QUICK if config.quick else FULL)


def walk(config: DemoConfig, plan: Plan) -> Report:
    """The same with other sizes."""
    home, page = config.home, config.home / REPORT
    done = home / DONE
    wanted = {"seed": config.seed, "plan": json.loads(json.dumps(vars(plan)))}
    found = json.loads(done.read_text()) if done.exists() else {}
    if finished := not config.force and {name: found.get(name) for name in wanted} == wanted:
        console.note(f"{home} is already finished; nothing to do")
    else:
        found = wanted | {"seconds": _Road(config, plan).walk()}
        _write(home, found)
    report = None if finished and page.exists() else page
    evaluation = evaluate(_comparison(home, RUNS, METRICS, baseline="bm25", report=report))
    return Report(home, evaluation, claims(home), found["seconds"])


def claims(home: Path) -> tuple[Claim, ...]:
    """What the runs in a folder say of each claim."""
    found = []
    for better, worse in CLAIMS:
        evaluation = evaluate(_comparison(home, (worse, better), METRICS[:1], baseline=worse))
        values = tuple(evaluation.means()[name][METRICS[0]] for name in (better, worse))
        found.append(Claim(better, worse, (values[0], values[1]), evaluation.tests[better][METRICS[0]].p_randomization))
    return tuple(found)


def _comparison(
    home: Path, runs: Iterable[str], metrics: Sequence[str], baseline: str, split: str = "test", **options: Any
) -> EvaluateConfig:
    paths = {name: _run_file(home, name) for name in runs}
    qrels = home / DATASET / "qrels" / f"{split}.parquet"
    return EvaluateConfig(
        run=tuple(paths.values()), qrels=qrels, metrics=tuple(metrics), baseline=paths[baseline], **options
    )


def _run_file(home: Path, name: str) -> Path:
    return home / "runs" / f"{name}.parquet"


def _write(home: Path, found: Values) -> None:
    """Settings for commands that are typed in the folder, and the mark that all is there."""
    import tomli_w

    from retrievo.support.files import atomic_path, write_json

    sections = {
        "pretrain": {"corpus": DATASET, "model": "scratch:small", "batch_size": 256},
        "evaluate": {"run": [f"runs/{name}.parquet" for name in RUNS], "qrels": f"{DATASET}/qrels/test.parquet"},
    }
    with atomic_path(home / "retrievo.toml") as temporary:
        temporary.write_bytes(tomli_w.dumps(sections).encode())
    write_json(home / DONE, found)


class _Road:
    """The steps of the demo, one after the other."""

    def __init__(self, config: DemoConfig, plan: Plan):
        self.config, self.plan, self.home = config, plan, config.home
        self.again: Values = {"force": config.force}
        self.machine: Values = {"device": config.device, "threads": config.threads}
        dataset = self.home / DATASET
        self.corpus, self.dataset = dataset / "corpus.parquet", dataset
        self.training: Values = {
            "corpus": self.corpus,
            "queries": dataset / "queries" / "train.parquet",
            "qrels": dataset / "qrels" / "train.parquet",
        }

    def walk(self) -> float:
        """All steps; returns the seconds that they took."""
        import time

        console.note(
            f"a first answer within a minute, everything in about {self.plan.minutes} minutes on 2 cores; "
            "if you stop it, type it again and it resumes"
        )
        start = time.monotonic()
        with console.inner_steps():
            for step in _told(self.steps()):
                step.run()
        return time.monotonic() - start

    def steps(self) -> tuple[Step, ...]:
        """What the demo does, in order; the shares were measured on 2 cores."""
        return (
            Step("documents", 10, self.documents),
            Step("BM25 index", 4, self.lexical),
            Step("a question", 2, self.ask),
            Step("BM25 search", 2, lambda: self.search("bm25", (self.home / "bm25",))),
            Step("random model", 6, self.untrained),
            Step("pre-training", 20, self.pretrained),
            Step("BM25 negatives", 6, self.bm25_negatives),
            Step("first round", 20, self.first_stage),
            Step("mined negatives", 6, self.mined_negatives),
            Step("second round", 20, self.second_stage),
            Step("fusion", 4, self.fusion),
        )

    def documents(self) -> None:
        from retrievo.commands.demo_corpus import installed_packages, make_dataset

        wanted = self.plan.packages
        packages = [found for found in installed_packages() if wanted is None or found.name in wanted]
        make_dataset(self.dataset, packages, seed=self.config.seed, force=self.config.force)

    def lexical(self) -> None:
        options = IndexConfig(
            type="bm25", corpus=self.corpus, output=self.home / "bm25", threads=self.config.threads, **self.again
        )
        self.say("index", options)
        index(options)

    def ask(self) -> None:
        """The first result that a person sees."""
        options = SearchConfig(question=QUESTION, index=(self.home / "bm25",), depth=3, **self.machine)
        self.say("search", options)
        answer = search(options)
        for hit in answer.hits if answer else ():
            console.note(f"  {hit.rank}. {hit.id}: {hit.snippet.text}")

    def search(
        self, name: str, indexes: tuple[Path, ...], runs: Sequence[str] = (), split: str = "test", **fusion: Any
    ) -> None:
        options = SearchConfig(
            index=indexes,
            run=tuple(_run_file(self.home, run) for run in runs),
            **fusion,
            queries=self.dataset / "queries" / f"{split}.parquet",
            output=_run_file(self.home, name),
            **self.machine,
            **self.again,
        )
        self.say("search", options)
        search(options)

    def fusion(self) -> None:
        """BM25 and the last model together, with the weights that are best on the development queries."""
        indexes = (self.home / "bm25", self.home / "embeddings-stage-2")
        self.search("fusion", indexes, fuse="zscore", fuse_weights=self.weights(indexes))

    def weights(self, indexes: tuple[Path, Path]) -> tuple[float, float]:
        """Weights of BM25 and the vectors by mrr@10 on the development queries, which no training has seen."""
        runs = ("dev-bm25", "dev-stage-2")
        for name, one in zip(runs, indexes, strict=True):
            self.search(name, (one,), split="dev")
        tried = {f"dev-fusion-{weight:g}-1": (weight, 1.0) for weight in BM25_WEIGHTS}
        for name, weights in tried.items():
            self.search(name, (), runs, "dev", fuse="zscore", fuse_weights=weights)
        metric = METRICS[0]
        means = evaluate(_comparison(self.home, (runs[0], *tried), (metric,), baseline=runs[0], split="dev")).means()
        best = max(tried, key=lambda name: means[name][metric])
        listed = ", ".join(f"{weight:g} : 1 {means[name][metric]:.4f}" for name, (weight, _) in tried.items())
        console.note(f"{metric} on the development queries by weight of BM25: {listed}")
        return tried[best]

    def dense(self, name: str, model: Path) -> None:
        vectors = self.home / f"embeddings-{name}"
        options = EncodeConfig(model=str(model), corpus=self.corpus, output=vectors, **self.machine, **self.again)
        self.say("encode", options)
        encode(options)
        self.search(name, (vectors,))

    def untrained(self) -> None:
        """The random backbone that pre-training starts from, with the lengths and the similarity of the stages."""
        from retrievo.data.corpus import Corpus
        from retrievo.models.encoder import Encoder
        from retrievo.models.scratch import scratch_folder

        folder = scratch_folder(self.plan.model, [Corpus(self.corpus)], self.config.seed)
        Encoder.load(folder, **SPEC).save(self.home / "untrained")
        self.dense("untrained", self.home / "untrained")

    def pretrained(self) -> None:
        options = PretrainConfig(
            objective="simclr",
            model=str(self.home / "untrained"),
            corpus=(self.corpus,),
            output=self.home / "pretrained",
            batch_size=self.plan.crops,
            max_steps=self.plan.crop_steps,
            learning_rate=1e-3,
            window=64,
            crop_shortest=0.1,
            seed=self.config.seed,
            **self.machine,
            **self.again,
        )
        self.say("pretrain", options)
        pretrain(options)
        self.dense("pretrained", self.home / "pretrained")

    def bm25_negatives(self) -> None:
        mining = MineConfig(
            **self.training,
            depth=self.plan.depth,
            output=self.home / "negatives.parquet",
            seed=self.config.seed,
            **self.machine,
            **self.again,
        )
        self.say("mine-negatives", mining)
        mine_negatives(mining)

    def first_stage(self) -> None:
        options = TrainConfig(
            model=str(self.home / "pretrained"),
            **self.training,
            negatives=(self.home / "negatives.parquet",),
            output=self.home / "stage-1",
            negatives_per_query=1,
            batch_size=self.plan.batch,
            max_steps=self.plan.steps,
            learning_rate=5e-4,
            temperature=0.05,
            seed=self.config.seed,
            **self.machine,
            **self.again,
        )
        self.say("train", options)
        train(options)
        self.dense("stage-1", self.home / "stage-1")

    def mined_negatives(self) -> None:
        """Exactly as typed: the command takes what it needs from the manifest of stage 1."""
        stages = (str(self.home / "stage-1"), "to", str(self.home / "stage-2"))
        mining = self.resolved(MineConfig, {"stages": stages, "depth": self.plan.depth, **self.machine, **self.again})
        console.note(f"$ retrievo mine-negatives {' '.join(stages)} --depth {self.plan.depth}")
        mine_negatives(mining)

    def second_stage(self) -> None:
        """Exactly as typed: the command takes what it needs from stage-2/train.toml."""
        stage = self.home / "stage-2"
        options = self.resolved(TrainConfig, {"stage": str(stage), **self.machine, **self.again})
        console.note(f"$ retrievo train {stage}")
        train(options)
        self.dense("stage-2", stage)

    def resolved(self, config: Any, typed: Values) -> Any:
        """A Config as the command line makes it of flags and of what lies on disk."""
        given = {name: value for name, value in typed.items() if value is not None}
        layers = [Layer("flag", given, typed=True), *config.layers(given), *config.manifest_layers(given)]
        return resolve(config, layers).config

    def say(self, command: str, options: Options) -> None:
        console.note(f"$ {as_typed(command, options)}")


def _told(steps: Sequence[Step]) -> Iterator[Step]:
    """The steps one by one, under a bar of the whole way with the step and the time that is left.

    What is left is estimated from the time that the steps so far took and from their shares.
    """
    import time

    start, whole, behind, told = time.monotonic(), sum(step.share for step in steps), 0.0, 0
    with console.progress("the whole demo", 100, "%") as tick:
        for number, step in enumerate(steps, start=1):
            spent = time.monotonic() - start
            left = f", about {console.seconds(spent / behind * (whole - behind))} left" if behind else ""
            percent = round(100 * behind / whole)
            tick(percent - told, status=f"{number} of {len(steps)}: {step.name}{left}")
            yield step
            behind, told = behind + step.share, percent
