"""The model for single tokens, compiled: traced on a CPU, a CUDA graph on a GPU."""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from core.device import try_compile
from core.generate import KVCache, Sampling, generate


class TokenStep(nn.Module):
    """The model for a single token, as a function of tensors alone: its cache's are among them."""

    def __init__(self, model: nn.Module, cache: KVCache):
        super().__init__()
        self.model, self.cache = model, copy.copy(cache)
        self.cache.advance(1)

    def forward(self, idx: Tensor, pos: Tensor, previous: Tensor, *kv: Tensor) -> Tensor:
        self.cache.pos, self.cache.end, self.cache.previous = pos, pos[0] + 1, previous
        self.cache.kv = list(zip(kv[::2], kv[1::2], strict=True))
        return self.model(idx, cache=self.cache)


@torch.inference_mode()
def trace(model: nn.Module, cache: KVCache) -> tuple[Callable, str]:
    """On a CPU: its operations are recorded once, and then run in turn without Python.

    In a small model Python takes as long as the matrix products. The operations and their results
    stay the same. TorchScript is deprecated, but torch.compile, which is to replace it, cannot read
    the packed weights of FBGEMM and oneDNN, and without these it is slower than eager code.
    """
    tensors = [cache.previous, *(tensor for kv in cache.kv for tensor in kv)]
    idx = torch.zeros(len(cache.previous), 1, dtype=torch.long)
    pos = torch.zeros(1, dtype=torch.long)
    traced = []

    def trace_step() -> None:
        step = TokenStep(model, cache)
        with warnings.catch_warnings():  # it is deprecated, and conditions stay as they are now
            warnings.simplefilter("ignore")
            step = torch.jit.trace(step.eval(), (idx, pos, *tensors), check_trace=False)
            traced.append(torch.jit.freeze(step))  # one list of operations instead of modules

    def decode(idx: Tensor, cache: KVCache) -> Tensor:
        with torch.jit.optimized_execution(False):  # optimizing takes 0.2 s at first
            return traced[0](idx, cache.pos, *tensors)

    outcome = try_compile(trace_step)
    return (decode, "") if traced else (model, outcome)


def compile_to_graph(model: nn.Module, cache: KVCache) -> tuple[Callable, str]:
    """On a GPU: by torch.compile. A token is then one CUDA graph, which needs tensors that stay
    where they are, and which the third call is the first to replay."""
    decode = torch.compile(model, dynamic=False, mode="reduce-overhead")
    for tensor in (cache.previous, *(tensor for kv in cache.kv for tensor in kv)):
        torch._dynamo.mark_static_address(tensor)
    cache.fixed = True
    idx = torch.zeros(len(cache.previous), 1, dtype=torch.long, device=cache.previous.device)
    tokens = generate(model, idx, min(4, cache.size), Sampling(), cache=cache, decode=decode)
    return decode, try_compile(lambda: list(tokens))
