"""What each command loads: help is quick, and nobody pays for a library that the command does not use."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.cli import COMMANDS

HEAVY = ("torch", "transformers", "faiss", "jnius", "pyserini", "scipy", "pyarrow", "matplotlib", "numpy")
PROBE = """
import json, sys
from retrievo.cli import app, several_flags
from retrievo.support.commandline import run_app, expand_flags
code = run_app(app, expand_flags(sys.argv[1:], several_flags()))
print(json.dumps([code, sorted(name for name in {heavy} if name in sys.modules)]))
"""


def loaded_by(*arguments: object) -> set[str]:
    """The heavy libraries that a process holds after a command."""
    probe = PROBE.format(heavy=HEAVY)
    ran = subprocess.run(
        [sys.executable, "-c", probe, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    code, found = json.loads(ran.stdout.splitlines()[-1])
    assert code == 0, ran.stderr
    return set(found)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    pq.write_table(
        pa.table({"id": ["d1", "d2"], "text": ["wing in a slipstream", "boundary layer"]}), tmp_path / "corpus.parquet"
    )
    pq.write_table(pa.table({"id": ["q1"], "text": ["slipstream"]}), tmp_path / "queries.parquet")
    (tmp_path / "qrels.txt").write_text("q1 0 d1 1\n")
    (tmp_path / "run.trec").write_text("q1 Q0 d1 1 2.5 x\n")
    return tmp_path


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    assert loaded_by(*command, "--help") == set()


def test_an_interruption_while_the_command_line_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from retrievo.__main__ import main

    class Interrupted:
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "retrievo.cli", Interrupted())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted; run the same command again\n"


def test_help_comes_at_once() -> None:
    """Within six times what its libraries take alone: 0.3 s on a quiet machine."""

    def took(*arguments: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        return time.perf_counter() - start

    turns = [(took("-m", "retrievo", "--help"), took("-c", "import typer, rich.table")) for _ in range(5)]
    helped, libraries = (min(column) for column in zip(*turns, strict=True))
    assert helped < 6 * libraries


def test_import_label_and_evaluate_load_no_torch_faiss_or_java(dataset: Path) -> None:
    (dataset / "c.jsonl").write_text('{"id": "d1", "text": "x"}\n')
    assert loaded_by("import", "jsonl", dataset / "c.jsonl", "--output", dataset / "made") <= {"pyarrow", "numpy"}
    found = loaded_by("evaluate", "--run", dataset / "run.trec", "--qrels", dataset / "qrels.txt")
    assert found <= {"pyarrow", "numpy"}
    (dataset / "read.trec").write_text("q1 Q0 d1 1 4.5 x\nq1 Q0 d2 2 -4.5 x\n")
    assert loaded_by("pseudo-label", "--run", dataset / "read.trec", "--output", dataset / "labels") <= {
        "pyarrow",
        "numpy",
    }


def test_bm25_loads_java_and_no_torch(dataset: Path) -> None:
    found = loaded_by("index", "--type", "bm25", "--corpus", dataset, "--output", dataset / "bm25")
    assert found <= {"pyarrow", "numpy", "jnius", "pyserini"}
    found = loaded_by("search", "--index", dataset / "bm25", "--queries", dataset, "--output", dataset / "found.trec")
    assert "jnius" in found
    assert found <= {"pyarrow", "numpy", "jnius", "pyserini"}
