"""Kills commands with SIGKILL while they replace finished outputs, at chosen file operations and at random moments.

    python tests/kill_campaign.py FOLDER [--points 40] [--moments 10] [--only import train ...]

After each kill the old or the new output must be whole and the file of the user be there; the same command again must
end in the bytes of a run that nobody killed. Prints what was killed in which state of publication, as JSON.

Each run is a fork of this process, which has imported everything and started nothing. A run is killed before the n-th
operation that renames, removes or makes something in its folder: an audit hook counts them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow.parquet as pq
import torch  # before any fork
import transformers  # noqa: F401

from retrievo.cli import app, several_flags
from retrievo.support.artifact import BEGIN, MANIFEST
from retrievo.support.commandline import expand_flags, run_app
from retrievo.support.files import file_record

EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
MINE = "mine.txt"  # a file of the user in an output
NOTES = Path(__file__).with_name("notes.toml")
SEARCHED = """
[steps.found]
command = "search"
index = "{bm25}"
queries = "queries.parquet"
depth = 5
[steps.results]
command = "evaluate"
run = "{found}"
qrels = "qrels.txt"
metrics = ["mrr@10"]
"""


@dataclass(frozen=True)
class Case:
    """A command that replaces what another one has made.

    outputs: what it makes, below the folder it works in; steps of a recipe end one after the other.
    """

    first: Sequence[str]
    second: Sequence[str]
    outputs: Sequence[str]


def cases(inputs: Path) -> dict[str, Case]:
    """The cases; `{home}` is the folder that outputs lie in."""
    data, model = ["--corpus", f"{inputs}/data", "--queries", f"{inputs}/data"], ["--model", f"{inputs}/model"]
    text = ["import", "text", f"{inputs}/notes", "--output", "{home}/out", "--passage-words"]
    train = ["train", *model, *data, "--qrels", f"{inputs}/qrels.txt", "--output", "{home}/out", "--dtype", "fp32"]
    train += ["--negatives-per-query", "0", "--max-steps", "3", "--save-every", "1", "--batch-size", "4", "--pooling"]
    encode = ["encode", *model, *data[:2], "--pooling", "mean", "--dtype", "fp32", "--output", "{home}/out"]
    index = ["index", "--embeddings", f"{inputs}/vectors", "--output", "{home}/out", "--type"]
    run = ["run", f"{inputs}/road.toml", "--output", "{home}", "--set"]
    road = ("notes", "bm25", "found.parquet", "results.json")
    return {
        "import": Case([*text, "30"], [*text, "60", "--force"], ["out"]),
        "index": Case([*index, "flat"], [*index, "sq8", "--force"], ["out"]),
        "encode": Case(encode, [*encode, "--truncate-dim", "16", "--force"], ["out"]),
        "train": Case([*train, "mean"], [*train, "mean", "--seed", "1", "--force"], ["out"]),
        "run": Case([*run, "words=30"], [*run, "words=60", "--force"], road),
    }


def prepare(inputs: Path) -> None:
    """Notes, a collection, a model and vectors, and a recipe over the notes."""
    import pyarrow as pa
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [f"{stem}{n}" for stem in ("wing", "flow", "heat") for n in range(9)]
    rng = np.random.default_rng(0)
    for name in ("notes", "data"):
        (inputs / name).mkdir(parents=True)
    for number in range(6):
        (inputs / "notes" / f"{number}.txt").write_text(" ".join(rng.choice(words, 200)))
    texts = [" ".join(rng.choice(words, 8)) for _ in range(40)]
    queries = pa.table({"id": [f"q{n}" for n in range(12)], "text": texts[:12]})
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(40)], "text": texts}), inputs / "data" / "corpus.parquet")
    pq.write_table(queries, inputs / "data" / "queries.parquet")
    pq.write_table(queries, inputs / "queries.parquet")
    (inputs / "qrels.txt").write_text("".join(f"q{n} 0 d{n} 1\n" for n in range(12)))
    (inputs / "road.toml").write_text(NOTES.read_text() + SEARCHED)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*special, *words])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=32, max_position_embeddings=32, **sizes)).save_pretrained(inputs / "model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(inputs / "model")
    np.save(inputs / "x.npy", rng.standard_normal((40, 8)).astype(np.float32))
    (inputs / "ids.txt").write_text("".join(f"d{n}\n" for n in range(40)))
    started(["import", "vectors", f"{inputs}/x.npy", f"{inputs}/ids.txt", "--output", f"{inputs}/vectors"], inputs)


def started(
    command: Sequence[str], home: Path, *, dies_before: int = 0, dies_after: float | None = None
) -> tuple[bool, int, float]:
    """(whether it lived, its operations on files below `home`, its seconds) of a command in a fork of this process.

    Raises: AssertionError with what it said where it ends in an error.
    """
    said, (read, write), start = home.with_name(home.name + ".said"), os.pipe(), time.monotonic()
    if not (child := os.fork()):
        try:
            descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            count = _count_operations(home, dies_before)
            code = run_app(app, expand_flags([part.format(home=home) for part in command], several_flags()))
            os.write(write, str(count()).encode())
            sys.stdout.flush()
            os._exit(code)
        finally:
            os._exit(99)
    os.close(write)
    if dies_after is not None:
        time.sleep(dies_after)
        os.kill(child, signal.SIGKILL)
    operations = os.read(read, 20)
    os.close(read)
    _, status = os.waitpid(child, 0)
    lived = not os.WIFSIGNALED(status)
    assert not lived or os.WEXITSTATUS(status) == 0, said.read_text()
    return lived, int(operations or 0), time.monotonic() - start


def _count_operations(home: Path, dies_before: int) -> Callable[[], int]:
    """Counts what changes names below a folder, and kills this process before one of them."""
    seen, within = [0], str(home)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and any(str(argument).startswith(within) for argument in arguments[:2]):
            seen[0] += 1
            if seen[0] == dies_before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: seen[0]


def state_of(output: Path) -> str:
    """How far the publication of an output is."""
    partial, old = (output.with_name(output.name + ending) for ending in (".partial", ".old"))
    if old.exists():
        return "published, old one there" if output.exists() else "between the renames"
    if (partial / MANIFEST).is_file():
        return "complete"
    return "begun" if (partial / BEGIN).is_file() else "old or new alone"


def check_whole(output: Path) -> None:
    """Raises AssertionError where neither the old nor the new output is whole, or the user's file is gone."""
    partial, old = (output.with_name(output.name + ending) for ending in (".partial", ".old"))
    if output.suffix == ".parquet":
        assert pq.read_table(output).num_rows
    elif output.suffix == ".json":
        assert json.loads(output.read_text())
    else:
        assert any(_is_whole(folder) for folder in (output, old, partial))
        assert any((folder / MINE).is_file() for folder in (output, old)), f"{MINE} is gone"
        if output.exists():
            assert _is_whole(output), "a reader finds neither the old nor the new one"


def _is_whole(folder: Path) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    files = json.loads((folder / MANIFEST).read_text())["files"]
    return all(
        (folder / name).is_file() and {**file_record(folder / name), **told} == file_record(folder / name)
        for name, told in files.items()
    )


def check_same(case: Case, home: Path, reference: Path) -> None:
    """Raises AssertionError where what a case has made differs from what it makes when nobody kills it."""
    for name in case.outputs:
        made, expected = home / name, reference / name
        if made.suffix == ".parquet":  # its metadata tells the fingerprint of the Lucene index, which is never the same
            assert pq.read_table(made).to_pylist() == pq.read_table(expected).to_pylist()
        elif made.is_file():
            assert made.read_bytes() == expected.read_bytes()
        else:
            assert _is_whole(made)
            _check_same_folder(made, expected, bytes_too=name != "bm25")
        leftover = [made.with_name(made.name + ending) for ending in (".partial", ".old", ".scores")]
        assert not [path for path in leftover if path.exists()]


def _check_same_folder(made: Path, expected: Path, *, bytes_too: bool) -> None:
    files = {path.relative_to(made) for path in made.rglob("*") if path.is_file()} - {Path(MANIFEST)}
    assert Path(MINE) in files
    if bytes_too:
        there = {path.relative_to(expected) for path in expected.rglob("*") if path.is_file()}
        assert files == there - {Path(MANIFEST)}, files ^ there
        for name in files - {Path("metrics.jsonl"), Path("metrics.png"), Path("README.md")}:  # these tell times
            assert (made / name).read_bytes() == (expected / name).read_bytes(), name


def campaign(case: Case, folder: Path, *, points: int, moments: int, seed: int = 0) -> dict[str, Any]:
    """Kills a case at so many file operations, expand_flags evenly, and at so many random moments."""
    old, reference, home = (folder / name for name in ("old", "reference", "home"))
    old.mkdir(parents=True)
    started(case.first, old)
    for name in case.outputs:
        if (old / name).is_dir():
            (old / name / MINE).write_text("mine")

    def put(home: Path) -> None:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(old, home)

    put(reference)
    put(home)
    started(case.second, reference)
    _, operations, took = started(case.second, home)
    check_same(case, home, reference)
    chosen = sorted({round(place) for place in np.linspace(1, operations, points)} if points else ())
    ways: list[dict[str, Any]] = [{"dies_before": place} for place in chosen]
    ways += [{"dies_after": took * random.Random(seed + n).uniform(0.05, 0.95)} for n in range(moments)]
    kills, states, lost = 0, Counter[str](), []
    for way in ways:
        put(home)
        lived, _, _ = started(case.second, home, **way)
        kills += not lived
        if not lived:
            states.update(state for name in case.outputs if (state := state_of(home / name)) != "old or new alone")
            states["old or new alone"] += all(state_of(home / name) == "old or new alone" for name in case.outputs)
        try:
            for name in case.outputs:
                check_whole(home / name)
            started(case.second, home)
            check_same(case, home, reference)
        except (AssertionError, OSError):
            lost.append(f"{way}: {traceback.format_exc()[-800:]}")
            shutil.copytree(home, home.with_name(f"lost-{len(lost)}"))
    return {"operations": operations, "kills": kills, "states": dict(states), "lost": lost}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--only", nargs="+")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    prepare(folder / "inputs")
    found = {
        name: campaign(case, folder / name, points=asked.points, moments=asked.moments)
        for name, case in cases(folder / "inputs").items()
        if not asked.only or name in asked.only
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
