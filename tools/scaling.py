"""How a config would scale over GPUs: computed, not timed.

    python -m tools.scaling projects/webtext/gpt3_6700m.py --processes=8,64,512
    python -m tools.scaling config/gpt2.py --network_gbits=100

It takes all settings of train.py. docs/SCALING.md explains the columns, beside published figures.
"""

import sys

if not __package__:  # started by its path
    print("start it from the repository's root: python -m tools.scaling CONFIG", file=sys.stderr)
    sys.exit(2)

import math

from configurator import configure, pick

import torch

from core import UserError, log
from core.batches import split_batch
from core.device import SkipInit
from core.extras import sharding
from model import GPT, GPTConfig

# ---- settings: these, and all of train.py's; the machines are nodes of 8 H100 SXM ----------------
processes = "1,8,64,256,1024"  # numbers of GPUs, one process each
vocab_size = 50257  # of the dataset: GPT-2's
json_file = ""  # a file to which each row of the table is added as a line of JSON
# the GPU
peak_tflops = 989.0  # dense bf16: NVIDIA's H100 data sheet; A100: 312
gpu_memory = 80.0  # GiB, the same data sheet
hbm_bandwidth = 3.35  # TB/s, the same; A100 80 GB: 2.04, 40 GB: 1.56
matmul_efficiency = 0.51  # fraction of the peak in products; A100: 0.68; see SCALING.md
hbm_efficiency = 0.8  # fraction of the bandwidth that elementwise kernels reach: assumed
activation_passes = 4  # times that each kept byte is written or read, or its gradient: assumed
optimizer_bytes = 36  # per parameter: AdamW reads p, g, m, v, writes p, m, v; clipping, g twice
# the network
gpus_per_node = 8  # GPUs that NVLink connects
nvlink = 370.0  # GB/s per GPU that NCCL reaches of 450: nccl-tests issue 212; A100: 235, as below
network_gbits = 3200.0  # Gb/s of a node: 8 ports of 400 Gb/s InfiniBand; 100 = one of Ethernet
network_efficiency = 0.9  # fraction of it that large messages reach: assumed
nvlink_hop = 3.4  # microseconds of a ring's step over NVLink: NCCL, src/graph/tuning.cc, Simple
network_hop = 9.6  # microseconds of a step between nodes: the same table
# the limits
critical_batch = 0  # tokens; 0 = of the loss of that size, by https://arxiv.org/abs/2001.08361
disk = 1.0  # GB/s at which one process writes a checkpoint: assumed
settings = configure(__file__, "train.py", GPTConfig)
globals().update(settings)

positive = ["peak_tflops", "hbm_bandwidth", "matmul_efficiency", "hbm_efficiency", "nvlink", "disk"]
for name in [*positive, "network_gbits", "network_efficiency", "gpus_per_node"]:
    if not settings[name]:
        raise UserError(f"{name}=0 is not accepted: a number above 0, as --help shows.")
STRATEGIES, BF16, FP32 = ("ddp", "fsdp", "hybrid"), 2, 4
GB, WAITING, MORE_TOKENS, MOST = 1e9, 0.1, 1.5, 4096  # limits, and the most GPUs of a search
ROW = "{gpus:>6,} {strategy:8} {gib:>5.1f} {batch:>11,} {sent_gb:>8.2f} {ms:>8,.0f} {waits:>5.0%} "
ROW += "{tokens_per_s:>11,.0f} {mfu:>3.0%} {more_tokens:>6.2f} {speed_up:>8,.1f} {limits}"
with SkipInit():  # only its shape is needed, and takes no memory
    model = GPT(GPTConfig(**pick(GPTConfig, settings)))
total, T = sum(p.numel() for p in model.parameters()), model.config.block_size
blocks = sum(p.numel() for p in model.transformer.h.parameters())
loss = (8.8e13 / blocks) ** 0.076  # of a model of this size: equation 1.1 there
critical = critical_batch or 2e8 / loss ** (1 / 0.21)  # tokens: equation 1.4
flops, hbm = model.flops_per_token(), hbm_bandwidth * 1e12 * hbm_efficiency  # bytes per second
update = optimizer_bytes * total / hbm  # seconds of the optimizer's step on one GPU


# ---- one GPU -------------------------------------------------------------------------------------
def passes(micro_batch: int) -> tuple[float, float]:
    """Seconds of a micro-batch's forward and backward pass: 1 to 2, or to 3 where it recomputes."""
    plain = settings | {"activation_checkpointing": False}  # it writes what it then drops
    needed = sharding.bytes_per_process(model, plain, torch.bfloat16, micro_batch, 1)
    seconds = flops * micro_batch * T / (peak_tflops * 1e12 * matmul_efficiency)
    seconds += activation_passes * needed["activations"] / hbm
    return seconds / 3, seconds * (2 + settings["activation_checkpointing"]) / 3


def share(gpus: int) -> tuple[int, int]:
    """Sequences of a micro-batch, and micro-batches per step: train.py's, while every GPU has a
    whole micro-batch of the config's batch; with more GPUs the batch grows."""
    accumulation, size = settings["gradient_accumulation_steps"], settings["batch_size"]
    each, rest = divmod(accumulation * size, gpus)
    if rest or each < size:
        return size, math.ceil(accumulation / gpus)
    micro_batch = split_batch(accumulation, size, gpus)[1]
    return micro_batch, each // micro_batch


# ---- communication -------------------------------------------------------------------------------
def gather(size: float, ranks: int, nodes: int) -> tuple[float, float]:
    """Bytes that a rank sends, and seconds, in a ring's all-gather to `size`, or reduce-scatter."""
    sent = size * (ranks - 1) / ranks  # the ranks of a node share its network:
    network = network_gbits / 8 * network_efficiency * (ranks / nodes) / gpus_per_node
    speed = min(nvlink if ranks > nodes else math.inf, network if nodes > 1 else math.inf)
    hops = (ranks - nodes) * nvlink_hop + (nodes - 1) * network_hop
    return sent, sent / (speed * GB) + hops * 1e-6


def all_reduce(size: float, ranks: int, nodes: int, messages: int = 1) -> tuple[float, float]:
    """The same of a sum: twice the bytes, and the hops of a tree, which NCCL prefers for it."""
    sent, seconds = gather(size, ranks, nodes)
    hops = (ranks / nodes - 1) * nvlink_hop + math.log2(nodes) * network_hop
    return 2 * sent, 2 * (seconds - gather(0, ranks, nodes)[1] + messages * hops * 1e-6)


def ddp(gpus: int, nodes: int, backward: float) -> tuple[float, float]:
    """Bytes that a GPU sends per step, and seconds that it waits: in the last backward pass."""
    late = total - blocks  # the embeddings' gradients come last, when nothing is left to hide them
    if model.config.untied_head:
        late -= model.lm_head.weight.numel()
    buckets = math.ceil(FP32 * (total - late) / 2**20 / 25)  # of 25 MiB
    behind = all_reduce(FP32 * (total - late), gpus, nodes, buckets)
    after = all_reduce(FP32 * late, gpus, nodes)
    return behind[0] + after[0], max(0.0, behind[1] - backward) + after[1]


def exchange(parameters: float, ranks: int, groups: int) -> list[tuple[float, float]]:
    """The all-gather of so many parameters, the reduce-scatter of their gradients, and the sum of
    these over all groups of so many ranks."""
    nodes, size = math.ceil(ranks / gpus_per_node), FP32 * parameters
    gathered, reduced = gather(BF16 * parameters, ranks, nodes), gather(size, ranks, nodes)
    return [gathered, reduced, all_reduce(size / ranks, groups, groups)]


def fsdp(gpus: int, ranks: int, steps: int, forward: float, backward: float) -> tuple[float, float]:
    """The same for groups of so many ranks, as core/extras/fsdp.py does it per micro-batch. Each
    block is gathered twice, and its gradients are reduced, while others compute; for embeddings and
    head, which go together and are gathered once, the GPU waits. Groups add up once per step."""
    layers, groups = model.config.n_layer, gpus // ranks
    block, rest = blocks / layers, total - blocks
    fetch, reduce, add = exchange(block, ranks, groups)
    fetch_rest, reduce_rest, add_rest = exchange(rest, ranks, groups)
    sent = layers * (2 * fetch[0] + reduce[0]) + fetch_rest[0] + reduce_rest[0]
    waits = max(0.0, layers * fetch[1] - forward) + fetch_rest[1] + reduce_rest[1]
    inner = layers * (fetch[1] + reduce[1])
    last = max(inner, layers * add[1])  # NVLink and the network work side by side
    waits = steps * (waits + max(0.0, inner - backward))
    waits += max(0.0, last - backward) - max(0.0, inner - backward) + add_rest[1]
    return steps * sent + layers * add[0] + add_rest[0], waits


# ---- a step --------------------------------------------------------------------------------------
def predict(gpus: int, strategy: str) -> dict:
    """A row of the table; bytes and seconds are those of a GPU and a step."""
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise UserError(f"processes={gpus} are not whole nodes of gpus_per_node={gpus_per_node}.")
    ranks = {"ddp": 1, "fsdp": gpus, "hybrid": min(gpus, gpus_per_node)}[strategy]
    (micro_batch, steps), (own_micro_batch, own_steps) = share(gpus), share(1)
    forward, backward = passes(micro_batch)
    if strategy == "ddp":
        sent, waits = ddp(gpus, math.ceil(gpus / gpus_per_node), backward)
    else:
        sent, waits = fsdp(gpus, ranks, steps, forward, backward)
    needed = sharding.bytes_per_process(model, settings, torch.bfloat16, micro_batch, ranks)
    seconds = steps * (forward + backward) + waits + update / ranks
    one = own_steps * sum(passes(own_micro_batch)) + update
    batch, own_batch = micro_batch * steps * gpus * T, own_micro_batch * own_steps * T
    # for the same loss: section 2 of https://arxiv.org/abs/1812.06162
    more_tokens = (1 + batch / critical) / (1 + own_batch / critical)
    memory = sum(needed.values())
    reached = {"memory": memory > 0.9 * gpu_memory * 2**30}  # as core/extras/sharding.py decides
    reached |= {"network": waits > WAITING * seconds, "batch": more_tokens > MORE_TOKENS}
    row = {"gpus": gpus, "strategy": strategy, "gib": memory / 2**30, "batch": batch}
    row |= {"sent_gb": sent / GB, "ms": 1e3 * seconds, "waits": waits / seconds}
    row |= {"tokens_per_s": batch / seconds, "more_tokens": more_tokens}
    row |= {"mfu": flops * batch / seconds / (gpus * peak_tflops * 1e12)}
    row |= {"speed_up": (batch / seconds) / (own_batch / one) / more_tokens}
    return row | {"limits": " ".join(name for name in reached if reached[name])}


def first(strategy: str, limit: str, reached: bool) -> str:
    """The smallest power of two of GPUs at which a limit is reached, or is not."""
    for n in (2**i for i in range(MOST.bit_length())):
        is_whole = n <= gpus_per_node or n % gpus_per_node == 0
        if is_whole and (limit in predict(n, strategy)["limits"]) == reached:
            return f"from {n:,}"
    return f"not up to {MOST:,}"


# ---- the work ------------------------------------------------------------------------------------
if not all(n.strip().isdecimal() and int(n) for n in processes.split(",")):
    raise UserError(f"processes={processes} is not accepted: numbers of GPUs, such as 1,8,64.")
print(f"{total / 1e6:,.0f} million parameters, {flops / 1e9:.2f} GFLOP per token; not timed")
print("  GPUs strategy   GiB tokens/step  sent GB  ms/step waits    tokens/s MFU tokens speed-up")
for n in map(int, processes.split(",")):
    for strategy in STRATEGIES[: 1 if n == 1 else 2 if n <= gpus_per_node else 3]:
        row = predict(n, strategy)
        print(ROW.format(**row).rstrip())
        if json_file:
            log.append(json_file, row)
for word, limit, reached in (("fits", "memory", False), ("waits", "network", True)):
    counts = ", ".join(f"{name} {first(name, limit, reached)}" for name in STRATEGIES)
    print(f"{word:6} {counts} GPUs")
print(f"batch  needs {MORE_TOKENS:.0%} of the tokens {first('ddp', 'batch', True)} GPUs")
print(f"ckpt   {12 * total / GB:,.1f} GB to gather on one host", end="")
print(f", {12 * total / GB / disk:,.0f} s to write", end="")
print(f"; {4 * total * gpus_per_node / GB:,.1f} GB of each host's memory to resume")
