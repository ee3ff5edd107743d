"""The experiments of the coCondenser and Contriever papers, small on two cores or large on an accelerator.

    python examples/pretraining_grid.py DATA OUTPUT [--size small|full] [--parts views adapt ...] [--seeds 0 1 2]

DATA holds dataset folders as `retrievo import` makes them: acl_titles and squad (train and test or dev judgments),
scifact and nfcorpus, openstax_text (bare documents). Every step is a retrievo command, printed before it runs, so that
the script goes on where it was stopped; --dry-run prints them all. Tables and plots go to OUTPUT/results.

heads:      fine-tuned after nothing, MLM, Condenser, coCondenser of equal length     (coCondenser, table 5)
ablation:   coCondenser without its MLM                                               (coCondenser, table 4)
views:      zero-shot beside BM25: crops, ICT, MoCo                                   (Contriever, table 4)
more-views: deletion, replacement, both directions, queue sizes, mixes                (Contriever, tables 3-5)
few:        fine-tuned on few pairs, with and without pre-training                    (Contriever, table 2)
overlap:    what the final model confuses, in the first one's results                 (coCondenser, figure 3)
adapt:      a sentence encoder (--adapt-model) trained further on bare documents, zero-shot
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    model: str
    length: int  # tokens of a span, and of a document in fine-tuning
    window: int
    batch: int
    head_steps: int  # of pre-training with masked language modeling
    view_steps: int  # of pre-training by contrasting views
    rate: float
    pooling: str  # in fine-tuning
    pairs: int  # queries of a fine-tuning step
    rounds: int  # steps of fine-tuning
    tune_rate: float
    momentum: float
    queues: tuple[int, ...]  # the first is the usual one
    flags: tuple[object, ...] = ()  # of all contrasts

    @property
    def read(self) -> tuple[object, ...]:
        """What a contrasted model reads: no longer than the crops that it has seen, where it starts from nothing."""
        longest = self.window // 2 + 2
        return ("--query-max-length", longest, "--document-max-length", longest)


SIZES = {
    # Keys must not lag behind for the whole of a short run: Contriever's momentum of 0.9995 is made for 200,000 steps.
    # From nothing, the CLS vector does not leave the loss of chance in 150 steps; the mean does.
    "small": Size(
        model="scratch:small",
        length=64,
        window=128,
        batch=128,
        head_steps=100,
        view_steps=250,
        rate=5e-4,
        pooling="mean",
        pairs=64,
        rounds=150,
        tune_rate=5e-4,
        momentum=0.99,
        queues=(2048, 512, 8192),
        flags=("--normalize",),
    ),
    "full": Size(
        model="bert-base-uncased",
        length=128,
        window=256,
        batch=2048,
        head_steps=20_000,
        view_steps=20_000,
        rate=1e-4,
        pooling="cls",
        pairs=64,
        rounds=5_000,
        tune_rate=5e-6,
        momentum=0.999,
        queues=(131_072, 2048, 16_384, 65_536),
    ),
}
SAMPLE = 10_000  # training queries of SQuAD
HEADS = ("nothing", "mlm", "condenser", "cocondenser")
TOP = ("mrr@10", "recall@100", "recall@1000")
VIEW_METRICS = ("ndcg@10", "recall@100")
ADAPT = ("--batch-size", 64, "--learning-rate", 2e-5, "--max-steps", 80, "--momentum", 0.99, "--queue-size", 1024)


@dataclass(frozen=True)
class Lab:
    """Where everything lies, and how a command is run."""

    data: Path
    output: Path
    size: Size
    adapt_model: str
    dry: bool = False

    def retrievo(self, *arguments: object) -> str:
        """Runs a command and returns what it prints."""
        typed = [str(argument) for argument in arguments]
        print("$ retrievo", *typed, flush=True)
        if self.dry:
            return ""
        return subprocess.run(
            [sys.executable, "-m", "retrievo", *typed], check=True, stdout=subprocess.PIPE
        ).stdout.decode()

    def table(self, title: str, dataset: str, runs: Sequence[Path], metrics: Iterable[str]) -> None:
        """All runs against the first one, query by query."""
        judged = self.judged(dataset)
        rows = self.retrievo(
            "evaluate", "--run", *runs, "--baseline", runs[0], "--qrels", judged, "--metrics", *metrics
        )
        if self.dry:
            return
        path = self.output / "results" / f"{title}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rows)
        print(f"{title}\n{rows}", flush=True)

    def pooled(self, title: str, dataset: str, runs: Sequence[Sequence[Path]], metrics: Sequence[str]) -> None:
        """Each arm's mean over its seeds against the first arm's, as Markdown: a query's value is its mean over seeds.

        runs: for each arm one run a seed. The interval is a bootstrap over queries, p of the randomization test; the
        last two figures are the lowest and the highest difference of one seed.
        """
        if self.dry:
            return
        from retrievo.data.qrels import Qrels
        from retrievo.evaluation.names import Metric
        from retrievo.evaluation.scoring import evaluate
        from retrievo.evaluation.significance import bootstrap_interval, randomization_test

        names, qrels = [Metric.parse(name) for name in metrics], Qrels.read(self.judged(dataset)).table
        measured = [[evaluate(pq.read_table(run), qrels, names).values for run in arm] for arm in runs]
        lines = [f"| | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
        for arm, values in zip(runs, measured, strict=True):
            cells = [arm[0].stem.rpartition("-")[0]]
            for name in names:
                ours, base = (np.array([of[name] for of in seeds]) for seeds in (values, measured[0]))
                cells.append(f"{ours.mean():.4f}")
                if values is not measured[0]:
                    low, high = bootstrap_interval(ours.mean(0), base.mean(0))
                    p, each = randomization_test(ours.mean(0), base.mean(0)), (ours - base).mean(1)
                    told = f"{(ours - base).mean():+.4f} ({low:+.4f} to {high:+.4f}), p = {p:.2g}"
                    cells[-1] += f", {told}; {each.min():+.4f} to {each.max():+.4f}"
            lines.append(f"| {' | '.join(cells)} |")
        text = "\n".join(lines) + "\n"
        (self.output / "results" / f"{title}.md").write_text(text)
        print(f"{title}\n{text}", flush=True)

    # --------------------------------------------------------------------------------------------------- the data

    def judged(self, dataset: str, split: str = "test") -> Path:
        """The judgments of a split; dev where there is no test."""
        path = self.data / dataset / "qrels" / f"{split}.parquet"
        return path if path.is_file() or split != "test" else path.with_name("dev.parquet")

    def test_queries(self, dataset: str) -> Path:
        """The queries that are judged for testing."""
        path = self.output / dataset / "queries.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            queries = pq.read_table(self.data / dataset / "queries.parquet")
            ids = pc.unique(pq.read_table(self.judged(dataset))["query_id"])
            pq.write_table(queries.filter(pc.is_in(queries["id"], value_set=ids)), path)
        return path

    def some_pairs(self, dataset: str, count: int | None) -> Path:
        """Judgments of a seeded sample of the training queries; None = all."""
        whole = self.judged(dataset, "train")
        if count is None:
            return whole
        path = self.output / dataset / f"train-{count}.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            pairs = pq.read_table(whole)
            ids = pc.unique(pairs["query_id"]).to_numpy(zero_copy_only=False)
            chosen = np.random.default_rng(0).permutation(ids)[:count]
            pq.write_table(pairs.filter(pc.is_in(pairs["query_id"], value_set=pc.unique(chosen.tolist()))), path)
        return path

    # -------------------------------------------------------------------------------------------------- the steps

    def pretrained(self, dataset: str, arm: str, seed: int, *flags: object) -> Path:
        """A model that was pre-trained on the documents of a collection; `arm` names it."""
        size, folder = self.size, self.output / dataset / "models" / f"{arm}-{seed}"
        common = ["--model", size.model, "--batch-size", size.batch, "--learning-rate", size.rate, "--seed", seed]
        self.retrievo("pretrain", "--corpus", self.data / dataset, *common, *flags, "--output", folder)
        return folder

    def headed(self, dataset: str, objective: str, seed: int, *flags: object, arm: str = "") -> str | Path:
        """After `nothing` or an objective with masked language modeling, of equal steps in all."""
        steps = self.size.head_steps
        if objective == "nothing":
            return self.size.model
        halves = ["--max-steps", steps - steps // 2, "--condenser-steps", steps // 2]
        length = halves if objective == "cocondenser" else ["--max-steps", steps]
        told = ["--objective", objective, "--max-length", self.size.length, *length, *flags]
        return self.pretrained(dataset, arm or objective, seed, *told)

    def contrasted(self, dataset: str, objective: str, seed: int, *flags: object, arm: str = "") -> Path:
        """After a contrast of views."""
        size = self.size
        told = [
            "--objective",
            objective,
            "--window",
            size.window,
            "--max-steps",
            size.view_steps,
            *size.flags,
            *size.read,
        ]
        if objective == "contriever":
            told += ["--momentum", size.momentum]
            told += [] if "--queue-size" in flags else ["--queue-size", size.queues[0]]
        return self.pretrained(dataset, arm or objective, seed, *told, *flags)

    def tuned(
        self, dataset: str, arm: str, model: object, seed: int, pairs: int | None = None, pooling: str | None = None
    ) -> Path:
        """A model fine-tuned on pairs of a collection, with in-batch negatives; pooling=None: that of the size."""
        size, home = self.size, self.data / dataset
        folder = self.output / dataset / "stages" / f"{arm}-{pairs or 'all'}-{seed}"
        tables = ["--corpus", home, "--queries", home, "--qrels", self.some_pairs(dataset, pairs)]
        lengths = ["--query-max-length", size.length // 2, "--document-max-length", size.length]
        course = ["--batch-size", size.pairs, "--max-steps", size.rounds, "--learning-rate", size.tune_rate]
        scores = [
            "--pooling",
            pooling or size.pooling,
            "--normalize",
            "--similarity",
            "cosine",
            "--temperature",
            0.05,
            "--seed",
            seed,
        ]
        self.retrievo("train", "--model", model, *tables, *lengths, *course, *scores, "--output", folder)
        return folder

    def ranked(self, dataset: str, model: str | Path, name: str | None = None) -> Path:
        """The run of a model on the test queries of a collection."""
        name = name or Path(model).name
        vectors, run = (self.output / dataset / kind / name for kind in ("vectors", "runs"))
        run = run.with_name(f"{name}.parquet")
        self.retrievo("encode", "--model", model, "--corpus", self.data / dataset, "--output", vectors)
        self.retrievo("search", "--index", vectors, "--queries", self.test_queries(dataset), "--output", run)
        return run

    def bm25(self, dataset: str) -> Path:
        """BM25's run on the test queries."""
        index, run = self.output / dataset / "bm25", self.output / dataset / "runs" / "bm25.parquet"
        self.retrievo("index", "--type", "bm25", "--corpus", self.data / dataset, "--output", index)
        self.retrievo("search", "--index", index, "--queries", self.test_queries(dataset), "--output", run)
        return run


# --------------------------------------------------------------------------------------------------------- the parts


def heads(lab: Lab, seeds: Sequence[int]) -> None:
    for dataset, pairs in (("acl_titles", None), ("squad", SAMPLE)):
        runs = []
        for seed in seeds:
            models = {arm: lab.headed(dataset, arm, seed) for arm in HEADS}
            stages = [lab.tuned(dataset, f"after-{arm}", model, seed, pairs) for arm, model in models.items()]
            runs.append([lab.ranked(dataset, stage) for stage in stages])
            lab.table(f"heads-{dataset}-{seed}", dataset, runs[-1], TOP)
        lab.pooled(f"heads-{dataset}", dataset, list(zip(*runs, strict=True)), TOP)


def ablation(lab: Lab, seeds: Sequence[int]) -> None:
    dataset, seed = "acl_titles", seeds[0]
    models = {
        "cocondenser": lab.headed(dataset, "cocondenser", seed),
        "contrast-only": lab.headed(dataset, "cocondenser", seed, "--weight", "mlm=0", arm="contrast-only"),
        "nothing": lab.size.model,
    }
    stages = [lab.tuned(dataset, f"after-{arm}", model, seed) for arm, model in models.items()]
    lab.table("ablation", dataset, [lab.ranked(dataset, stage) for stage in stages], TOP)


def views(lab: Lab, seeds: Sequence[int]) -> None:
    dataset, each = "acl_titles", []
    for seed in seeds:
        objectives = ("simclr", "ict", "contriever")[: 3 if seed == seeds[0] else 2]  # MoCo with the first seed only
        runs = [lab.ranked(dataset, lab.contrasted(dataset, objective, seed)) for objective in objectives]
        lab.table(f"views-{seed}", dataset, [*runs, lab.bm25(dataset)], VIEW_METRICS)
        each.append(runs[:2])
    lab.pooled("views", dataset, list(zip(*each, strict=True)), VIEW_METRICS)


def more_views(lab: Lab, seeds: Sequence[int]) -> None:
    dataset = "acl_titles"
    other = lab.data / "openstax_text"
    arms = {
        "crops-delete": ("simclr", "--delete", 0.2),
        "crops-replace": ("simclr", "--replace", 0.1),
        "nt-xent": ("simclr", "--symmetric"),
        "moco-whole": ("contriever", "--delete", 0),
        **{f"moco-queue-{queue}": ("contriever", "--queue-size", queue) for queue in lab.size.queues[1:]},
        **{f"mix-{mix}": ("simclr", "--corpus", other, "--mix", mix) for mix in ("uniform", "equal", "alpha=0.5")},
    }
    usual = [lab.ranked(dataset, lab.contrasted(dataset, how, seeds[0])) for how in ("simclr", "contriever")]
    runs = [
        lab.ranked(dataset, lab.contrasted(dataset, how, seeds[0], *flags, arm=arm))
        for arm, (how, *flags) in arms.items()
    ]
    lab.table("views-more", dataset, [*usual, *runs], VIEW_METRICS)


def few(lab: Lab, seeds: Sequence[int]) -> None:
    for dataset, counts in (("scifact", (None,)), ("nfcorpus", (None,)), ("acl_titles", (500, 2000, None))):
        models = {"nothing": lab.size.model} | {
            objective: lab.contrasted(dataset, objective, seeds[0]) for objective in ("simclr", "contriever")
        }
        for count in counts:
            stages = [
                lab.tuned(dataset, f"views-{arm}", model, seeds[0], count, pooling="mean")
                for arm, model in models.items()
            ]
            runs = [lab.ranked(dataset, stage) for stage in stages]
            lab.table(f"few-{dataset}-{count or 'all'}", dataset, [*runs, lab.bm25(dataset)], VIEW_METRICS)


def overlap(lab: Lab, seeds: Sequence[int]) -> None:
    dataset, seed, depths = "acl_titles", seeds[0], (50, 100, 200, 500, 1000)
    curves = {}
    for arm in HEADS[1:]:
        first = lab.tuned(dataset, f"after-{arm}", lab.headed(dataset, arm, seed), seed)
        second = first.with_name(f"{first.name}-second")
        lab.retrievo("mine-negatives", first, "to", second)
        lab.retrievo("train", second)
        runs = ["--run", lab.ranked(dataset, second), "--reference-run", lab.ranked(dataset, first)]
        metrics = [f"nb-recall-{n}@{depth}" for n in (50, 100) for depth in depths]
        found = lab.retrievo("evaluate", *runs, "--qrels", lab.judged(dataset), "--json", "--metrics", *metrics)
        curves[arm] = next(iter(json.loads(found).values())) if found else {}
    if not lab.dry:
        plot_overlap(curves, depths, lab.output / "results" / "overlap.png")


def plot_overlap(curves: dict[str, dict[str, float]], depths: Sequence[int], path: Path) -> None:
    """nb-recall by the depth of the first stage, a line for each pre-training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, n in zip(figure.subplots(1, 2, sharey=True), (50, 100), strict=True):
        for (arm, values), style in zip(curves.items(), ("o-", "s--", "^:"), strict=True):
            found = [values[f"nb-recall-{n}@{depth}"] for depth in depths]
            axes.plot(depths, found, style, label=arm, markerfacecolor="none")
        axes.set(xscale="log", xlabel="depth of the first stage", title=f"nb-recall, n = {n}")
        axes.set_xticks(depths, map(str, depths))
        axes.minorticks_off()
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def adapt(lab: Lab, seeds: Sequence[int]) -> None:
    for dataset in ("scifact", "nfcorpus"):
        runs = [lab.ranked(dataset, lab.adapt_model, "zero-shot")]
        for objective in ("simclr", "ict", "contriever"):
            folder = lab.output / dataset / "models" / f"adapted-{objective}"
            flags = ADAPT if objective == "contriever" else ADAPT[:6]
            told = ["--model", lab.adapt_model, "--corpus", lab.data / dataset, "--objective", objective, *flags]
            lab.retrievo("pretrain", *told, "--seed", seeds[0], "--output", folder)
            runs.append(lab.ranked(dataset, folder))
        lab.table(f"adapt-{dataset}", dataset, [*runs, lab.bm25(dataset)], VIEW_METRICS)


PARTS: dict[str, Callable[[Lab, Sequence[int]], None]] = {
    "views": views,
    "more-views": more_views,
    "adapt": adapt,
    "heads": heads,
    "ablation": ablation,
    "few": few,
    "overlap": overlap,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--adapt-model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(arguments)
    lab = Lab(given.data, given.output, SIZES[given.size], given.adapt_model, given.dry_run)
    for part in given.parts:
        PARTS[part](lab, given.seeds)


if __name__ == "__main__":
    main()
