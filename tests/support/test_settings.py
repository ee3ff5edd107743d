"""A settings file that happens to lie in the working folder says what is read, never what is written or replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retrievo.cli import COMMANDS
from retrievo.support.options import Option, options_of

WRITES = [
    (command, option)
    for command, known in COMMANDS.items()
    for option in options_of(known.config)
    if option.declaration.written or option.declaration.decides_output
]


def test_all_that_writes_is_known() -> None:
    names = {f"{command} {option.flag}" for command, option in WRITES}
    assert names >= {f"{command} --output" for command in COMMANDS if command != "cache"}
    assert names >= {f"{command} --force" for command in COMMANDS if command != "cache"}
    assert names >= {"cache --prune", "run --redo", "train --restart", "encode --restart"}
    assert names >= {"evaluate --report", "evaluate --per-query", "index --add", "pretrain --continue"}
    assert names >= {"train STAGE", "mine-negatives STAGES", "run FILE"}


@pytest.mark.parametrize(("command", "option"), WRITES, ids=lambda value: getattr(value, "name", value))
def test_a_file_that_lies_here_never_says_what_is_written(
    command: str, option: Option, tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value = "true" if option.kind is bool else '"../elsewhere"'
    (tmp_path / "retrievo.toml").write_text(f"[{command}]\n{option.name} = {value}\n")
    outcome = retrievo(command, "--show-config")
    assert outcome.code == 2
    assert f"retrievo.toml [{command}]: sets '{option.name}', which says what is written" in outcome.err
    assert f"pass {option.flag} yourself, or name the file: --config retrievo.toml" in outcome.err
    named = retrievo(command, "--show-config", "--config", "retrievo.toml")
    assert "which says what is written" not in named.err


def test_data_that_was_unpacked_overwrites_nothing(
    tmp_path: Path, retrievo: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "precious.html").write_text("mine")
    (tmp_path / "data" / "retrievo.toml").write_text('[evaluate]\nreport = "../precious.html"\n')
    (tmp_path / "data" / "r.trec").write_text("q Q0 d 1 1.0 x\n")
    (tmp_path / "data" / "qrels.txt").write_text("q 0 d 1\n")
    monkeypatch.chdir(tmp_path / "data")
    typed = ("evaluate", "--run", "r.trec", "--qrels", "qrels.txt")
    assert retrievo(*typed).code == 2
    assert (tmp_path / "precious.html").read_text() == "mine"
    assert retrievo(*typed, "--config", "retrievo.toml").code == 0
    assert (tmp_path / "precious.html").read_text() != "mine"


def test_a_stage_names_no_other_folder_to_write_to(tmp_path: Path, retrievo: Callable) -> None:
    stage = tmp_path / "stage-2"
    stage.mkdir()
    tables = 'model = "m"\ncorpus = "c"\nqueries = "q"\nqrels = "r"\n'
    (stage / "train.toml").write_text(f'[train]\n{tables}output = "../stage-1"\n')
    outcome = retrievo("train", stage, "--show-config")
    assert (outcome.code, f"expected the stage itself, {stage}" in outcome.err) == (2, True), outcome.err
    (stage / "train.toml").write_text(f'[train]\n{tables}output = "."\n')
    assert retrievo("train", stage, "--show-config").code == 0
