"""Where a program runs: device, number format, process group, seeds, printing on one rank."""

import os
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from core import UserError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# Dense bf16 (fp16 where the chip has no bf16) tensor-core peaks in TFLOP/s, without sparsity, from
# the makers' data sheets; the first name that the device's own name contains counts.
PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "A10G": 70,
    "A10": 125,
    "A40": 150,
    "A6000": 155,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "V100": 125,
    "T4": 65,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 4080": 97,
    "RTX 3090": 71,
    "RTX 3080": 60,
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
        """The sums of scalars over all ranks, in float64 where the device has it."""
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        total = torch.stack([value.detach().to(wide) for value in values])
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank. On the CPU's group: a GPU's queue is not awaited."""
        if self.world_size == 1:
            return flag
        raised = torch.tensor(int(flag))
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised)

    def barrier(self) -> None:
        self.any(False)

    def close(self) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()


def start(device: str = "auto", backend: str = "auto") -> Runtime:
    """Choose the device and, under torchrun, join the process group.

    Raises UserError where the device or the backend is not to be had here.
    """
    rank, local_rank, world_size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    chosen = choose_device(device, local_rank if world_size > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")  # TF32, as nanoGPT
    if world_size > 1:
        if chosen.type == "cuda" and backend in ("auto", "nccl"):
            backend = "cpu:gloo,cuda:nccl"  # flags travel on the CPU
        elif backend in ("auto", "gloo"):
            backend = "gloo"
        else:
            raise UserError(f"backend={backend} does not serve {chosen.type}: use backend=auto.")
        # one rank may download and tokenize while the others wait
        dist.init_process_group(backend, timeout=timedelta(hours=2))
    return Runtime(chosen, rank, local_rank, world_size)


def choose_device(name: str, local_rank: int | None) -> torch.device:
    """`auto` is cuda, then mps, then cpu. Under torchrun each process takes the GPU of its rank."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"device={name!r} is unknown: use auto, cpu, cuda, cuda:N or mps."
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"device={name}: there is no CUDA device here; device=auto takes cpu.")
        index = (device.index or 0) if local_rank is None else local_rank
        if index >= count:
            raise UserError(f"cuda:{index} is not there: this machine has {count} GPUs.")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps: this machine has no Metal GPU; device=auto takes cpu.")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The format of matrix products: `auto` is bf16 where the hardware multiplies in it."""
    if name != "auto":
        if name == "float16" and device.type == "cpu":
            raise UserError("dtype=float16 does not train on a CPU: use bfloat16 or float32.")
        return DTYPES[name]
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        # tensor cores came with compute capability 7
        return torch.float16 if torch.cuda.get_device_capability(device)[0] >= 7 else torch.float32
    if device.type == "cpu":
        able = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.12 on
        if able.get("amx_bf16") or able.get("avx512_bf16"):
            return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype):
    """The context in which matrix products run in `dtype` while weights stay fp32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def compile_pays(device: torch.device, flops: float) -> bool:
    """Whether `flops` of training outlast the minute or so that compiling takes."""
    eager_flops_per_s = {"cuda": 5e13, "cpu": 1e11}.get(device.type)  # a modest guess
    return eager_flops_per_s is not None and flops / eager_flops_per_s > 120


def compile_model(model: nn.Module, x: torch.Tensor, y: torch.Tensor, context) -> str:
    """Compile `model` in place by one step on a batch, which is thrown away. What came of it.

    Where the compiler fails the model goes on eagerly. `context` is autocast.
    """
    began = time.perf_counter()
    model.compile(dynamic=False)
    try:
        with context:
            loss = model(x, y, "sum")
        loss.backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # anything: a compiler's troubles have no common type
        torch.compiler.set_stance("force_eager")
        reason = str(error).strip().splitlines()[0][:200]
        return f"failed, going on without ({type(error).__name__}: {reason})"
    finally:
        model.zero_grad(set_to_none=True)
    return f"done in {time.perf_counter() - began:.0f} s"


def set_deterministic(wanted: str | bool, device: torch.device) -> None:
    """`auto` is on for the CPU, where compiled code otherwise adds gradients in any order."""
    on = device.type == "cpu" if wanted == "auto" else bool(wanted)
    if on and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, and slow


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
    if device.type == "mps":
        return "Apple GPU"
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return f"{able.get('cpu_name', 'CPU')}, {torch.get_num_threads()} threads"


def peak_flops(device: torch.device, peak_tflops: float = 0.0) -> float | None:
    """FLOP/s at the device's best, for MFU; None where unknown. `peak_tflops` overrides if not 0."""
    if peak_tflops:
        return peak_tflops * 1e12
    name = device_name(device) if device.type == "cuda" else ""
    return next((peak * 1e12 for known, peak in PEAK_TFLOPS.items() if known in name), None)
