"""Checkpoints from which training goes on bit for bit: safetensors and JSON in `checkpoints/step-000123/`.

A checkpoint is built under another name and renamed, its manifest written last: what carries a manifest is whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

import retrievo
from retrievo.learning.distributed import barrier, rank
from retrievo.support.errors import RetrievoError
from retrievo.support.files import atomic_path, remove, write_json

FORMAT = 1
WEIGHTS, OPTIMIZER, OPTIMIZER_VALUES = "weights.safetensors", "optimizer.safetensors", "optimizer.json"
STATE, MANIFEST = "state.json", "manifest.json"


def save(folder: Path, step: int, module: nn.Module, optimizer: Optimizer, state: dict[str, Any], keep: int) -> None:
    """Writes the checkpoint of `step` finished steps from rank 0 and removes all but the latest `keep`.

    state: what else decides how training goes on (seed, schedule, data position), as JSON values.
    """
    if rank() == 0:
        final = folder / f"step-{step:06d}"
        partial = folder / f".{final.name}.partial"
        remove(partial)
        partial.mkdir(parents=True)
        _write(partial, step, module, optimizer, state)
        remove(final)
        partial.rename(final)
        for old in _finished(folder)[:-keep]:
            (old / MANIFEST).unlink()  # first, so that what is half removed is not taken for whole
            remove(old)
    barrier()


def latest(folder: Path) -> Path | None:
    """The latest finished checkpoint, or None."""
    found = _finished(folder)
    return found[-1] if found else None


def load(checkpoint: Path, module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Restores a module and its optimizer in place; returns the state that was saved, with its `step`.

    Raises: RetrievoError where the checkpoint belongs to another model or optimizer, or to a newer format.
    """
    manifest = _read_json(checkpoint / MANIFEST)
    if manifest["format"] > FORMAT:
        raise RetrievoError(checkpoint, f"has format {manifest['format']}", f"at most {FORMAT}", "upgrade retrievo")
    load_weights(checkpoint / WEIGHTS, module)
    _load_optimizer(checkpoint, module, optimizer)
    return {"step": manifest["step"], **_read_json(checkpoint / STATE)}


def _finished(folder: Path) -> list[Path]:
    return sorted((path.parent for path in folder.glob(f"step-*/{MANIFEST}")), key=lambda path: int(path.name[5:]))


def _write(folder: Path, step: int, module: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    tensors, values = _optimizer_state(module, optimizer)
    _save_tensors(folder / WEIGHTS, _weights(module))
    _save_tensors(folder / OPTIMIZER, tensors)
    write_json(folder / OPTIMIZER_VALUES, values)
    write_json(folder / STATE, state)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    manifest = {"kind": "checkpoint", "format": FORMAT, "created_by": f"retrievo {retrievo.__version__}", "step": step}
    write_json(folder / MANIFEST, manifest | {"files": sizes})


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that persist, each once where modules share it."""
    persistent = module.state_dict().keys()
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor for name, tensor in named.items() if name in persistent}


def save_weights(path: Path, module: nn.Module) -> None:
    """Writes parameters and persistent buffers to one file, which appears whole."""
    with atomic_path(path) as temporary:
        _save_tensors(temporary, _weights(module))


def load_weights(path: Path, module: nn.Module) -> None:
    """Restores what `save_weights` wrote.

    Raises: RetrievoError where the file is of another model.
    """
    saved, own = load_file(path), _weights(module)
    shapes = [{(name, *tensor.shape) for name, tensor in tensors.items()} for tensors in (saved, own)]
    if differing := shapes[0] ^ shapes[1]:
        name = min(differing)[0]
        raise RetrievoError(path.parent, f"is of another model: {name} differs", None, "choose another --output")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def _parameter_names(module: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The names of an optimizer's parameters, by group."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _optimizer_state(module: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors as `parameter/key`, and the rest as JSON values."""
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
    for path, value in (load_file(checkpoint / OPTIMIZER) | saved["values"]).items():
        name, key = path.rsplit("/", 1)
        state.setdefault(position[name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
