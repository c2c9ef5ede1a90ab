"""Where a program runs: device, number format, process group, seeds, printing on one rank."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from core import UserError
from core.linear import FewRowsLinear, Int8Linear, replace_linear

# Dense bf16 (fp16 before it) peaks in TFLOP/s from the makers' data sheets, for MFU. The first
# name that stands in the device's own counts.
PEAK_TFLOPS = {
    **{"B200": 2250, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989},
    **{"A100": 312, "A10G": 70, "A10": 125, "A40": 150, "A6000": 155, "V100": 125, "T4": 65},
    **{"L40S": 362, "L40": 181, "L4": 121, "5090": 210, "4090": 165, "4080": 97, "3090": 71},
}


@dataclass(frozen=True)
class Runtime:
    """This process among its peers: rank 0 of 1 unless torchrun says otherwise."""

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    def print(self, *words) -> None:
        """Print once, on rank 0."""
        if self.rank == 0:
            print(*words, flush=True)

    def sum(self, *values: torch.Tensor) -> list[float]:
        """The sums of scalars over all ranks."""
        total = torch.tensor([value.item() for value in values], dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank. On the CPU, so that no GPU's queue is awaited."""
        raised = torch.tensor(int(flag))
        if self.world_size > 1:
            dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model, around it DDP where there are other ranks to share gradients with."""
        return DDP(model, gradient_as_bucket_view=True) if self.world_size > 1 else model

    def leave(self, status: int) -> None:
        """End the program, together with the other ranks."""
        if self.world_size == 1:
            raise SystemExit(status)
        self.any(False)
        sys.stdout.flush()
        # not by way of the interpreter's teardown, in which gloo's threads abort now and then:
        # 2 of 60 runs on two processes, their work done
        os._exit(status)


def start(device: str = "auto", backend: str = "auto") -> Runtime:
    """Choose the device and, under torchrun, join the process group; UserError if not to be had."""
    names = (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    rank, local_rank, world_size = (int(os.environ.get(name, n)) for name, n in names)
    chosen = choose_device(device, local_rank if world_size > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")  # TF32, as nanoGPT
    if world_size > 1:
        fitting = {"cuda": ("auto", "nccl", "gloo")}.get(chosen.type, ("auto", "gloo"))
        if backend not in fitting:
            raise UserError(f"backend={backend}: {chosen.type} takes one of {', '.join(fitting)}.")
        nccl = chosen.type == "cuda" and backend != "gloo"
        # flags travel on the CPU; one rank may prepare the data while the others wait
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=timedelta(hours=2)
        )
    return Runtime(chosen, rank, local_rank, world_size)


def choose_device(name: str, local_rank: int | None) -> torch.device:
    """`auto` is cuda, then mps, then cpu. Under torchrun each process takes the GPU of its rank."""
    gpus, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if gpus else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cuda", "mps", "cpu"):
        raise UserError(f"device={name!r} is unknown: use auto, cpu, cuda, cuda:N or mps.")
    if device.type == "cuda":
        device = torch.device("cuda", (device.index or 0) if local_rank is None else local_rank)
    if (device.type == "cuda" and device.index >= gpus) or (device.type == "mps" and not mps):
        raise UserError(f"{device} is not there: this machine has {gpus} GPUs; use --device=auto.")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The format of matrix products: `auto` is bf16 where the hardware multiplies in it."""
    if name != "auto":
        if name == "float16" and device.type == "cpu":
            raise UserError("dtype=float16 is slow on a CPU: use bfloat16 or float32.")
        return getattr(torch, name)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        # tensor cores came with compute capability 7
        return torch.float16 if torch.cuda.get_device_capability(device)[0] >= 7 else torch.float32
    able = cpu_capabilities() if device.type == "cpu" else {}
    return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else torch.float32


def for_generation(model: nn.Module, dtype: str, device: torch.device) -> nn.Module:
    """The model on the device, its weights in the format in which it generates fastest.

    `auto` is that of training, but fp32 on a CPU, in which small models are faster. bf16 takes
    half the time for a large one's prompt, `int8` half to a quarter for its tokens; both round.
    """
    model = model.to(device).eval()
    on_cpu = device.type == "cpu"
    if dtype == "int8":
        if not on_cpu:
            raise UserError("dtype=int8 is for CPUs: on a GPU use --dtype=bfloat16.")
        return replace_linear(model, Int8Linear).bfloat16()
    chosen = torch.float32 if on_cpu and dtype == "auto" else choose_dtype(dtype, device)
    model = model.to(chosen)
    return replace_linear(model, FewRowsLinear) if on_cpu else model


def cpu_capabilities() -> dict:
    return getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell


def autocast(device: torch.device, dtype: torch.dtype):
    """The context in which matrix products run in `dtype` while weights stay fp32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def set_deterministic(wanted: str | bool, device: torch.device, compiled: bool) -> None:
    """`auto`: on the CPU, where compiled code otherwise adds up gradients in any order, and eager
    code never does. On a GPU it costs speed."""
    on = compiled and device.type == "cpu" if wanted == "auto" else bool(wanted)
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, and slow


def compile_pays(device: torch.device, flops: float) -> bool:
    """Whether so much training would take more than two minutes, at a modest speed, uncompiled."""
    return flops / {"cuda": 5e13, "cpu": 1e11}.get(device.type, float("inf")) > 120


def compile_model(model: nn.Module, x: torch.Tensor, y: torch.Tensor, context) -> str:
    """Compile in place by one step on a batch, whose gradients are thrown away; how that went.

    A compiler that fails leaves the model eager. `context` is autocast.
    """

    def step() -> None:
        try:
            with context:
                loss = model(x, y, "sum")
            loss.backward()
        finally:
            model.zero_grad(set_to_none=True)

    if model.few_graded:  # the head then comes in ever new shapes
        model.hidden = torch.compile(model.hidden, dynamic=False)
    else:
        model.compile(dynamic=False)
    return how_compiling_went(step)


def compile_generation(model: nn.Module, prompt: torch.Tensor, cache) -> str:
    """Compile the steps of single tokens by generating a few for prompt (B, T); how that went.

    cache: the KVCache with which model.generate is to be called; it is empty again afterwards. On
    a GPU a step then is one CUDA graph, which the third token is the first to replay.
    """
    cache.clear()
    model.compiled_step = torch.compile(model.next_logits, dynamic=False, mode="reduce-overhead")
    first, few = prompt[:, :1], min(4, cache.size - 1)
    how = how_compiling_went(lambda: list(model.generate(first, few, use_cache=cache)))
    cache.clear()
    return how


def how_compiling_went(trial: Callable[[], object]) -> str:
    """Run what compiles; a compiler that fails leaves everything eager from there on."""
    began = time.perf_counter()
    try:
        trial()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers' troubles have no common type
        torch.compiler.set_stance("force_eager")
        return f"failed, going on without: {type(error).__name__}: {str(error).splitlines()[0]}"
    return f"done in {time.perf_counter() - began:.0f} s"


def catch_signals() -> list[int]:
    """A list that holds the signal once Ctrl-C or SIGTERM came; the same again ends at once."""
    caught: list[int] = []

    def note(number, frame):
        caught.append(number)
        signal.signal(number, previous[number])

    previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    return caught


def seed_at(*numbers: int) -> int:
    """One 63-bit seed out of several numbers (seed, step, rank): splitmix64, chained.

    Randomness is then a function of where it is used, never a history, as big_vision's fold_in.
    """
    mixed, mask = 0, (1 << 64) - 1
    for number in numbers:
        mixed = (mixed ^ number) + 0x9E3779B97F4A7C15 & mask
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
        mixed ^= mixed >> 31
    return mixed >> 1


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = cpu_capabilities().get("cpu_name", "CPU") if device.type == "cpu" else "Apple GPU"
    return f"{name}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: of a GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second that adding up a large tensor reads, the best of three."""
    tensor, seconds = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device), []
    for _ in range(4):
        began = time.perf_counter()
        tensor.sum().item()
        seconds.append(time.perf_counter() - began)
    return 4 * tensor.numel() / min(seconds)


def peak_flops(device: torch.device, peak_tflops: float) -> float | None:
    """FLOP/s of the device at its best; None where unknown. `peak_tflops` overrides if not 0."""
    name = device_name(device) if device.type == "cuda" else ""
    peak = next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)
    return (peak_tflops or peak or 0) * 1e12 or None
