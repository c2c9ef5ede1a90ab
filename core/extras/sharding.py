"""How the processes share a model: each holds all of it (DDP), or each a shard (FSDP)."""

import os
from collections.abc import Callable

import torch
from torch import nn

from core import UserError
from core.batches import split_batch
from core.device import SkipInit
from core.distributed import LOCAL_WORLD_SIZE, WORLD_SIZE, print0

MIB = 2**20


def build_model(make: Callable[[], nn.Module], s: dict, device, dtype: torch.dtype) -> nn.Module:
    """What `make` makes, on its device; under FSDP this process's shards of it.

    s: train.py's settings. dtype: of matrix products. UserError if the strategy cannot be.
    """
    strategy = choose_strategy(make, s, device, dtype) if WORLD_SIZE > 1 else "ddp"
    if s["lora_rank"] and strategy != "ddp":
        raise UserError(f"strategy={strategy} does not share adapters: use ddp with lora_rank.")
    if strategy == "ddp":
        model = make().to(device)
    else:
        from core.extras.fsdp import sharded

        model = sharded(make, shards_of(strategy), device, dtype)
    if s["activation_checkpointing"]:
        for block in model.transformer.h:
            recompute_in_backward(block)
    return model


def shards_of(strategy: str) -> int:
    """How many processes hold one model together."""
    return {"ddp": 1, "hybrid": LOCAL_WORLD_SIZE, "fsdp": WORLD_SIZE}[strategy]


def choose_strategy(make: Callable, s: dict, device: torch.device, dtype: torch.dtype) -> str:
    """The strategy that the settings name, or for `auto` the first that fits: ddp talks least,
    hybrid talks less between machines than fsdp. Says so, with the bytes."""
    uneven = WORLD_SIZE % LOCAL_WORLD_SIZE  # machines with more and fewer processes
    if uneven and s["strategy"] == "hybrid":
        raise UserError("strategy=hybrid needs as many processes on each machine: use fsdp.")
    with SkipInit():  # only its shape is needed, and takes no memory
        model = make()
    micro_batch = split_batch(s["gradient_accumulation_steps"], s["batch_size"])[1]
    available, wanted = device_bytes(device), [s["strategy"]]
    if wanted == ["auto"]:
        wanted = ["ddp", "fsdp"] if uneven else ["ddp", "hybrid", "fsdp"]
    for strategy in wanted:
        needed = bytes_per_process(model, s, dtype, micro_batch, shards_of(strategy))
        total = sum(needed.values())
        if total < 0.9 * available:  # the rest is for fragments and the libraries
            break
    parts = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in needed.items())
    print0(
        f"memory   {strategy}: about {total / MIB:,.0f} of {available / MIB:,.0f} MiB per process: "
        f"{parts}"
    )
    return strategy


def device_bytes(device: torch.device) -> int:
    """Memory of the device that one process may use: of the CPU's, an equal part."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // LOCAL_WORLD_SIZE


def bytes_per_process(
    model: nn.Module, s: dict, dtype: torch.dtype, micro_batch: int, shards: int
) -> dict[str, int]:
    """What a training step keeps in a process's memory, if so many processes share the model.

    Weights, gradients and moments are fp32. `gathered` are the parameters that FSDP has whole at
    the widest point, in `dtype`: embeddings and head, and two blocks, of which one is on its way;
    and the gradients of these before they are reduced. Activations are counted as in
    https://arxiv.org/abs/2205.05198, section 4.1, with fused attention, and the head's in fp32.
    """
    c = model.config
    total = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.transformer.h.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    matrices = sum(p.numel() for p in model.transformer.h.parameters() if p.ndim >= 2)
    moments = 8 * trained - (4 * matrices if s["optimizer"] == "muon" else 0)
    size, tokens = dtype.itemsize, micro_batch * c.block_size
    block, layers = blocks // c.n_layer, c.n_layer
    per_block = 17 * c.n_embd * size
    kept = per_block * layers
    if s["activation_checkpointing"]:
        kept = c.n_embd * size * layers + per_block
    head = model.lm_head.weight.size(0) * (size + 2 * 4)
    needed = {
        "parameters": 4 * total // shards,
        "gradients": 4 * trained // shards,
        "optimizer": moments // shards,
        "activations": tokens * (kept + head),
    }
    if shards > 1:
        rest = total - blocks
        needed["gathered"] = size * (rest + 2 * block) + (size + 4) * max(rest, block)
    return needed


def recompute_in_backward(block: nn.Module) -> None:
    """Keep only the block's input for the backward pass, which computes the rest once more."""
    from torch.utils.checkpoint import checkpoint

    forward = block.forward

    def recomputed(*args):
        return checkpoint(forward, *args, use_reentrant=False)

    block.forward = recomputed
