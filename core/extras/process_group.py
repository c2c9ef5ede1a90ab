"""The processes that torchrun started, as one group: how they meet, and whether they agree."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from core import UserError, end_with_parent
from core.distributed import RANK, WORLD_SIZE


def join(device: torch.device, backend: str, timeout: float) -> dist.ProcessGroup:
    """Join the group, in which a rank waits for the others for `timeout` seconds.

    The one that is returned has the same ranks, which wait up to 2 hours in it.
    """
    on_gpu = device.type == "cuda" and backend != "gloo"  # flags and sums travel on the CPU
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    end_with_parent()  # which is torchrun
    # torchrun's store outlives a restart, with the addresses of the processes that have ended:
    # https://github.com/pytorch/pytorch/issues/135712
    store, _, _ = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(
        backend, timeout=timedelta(seconds=timeout), store=store, rank=RANK, world_size=WORLD_SIZE
    )
    return dist.new_group(timeout=timedelta(hours=2), backend="gloo")


def compare(facts: dict) -> None:
    """UserError, on every rank, if a rank has other values than rank 0.

    Two machines without a shared folder would otherwise wait for each other, or train two models.
    """
    everyone = [facts] * WORLD_SIZE
    dist.all_gather_object(everyone, facts)
    for rank, theirs in enumerate(everyone):
        for name in {**everyone[0], **theirs}:  # one may have a file that the other lacks
            ours, other = everyone[0].get(name), theirs.get(name)
            if other != ours:
                raise UserError(
                    f"rank {rank} has {name}={other} and rank 0 {ours}: all machines need "
                    "the same command, data and out_dir, for example on a shared folder."
                )
