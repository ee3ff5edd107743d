"""The demo: claims that say what the numbers say, and a road that is walked once."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrievo.commands.demo import (
    CLAIMS,
    DATASET,
    DONE,
    FULL,
    QUICK,
    REPORT,
    RUNS,
    Claim,
    DemoConfig,
    Plan,
    Step,
    _told,
    claims,
    walk,
)
from retrievo.commands.demo_corpus import PACKAGES
from retrievo.data.tables import RUN
from retrievo.support.commandline import as_typed

TINY = Plan(model="scratch:tiny", crops=32, crop_steps=3, batch=32, steps=3, depth=20, packages=("jinja2", "fsspec"))


def test_a_claim_says_whether_it_holds() -> None:
    assert str(Claim("a", "b", (0.3, 0.2), 0.001)).startswith("holds: a > b")
    assert str(Claim("a", "b", (0.3, 0.2), 0.4)).startswith("holds, but may be chance")
    assert str(Claim("a", "b", (0.2, 0.3), 0.001)).startswith("does not hold: a > b: a 0.2000, b 0.3000")


def write_run(path: Path, rank: int) -> None:
    """20 queries whose relevant document, d0, stands at a rank."""
    rows = [
        {"query_id": f"q{n}", "doc_id": "d0" if place == rank else f"d{place}", "score": -place, "rank": place}
        for n in range(20)
        for place in range(1, 6)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows).cast(RUN.arrow), path)


def test_claims_are_read_from_the_runs_and_may_fail(tmp_path: Path) -> None:
    ranks = {
        "untrained": 3,
        "pretrained": 2,
        "stage-1": 1,
        "stage-2": 2,
        "bm25": 2,
        "fusion": 1,
    }  # stage 2 is worse than stage 1
    for name, rank in ranks.items():
        write_run(tmp_path / "runs" / f"{name}.parquet", rank)
    qrels = pa.table({"query_id": [f"q{n}" for n in range(20)], "doc_id": ["d0"] * 20, "relevance": [1] * 20})
    (tmp_path / DATASET / "qrels").mkdir(parents=True)
    pq.write_table(
        qrels.cast(pa.schema([*list(qrels.schema)[:2], ("relevance", pa.int32())])),
        tmp_path / DATASET / "qrels/test.parquet",
    )
    found = claims(tmp_path)
    assert [(claim.better, claim.worse) for claim in found] == list(CLAIMS)
    assert [claim.values[0] > claim.values[1] for claim in found] == [True, True, False, True]
    assert found[0].values == pytest.approx((1 / 2, 1 / 3))
    assert found[0].p < 0.001


def test_a_config_is_told_as_it_would_be_typed() -> None:
    config = DemoConfig(output=Path("a b"), seed=3, json=True)
    assert as_typed("demo", config) == "retrievo demo --output 'a b' --seed 3 --json"


def test_the_quick_demo_is_the_full_one_with_less_of_everything_in_a_folder_of_its_own() -> None:
    assert QUICK.crop_steps < FULL.crop_steps
    assert QUICK.steps < FULL.steps
    assert FULL.packages is None
    assert {"python"} < set(QUICK.packages or ()) <= {"python", *PACKAGES}
    assert (DemoConfig().home, DemoConfig(quick=True).home) == (Path("retrievo-demo"), Path("retrievo-demo-quick"))
    assert DemoConfig(quick=True, output=Path("here")).home == Path("here")


def test_the_bar_tells_the_whole_way_with_the_step_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[tuple[int, str | None]] = []
    clock = iter([0.0, 0.0, 30.0, 60.0])

    @contextlib.contextmanager
    def progress(description: str, total: int, unit: str) -> Iterator[Callable]:
        assert (total, unit) == (100, "%")
        yield lambda amount=1, status=None: ticks.append((amount, status))

    monkeypatch.setattr("retrievo.support.console.progress", progress)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    steps = [Step("one", 1, lambda: None), Step("two", 1, lambda: None), Step("three", 1, lambda: None)]
    assert [step.name for step in _told(steps)] == ["one", "two", "three"]
    assert ticks == [  # none without the step: where nobody watches, each may be the one that is written
        (0, "1 of 3: one"),
        (33, "2 of 3: two, about 1 min 00 s left"),
        (34, "3 of 3: three, about 30 s left"),
    ]


@pytest.mark.slow
def test_the_demo_walks_the_road_once_and_its_folder_answers_short_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, said: Callable[[], str], retrievo: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    walk(DemoConfig(), TINY).print()
    table, told = capsys.readouterr().out, said()
    assert all(name in table for name in RUNS)
    assert (tmp_path / "retrievo-demo" / REPORT).as_uri() in told
    weights = re.search(r"runs/fusion.parquet --fuse zscore --fuse-weights (\S+) ", told)
    tried = re.search(r"on the development queries by weight of BM25: (.*)", told)
    assert weights
    assert tried
    values = [pair.split(" : 1 ") for pair in tried[1].split(", ")]
    assert float(weights[1]) == float(max(values, key=lambda pair: float(pair[1]))[0])
    assert "retrievo search 'find all files that match a pattern'" in told
    stamps = {path: path.stat().st_mtime_ns for path in Path("retrievo-demo").rglob("*") if path.is_file()}
    again = walk(DemoConfig(), TINY)
    assert "already finished" in said()
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert len(again.claims) == len(CLAIMS)
    monkeypatch.chdir("retrievo-demo")
    assert retrievo("evaluate", "--metrics", "mrr@10", "recall@1000").code == 0
    Path(DONE).unlink()  # as a kill before the end leaves it: every step is recognized
    monkeypatch.chdir(tmp_path)
    walk(DemoConfig(), TINY)
    models = [path for path in stamps if path.name == "model.safetensors" and "untrained" not in path.parts]
    assert stamps.items() >= {path: path.stat().st_mtime_ns for path in models}.items()
