"""The log of training, for programs and for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from retrievo.training.engine.logs import Course, Log, draw


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def record(step: int) -> dict[str, float]:
    return {"step": step, "loss": 3 / step, "local_loss": 0.0, "accuracy": 1 - 1 / step, "gradient_norm": 1.0}


def test_lines_after_the_step_that_training_goes_on_from_are_dropped(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    for step in range(1, 6):
        log.write(record(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a killed run
    Log(tmp_path, 3).write(record(4) | {"loss": 7.0})
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4]
    assert lines_of(tmp_path)[-1]["loss"] == 7.0


@pytest.mark.parametrize("steps", [1, 5, 1_000])
def test_a_picture_is_drawn_of_any_log(tmp_path: Path, steps: int) -> None:
    log = Log(tmp_path, 0)
    for step in range(1, steps + 1):
        log.write(record(step))
        if step % 3 == 0:
            log.write({"step": step, "dev mrr@10": 0.5})
    log.close(torch.device("cpu"))
    assert (tmp_path / "metrics.png").read_bytes().startswith(b"\x89PNG")


def test_a_log_without_figures_has_no_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    draw(tmp_path / "metrics.jsonl", tmp_path / "metrics.png")
    assert not (tmp_path / "metrics.png").exists()


def test_tensorboard_gets_every_figure_once_also_of_a_resumed_run(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = Log(tmp_path, 0, tensorboard=True)
    for step in range(1, 5):
        log.write(record(step))
    again = Log(tmp_path, 2, tensorboard=True)
    again.write(record(3))
    again.close(torch.device("cpu"))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert events.Scalars("loss")[0].value == pytest.approx(3.0)


def test_the_course_of_a_run_is_its_first_and_last_loss_and_its_rate(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    for step in range(1, 4):
        log.write(record(step) | {"pairs": 8, "tokens": 400.0, "seconds": float(step)})
        log.write({"step": step, "dev mrr@10": 0.5, "dev loss": 5.0 - step})
    course = Course.of(tmp_path)
    assert course.stats == {"first_loss": 3.0, "last_loss": 1.0}
    assert course.facts == {
        "loss": "3.0000 at step 1, 1.0000 at step 3",
        "held out": "loss 2.0000",
        "speed": "4 pairs/s, 200 tokens/s",
    }
