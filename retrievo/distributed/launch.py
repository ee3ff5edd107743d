"""Starts several processes of one command on this machine, as `torchrun` does."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from retrievo.distributed.environment import end_with_launcher, process_environment
from retrievo.support import console
from retrievo.support.errors import RetrievoError, from_os_error


def run_together(function: Callable[..., Any], *arguments: Any, processes: int) -> None:
    """Calls `function(*arguments)` in several new processes, whose environment has their rank as under torchrun.

    If one process fails, the others are terminated.

    function, arguments: picklable.
    Raises: the RetrievoError of the first process that fails; RetrievoError where a process dies.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    problems = context.SimpleQueue()
    environment: dict[str, Any] = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": _free_port(), **process_environment(processes)}
    call = pickle.dumps((function, arguments))  # opened once the environment is set, which their modules may read
    started = [
        context.Process(
            target=_run,
            args=(
                os.getpid(),
                {**environment, "RANK": n, "LOCAL_RANK": n},
                console.is_shown(),
                problems,
                call,
            ),
            daemon=True,
        )
        for n in range(processes)
    ]
    for process in started:
        process.start()
    try:
        running = list(started)
        while running:
            ended = wait([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()  # the sentinel may be ready slightly before the exit code
                running.remove(process)
                if process.exitcode:
                    raise _problem(problems)
    finally:
        for process in started:
            process.terminate()
            process.join()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
        return port


def _run(
    launcher: int,
    environment: dict[str, Any],
    shown: bool,
    problems: Any,
    call: bytes,
) -> None:
    end_with_launcher(launcher)
    os.environ.update({name: str(value) for name, value in environment.items()})
    function, arguments = pickle.loads(call)
    try:
        with console.shown(shown):
            function(*arguments)
    except (RetrievoError, OSError) as problem:
        error = problem if isinstance(problem, RetrievoError) else from_os_error(problem)
        problems.put((type(error), error.where, error.found, error.expected, error.fix))
        raise SystemExit(error.exit_code) from None


def _problem(problems: Any) -> RetrievoError:
    if problems.empty():
        return RetrievoError("processes", "one of them died", None, "see its output above")
    kind, *parts = problems.get()
    error: RetrievoError = kind(*parts)
    return error
