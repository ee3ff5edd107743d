"""The gradient of one step by gradient caching: a batch of any size is computed in chunks with an exact gradient.

Gao et al. 2021 (Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup); coCondenser, eq. 9-12.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrievo.distributed.collectives import gather_counts, rank, sum_gradients, sum_over_ranks
from retrievo.distributed.fsdp import is_sharded, own_part, total_norm
from retrievo.models.chunks import cut_chunks, pad
from retrievo.models.devices import return_freed_memory, sent
from retrievo.training.batch import Batch, Chunk, Stats
from retrievo.training.engine.dropout import SeededDropout
from retrievo.training.engine.gradient_checkpointing import checkpoints_activations
from retrievo.training.objectives.objective import Objective

_CHUNKS_APART = (
    8  # chunks between calls that return freed memory: calling at each would cost 40 % of the speed of pre-training
)
ALL_GRAPHS = sys.maxsize  # keep_graphs: plain training, every graph is kept and nothing is encoded twice
_ENCODE, _LOCAL_LOSS = range(2)  # the two places where a chunk draws random numbers
_NO_ROWS = np.empty(0, dtype=np.int64)


@torch.enable_grad()  # an optimizer may call this under no_grad
def gradient_step(
    objective: Objective,
    batch: Batch,
    *,
    step: int,
    seed: int,
    chunk_tokens: int,
    keep_graphs: int | GraphMemory = 0,
    dtype: torch.dtype = torch.float32,
    max_grad_norm: float = 0.0,
    loss_scale: float = 1.0,
) -> Stats:
    """Leaves the gradient of the global batch in `.grad` of every parameter on every rank; returns metrics to log.

    1. Encode each chunk without a graph, except the last `keep_graphs`.  2. `contrast` on all vectors; its gradient
    d loss / d vector is the cache.  3. Encode each chunk again with the same dropout, backward of
    sum(vector * cache) + local_loss.  4. Sum over ranks, once.  Where no vector needs a gradient, 1 and 2 are empty.

    step, seed: determine dropout, together with rank and chunk. chunk_tokens: maximal number of tokens of a chunk,
    including padding. keep_graphs: a number of chunks, or the memory that their graphs may take. Neither changes the
    gradient. dtype: number format of encoders and local losses. max_grad_norm: the gradient is clipped to this norm; 0
    switches clipping off. loss_scale: multiplies the losses in the backward pass, and divides the gradient; float16
    needs it.
    Returns `loss` and the objective's metrics for the global batch, `gradient_norm` (before clipping), `tokens`,
    `padded_tokens` and the counts of the batch, over all ranks.
    """
    passes = Passes(objective, batch, step, seed, chunk_tokens, dtype, loss_scale)
    objective.zero_grad(set_to_none=True)
    with passes.own_random_state():
        keep = keep_graphs.chunks(passes) if isinstance(keep_graphs, GraphMemory) else keep_graphs
        vectors, kept = passes.first(keep)
        loss, stats, cache = passes.contrast(vectors)
        local_loss = passes.second(cache, kept)
        stats = stats | objective.metrics(passes.batch)
    parameters = list(objective.parameters())
    sum_gradients(parameters)
    if loss_scale != 1:
        torch._foreach_div_([own_part(p.grad) for p in parameters if p.grad is not None], loss_scale)
    stats = _summed({"loss": loss + local_loss, "local_loss": local_loss, **stats})
    stats["gradient_norm"] = _clip(parameters, max_grad_norm)
    return stats | {name: torch.tensor(count) for name, count in passes.batch.counts.items()}


@torch.no_grad()
def validation_step(
    objective: Objective, batch: Batch, *, chunk_tokens: int, dtype: torch.dtype = torch.float32
) -> Stats:
    """The loss and the metrics of a global batch as `gradient_step` returns them, without dropout or gradient.

    Leaves the objective in evaluation mode, with unchanged parameters and state.
    """
    objective.eval()
    passes = Passes(objective, batch, 0, 0, chunk_tokens, dtype)
    with passes.own_random_state():
        vectors, _ = passes.first(0)
        loss, stats, _ = passes.contrast(vectors)
        local_loss = passes.second({}, {})
        stats = stats | objective.metrics(passes.batch)
    stats = _summed({"loss": loss + local_loss, **stats})
    return stats | {name: torch.tensor(count) for name, count in passes.batch.counts.items()}


class Passes:
    """The chunks of one step on one rank, and the passes over them."""

    def __init__(
        self,
        objective: Objective,
        batch: Batch,
        step: int,
        seed: int,
        chunk_tokens: int,
        dtype: torch.dtype,
        loss_scale: float = 1.0,
    ):
        self.objective, self.step, self.seed, self.dtype, self.loss_scale = objective, step, seed, dtype, loss_scale
        self.device = next(objective.parameters()).device
        # recomputed dropout is drawn from torch's random state, out of reach of `SeededDropout`
        self.recomputes = checkpoints_activations(objective)
        self.plan = list(_cut(batch, chunk_tokens))
        self.sharded = is_sharded(objective)
        if self.sharded:  # each chunk is a collective, and its number determines dropout
            self.plan += _missing(batch, self.plan, self.device)
        names = list(batch.rows)
        self.order = sorted(range(len(self.plan)), key=lambda index: names.index(self.plan[index][0]))
        tokens = {"tokens": _tokens(batch), "padded_tokens": _padded_tokens(batch, self.plan)}
        counts = _over_ranks(batch.counts | tokens, self.device)
        self.batch = dataclasses.replace(batch, counts=counts).to(self.device)

    def first(self, keep_graphs: int) -> tuple[dict[str, Tensor], dict[int, tuple[Tensor, Any]]]:
        """The first pass: all vectors without graph in the order of the batch, and the chunks whose graph was kept."""
        kept: dict[int, tuple[Tensor, Any]] = {}
        parts: dict[str, list[Tensor]] = {name: [] for name in self.objective.vector_names}
        encoded = self.encoded()
        for place, index in enumerate(encoded):
            keep = place >= len(encoded) - keep_graphs
            with torch.set_grad_enabled(keep):
                vectors, rest = self.encode(index)
            parts[self.plan[index][0]].append(vectors.detach())
            if keep:
                kept[index] = vectors, rest
        return {name: self._in_order(name, vectors) for name, vectors in parts.items()}, kept

    def own_random_state(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the passes draw random numbers; it restores the caller's random state at its end."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def encoded(self) -> list[int]:
        """The chunks whose vectors need a gradient, which the first pass encodes."""
        return [index for index in self.order if self.plan[index][0] in self.objective.vector_names]

    def padded(self, index: int) -> int:
        """Number of tokens of a chunk, including padding."""
        name, rows = self.plan[index]
        return len(rows) * int(self.batch.rows[name].lengths[rows].max()) if len(rows) else 1

    def contrast(self, vectors: dict[str, Tensor]) -> tuple[Tensor, Stats, dict[str, Tensor]]:
        """The loss of all vectors, its metrics, and d loss / d vector; scalars of the objective get their gradient."""
        leaves = {name: vector.requires_grad_() for name, vector in vectors.items()}
        loss, stats = self.objective.contrast(leaves, self.batch)
        if loss.requires_grad:
            (loss * self.loss_scale).backward()
        cache = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
        return loss.detach(), stats, cache

    def second(self, cache: dict[str, Tensor], kept: dict[int, tuple[Tensor, Any]]) -> Tensor:
        """The second pass: accumulates the gradient of each chunk and returns the sum of the local losses."""
        total = torch.zeros((), device=self.device)
        # sets without vectors come first, since other losses may use them as constants; kept graphs change no order
        order = sorted(self.order, key=lambda index: self.plan[index][0] in cache)
        for index in order:
            name, rows = self.plan[index]
            vectors, rest = kept.pop(index) if index in kept else self.encode(index)
            loss = self.local_loss(index, rest)
            total += loss.detach()
            loss = loss * self.loss_scale
            if name in cache:
                loss = loss + (vectors * cache[name][rows]).sum()
            if loss.requires_grad:
                loss.backward()
        return total

    def encode(self, index: int) -> tuple[Any, Any]:
        """The vectors [n, D] float32 of a chunk, or None, and what its local loss needs."""
        if self.device.type == "cpu" and index % _CHUNKS_APART == _CHUNKS_APART - 1:
            return_freed_memory()
        name, rows = self.plan[index]
        if not len(rows):
            with self._random(index, _ENCODE):
                return self._nothing(name)
        tokens, offsets = self.batch.rows[name]
        input_ids, mask = pad(tokens, offsets, rows, self.batch.pad_ids.get(name, 0))
        arrays = (sent(torch.from_numpy(array), self.device) for array in (rows, input_ids, mask))
        with self._random(index, _ENCODE):
            vectors, rest = self.objective.encode(Chunk(name, *arrays))
        return None if vectors is None else vectors.float(), rest

    def local_loss(self, index: int, rest: object) -> Tensor:
        """The local loss of a chunk; its random numbers do not depend on whether the graph of `rest` was kept."""
        with self._random(index, _LOCAL_LOSS):
            loss = self.objective.local_loss(rest, self.batch).float()
        return loss if len(self.plan[index][1]) else 0 * loss

    @contextlib.contextmanager
    def _random(self, index: int, place: int) -> Iterator[None]:
        """Autocast and a random state that is a function of (seed, step, rank, chunk), the same in both passes."""
        key = [self.seed, self.step, rank(), index, place]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        fast = SeededDropout(key) if self.device.type == "cpu" and not self.recomputes else contextlib.nullcontext()
        # one context for each chunk: autocast's cache of cast weights must not outlive a pass without graph, and of cut
        # weights not even their layer
        reduced, cached = self.dtype != torch.float32, not self.sharded
        with fast, torch.autocast(self.device.type, self.dtype, enabled=reduced, cache_enabled=cached):
            yield

    def _in_order(self, name: str, parts: list[Tensor]) -> Tensor:
        """The vectors of a named set [n, D], assembled from its chunks."""
        if not parts:
            return self._no_vectors(name)
        vectors = torch.cat(parts)
        rows = np.concatenate([rows for of_name, rows in self.plan if of_name == name])
        return torch.empty_like(vectors).index_copy_(0, torch.from_numpy(rows).to(self.device), vectors)

    def _no_vectors(self, name: str) -> Tensor:
        """Vectors [0, D] on a rank without rows, which still takes part in every collective."""
        with torch.no_grad():
            vectors, _ = self._nothing(name)
        assert vectors is not None
        return vectors

    def _nothing(self, name: str) -> tuple[Tensor | None, Any]:
        """Vectors [0, D] of a chunk without rows: one token is encoded, and its vector dropped."""
        token = torch.full((1, 1), self.batch.pad_ids.get(name, 0), device=self.device)
        vectors, rest = self.objective.encode(Chunk(name, token[0] * 0, token, torch.ones_like(token)))
        return None if vectors is None else vectors[:0].float(), rest


class GraphMemory:
    """How many chunks may keep their graph within a memory budget, measured on the largest chunk of the first step.

    Attention makes a token of a longer row cost more, and chunks come longest first, so the memory for each token of
    the first chunk is an upper bound for all chunks.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self.per_token: float | None = None

    def chunks(self, passes: Passes) -> int:
        """The number of the last encoded chunks whose graphs fit."""
        encoded = passes.encoded()
        if not self.budget or not encoded:
            return 0
        if self.per_token is None:
            self.per_token = _graph_bytes(passes, encoded[0]) / passes.padded(encoded[0])
        tokens = np.cumsum([passes.padded(index) for index in reversed(encoded)])
        fitting = int(np.searchsorted(tokens * self.per_token, self.budget, side="right"))
        return min(gather_counts(fitting, passes.device)) if passes.sharded else fitting


def _graph_bytes(passes: Passes, index: int) -> int:
    """The memory in bytes that the graph of a chunk holds, without parameters."""
    parameters = {own_part(parameter).untyped_storage().data_ptr() for parameter in passes.objective.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage
        return tensor.detach()  # the tensor itself would hold its own graph

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        graph = passes.encode(index)
    del graph
    return sum(storage.nbytes() for storage in held.values())  # 0 for weights that were whole for their layer only


def _cut(batch: Batch, chunk_tokens: int) -> Iterator[tuple[str, np.ndarray]]:
    for name, rows in batch.rows.items():
        for chunk in cut_chunks(rows.lengths.numpy(), chunk_tokens):
            yield name, chunk


def _missing(batch: Batch, plan: list[tuple[str, np.ndarray]], device: torch.device) -> list[tuple[str, np.ndarray]]:
    """Chunks without rows that give this rank as many chunks of each named set as the rank with the most."""
    own = Counter(name for name, _ in plan)
    missing = {name: max(gather_counts(own[name], device)) - own[name] for name in batch.rows}
    return [(name, _NO_ROWS) for name, number in missing.items() for _ in range(number)]


def _tokens(batch: Batch) -> int:
    return sum(rows.tokens.numel() for rows in batch.rows.values())


def _padded_tokens(batch: Batch, plan: list[tuple[str, np.ndarray]]) -> int:
    lengths = {name: rows.lengths.numpy() for name, rows in batch.rows.items()}
    return sum(len(rows) * int(lengths[name][rows].max(initial=0)) for name, rows in plan)


def _over_ranks(counts: dict[str, int], device: torch.device) -> dict[str, int]:
    totals = sum_over_ranks(torch.tensor(list(counts.values()), device=device)).tolist()
    return dict(zip(counts, totals, strict=True))


def _summed(stats: Stats) -> Stats:
    """Sums the shares of all ranks in one collective."""
    values = torch.stack([value.detach().double() for value in stats.values()])
    return dict(zip(stats, sum_over_ranks(values).unbind(), strict=True))


def _clip(parameters: list[torch.nn.Parameter], max_norm: float) -> Tensor:
    """The norm of the whole gradient; clips the gradient to `max_norm`, unless that is 0."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = total_norm(gradients)
    if max_norm and gradients:
        shorter = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grads_with_norm_
        torch._foreach_mul_([own_part(gradient) for gradient in gradients], shorter)
    return norm
