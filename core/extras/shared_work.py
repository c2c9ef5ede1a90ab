"""Work on whole tensors of which each is done by one rank: Muon's."""

import torch
import torch.distributed as dist
from torch import Tensor


class SharedWork:
    """Which rank works on which tensor, and how the tensors get there and the results back.

    params: one for each tensor. Under DDP every rank has all tensors and gets all results; under
    FSDP it has its shard of each, along the first dimension, and gets this shard of the result.
    """

    def __init__(self, params: list[Tensor]):
        mesh = getattr(params[0], "device_mesh", None)
        self.is_sharded = mesh is not None
        self.shapes = [p.shape for p in params]
        # those that share one model
        self.group = mesh.get_group(mesh.ndim - 1) if self.is_sharded else None
        self.ranks = dist.get_world_size(self.group)
        self.rank = dist.get_rank(self.group)
        order = sorted(range(len(params)), key=lambda i: -params[i].numel())  # the largest first
        self.work = [sorted(order[rank :: self.ranks]) for rank in range(self.ranks)]
        self.mine = self.work[self.rank]
        self.order = [i for work in self.work for i in work]

    def lengths(self, i: int) -> list[int]:
        """Elements of tensor i that each rank has, cut into rows as torch.chunk does."""
        rows, row_length = self.shapes[i][0], self.shapes[i][1:].numel()
        most = -(-rows // self.ranks)
        return [max(0, min(most, rows - r * most)) * row_length for r in range(self.ranks)]

    def exchanged(self) -> tuple[list[int], list[int]]:
        """Elements of each rank's work that this one has, and of this one's work that each has."""
        ours = [sum(self.lengths(i)[self.rank] for i in work) for work in self.work]
        theirs = [sum(self.lengths(i)[r] for i in self.mine) for r in range(self.ranks)]
        return ours, theirs

    def collect(self, tensors: list[Tensor]) -> dict[int, Tensor]:
        """The whole tensors that this rank works on, by their numbers."""
        if not self.is_sharded:
            return {i: tensors[i] for i in self.mine}
        ours, theirs = self.exchanged()
        sent = torch.cat([tensors[i].flatten() for i in self.order])
        received = sent.new_empty(sum(theirs))
        dist.all_to_all_single(received, sent, theirs, ours, group=self.group)
        parts = received.split([self.lengths(i)[r] for r in range(self.ranks) for i in self.mine])
        whole = {i: torch.cat(parts[n :: len(self.mine)]) for n, i in enumerate(self.mine)}
        return {i: tensor.view(self.shapes[i]) for i, tensor in whole.items()}

    def hand_out(self, results: dict[int, Tensor], dtype: torch.dtype, device) -> list[Tensor]:
        """All results, of all ranks; under FSDP this rank's shards of them. dtype: theirs."""
        nothing = torch.empty(0, dtype=dtype, device=device)  # a rank may have no work
        results = {i: results[i].flatten() for i in self.mine}
        shards = []
        if self.is_sharded:
            ours, theirs = self.exchanged()
            parts = [results[i].split(self.lengths(i)) for i in self.mine]
            sent = torch.cat([nothing, *(part[r] for r in range(self.ranks) for part in parts)])
            received = nothing.new_empty(sum(ours))
            dist.all_to_all_single(received, sent, ours, theirs, group=self.group)
            shards += received.split([self.lengths(i)[self.rank] for i in self.order])
        else:
            sizes = [[self.shapes[i].numel() for i in work] for work in self.work]
            longest = max(map(sum, sizes))
            sent = torch.cat([nothing, *results.values()])
            sent = torch.nn.functional.pad(sent, (0, longest - len(sent)))
            rows = [nothing.new_empty(longest) for _ in range(self.ranks)]
            dist.all_gather(rows, sent, group=self.group)
            for row, cuts in zip(rows, sizes, strict=True):
                shards += row[: sum(cuts)].split(cuts)
        by_number = dict(zip(self.order, shards, strict=True))
        return [by_number[i].view(-1, *self.shapes[i][1:]) for i in range(len(self.shapes))]
