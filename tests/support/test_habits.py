"""Names from other tools are answered with retrievo's own, and never taken for them."""

from __future__ import annotations

import pytest

from retrievo.cli import COMMANDS
from retrievo.support.habits import ADVICE, HABITS
from retrievo.support.options import options_of
from tests.conftest import run_here

ANSWERS = {
    "train --lr 1e-5": "--lr; did you mean --learning-rate?",
    "train --lr=1e-5": "--lr; did you mean --learning-rate?",
    "train --bs 8": "--bs; did you mean --batch-size?",
    "pretrain --batch 8": "--batch; did you mean --batch-size?",
    "train --model-name-or-path m": "did you mean --model?",
    "train --model_name_or_path m": "did you mean --model?",
    "train --learning_rate 1e-5": "did you mean --learning-rate?",
    "train --pairs p.jsonl": "retrievo import pairs PAIRS.jsonl",
    "train --train-file p.jsonl": "then pass --data DATA",
    "train --dataset d": "did you mean --data or --corpus?",
    "pseudo-label --data d": "did you mean --corpus?",
    "train --num-train-epochs 3": "did you mean --epochs?",
    "train --num-epochs 3": "did you mean --epochs?",
    "train --max-seq-length 64": "did you mean --query-max-length, --document-max-length or --max-length?",
    "rerank --max-seq-length 64": "did you mean --max-length?",
    "train --fp16": "did you mean --dtype float16?",
    "encode --bf16": "did you mean --dtype bfloat16?",
    "train --eval-steps 100": "did you mean --validate-every?",
    "train --output-dir o": "did you mean --output?",
    "encode --out o": "did you mean --output?",
    "train --n-gpu 2": "torchrun --nproc-per-node N",
    "search --top-k 5": "did you mean --depth?",
    "search --topk=5": "did you mean --depth?",
    "search -k 5": "did you mean --depth?",
    "search --query q": "did you mean --queries?",
    "index --docs d": "did you mean --corpus?",
    "export --zzz": "--zzz; retrievo export --help lists the options",
    "--zzz": "--zzz; retrievo --help lists the options",
    "import folder notes --output d": "found 'folder'; did you mean 'text'?",
    "import json x --output d": "did you mean 'jsonl'?",
    "import jsonl x --output d --title headline": "--title; did you mean --title-column?",
    "import jsonl x --output d --id-field i": "did you mean --id-column?",
    "import triplets x --output d": "did you mean 'pairs'?",
    "import pairs x --output d --test-size 0.1": "did you mean --dev-ratio?",
    "mine": "unknown command 'mine'; did you mean 'mine-negatives'?",
    "finetune --model m": "did you mean 'train'?",
    "eval": "did you mean 'evaluate'?",
    "embed": "did you mean 'encode'?",
    "serch q": "did you mean 'search'?",
    "qqq": "unknown command 'qqq'; known: demo, import",
}


@pytest.mark.parametrize(("typed", "answer"), ANSWERS.items())
def test_a_habit_is_answered_with_the_right_name(typed: str, answer: str) -> None:
    ran = run_here(*typed.split())
    assert ran.code == 2
    assert answer in ran.err


def test_everything_that_is_suggested_is_there() -> None:
    options = [option for command in COMMANDS.values() for option in options_of(command.config)]
    flags = {option.flag.lower().strip("-") for option in options}
    flags |= {f"no-{option.flag[2:]}" for option in options if option.kind is bool}
    choices = {choice for option in options for choice in option.declaration.choices}
    for habit, words in HABITS.items():
        for word in words:
            name, _, value = word.partition(" ")
            assert name in flags | choices | COMMANDS.keys(), f"{habit}: {word}"
            assert not value or value in choices, f"{habit}: {word}"


def test_a_habit_has_one_answer() -> None:
    assert not HABITS.keys() & ADVICE.keys()
    assert all(habit == habit.strip("-").replace("_", "-").lower() for habit in (*HABITS, *ADVICE))
