"""Names that people know from other tools, and what retrievo calls the same thing.

They are never accepted: an error names the right word, and the user types it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# habit -> options, commands, formats or values, in the order in which they are suggested; of these only the ones count
# that are known where the habit was typed. What follows an option after a space is its value.
HABITS: dict[str, tuple[str, ...]] = {
    # commands
    "eval": ("evaluate",),
    "evaluation": ("evaluate",),
    "score": ("evaluate", "rerank"),
    "mine": ("mine-negatives",),
    "mining": ("mine-negatives",),
    "hard-negatives": ("mine-negatives", "negatives"),
    "finetune": ("train",),
    "fine-tune": ("train",),
    "fit": ("train",),
    "training": ("train",),
    "pretraining": ("pretrain",),
    "embed": ("encode",),
    "encoding": ("encode",),
    "build": ("index",),
    "build-index": ("index",),
    "indexing": ("index",),
    "retrieve": ("search",),
    "retrieval": ("search",),
    "ask": ("search",),
    "reranking": ("rerank",),
    "convert": ("import",),
    "load": ("import",),
    "recipe": ("run",),
    "pipeline": ("run",),
    # data
    "data": ("data", "corpus"),
    "data-dir": ("data", "corpus", "suite"),
    "data-path": ("data", "corpus"),
    "dataset": ("data", "corpus"),
    "dataset-name": ("data", "corpus"),
    "train-data": ("data",),
    "train-dir": ("data",),
    "docs": ("corpus",),
    "doc": ("corpus",),
    "documents": ("corpus",),
    "passages": ("corpus",),
    "collection": ("corpus",),
    "corpus-file": ("corpus",),
    "corpus-path": ("corpus",),
    "input": ("corpus", "run"),
    "input-file": ("corpus", "run"),
    "query": ("queries", "search"),
    "query-file": ("queries",),
    "questions": ("queries",),
    "topics": ("queries",),
    "q": ("queries",),
    "qrel": ("qrels",),
    "judgments": ("qrels",),
    "judgements": ("qrels",),  # codespell:ignore judgements
    "labels": ("qrels",),
    "ground-truth": ("qrels",),
    "runs": ("run",),
    "result": ("run",),
    "results": ("run",),
    "negative": ("negatives",),
    "negs": ("negatives",),
    "vectors": ("embeddings", "index"),
    "embeddings": ("embeddings", "index", "encode"),
    "index-path": ("index",),
    "index-dir": ("index",),
    # formats
    "folder": ("text",),
    "dir": ("text",),
    "directory": ("text",),
    "files": ("text",),
    "txt": ("text",),
    "md": ("text",),
    "markdown": ("text",),
    "html": ("text",),
    "json": ("jsonl",),
    "jsonlines": ("jsonl",),
    "ms-marco": ("msmarco",),
    "numpy": ("vectors",),
    "npy": ("vectors",),
    "pair": ("pairs",),
    "triplet": ("pairs",),
    "triplets": ("pairs",),
    "flagembedding": ("pairs",),
    "sentence-transformers": ("pairs",),
    "title": ("title-column",),
    "title-field": ("title-column",),
    "id-field": ("id-column",),
    "text-field": ("text-column",),
    "held-out": ("dev-ratio",),
    "test-size": ("dev-ratio",),
    "dev-size": ("dev-ratio",),
    "val-ratio": ("dev-ratio",),
    "validation-split": ("dev-ratio",),
    # model
    "model-name-or-path": ("model",),
    "model-name": ("model",),
    "model-path": ("model",),
    "model-id": ("model",),
    "encoder": ("model", "encode"),
    "checkpoint": ("model",),
    "pretrained": ("model",),
    "tokenizer-name": ("model",),
    "pooling-mode": ("pooling",),
    "pooling-method": ("pooling",),
    "normalize-embeddings": ("normalize",),
    "untie-encoder": ("no-tied", "tied"),
    "query-instruction": ("query-prefix",),
    "passage-prefix": ("document-prefix",),
    "max-seq-length": ("query-max-length", "document-max-length", "max-length"),
    "max-seq-len": ("query-max-length", "document-max-length", "max-length"),
    "max-len": ("query-max-length", "document-max-length", "max-length"),
    "seq-length": ("query-max-length", "document-max-length", "max-length"),
    "q-max-len": ("query-max-length",),
    "query-max-len": ("query-max-length",),
    "p-max-len": ("document-max-length",),
    "passage-max-len": ("document-max-length",),
    "doc-max-length": ("document-max-length",),
    # training
    "lr": ("learning-rate",),
    "bs": ("batch-size",),
    "batch": ("batch-size",),
    "batchsize": ("batch-size",),
    "train-batch-size": ("batch-size",),
    "per-device-train-batch-size": ("batch-size",),
    "epoch": ("epochs",),
    "num-epochs": ("epochs",),
    "n-epochs": ("epochs",),
    "num-train-epochs": ("epochs",),
    "steps": ("max-steps",),
    "num-steps": ("max-steps",),
    "train-steps": ("max-steps",),
    "warmup": ("warmup-ratio",),
    "warmup-steps": ("warmup-ratio",),
    "wd": ("weight-decay",),
    "temp": ("temperature",),
    "tau": ("temperature",),
    "lr-scheduler": ("schedule",),
    "lr-scheduler-type": ("schedule",),
    "scheduler": ("schedule",),
    "optim": ("optimizer",),
    "grad-clip": ("max-grad-norm",),
    "clip": ("max-grad-norm",),
    "num-negatives": ("negatives-per-query", "samples"),
    "n-negatives": ("negatives-per-query", "samples"),
    "train-n-passages": ("negatives-per-query",),
    "train-group-size": ("negatives-per-query",),
    "eval-steps": ("validate-every",),
    "eval-every": ("validate-every",),
    "evaluation-steps": ("validate-every",),
    "validation": ("dev-qrels",),
    "dev": ("dev-qrels",),
    "early-stopping": ("patience",),
    "early-stopping-patience": ("patience",),
    "save-steps": ("save-every",),
    "save-total-limit": ("keep-checkpoints",),
    "gc-chunk-size": ("chunk-tokens",),
    "mini-batch-size": ("chunk-tokens",),
    "random-seed": ("seed",),
    "lora-r": ("lora-rank",),
    "use-lora": ("lora-rank",),
    "lora": ("lora-rank",),
    # machine
    "fp16": ("dtype float16", "float16"),
    "half": ("dtype float16", "float16"),
    "bf16": ("dtype bfloat16", "bfloat16"),
    "amp": ("dtype bfloat16", "dtype float16"),
    "precision": ("dtype",),
    "torch-dtype": ("dtype",),
    "gpu": ("device cuda", "cuda"),
    "use-gpu": ("device cuda",),
    "cuda": ("device cuda",),
    "workers": ("threads",),
    "num-workers": ("threads",),
    "num-threads": ("threads",),
    "n-jobs": ("threads",),
    "jobs": ("threads",),
    # search and evaluation
    "k": ("depth",),
    "topk": ("depth",),
    "top-k": ("depth",),
    "hits": ("depth",),
    "num-results": ("depth",),
    "index-type": ("type",),
    "factory": ("type",),
    "metric": ("metrics",),
    "measures": ("metrics",),
    "weights": ("fuse-weights",),
    "fusion": ("fuse",),
    "fusion-weights": ("fuse-weights",),
    "reranker": ("rerank",),
    "dim": ("truncate-dim",),
    "ip": ("dot",),
    "inner-product": ("dot",),
    "cos": ("cosine",),
    # output
    "out": ("output",),
    "o": ("output",),
    "output-dir": ("output",),
    "output-path": ("output",),
    "output-file": ("output",),
    "out-dir": ("output",),
    "save-dir": ("output",),
    "save-path": ("output",),
    "overwrite": ("force",),
    "overwrite-output-dir": ("force",),
    "f": ("force",),
}

_PAIRS = (
    "import them first: retrievo import pairs PAIRS.jsonl --output DATA, where each line has a query, a positive and, "
    "if there are any, negatives; then pass --data DATA"
)
_PROCESSES = "start several processes with torchrun --nproc-per-node N -m retrievo"
# what no option stands for -> what to do
ADVICE = {
    "pairs": _PAIRS,
    "train-file": _PAIRS,
    "train-files": _PAIRS,
    "train-path": _PAIRS,
    "n-gpu": _PROCESSES,
    "n-gpus": _PROCESSES,
    "num-gpus": _PROCESSES,
    "gpus": _PROCESSES,
    "resume": "run the same command again: it resumes by itself",
    "resume-from-checkpoint": "run the same command again: it resumes by itself",
    "gradient-accumulation-steps": "raise --batch-size: --chunk-tokens bounds the memory, whatever the batch",
    "grad-cache": "leave it out: every batch goes through the gradient cache",
}


def meant(name: str, known: Iterable[str]) -> list[str]:
    """Known words that a name may stand for: the same word spelled otherwise, what habits say, else the closest one."""
    words = {_spelled(word): word for word in known}
    name = _spelled(name)
    if name in words:
        return [words[name]]
    found = []
    for habit in HABITS.get(name, ()):
        word, space, value = habit.partition(" ")
        found += [words[word] + space + value] if word in words else []
    return found or [words[word] for word in difflib.get_close_matches(name, words, n=1, cutoff=0.6)]


def advice(name: str, known: Iterable[str]) -> str | None:
    """What to do instead of what was typed, as a sentence; None where nothing is known that is like it."""
    if (sentence := ADVICE.get(_spelled(name))) is not None:
        return sentence
    found = [word if word.startswith("-") else f"'{word}'" for word in meant(name, known)]
    return f"did you mean {' or '.join(filter(None, [', '.join(found[:-1]), found[-1]]))}?" if found else None


def _spelled(name: str) -> str:
    """A word without what differs between flags, keys of TOML files and names."""
    return name.strip("-").rstrip("_").replace("_", "-").lower()
