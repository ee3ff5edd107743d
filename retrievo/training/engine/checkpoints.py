"""Checkpoints from which training resumes bit for bit: safetensors and JSON in `checkpoints/step-000123/`.

A checkpoint is written under another name and renamed, with its manifest last: a folder with a manifest is complete.
Tensors are written whole even where each rank holds a part (`distributed/fsdp.py`), so that a run resumes with any
number of processes, sharded or not. While the optimizer's state is written, this takes 8 bytes of main memory for each
weight on rank 0. When reading, each rank loads one tensor at a time and keeps its part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

import retrievo
from retrievo.distributed.collectives import barrier, rank
from retrievo.distributed.fsdp import cut_like, gathered
from retrievo.support.errors import RetrievoError
from retrievo.support.files import atomic_path, remove, reporting_full_disk, sync, write_json

FORMAT = 2
WEIGHTS, OPTIMIZER, OPTIMIZER_VALUES = "weights.safetensors", "optimizer.safetensors", "optimizer.json"
STATE, MANIFEST = "state.json", "manifest.json"


def save(folder: Path, step: int, module: nn.Module, optimizer: Optimizer, state: dict[str, Any], keep: int) -> None:
    """Writes the checkpoint of `step` finished steps from rank 0 and removes all but the latest `keep`.

    All ranks must call it. state: the rest of the training state (seed, schedule, data position), as JSON values.
    Raises: RetrievoError where the disk is full; earlier checkpoints are kept.
    """
    final = folder / f"step-{step:06d}"
    partial = folder / f".{final.name}.partial"
    if rank() == 0:
        remove(partial)
        partial.mkdir(parents=True)
    tensors, values = _optimizer_state(module, optimizer)
    try:
        _save_tensors(partial / WEIGHTS, _weights(module))
        _save_tensors(partial / OPTIMIZER, tensors)
        if rank() == 0:
            write_json(partial / OPTIMIZER_VALUES, values)
            write_json(partial / STATE, state)
            _write_manifest(partial, step)
            remove(final)
            partial.rename(final)
    except Exception:
        if rank() == 0:
            remove(partial)  # a full disk needs the space
        raise
    if rank() == 0:
        for old in _finished(folder)[:-keep]:
            (old / MANIFEST).unlink()  # first, so that a half removed checkpoint does not count as complete
            remove(old)
    barrier()


def remove_unfinished(folder: Path) -> None:
    """Removes unfinished and half removed checkpoints; rank 0 does so before training begins."""
    if rank() == 0:
        left = [*folder.glob(".step-*.partial"), *folder.glob(".*.tmp")]
        for path in [*left, *(old for old in folder.glob("step-*") if not (old / MANIFEST).is_file())]:
            remove(path)


def latest(folder: Path) -> Path | None:
    """The latest finished checkpoint, or None."""
    found = _finished(folder)
    return found[-1] if found else None


def latest_step(folder: Path) -> int:
    """The number of finished steps of the latest checkpoint; 0 where there is none."""
    checkpoint = latest(folder)
    return _step(checkpoint) if checkpoint else 0


def load(checkpoint: Path, module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Restores a module and its optimizer in place; returns the saved state with its `step`.

    Raises: RetrievoError where the checkpoint belongs to another model or optimizer, or has another format.
    """
    manifest = _read_json(checkpoint / MANIFEST)
    if manifest["format"] != FORMAT:
        fix = "upgrade retrievo" if manifest["format"] > FORMAT else "pass --restart to start over"
        raise RetrievoError(checkpoint, f"has format {manifest['format']}", f"{FORMAT}", fix)
    load_weights(checkpoint / WEIGHTS, module)
    _load_optimizer(checkpoint, module, optimizer)
    return {"step": manifest["step"], **_read_json(checkpoint / STATE)}


def _finished(folder: Path) -> list[Path]:
    return sorted((path.parent for path in folder.glob(f"step-*/{MANIFEST}")), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _write_manifest(folder: Path, step: int) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    manifest = {"kind": "checkpoint", "format": FORMAT, "created_by": f"retrievo {retrievo.__version__}", "step": step}
    write_json(folder / MANIFEST, manifest | {"files": sizes})


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers; each occurs once, even if modules share it."""
    persistent = module.state_dict().keys()
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor for name, tensor in named.items() if name in persistent}


def save_weights(path: Path, module: nn.Module) -> None:
    """Writes parameters and persistent buffers to one file, atomically, from rank 0; all ranks must call it."""
    tensors = gathered(_weights(module))
    if rank() == 0:
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary:
            _write(temporary, tensors)


def load_weights(path: Path, module: nn.Module) -> None:
    """Restores what `save_weights` wrote; each rank reads the file itself.

    Raises: RetrievoError where the file belongs to another model.
    """
    own = _weights(module)
    with safe_open(path, "pt") as saved, torch.no_grad():
        shapes = {(name, *saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118
        if differing := shapes ^ {(name, *tensor.shape) for name, tensor in own.items()}:
            name = min(differing)[0]
            raise RetrievoError(path.parent, f"is of another model: {name} differs", None, "choose another --output")
        for name, tensor in own.items():
            tensor.copy_(cut_like(saved.get_tensor(name), tensor))


def load_last_weights(folder: Path, module: nn.Module) -> None:
    """Restores the weights of the latest checkpoint."""
    checkpoint = latest(folder)
    assert checkpoint is not None, "training ends with a checkpoint"
    load_weights(checkpoint / WEIGHTS, module)


def _parameter_names(module: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The names of an optimizer's parameters, by group."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _optimizer_state(module: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state: tensors by `parameter/key`, and all other values as JSON."""
    groups = _parameter_names(module, optimizer)
    order = [name for group in groups for name in group]
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else values)[f"{order[index]}/{key}"] = value
    return tensors, {"optimizer": type(optimizer).__name__, "groups": groups, "values": values}


def _load_optimizer(checkpoint: Path, module: nn.Module, optimizer: Optimizer) -> None:
    saved = _read_json(checkpoint / OPTIMIZER_VALUES)
    groups = _parameter_names(module, optimizer)
    if (saved["optimizer"], saved["groups"]) != (type(optimizer).__name__, groups):
        raise RetrievoError(checkpoint, "is of another optimizer", None, "choose another --output")
    position = {name: index for index, name in enumerate(name for group in groups for name in group)}
    state: dict[int, dict[str, Any]] = {}
    for path, value in (_read_optimizer(checkpoint / OPTIMIZER, module) | saved["values"]).items():
        name, key = path.rsplit("/", 1)
        state.setdefault(position[name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _read_optimizer(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, each sharded as its parameter is."""
    parameters = dict(module.named_parameters())
    with safe_open(path, "pt") as saved:
        return {
            name: cut_like(saved.get_tensor(name), parameters[name.rsplit("/", 1)[0]])
            for name in saved.keys()  # noqa: SIM118
        }


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors from rank 0; all ranks must call it."""
    tensors = gathered(tensors)
    if rank() == 0:
        _write(path, tensors)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with reporting_full_disk(path):
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
        sync(path)


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
