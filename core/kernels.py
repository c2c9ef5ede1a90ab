"""What PyTorch is slow at on a CPU, behind plain names; on a GPU these are PyTorch's own."""

import functools
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def padded_vocab_size(vocab_size: int) -> int:
    """The next multiple of 64: matrix units are slow at odd sizes, such as GPT-2's 50257."""
    return 64 * math.ceil(vocab_size / 64)


def pad_vocab(table: Tensor) -> Tensor:
    """A table with one row per token, with rows of zeros up to the padded size."""
    return F.pad(table, (0, 0, 0, padded_vocab_size(len(table)) - len(table)))


def residual_stream(x: Tensor) -> Tensor:
    """x, in bf16 where a GPU's matrix products are: a quarter less memory traffic in all.

    A CPU gains nothing by it, and fp16 would overflow. Cf. modded-nanogpt, llm.c.
    """
    on_gpu = x.device.type == "cuda" and torch.is_autocast_enabled("cuda")
    if on_gpu and torch.get_autocast_dtype("cuda") == torch.bfloat16:
        return x.to(torch.bfloat16)
    return x


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """F.dropout; on a CPU ten times as fast, by one random byte per element.

    p is then rounded to a multiple of 1/256, from 1/256 to 255/256.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    words = torch.randint(-(2**63), 2**63 - 1, (math.ceil(x.numel() / 8),))
    threshold = min(max(1, round(256 * p)), 255)
    # compared as floats: compilers turn a mask of bytes into one of floats element by element
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape).float() >= threshold
    return x * keep * (256 / (256 - threshold))


def attention(q: Tensor, k: Tensor, v: Tensor, mask, p: float = 0.0) -> Tensor:
    """Softmax attention of q (B, nh, T, hs) to k, v (B, nh, S, hs), with dropout p of its weights.

    mask: from causal_mask, True where a query sees a key; None is causal attention, T = S or T = 1.
    On a CPU in training it is written out with dropout, where the fused kernel samples its masks
    slowly, and in bf16 at short contexts, where the fused kernel is slower than these four lines.
    """
    if q.dtype != k.dtype:  # a KV cache in fp32
        return attention(q.to(k.dtype), k, v, mask, p).to(q.dtype)
    if mask is not None and not isinstance(mask, Tensor):
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(q, k, v, block_mask=mask)
    T, S = q.size(2), k.size(2)
    fused = q.device.type != "cpu" or (p == 0 and (q.dtype == torch.float32 or T > 256))
    if fused or T == 1 or S != T:
        causal = mask is None and bool(T > 1)  # sizes are tensors while jit traces
        return F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=causal)
    if mask is None:
        mask = torch.ones(T, T, dtype=torch.bool).tril()
    bias = torch.where(mask, 0.0, -math.inf).to(q.dtype)  # added: no work in the backward pass
    weights = ((q * q.size(-1) ** -0.5) @ k.mT + bias).softmax(dim=-1)  # (B, nh, T, T)
    return dropout(weights, p) @ v


def causal_mask(pos: Tensor, S: int, window: int = 0, p: float = 0.0):
    """bool (T, S): which of S keys the queries at positions pos (T,) see, of a window if not 0.

    Compiled on a GPU, without dropout p, a whole sequence's window is a BlockMask instead: a bool
    mask would leave the flash kernel, which at 2048 tokens is about 8 times the arithmetic.
    """
    compiled = torch.compiler.is_compiling() and pos.device.type == "cuda"
    if window and compiled and p == 0 and 1 < S == len(pos):
        return window_blocks(S, window, pos.device)
    distance = pos[:, None] - torch.arange(S, device=pos.device)
    return (distance >= 0) & (distance < window) if window else distance >= 0


def window_blocks(S: int, window: int, device: torch.device):
    """The same for FlexAttention, which skips blocks that no query sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(batch, head, query, key):
        return (query >= key) & (query - key < window)

    return create_block_mask(sees, None, None, S, S, device=device)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and multiplies in this dtype: CPUs without AVX-512 lack bf16."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class PackedLinear(nn.Module):
    """nn.Linear on a CPU, without gradients, with its weights in oneDNN's order of reading.

    A token takes half the time of F.linear in fp32, two thirds in bf16.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.register_buffer("weight", weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        product = traceable_product() if torch.jit.is_tracing() else packed_product
        return product(x, self.weight, self.bias)


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@functools.cache
def traceable_product() -> Callable:
    """packed_product as a script, since torch.jit cannot trace its empty list."""
    with warnings.catch_warnings():  # TorchScript is deprecated, see core/extras/decoding.py
        warnings.simplefilter("ignore")
        return torch.jit.script(packed_product)


def replace_linear(model: nn.Module, kind: type) -> nn.Module:
    """The model with a PackedLinear or an Int8Linear in place of every nn.Linear."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, kind(child))
    return model
