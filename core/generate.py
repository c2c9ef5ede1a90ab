"""Generation: the KV cache, sampling, and the loop over tokens.

for token in generate(model, idx, max_new_tokens=100, sampling=Sampling(top_k=50), seed=1): ...
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from core import UserError
from core.device import choose_dtype
from core.kernels import PackedLinear, can_pack, replace_linear

# how many tokens, one after the other, make up for compile_decoding; on a GPU an estimate
WORTH_COMPILING = {"cpu": 150, "cuda": 20_000}


class KVCache:
    """Keys and values of every layer, (B, nh, size, hs), of which `length` tokens are filled.

    Positions are a tensor, and attention reads the first `end` tokens behind a mask: eager code
    what is filled, compiled code (`fixed`) everything, so that its shapes never change. Cf.
    https://github.com/meta-pytorch/gpt-fast. On a CPU they are fp32: attention to bf16 ones takes
    five times as long.
    """

    def __init__(self, model: nn.Module, batch_size: int, size: int):
        config, weight = model.config, model.transformer.wte.weight
        shape = (batch_size, config.n_head, size, config.n_embd // config.n_head)
        dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
        zeros = partial(weight.new_zeros, shape, dtype=dtype)
        self.kv = [(zeros(), zeros()) for _ in model.transformer.h]
        self.previous = weight.new_zeros(batch_size, config.smear, config.n_embd)  # for Smear
        self.size, self.fixed = size, False
        self.reset()

    @torch.inference_mode()
    def reset(self) -> None:
        """Forget all tokens but keep the memory."""
        self.length = self.end = 0
        self.previous.zero_()

    def advance(self, T: int) -> None:
        """Set the positions of T new tokens, pos (T,), for the forward pass that follows."""
        assert self.length + T <= self.size, "the cache is full"
        self.pos = torch.arange(self.length, self.length + T, device=self.previous.device)
        self.length += T
        self.end = self.size if self.fixed else self.length
        self.plain = not self.fixed and T in (1, self.length)  # attention needs no mask

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, nh, T, hs) of the new tokens; those of all tokens, (B, nh, S, hs)."""
        keys, values = self.kv[layer]
        keys.index_copy_(2, self.pos, k.to(keys.dtype))
        values.index_copy_(2, self.pos, v.to(values.dtype))
        return keys[:, :, : self.end], values[:, :, : self.end]

    def shift(self, x: Tensor) -> Tensor:
        """The n embeddings before x (B, T, C), (B, n, C); keeps the last n of x for next time."""
        previous = self.previous.clone()
        self.previous.copy_(torch.cat((previous, x), dim=1)[:, -previous.size(1) :])
        return previous


@dataclass
class Sampling:
    """How the next token is chosen; applied in the order of these settings."""

    repetition_penalty: float = 1.0  # above 1: tokens of the context become less likely
    temperature: float = 0.8  # 0 = always the likeliest token, 1 = as trained, above = more random
    top_k: int = 200  # sample from the k likeliest tokens only, 0 = from all
    top_p: float = 1.0  # sample from the fewest tokens that have this fraction of the probability
    min_p: float = 0.0  # sample from tokens at least this fraction as likely as the likeliest
    # ids that are never chosen, see core/tokenizer.py; not a setting
    unsampled: tuple[int, ...] = ()


def sample_next_token(
    logits: Tensor, context: Tensor, sampling: Sampling, generator: torch.Generator | None = None
) -> Tensor:
    """The next token (B,) from logits (B, V), which may change, that follow context (B, T).

    repetition_penalty: https://arxiv.org/abs/1909.05858, top_p: https://arxiv.org/abs/1904.09751,
    min_p: https://arxiv.org/abs/2407.01082.
    """
    for token in sampling.unsampled:
        logits[:, token] = -math.inf
    if (penalty := sampling.repetition_penalty) != 1:
        seen = logits.gather(1, context)
        seen = torch.where(seen < 0, seen * penalty, seen / penalty)
        logits = logits.scatter(1, context, seen)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    V, k, tokens = logits.size(-1), sampling.top_k, None
    if 0 < k < V or sampling.top_p < 1:  # sorted, the likeliest first
        logits, tokens = logits.topk(min(k, V) if k else V)
    probs = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= sampling.top_p, 0)
    if sampling.min_p > 0:
        probs = probs.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), 0)
    # an exponential race, cf. gpt-fast: torch.multinomial would wait for the GPU
    q = torch.empty_like(probs).exponential_(generator=generator)
    choice = (probs / q).argmax(-1, keepdim=True)
    return (choice if tokens is None else tokens.gather(1, choice))[:, 0]


@torch.inference_mode()
def generate(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int | None = None,
    stop_tokens: tuple[int, ...] = (),
    cache: KVCache | None = None,
    decode: Callable | None = None,
) -> Iterator[Tensor]:
    """Continue idx (B, T), T >= 1, and yield the next token of every sequence, (B,), as it comes.

    stop_tokens: a sequence that samples one yields -1 from then on; the end comes when all have.
    cache: holds the first tokens of idx, and afterwards all but the last; by default a new one.
    decode: the model for single tokens, from `compile_decoding`, which takes the same cache.
    Beyond block_size the newest half of the context is kept and read again.
    """
    assert idx.size(1), "a continuation needs a token to start from"
    block_size = model.config.block_size
    generator = None if seed is None else torch.Generator(idx.device).manual_seed(seed)
    context = idx[:, -block_size:]
    if cache is None:
        cache = KVCache(model, len(idx), min(block_size, context.size(1) + max_new_tokens))
    new = context[:, cache.length :]
    done = torch.zeros(len(idx), dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        cache.advance(new.size(1))
        forward = model if decode is None or new.size(1) > 1 else decode
        logits = forward(new, cache=cache)[:, -1]
        token = sample_next_token(logits, context, sampling, generator)
        for stop in stop_tokens:
            done |= token == stop
        if stop_tokens and done.all():
            return
        yield token.masked_fill(done, -1) if stop_tokens else token
        new = token[:, None]
        context = torch.cat((context, new), dim=1)
        if context.size(1) > block_size:
            context = new = context[:, -max(1, block_size // 2) :]
            cache.reset()


def prepare_for_inference(model: nn.Module, dtype: str, device: torch.device) -> nn.Module:
    """The model on the device, with weights in the dtype in which it generates fastest.

    `auto` is that of training, but fp32 on a CPU, where small models are faster in it. For large
    ones bf16 and int8 halve the time of a prompt, and int8 that of a token, or better; both round.
    """
    # on Hopper PyTorch prefers cuDNN's attention, which makes a new plan for each new length
    torch.backends.cuda.enable_cudnn_sdp(False)
    model, on_cpu, int8 = model.to(device).eval(), device.type == "cpu", dtype == "int8"
    if int8 and not on_cpu:
        raise UserError("dtype=int8 is for CPUs: on a GPU use --dtype=bfloat16.")
    if dtype == "auto" and on_cpu:
        dtype = "float32"
    if int8:
        from core.extras.int8 import Int8Linear

        return replace_linear(model, Int8Linear).float()
    weights_dtype = choose_dtype(dtype, device)
    model = model.to(weights_dtype)
    if on_cpu and can_pack(weights_dtype):
        return replace_linear(model, PackedLinear)
    return model


def compile_decoding(
    model: nn.Module, cache: KVCache, wanted: str | bool = True, tokens: float = math.inf
) -> Callable:
    """The model for single tokens on this cache, faster; or the model, if that is not wanted.

    wanted: True, False, or "auto": if it pays for so many tokens, one after the other. The cache is
    empty afterwards. Says how it went, if it took time or failed.
    """
    device = cache.previous.device.type
    if wanted == "auto":
        wanted = tokens >= WORTH_COMPILING.get(device, math.inf)
    if not wanted:
        return model
    from core.extras import decoding

    way = decoding.trace if device == "cpu" else decoding.compile_to_graph
    decode, outcome = way(model, cache)
    cache.reset()
    if outcome:
        print(f"compile  {outcome}", file=sys.stderr)
    return decode
