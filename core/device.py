"""The device and how to use it well: dtype, compilation, determinism."""

import os
import re
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from core import UserError
from core.distributed import LOCAL_RANK, WORLD_SIZE, is_sharded, print0


def choose_device(name: str, deterministic: str | bool = "auto") -> torch.device:
    """The device of that name; `auto` is cuda, then mps, then cpu. UserError if it is not there.

    Under torchrun each process takes the GPU of its local rank.
    deterministic: True makes runs repeat bit for bit; `auto` does so on a CPU, see compile_model.
    """
    gpus, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if gpus else "mps" if mps else "cpu"
    found = re.fullmatch("(cpu|cuda|mps)(:[0-9]+)?", name)
    if not found:
        raise UserError(f"device={name!r} is unknown: use auto, cpu, cuda, cuda:N or mps.")
    kind, index = found[1], int((found[2] or ":0")[1:])
    index = LOCAL_RANK if WORLD_SIZE > 1 else index
    if (kind == "cuda" and index >= gpus) or (kind == "mps" and not mps):
        raise UserError(f"{kind}:{index} is not there: this machine has {gpus} GPUs.")
    if deterministic is True:
        make_deterministic()
    if kind != "cuda":
        return torch.device(kind)
    torch.cuda.set_device(index)
    torch.set_float32_matmul_precision("high")  # TF32, as in nanoGPT
    return torch.device("cuda", index)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; `auto` is bf16 where the hardware multiplies in it."""
    if name == "float16" and device.type == "cpu":
        raise UserError("dtype=float16 is slow on a CPU: use bfloat16 or float32.")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        # tensor cores came with compute capability 7
        return torch.float16 if torch.cuda.get_device_capability(device)[0] >= 7 else torch.float32
    able = cpu_capabilities() if device.type == "cpu" else {}
    return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else torch.float32


def cpu_capabilities() -> dict:
    return getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell


def autocast(device: torch.device, dtype: torch.dtype):
    """The context in which matrix products run in `dtype` while weights stay fp32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


class SkipInit(TorchFunctionMode):
    """Under it torch.nn.init does nothing, since weights are loaded.

    torch's meta device would do, but takes two seconds to import.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def make_deterministic() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, and slow


def should_compile(wanted: str | bool, model: nn.Module, data, start_step: int, end: int) -> bool:
    """Whether to compile; `auto`: where eager training on `data` takes more than two minutes."""
    steps = data.full_batches(end) - data.full_batches(start_step)
    flops = model.flops_per_token() * steps * data.batch_size * data.T / data.world_size
    modest_speed = {"cuda": 5e13, "cpu": 1e11}.get(data.device.type, float("inf"))  # FLOP/s
    return flops / modest_speed > 120 if wanted == "auto" else wanted


def compile_model(net: nn.Module, x, y, amp, sparse: bool, deterministic: str | bool) -> None:
    """Compile in place by the forward and backward pass of one micro-batch; print how that went.

    net: the model, or DDP around it: compiled within DDP it becomes a graph per bucket, so that the
    gradients of one are summed over the ranks while the next ones are computed.
    On a CPU one block is compiled, whose code all blocks share, and the head: in half the time of
    the whole model for 12 layers, and its steps are as fast. On a GPU the whole fuses more.
    sparse: only some positions have targets; the head then gets ever new shapes, stays eager.
    deterministic: compiled CPU code sums gradients in any order unless it is True or `auto`.
    """
    model, on_cpu = getattr(net, "module", net), x.device.type == "cpu"
    if deterministic == "auto" and on_cpu:
        make_deterministic()
    if on_cpu or is_sharded(model):  # FSDP acts between the blocks: one graph would fall to pieces
        for block in model.transformer.h:
            block.forward = torch.compile(block.forward, dynamic=False)
    elif sparse:
        model.hidden = torch.compile(model.hidden, dynamic=False)
    else:
        model.compile(dynamic=False)
    if on_cpu and not sparse:
        model.cross_entropy = torch.compile(model.cross_entropy, dynamic=False)

    def forward_backward() -> None:
        # no rank waits here for one whose compiler fails; only those of FSDP have to meet
        net.require_backward_grad_sync = is_sharded(model)
        with amp:
            loss = net(x, y, reduction="sum", at=y >= 0 if sparse else None)
        loss.backward()

    print0(f"compile  takes about {'half a minute' if on_cpu else 'a minute'} ...")
    print0(f"compile  {try_compile(forward_backward)}")
    model.zero_grad(set_to_none=True)


def try_compile(first_call: Callable[[], object]) -> str:
    """Make the call that compiles; if the compiler fails, everything stays eager from then on."""
    start = time.perf_counter()
    try:
        first_call()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compilers' errors have no common type
        torch.compiler.set_stance("force_eager")
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return f"failed, continuing without it: {reason}"
    return f"done in {time.perf_counter() - start:.0f} s"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = cpu_capabilities().get("cpu_name", "CPU") if device.type == "cpu" else "Apple GPU"
    return f"{name}, {torch.get_num_threads()} threads"
