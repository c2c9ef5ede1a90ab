"""What a process keeps and sends in a step, measured: for test_fsdp.py, and docs/SCALING.md.

    torchrun --nproc_per_node=4 tests/measured_step.py fsdp --n_layer=12 --n_embd=768 ...

Rank 0 prints a line of JSON: bytes of its tensors, those that core/extras/sharding.py counts, and
those that it sends if every collective is a ring. The weights must be those that one process makes.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core import distributed
from core.distributed import WORLD_SIZE, local
from core.extras import sharding
from core.optimizer import build_optimizers
from model import GPT, GPTConfig


class Sent(TorchDispatchMode):
    """Adds up what this rank sends; shards: how many ranks share a model."""

    def __init__(self, shards: int):
        super().__init__()
        self.bytes, self.replicas = 0.0, WORLD_SIZE // shards

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.c10d._allgather_base_.default:
            self.bytes += args[0].nbytes - args[1].nbytes
        elif function is torch.ops.c10d._reduce_scatter_base_.default:
            self.bytes += args[1].nbytes - args[0].nbytes
        elif function is torch.ops.c10d.allreduce_.default:
            size = sum(tensor.nbytes for tensor in args[0])
            self.bytes += 2 * size * (self.replicas - 1) / self.replicas
        else:
            assert not str(function).startswith("c10d"), function
        return function(*args, **(kwargs or {}))


def size(tensors) -> int:
    return sum(local(tensor).nbytes for tensor in tensors)


strategy, optimizer = sys.argv[1:3]
shape = {name: int(value) for name, value in (a[2:].split("=") for a in sys.argv[3:])}
config, device = GPTConfig(**shape), torch.device("cpu")
distributed.init(device, "auto", 60)
s = {"optimizer": optimizer, "strategy": strategy, "activation_checkpointing": False}
s |= {"gradient_accumulation_steps": 4, "batch_size": 4, "learning_rate": 0.01, "muon_lr": 0.01}
s |= {"muon_momentum": 0.9, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.9, "lora_rank": 0}
s["train_only"] = ""
torch.manual_seed(0)
whole = GPT(config)
random = torch.get_rng_state()
shards = sharding.shards_of(strategy)
counted = sharding.bytes_per_process(whole, s, torch.bfloat16, 1, shards)
torch.manual_seed(0)
model = distributed.build_model(lambda: GPT(config), s, device, torch.bfloat16)
assert torch.equal(random, torch.get_rng_state())
for (name, p), wanted in zip(model.named_parameters(), whole.parameters(), strict=True):
    found = p.full_tensor() if strategy != "ddp" else p
    assert torch.equal(found, wanted), name
del whole
optimizers = build_optimizers(model, s, torch.bfloat16)
net = distributed.parallel(model)
x = torch.randint(config.vocab_size, (1, config.block_size))
with Sent(shards) as sent:
    for is_last in (False, True):  # two micro-batches
        net.require_backward_grad_sync = is_last
        net(x, x).backward()
for o in optimizers.values():
    o.step()
moments = [t for o in optimizers.values() for state in o.state.values() for t in state.values()]
kept = {"parameters": size(model.parameters()), "optimizer": size(moments)}
kept["gradients"] = size(p.grad for p in model.parameters())
facts = {"strategy": strategy, "optimizer": optimizer, "processes": WORLD_SIZE, **shape}
distributed.print0(
    json.dumps(facts | {"kept": kept, "counted": counted, "sent": sent.bytes}), False
)
distributed.leave(0)
