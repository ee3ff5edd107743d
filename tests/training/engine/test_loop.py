"""Training resumes bit for bit, logs what happened, and calls back in time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinyEncoder, finetune, finetune_batch, taught_by_vectors

from retrievo.support.errors import RetrievoError, UsageError
from retrievo.training.batch import Batch
from retrievo.training.engine import checkpoints
from retrievo.training.engine.config import FitConfig
from retrievo.training.engine.loop import every_n_steps, fit, prefetched
from retrievo.training.engine.optimizers import OPTIMIZERS, SCHEDULES
from retrievo.training.losses.losses import BATCH_TAUGHT, LOSSES, TAUGHT
from retrievo.training.objectives.finetune import Finetune
from retrievo.training.objectives.objective import Objective
from retrievo.training.objectives.table import FinetuneConfig

PER_EPOCH = 4


class Feed:
    """Four batches in an epoch, the last one smaller."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def batch(self, step: int) -> Batch:
        self.made.append(step)
        return finetune_batch([2, 3, 1] if step % PER_EPOCH == PER_EPOCH - 1 else [3, 1, 4, 2, 2], seed=step)

    def position(self, step: int) -> dict[str, int]:
        return {"epoch": step // PER_EPOCH, "batch": step % PER_EPOCH}


def config(**options: Any) -> FitConfig:
    defaults = {"max_steps": 8, "learning_rate": 1e-2, "chunk_tokens": 24, "dtype": "float32", "save_every": 3}
    return FitConfig(**{**defaults, **options})


def run(folder: Path, device: str = "cpu", feed: Feed | None = None, **options: Any) -> Objective:
    calls = {name: options.pop(name) for name in ("every", "progress", "clock") if name in options}
    objective = finetune(dropout=0.2, temperature=0.5, learn_temperature=True)
    fit(objective, feed or Feed(), config(**options), folder=folder, device=torch.device(device), **calls)
    return objective


@pytest.mark.parametrize(
    ("steps", "often", "expected"),
    [(8, 4, [4, 8]), (8, 3, [3, 6, 8]), (8, 20, [8]), (25, None, [3, 6, 9, 12, 15, 18, 21, 24, 25]), (1, None, [1])],
)
def test_a_callback_now_and_then_is_called_after_the_last_step_too(
    steps: int, often: int | None, expected: list[int], tmp_path: Path
) -> None:
    called: list[int] = []
    run(tmp_path, max_steps=steps, every=every_n_steps(called.append, steps, often))
    assert called == expected


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_weights(left: Objective, right: Objective) -> bool:
    expected = right.state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in left.state_dict().items())


class Killed(Exception):
    pass


def killed_after(step: int) -> Any:
    def progress(record: dict[str, Any]) -> None:
        if record["step"] == step:
            raise Killed

    return progress


@pytest.mark.parametrize("kill", [1, 3, 4, 7])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, kill: int) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", progress=killed_after(kill))
    resumed = run(tmp_path / "killed")
    assert same_weights(resumed, whole)
    timings = ("second", "memory")
    kept = [
        [
            {key: value for key, value in record.items() if not any(of in key for of in timings)}
            for record in log(folder)
        ]
        for folder in (tmp_path / "killed", tmp_path / "whole")
    ]
    assert kept[0] == kept[1]


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


def ticking(seconds: dict[int, float], **options: Any) -> dict[str, Any]:
    """Options of a run in which no time passes but these seconds in these steps."""
    now = [0.0]

    def progress(record: dict[str, Any]) -> None:
        now[0] += seconds.get(record["step"], 0.0)

    return {"progress": progress, "clock": lambda: now[0], "save_every": None, "keep_checkpoints": 8, **options}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({}, [8]),
        (dict.fromkeys(range(1, 9), 100.0), [3, 6, 8]),
        ({1: 299.0, 2: 2.0, 3: 298.0, 5: 2.0}, [2, 5, 8]),  # counted from the last checkpoint, not from the start
        ({4: 5_000.0}, [4, 8]),  # a long step is followed by one checkpoint, not by those that it missed
        ({8: 5_000.0}, [8]),
    ],
)
def test_by_default_checkpoints_are_300_seconds_apart(
    tmp_path: Path, seconds: dict[int, float], expected: list[int]
) -> None:
    run(tmp_path, **ticking(seconds))
    assert saved_steps(tmp_path) == expected


def test_time_spent_on_saving_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, save = [0.0], checkpoints.save

    def slow(*arguments: Any) -> None:
        save(*arguments)
        now[0] += 1_000.0

    monkeypatch.setattr(checkpoints, "save", slow)
    seconds = ticking({})
    seconds["progress"] = lambda record: now.__setitem__(0, now[0] + 150.0)
    run(tmp_path, **{**seconds, "clock": lambda: now[0]})
    assert saved_steps(tmp_path) == [2, 4, 6, 8]


def test_with_save_every_the_clock_decides_nothing(tmp_path: Path) -> None:
    run(tmp_path, **ticking(dict.fromkeys(range(1, 9), 1_000.0), save_every=3))
    assert saved_steps(tmp_path) == [3, 6, 8]


def test_when_checkpoints_were_written_changes_no_weight(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    timed = ticking({5: 400.0})
    ticks = timed["progress"]

    def progress(record: dict[str, Any]) -> None:
        ticks(record)
        if record["step"] == 7:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "killed", **{**timed, "progress": progress})
    assert saved_steps(tmp_path / "killed") == [5]
    assert same_weights(run(tmp_path / "killed"), whole)


def test_only_steps_after_the_checkpoint_are_made_again(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, progress=killed_after(5))
    feed = Feed()
    run(tmp_path, feed=feed)
    assert feed.made == [3, 4, 5, 6, 7]


def test_a_finished_run_gives_its_weights_again_without_a_step(tmp_path: Path) -> None:
    first, feed = run(tmp_path), Feed()
    assert same_weights(run(tmp_path, feed=feed), first)
    assert feed.made == []


def test_training_learns(tmp_path: Path, device: torch.device) -> None:
    feed = Feed()
    feed.batch = lambda step: finetune_batch([3, 1, 4, 2, 2])
    run(tmp_path, device.type, feed, max_steps=30)
    losses = [record["loss"] for record in log(tmp_path)]
    assert losses[-1] < losses[0] / 2


# with one optimizer each loss, with one loss each optimizer; the other pairs take a minute
PAIRS = [
    pytest.param(loss, optimizer, marks=() if loss == "infonce" or optimizer == "adamw" else pytest.mark.slow)
    for loss in LOSSES
    for optimizer in OPTIMIZERS
]


@pytest.mark.parametrize(("loss", "optimizer"), PAIRS)
def test_every_loss_falls_with_every_optimizer(loss: str, optimizer: str, tmp_path: Path) -> None:
    groups = [3, 2, 4, 2, 2]
    scores = torch.cat([torch.linspace(2, -2, size) for size in groups])  # the relevant document first

    class Taught(Feed):
        def batch(self, step: int) -> Batch:
            batch = dataclasses.replace(finetune_batch(groups), teacher=scores if loss in TAUGHT else None)
            return taught_by_vectors(batch, 0, slice(None), len(groups)) if loss in BATCH_TAUGHT else batch

    divided = {"temperature": 0.5} if "temperature" in LOSSES[loss].settings else {}
    objective = finetune(loss=(loss,), **divided)
    course = config(max_steps=40, optimizer=optimizer, learning_rate=2e-2)
    fit(objective, Taught(), course, folder=tmp_path, device=torch.device("cpu"))
    losses = [record["loss"] for record in log(tmp_path)]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_learns_on_every_schedule(schedule: str, tmp_path: Path) -> None:
    feed = Feed()
    feed.batch = lambda step: finetune_batch([3, 1, 4, 2, 2])
    run(tmp_path, feed=feed, max_steps=30, schedule=schedule)
    losses = [record["loss"] for record in log(tmp_path)]
    assert losses[-1] < losses[0] / 2


def test_each_step_logs_its_figures(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    run(tmp_path, progress=seen.append)
    records = log(tmp_path)
    assert records == seen
    assert [record["step"] for record in records] == list(range(1, 9))
    assert [record["epoch"] for record in records] == [0] * 4 + [1] * 4
    assert [record["pairs"] for record in records] == [5, 5, 5, 3] * 2
    for record in records:
        assert 0 <= record["accuracy"] <= 1
        assert 0 <= record["padding"] < 1
        assert record["pairs_per_second"] == pytest.approx(record["pairs"] / record["seconds"])
        assert record["tokens_per_second"] == pytest.approx(record["tokens"] / record["seconds"])
        assert record["loss"] == pytest.approx(record["infonce"])
        assert record["gradient_norm"] > 0
        assert record["seconds_waiting_for_data"] < record["seconds"]
        assert record["memory_bytes"] > 1 << 20
    assert records[0]["learning_rate"] == 1e-2 / 2  # one step of warm-up
    assert records[1]["learning_rate"] == 1e-2


def test_callbacks_come_after_their_step_and_what_they_return_is_logged(tmp_path: Path) -> None:
    called: list[int] = []

    def validate(step: int) -> dict[str, float]:
        called.append(step)
        return {"dev_mrr@10": step / 10}

    run(tmp_path, every=[(3, validate), (5, lambda step: None)])
    assert called == [3, 6]
    assert [record["step"] for record in log(tmp_path) if "dev_mrr@10" in record] == [3, 6]
    assert [record["step"] for record in log(tmp_path)] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8]


def test_a_run_killed_in_a_callback_calls_it_again(tmp_path: Path) -> None:
    def fails(step: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path, every=[(3, fails)])
    called: list[int] = []
    run(tmp_path, every=[(3, lambda step: called.append(step))])
    assert called == [3, 6]


def test_a_callback_may_change_what_the_next_step_is_fed(tmp_path: Path) -> None:
    feed = Feed()
    run(tmp_path, feed=feed, every=[(2, lambda step: feed.made.append(-step))], prefetch=5)
    assert feed.made == [0, 1, -2, 2, 3, -4, 4, 5, -6, 6, 7, -8]


def test_a_callback_that_left_evaluation_mode_does_not_switch_dropout_off(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    objective = finetune(dropout=0.2, temperature=0.5, learn_temperature=True)
    stop = [(1, lambda step: objective.eval() and None)]
    fit(objective, Feed(), config(), folder=tmp_path / "other", device=torch.device("cpu"), every=stop)
    assert same_weights(objective, plain)


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
@pytest.mark.parametrize("pauses", [[], [2], [2, 3]])
def test_prefetching_changes_nothing_but_when_things_are_made(ahead: int, pauses: list[int]) -> None:
    assert list(prefetched(lambda step: step * 10, range(3, 9), ahead, pauses)) == [
        (step, step * 10) for step in range(3, 9)
    ]


def test_an_error_while_a_batch_is_made_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(prefetched(lambda step: 1 // (3 - step), range(9), 2))


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path: Path) -> None:
    feed = Feed()
    objective = finetune()
    with torch.no_grad():
        objective.encoder.document.tokens.weight.fill_(float("inf"))
    with pytest.raises(RetrievoError, match="step 1: the loss is nan; lower --learning-rate"):
        fit(objective, feed, config(save_every=1), folder=tmp_path, device=torch.device("cpu"))
    assert not (tmp_path / "checkpoints").exists()


def test_a_second_gradient_that_is_not_finite_moves_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Climbing(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            closure()
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.fill_(float("inf"))
            closure()

    monkeypatch.setitem(OPTIMIZERS, "adamw", lambda config, module: Climbing(module.parameters(), lr=1.0))
    with pytest.raises(RetrievoError, match="step 1: the loss is nan; lower --learning-rate"):
        run(tmp_path, save_every=1)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": 1}, "seed was 0, now it is 1"), ({"max_steps": 9}, "schedule was .*'max_steps': 8.*now it is .*9")],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    run(tmp_path)
    with pytest.raises(RetrievoError, match=message):
        run(tmp_path, **options)


@pytest.mark.parametrize(
    "option",
    [
        {"seed": 1},
        {"dtype": "bfloat16"},
        {"chunk_tokens": 12},  # dropout is drawn chunk by chunk
        {"max_grad_norm": 1e-3},
        {"max_grad_norm": 0.0},
        {"learning_rate": 2e-2},
        {"schedule": "cosine"},
        {"warmup_ratio": 0.5},
        {"weight_decay": 0.5},
        {"beta1": 0.5},
        {"beta2": 0.5},
        {"epsilon": 1e-2},
        {"optimizer": "asam"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_that_should_changes_the_weights(tmp_path: Path, option: dict[str, Any]) -> None:
    short = {"max_steps": 3, "save_every": 100}
    plain, other = run(tmp_path / "plain", **short), run(tmp_path / "other", **{**short, **option})
    assert not same_weights(plain, other)


def test_kept_graphs_save_encodings_and_change_not_a_bit(tmp_path: Path) -> None:
    calls = []
    for memory in ("0", "1GB"):
        objective = finetune(dropout=0.2)
        encode, count = objective.encode, [0]

        def counted(chunk: Any, encode: Any = encode, count: list[int] = count) -> Any:
            count[0] += 1
            return encode(chunk)

        objective.encode = counted
        chosen = config(max_steps=2, activation_memory=memory)
        fit(objective, Feed(), chosen, folder=tmp_path / memory, device=torch.device("cpu"))
        calls.append(count[0])
    assert calls[1] == calls[0] // 2 + 1, "every chunk is encoded once, and one of them to see what its graph takes"
    norms = [[line["gradient_norm"] for line in log(tmp_path / memory)] for memory in ("0", "1GB")]
    assert norms[0] == norms[1]


def test_after_step_follows_each_update(tmp_path: Path) -> None:
    class Following(Finetune):
        seen: list[float] = []

        def after_step(self) -> None:
            self.seen.append(self.temperature.item())

    objective = Following(FinetuneConfig(temperature=0.5, learn_temperature=True), TinyEncoder())
    fit(objective, Feed(), config(max_steps=3), folder=tmp_path, device=torch.device("cpu"))
    assert len(set(Following.seen)) == 3
    assert Following.seen[-1] == objective.temperature.item()
    assert 0.5 not in Following.seen


def test_the_optimizer_gets_the_rate_of_the_schedule_and_may_ask_for_the_gradient_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []

    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            rates.append(self.param_groups[0]["lr"])
            found = []
            for _ in range(2):
                closure()
                found.append(
                    [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]
                )
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
            super().step()

    monkeypatch.setitem(OPTIMIZERS, "adamw", lambda config, module: Twice(module.parameters(), lr=1.0))
    run(tmp_path)
    assert rates == [record["learning_rate"] for record in log(tmp_path)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "--max-steps: found 0; expected at least 1"),
        (
            {"activation_memory": "much"},
            "--activation-memory: found 'much'; expected a number and MB, GB or TB; write 4GB",
        ),
        ({"max_grad_norm": -1.0}, "--max-grad-norm: found -1.0; expected at least 0"),
    ],
)
def test_wrong_options_name_the_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        config(**options)
    assert str(error.value) == message
