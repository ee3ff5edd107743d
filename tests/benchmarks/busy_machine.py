"""Training alone and beside busy processes, under several settings of the OpenMP runtime: seconds of one step.

    python tests/benchmarks/busy_machine.py MODEL DATASET QRELS [--busy 0 1 2] [--settings default retrievo]

Each setting is a process of its own, since OpenMP reads its environment once. The processes take one step after the
other by turns, so that all of them see the same machine; each step is the same batch. `default` is an environment
without any of these variables, `retrievo` what the command line sets. Prints medians, and the median over the rounds of
the speed relative to the first setting in the same round and to the same setting without busy processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from retrievo.distributed.environment import WAITING, without_spinning

STEP = "step\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("qrels", type=Path)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=["default", "retrievo"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--work", action="store_true", help="take steps when asked (one of the processes)")
    given = parser.parse_args()
    if given.work:
        work(given)
        return
    workers = {setting: started(setting) for setting in given.settings}
    for worker in workers.values():
        answer(worker)
    alone: dict[str, float] = {}
    for busy in given.busy:
        seconds = beside(busy, workers, given.rounds)
        alone = alone or {setting: statistics.median(took) for setting, took in seconds.items()}
        first = seconds[given.settings[0]]
        for setting, took in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(first, took, strict=True))
            median = statistics.median(took)
            print(
                f"busy {busy}  {setting:28} {median:7.3f} s a step  {ratio:6.3f} x {given.settings[0]}  "
                f"{alone[setting] / median:6.3f} x with {given.busy[0]} busy",
                flush=True,
            )
    for worker in workers.values():
        worker.terminate()


def environment(setting: str) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if name not in WAITING and name != "OMP_NUM_THREADS"}
    if setting == "retrievo":
        return bare | without_spinning(bare)
    return bare if setting == "default" else bare | dict([setting.split("=")])


def started(setting: str) -> subprocess.Popen[str]:
    command = [sys.executable, *sys.argv, "--work"]
    return subprocess.Popen(
        command,
        env=environment(setting),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def answer(worker: subprocess.Popen[str]) -> float:
    assert worker.stdout is not None
    return float(worker.stdout.readline())


def beside(busy: int, workers: dict[str, subprocess.Popen[str]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the steps of each worker, while so many processes compute something else."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    seconds: dict[str, list[float]] = {setting: [] for setting in workers}
    try:
        for _ in range(rounds):
            for setting, worker in workers.items():
                assert worker.stdin is not None
                worker.stdin.write(STEP)
                worker.stdin.flush()
                seconds[setting].append(answer(worker))
    finally:
        for other in others:
            other.kill()
            other.wait()
    return seconds


def work(given: argparse.Namespace) -> None:
    import torch

    from retrievo.models.devices import prepare_cpu
    from retrievo.models.encoder import Encoder
    from retrievo.support.sizes import bytes_of
    from retrievo.training.engine.gradient_cache import GraphMemory, gradient_step
    from retrievo.training.feeds.dataset_config import DataSetConfig
    from retrievo.training.feeds.finetune import TrainingData, TrainingFeed
    from retrievo.training.feeds.samplers import Drawing
    from retrievo.training.objectives.finetune import Finetune
    from retrievo.training.objectives.table import FinetuneConfig

    prepare_cpu(None)
    lengths = {"query_max_length": given.max_length, "document_max_length": given.max_length}
    objective = Finetune(FinetuneConfig(temperature=0.05), encoder := Encoder.load(given.model, **lengths)).train()
    data = TrainingData(DataSetConfig(corpus=given.dataset, queries=given.dataset, qrels=given.qrels), 1)
    feed = TrainingFeed(data, encoder, objective.collator(), Drawing(given.batch_size, 0, seed=0))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5, fused=True)
    graphs = GraphMemory(bytes_of("--activation-memory", "1GB"))
    batch = feed.batch(0)

    def step() -> float:
        start = time.perf_counter()
        gradient_step(objective, batch, step=0, seed=0, chunk_tokens=4096, dtype=torch.bfloat16, keep_graphs=graphs)
        optimizer.step()
        return time.perf_counter() - start

    step()
    print(step(), flush=True)
    for _ in sys.stdin:
        print(step(), flush=True)


if __name__ == "__main__":
    main()
