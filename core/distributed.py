"""This process among its peers under torchrun, and the signals that stop it.

Without torchrun there is one process, of rank 0, and every function here still works.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from textwrap import TextWrapper

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from core import stop_signals

RANK = int(os.environ.get("RANK", 0))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # among the processes of this machine
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
LOCAL_WORLD_SIZE = int(os.environ.get("LOCAL_WORLD_SIZE", WORLD_SIZE))  # on this machine
SCREEN = TextWrapper(80, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False)
PREPARING = []  # the process group in which ranks wait up to 2 hours for prepared data


def init(device: torch.device, backend: str, timeout: float) -> None:
    """Join the process group, in which a rank waits for the others for `timeout` seconds."""
    if WORLD_SIZE > 1:
        from core.extras import process_group

        PREPARING.append(process_group.join(device, backend, timeout))


def check_ranks_agree(facts: dict) -> None:
    """UserError, on every rank, if a rank has other values than rank 0."""
    if WORLD_SIZE > 1:
        from core.extras import process_group

        process_group.compare(facts)


def print0(text: str, wrap: bool = True) -> None:
    """Print on rank 0 only; what does not fit in 80 columns continues on the next line."""
    if RANK == 0:
        try:
            print(SCREEN.fill(text) if wrap else text, flush=True)
        except OSError:  # a terminal or a pipe that is closed silences a run, no more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def all_reduce_sum(*values) -> list[float]:
    """The sums of numbers, or of scalar tensors, over all ranks."""
    total = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if WORLD_SIZE > 1:
        dist.all_reduce(total)
    return total.tolist()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; on the CPU, so that no GPU has to finish its work."""
    return all_reduce_sum(flag)[0] > 0


@contextmanager
def local_rank_first() -> Iterator[None]:
    """Run the block on one process per machine first, then on the others."""
    if LOCAL_RANK > 0:
        dist.barrier(PREPARING[0])
    yield
    if LOCAL_RANK == 0 and WORLD_SIZE > 1:
        dist.barrier(PREPARING[0])


def build_model(make: Callable[[], nn.Module], s: dict, device, dtype: torch.dtype) -> nn.Module:
    """What `make` makes, on its device; of several processes each may get a shard of it.

    s: train.py's settings. dtype: of matrix products.
    """
    if WORLD_SIZE == 1 and not s["activation_checkpointing"]:
        return make().to(device)
    from core.extras import sharding

    return sharding.build_model(make, s, device, dtype)


def parallel(model: nn.Module) -> nn.Module:
    """DDP around the model, if there are other ranks and FSDP does not share it already."""
    if WORLD_SIZE == 1 or is_sharded(model):
        return model
    constants = [name for name, _ in model.named_buffers()]  # every rank has computed them
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, constants)
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP shares the model, see core/extras/fsdp.py."""
    return hasattr(model, "reshard")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a parameter under FSDP, which shares its memory; others are whole."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def clip_grad_norm(model: nn.Module, max_norm: float) -> torch.Tensor:
    """torch.nn.utils.clip_grad_norm_; the norm is that of all shards together."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    norm = norm.full_tensor() if is_sharded(model) else norm
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


@contextmanager
def signals_wait() -> Iterator[None]:
    """Signals that ask to stop, Ctrl-C's too, are handled after the block."""
    came: list[int] = []
    numbers = [signal.SIGINT, *stop_signals()]
    previous = {s: signal.signal(s, lambda number, _: came.append(number)) for s in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def catch_signals() -> list[int]:
    """A list that will hold the number of a signal that came, Ctrl-C's or one of stop_signals.

    The same signal again ends the process at once, unless a checkpoint is being written.
    """
    caught: list[int] = []

    def note(number, frame):
        caught.append(number)
        signal.signal(number, previous[number])
        if RANK == 0:
            with suppress(OSError):  # not print(), which this may have interrupted
                os.write(1, b"stopping after this step; the same signal again stops at once\n")

    previous = {s: signal.signal(s, note) for s in [signal.SIGINT, *stop_signals()]}
    return caught


def leave(status: int) -> None:
    """End the program together with the other ranks."""
    if WORLD_SIZE == 1:
        raise SystemExit(status)
    from core.extras import ending

    any_rank(False)
    ending.exit_at_once(status)
