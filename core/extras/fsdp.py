"""FSDP2 around a model: each process holds a shard of every parameter, along its first dimension.

https://arxiv.org/abs/2304.11277
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from core.distributed import WORLD_SIZE

aten = torch.ops.aten
INITIAL_VALUES = {aten.normal_.default, aten.uniform_.default, aten.zero_.default}
INITIAL_VALUES |= {aten.fill_.Scalar, aten.fill_.Tensor}


def sharded(
    make: Callable[[], nn.Module], shards: int, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The model that `make` makes, shared by so many processes; groups of so many are replicas.

    Its weights are those that one process would make. Master weights, gradients and their sum are
    fp32; the forward and backward passes compute in `dtype`.
    """
    mesh = init_device_mesh(
        device.type, (WORLD_SIZE // shards, shards), mesh_dim_names=("replicate", "shard")
    )
    mesh = mesh if shards < WORLD_SIZE else mesh["shard"]
    with ShardedInit(mesh) as init:
        model = make()
    values = {name: init.values.get(id(p)) for name, p in model.named_parameters()}
    compute_dtype = dtype if dtype != torch.float32 else None
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for block in model.transformer.h:
        # freed after the forward pass and gathered again for the backward pass: that is half as
        # much traffic again, without which the memory of all blocks would not shrink
        fully_shard(block, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    # the head is the last of the forward pass and the first of the backward pass
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    for name, p in list(model.named_parameters()):
        if values[name] is not None:
            shard = nn.Parameter(values[name][1].to(device))
            torch.utils.swap_tensors(p, shard)
    # which train.py sets as DDP's: replicas add up their gradients once per step
    type(model).require_backward_grad_sync = property(None, FSDPModule.set_requires_all_reduce)
    return model


class ShardedInit(TorchDispatchMode):
    """Under it parameters are made on the meta device, without memory; `values` has their shards.

    Each initial value is made whole, as one process would, and cut at once: the same random
    numbers, and never more than one whole parameter in memory.
    """

    def __init__(self, mesh: DeviceMesh):
        super().__init__()
        self.mesh = mesh
        self.values: dict[int, tuple[Tensor, DTensor]] = {}  # with its tensor, which keeps the id

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is aten.empty.memory_format:
            kwargs = {**kwargs, "device": "meta", "pin_memory": None}
        elif function in INITIAL_VALUES and args[0].is_meta:
            whole = torch.empty(args[0].shape, dtype=args[0].dtype)
            function(whole, *args[1:], **kwargs)
            self.values[id(args[0])] = args[0], cut(whole, self.mesh)
            return args[0]
        return function(*args, **kwargs)


def cut(whole: Tensor, mesh: DeviceMesh) -> DTensor:
    """This process's shard of a tensor that all processes have; they need not talk."""
    placements = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def cut_like(whole: Tensor, p: nn.Parameter) -> Tensor:
    """A tensor of the checkpoint as the parameter's shard, if it has one value per weight."""
    return cut(whole.to(p.device), p.device_mesh) if whole.ndim else whole.clone()
