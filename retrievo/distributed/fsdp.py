"""Sharded weights: each rank keeps a part of every tensor of a backbone, and a whole layer only while computing it.

Parameters, gradients and optimizer state are DTensors, sharded along their first axis (FSDP2; Zhao et al. 2023, PyTorch
FSDP, section 3). The forward and the backward pass of each unit are collectives, so every rank must run the same number
of them in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from retrievo.distributed.collectives import at_the_end, broadcast_state, is_shard, rank, world_size
from retrievo.support.errors import RetrievoError


def shard(module: nn.Module, device: torch.device) -> None:
    """Shards the backbones of a module over all ranks; each layer is a unit, and so is the rest of a backbone.

    Units are moved to the device, set to the values of rank 0 and sharded one at a time, so that no device ever holds a
    whole backbone. Gradients are summed over ranks, not averaged, as everywhere in this package.
    Raises: RetrievoError where the layers of a backbone are not known.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    units = _units(module)
    if not units:
        raise RetrievoError("--fsdp", "the layers of this model's backbone are not known", None, "leave it out")
    mesh = init_device_mesh(device.type, (world_size(),))
    # from torch 2.10 on, permanent caches of DTensor keep the process group and its threads alive
    at_the_end(getattr(mesh, "_pg_registry", {}).clear)
    for unit in units:
        unit.to(device)
        broadcast_state(unit)
        cut = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        cut.set_gradient_divide_factor(1.0)
        cut.set_force_sum_reduction_for_comms(True)  # gloo supports no averages


def _units(module: nn.Module) -> list[nn.Module]:
    """The units to shard: the layers by gradient checkpointing's definition, inner ones first, then their backbone."""
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not isinstance(module, PreTrainedModel):
        return [unit for child in module.children() for unit in _units(child)]
    layers = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
    return [*reversed(layers), module] if layers else []


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters of a module are sharded over ranks."""
    return any(is_shard(parameter) for parameter in module.parameters())


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Gathers a whole tensor from its parts; a collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Shards a whole tensor like `model` if the shapes are equal; each rank takes its part of its own copy."""
    if not isinstance(model, DTensor) or tensor.shape != model.shape:
        return tensor
    cut = distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)
    return cut.clone()  # in memory of its own, where it was a view of the whole


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gathers whole tensors on rank 0, one at a time, in main memory; empty on other ranks; a collective."""
    found = {}
    for name, tensor in tensors.items():
        put_together = whole(tensor.detach()).cpu() if is_shard(tensor) else tensor
        if rank() == 0:
            found[name] = put_together
    return found


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all elements of tensors, including the parts of sharded ones on other ranks."""
    cut, uncut = ([tensor for tensor in tensors if is_shard(tensor) == kind] for kind in (True, False))
    norm: Tensor = torch.nn.utils.get_total_norm(uncut)
    if not cut:
        return norm
    of_cut = whole(torch.nn.utils.get_total_norm(cut))
    of_all: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(of_cut.device), of_cut]))
    return of_all
