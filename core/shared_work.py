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
        mesh = getattr(params[0], "device_mesh", None) if params else None
        self.is_sharded, self.shapes = mesh is not None, [p.shape for p in params]
        # those that share one model
        self.group = mesh.get_group(mesh.ndim - 1) if self.is_sharded else None
        several = dist.is_initialized()
        self.ranks = dist.get_world_size(self.group) if several else 1
        self.rank = dist.get_rank(self.group) if several else 0
        order = sorted(range(len(params)), key=lambda i: -params[i].numel())  # the largest first
        self.work = [sorted(order[rank :: self.ranks]) for rank in range(self.ranks)]

    def length(self, i: int, rank: int) -> int:
        """Elements of tensor i that a rank has, cut into rows as torch.chunk does."""
        rows, row_length = self.shapes[i][0], self.shapes[i][1:].numel()
        most = -(-rows // self.ranks)
        return max(0, min(most, rows - rank * most)) * row_length

    def lengths(self) -> tuple[list[int], list[int]]:
        """Elements of each rank's work that this one has, and of this one's work that each has."""
        ours = [sum(self.length(i, self.rank) for i in work) for work in self.work]
        mine = self.work[self.rank]
        theirs = [sum(self.length(i, rank) for i in mine) for rank in range(self.ranks)]
        return ours, theirs

    def collect(self, tensors: list[Tensor]) -> dict[int, Tensor]:
        """The whole tensors that this rank works on, by their numbers."""
        mine = self.work[self.rank]
        if not self.is_sharded:
            return {i: tensors[i] for i in mine}
        ours, theirs = self.lengths()
        sent = torch.cat([tensors[i].flatten() for work in self.work for i in work])
        received = sent.new_empty(sum(theirs))
        dist.all_to_all_single(received, sent, theirs, ours, group=self.group)
        parts = received.split([self.length(i, r) for r in range(self.ranks) for i in mine])
        whole = {i: torch.cat(parts[n :: len(mine)]) for n, i in enumerate(mine)}
        return {i: tensor.view(self.shapes[i]) for i, tensor in whole.items()}

    def hand_out(self, results: dict[int, Tensor], dtype: torch.dtype, device) -> list[Tensor]:
        """All results, of all ranks; under FSDP this rank's shards of them. dtype: theirs."""
        mine = self.work[self.rank]
        nothing = torch.empty(0, dtype=dtype, device=device)  # a rank may have no work
        order = [i for work in self.work for i in work]
        if self.ranks == 1:
            return [results[i].view(self.shapes[i]) for i in range(len(self.shapes))]
        if self.is_sharded:
            ours, theirs = self.lengths()
            cuts = {i: [self.length(i, rank) for rank in range(self.ranks)] for i in mine}
            parts = {i: results[i].flatten().split(cuts[i]) for i in mine}
            sent = torch.cat([nothing, *(parts[i][r] for r in range(self.ranks) for i in mine)])
            received = nothing.new_empty(sum(ours))
            dist.all_to_all_single(received, sent, ours, theirs, group=self.group)
            shards = received.split([self.length(i, self.rank) for i in order])
        else:
            totals = [sum(self.shapes[i].numel() for i in work) for work in self.work]
            longest = max(totals)
            sent = torch.cat([nothing, *(results[i].flatten() for i in mine)])
            sent = torch.nn.functional.pad(sent, (0, longest - len(sent)))
            rows = [nothing.new_empty(longest) for _ in range(self.ranks)]
            dist.all_gather(rows, sent, group=self.group)
            numbers = [[self.shapes[i].numel() for i in work] for work in self.work]
            shards = [
                part
                for row, total, cut in zip(rows, totals, numbers, strict=True)
                for part in row[:total].split(cut)
            ]
        by_number = dict(zip(order, shards, strict=True))
        return [by_number[i].view(-1, *self.shapes[i][1:]) for i in range(len(self.shapes))]
