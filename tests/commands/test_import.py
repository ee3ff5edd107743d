"""`retrievo import`: one command from foreign files to a dataset folder that the other commands read."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrievo.commands.import_ import VECTORS, ImportConfig, import_dataset
from retrievo.data.importers import FORMATS
from retrievo.support.errors import UsageError
from retrievo.support.options import options_of


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    source = tmp_path / "set"
    (source / "qrels").mkdir(parents=True)
    (source / "corpus.jsonl").write_text('{"_id": "d", "title": "T", "text": "words"}\n')
    (source / "queries.jsonl").write_text('{"_id": "q", "text": "which"}\n')
    (source / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    (source / "README.md").write_text("about\n")
    return source


def test_the_command_makes_a_dataset_folder_and_says_what_became_of_what(
    retrievo: Callable[..., Any], beir: Path, tmp_path: Path
) -> None:
    outcome = retrievo("import", "beir", beir, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert outcome.out == ""
    said = " ".join(outcome.err.split())
    for words in ("corpus.jsonl documents: 1", "qrels/test.tsv judgments (test): 1", "not read: README.md"):
        assert words in said
    assert f"retrievo index --data {tmp_path / 'out'}" in outcome.err
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert made == ["corpus.parquet", "manifest.json", "qrels/test.parquet", "queries.parquet", "retrievo.toml"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["kind"] == "dataset"
    assert manifest["stats"] == {"documents": 1, "queries": 1, "qrels": {"test": 1}}
    assert manifest["inputs"]["source"]["path"] == "set"
    assert not (tmp_path / "out.partial").exists()


def test_running_again_changes_nothing_and_other_options_are_refused(
    retrievo: Callable[..., Any], beir: Path, tmp_path: Path
) -> None:
    command = ["import", "beir", beir, "--output", tmp_path / "out"]
    retrievo(*command)
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    again = retrievo(*command)
    assert again.code == 0
    assert "already finished" in again.err
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    (beir / "corpus.jsonl").write_text('{"_id": "d", "text": "other"}\n')
    changed = retrievo(*command)
    assert changed.code == 1
    assert "its input 'source' has changed" in changed.err
    assert retrievo(*command, "--force").code == 0
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns != before


def test_an_output_inside_the_source_is_not_read_as_a_part_of_it(
    retrievo: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.md").write_text("# A\nwords\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "begin.json").write_text("{}")
    (tmp_path / "out.partial" / "b.md").write_text("left by a run that was killed\n")
    assert retrievo("import", "text", ".", "--output", "out").code == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["stats"] == {"documents": 1}


def test_a_failed_import_leaves_nothing_that_passes_for_a_dataset(
    retrievo: Callable[..., Any], beir: Path, tmp_path: Path
) -> None:
    (beir / "queries.jsonl").write_text("broken\n")
    outcome = retrievo("import", "beir", beir, "--output", tmp_path / "out")
    assert outcome.code == 1
    assert "queries.jsonl, line 1: is not JSON" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()
    (beir / "queries.jsonl").write_text('{"_id": "q", "text": "which"}\n')
    assert retrievo("import", "beir", beir, "--output", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bier"], "did you mean 'beir'?"),
        (["beir", "--header"], "--header: applies only to the format tsv or csv"),
        (["text", "--stride", "300"], "--stride: found 300; expected at most --passage-words (100)"),
        (["jsonl", "--number-lines", "--id-column", "x"], "--number-lines: is given together with --id-column"),
        (["jsonl", "--role", "query", "--title-column", "x"], "--title-column: applies only"),
        (["jsonl", "--role", "qrels"], "--role"),
        (["trec", "--encoding", "klingon"], "--encoding: found 'klingon'"),
        (["beir", "--output", "set"], "--output: is the source itself"),
        (["vectors", "--encoding", "latin-1"], "IDS: is missing"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(
    arguments: list[str],
    words: str,
    retrievo: Callable[..., Any],
    beir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    format, *more = arguments
    outcome = retrievo("import", format, "set", "--output", "out", *more)
    assert outcome.code == 2
    assert words in outcome.err
    assert not (tmp_path / "out").exists()


def test_the_settings_file_gives_defaults_relative_to_the_dataset(beir: Path, tmp_path: Path) -> None:
    import_dataset(ImportConfig(format="beir", source=beir, output=tmp_path / "out"))
    for section, values in tomllib.loads((tmp_path / "out" / "retrievo.toml").read_text()).items():
        for name, path in values.items():
            assert (tmp_path / "out" / path).is_file(), (section, name)


def test_every_format_is_a_choice_and_every_option_of_a_format_names_one() -> None:
    known = {option.name: option for option in options_of(ImportConfig)}
    assert known["format"].declaration.choices == (*FORMATS, VECTORS)
    named = {name for row in FORMATS.values() for name in row.options}
    assert named <= set(known)
    assert all(known[name].declaration.applies is not None for name in named)


def summary(outcome: Any) -> list[str]:
    assert outcome.code == 0, outcome.err
    return [" ".join(line.split()) for line in outcome.err.splitlines()]


@pytest.mark.parametrize(
    ("format", "text", "options", "told"),
    [
        (
            "jsonl",
            '{"doc_id": "1", "overline": "h", "body": "b"}',
            "--text-column body",
            ["columns id: doc_id, text: body", "ignored overline (for titles: --title-column overline)"],
        ),
        (
            "csv",
            "id,title,text,year,url\n1,t,x,2,u\n",
            "",
            ["columns id: id, title: title, text: text", "ignored year, url"],
        ),
        ("tsv", "id\ttext\ta\tb\n1\tx\ty\tz\n", "", ["ignored a, b (for titles: --title-column NAME)"]),
        ("tsv", "id\ttext\ta\n1\tx\ty\n", "--role query", ["columns id: id, text: text", "ignored a"]),
        ("tsv", "1\tx\ty\n", "--no-header", ["columns id: 1, text: 2", "ignored 3 (for titles: --title-column 3)"]),
        ("tsv", "x\n", "--no-header --number-lines", ["columns id: line number, text: 1"]),
        ("jsonl", '{"id": "1", "headline": "h", "text": "b"}', "", ["columns id: id, title: headline, text: text"]),
        (
            "pairs",
            '{"qid": "1", "anchor": "q", "pos": "a", "neg": "b", "prompt": "c"}',
            "",
            ["columns query: anchor, positive: pos, negative: neg, ids: qid", "ignored prompt"],
        ),
    ],
)
def test_the_summary_tells_which_columns_were_taken_and_which_ignored(
    format: str, text: str, options: str, told: list[str], retrievo: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "table").write_text(text)
    outcome = retrievo("import", format, tmp_path / "table", *options.split(), "--output", tmp_path / "out")
    lines = summary(outcome)
    for line in told:
        assert line in lines, outcome.err
    assert any(line.startswith("ignored") for line in lines) == any(line.startswith("ignored") for line in told)


def test_the_columns_of_several_files_are_told_once(retrievo: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(3):
        (tmp_path / "set" / f"{number}.jsonl").write_text(f'{{"id": "{number}", "text": "x", "more{number % 2}": 1}}\n')
    lines = summary(retrievo("import", "jsonl", tmp_path / "set", "--output", tmp_path / "out"))
    assert "columns id: id, text: text" in lines
    assert "ignored more0, more1 (for titles: --title-column NAME)" in lines


def test_the_short_help_lists_the_formats_and_the_columns(retrievo: Callable[..., Any]) -> None:
    short = retrievo("import", "--help").out
    assert len(short.splitlines()) <= 24
    for word in (*FORMATS, VECTORS):
        assert f" {word}" in " ".join(short.split("SOURCE")[1].split())
    assert all(f"--{name}-column TEXT" in short for name in ("id", "text", "title"))


def test_usage_rules_hold_for_the_library_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--encoding"):
        ImportConfig(format="beir", source=tmp_path, output=tmp_path / "out", encoding="klingon")
    source, ids = tmp_path / "x.npy", tmp_path / "ids.txt"
    with pytest.raises(UsageError, match="--encoding: does not apply to vectors"):
        ImportConfig(format=VECTORS, source=source, ids=ids, output=tmp_path / "out", encoding="latin-1")


def test_somebody_elses_manifest_beside_the_files_is_no_obstacle(retrievo: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<title>Home</title><p>words</p>")
    (tmp_path / "site" / "manifest.json").write_text('{"name": "web app", "icons": []}')
    outcome = retrievo("import", "text", tmp_path / "site", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "not read: manifest.json" in outcome.err


@pytest.mark.slow
def test_an_import_killed_at_any_moment_and_run_again_gives_the_same_bytes(kill_harness: Any, tmp_path: Path) -> None:
    source = tmp_path / "train.jsonl"
    with source.open("w") as file:
        for number in range(40_000):
            passages = [{"docid": f"d{number * 3 + n}", "title": "t", "text": f"passage {n} " * 9} for n in range(3)]
            record = {"query_id": str(number), "query": "which?", "positive_passages": passages[:1]}
            file.write(json.dumps(record | {"negative_passages": passages[1:]}) + "\n")
    kill_harness.check(
        lambda output: ["import", "tevatron", str(source), "--output", str(output)], kills=3, output="dataset"
    )
