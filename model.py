"""The GPT, whole. By default GPT-2 exactly; each later idea is one field of GPTConfig, off by default.

Shapes: B batch, T time, C channels (n_embd), nh heads, hs head size (C / nh), V vocabulary.
GPT-2: Radford et al. 2019, https://github.com/openai/gpt-2. The names of the parameters are its own.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core import UserError


@dataclass
class GPTConfig:
    vocab_size: int  # tokens that exist; inside, the embedding is padded to a multiple of 64
    block_size: int = 1024  # longest context, in tokens
    n_layer: int = 12  # blocks
    n_head: int = 12  # attention heads a block; divides n_embd
    n_embd: int = 768  # width: channels of the residual stream
    dropout: float = 0.0  # of attention weights, block outputs and embeddings; 0 for pretraining
    bias: bool = True  # biases in linear layers and LayerNorms, as GPT-2
    activation: Literal["gelu_tanh", "gelu", "relu2"] = "gelu_tanh"  # GPT-2's, nanoGPT's, Primer's
    rotary: bool = False  # rotary instead of learned positions: https://arxiv.org/abs/2104.09864
    rms_norm: bool = False  # RMSNorm instead of LayerNorm: https://arxiv.org/abs/1910.07467
    qk_norm: bool = False  # normalize queries and keys: https://arxiv.org/abs/2010.04245
    logit_softcap: float = (
        0.0  # cap * tanh(logits / cap), 0 = off: https://arxiv.org/abs/2408.00118
    )
    untied_head: bool = False  # an output matrix apart from the token embedding
    zero_init: bool = False  # block outputs start at 0: https://arxiv.org/abs/2203.03466

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise UserError(
                f"n_embd={self.n_embd} is no multiple of n_head={self.n_head}: each head takes an "
                "equal share of the channels."
            )
        if self.rotary and self.n_embd // self.n_head % 2:
            raise UserError(
                f"rotary positions turn pairs of channels, but n_embd/n_head="
                f"{self.n_embd // self.n_head} is odd."
            )

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // 64) * 64


# relu(x)**2: So et al. 2021, https://arxiv.org/abs/2109.08668
ACTIVATIONS = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu2": lambda x: F.relu(x).square(),
}


class KVCache:
    """Keys and values of the tokens read so far, preallocated: (n_layer, B, nh, size, hs) each."""

    def __init__(self, config: GPTConfig, B: int, size: int, device, dtype):
        shape = (config.n_layer, B, config.n_head, size, config.n_embd // config.n_head)
        self.k = torch.empty(shape, device=device, dtype=dtype)
        self.v = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest T tokens of one layer; return those of all tokens, (B, nh, length+T, hs).

        `length` moves on once all layers have stored theirs.
        """
        end = self.length + k.size(2)
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


def norm_layer(config: GPTConfig) -> nn.Module:
    if config.rms_norm:
        return nn.RMSNorm(config.n_embd, eps=1e-5)
    return nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (i, i + hs/2) of x (B, nh, T, hs) by their position's angles (T, hs/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k, v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head, self.dropout, self.qk_norm = config.n_head, config.dropout, config.qk_norm
        self.layer = layer

    def forward(self, x: Tensor, rotation, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, nh, T, hs)
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        mask = None
        if cache is not None:
            past = cache.length
            k, v = cache.extend(self.layer, k, v)
            if past and T > 1:  # token i of the new ones sees all of the past and the new up to i
                mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        y = F.scaled_dot_product_attention(
            *(q, k, v),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and T > 1,
        )
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.activation, self.dropout = ACTIVATIONS[config.activation], config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(self.activation(self.c_fc(x)))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = norm_layer(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = norm_layer(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation, cache: KVCache | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), rotation, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        C, V = config.n_embd, config.padded_vocab_size
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(V, C)})
        if not config.rotary:
            self.transformer["wpe"] = nn.Embedding(config.block_size, C)
        self.transformer["h"] = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.transformer["ln_f"] = norm_layer(config)
        self.lm_head = nn.Linear(C, V, bias=False)
        if not config.untied_head:  # weight tying: https://arxiv.org/abs/1608.05859
            self.lm_head.weight = self.transformer.wte.weight
        if config.rotary:
            hs = C // config.n_head
            frequencies = 10000.0 ** -(torch.arange(0, hs, 2, device="cpu") / hs)
            positions = torch.arange(config.block_size, device="cpu")  # never a "meta" one
            angles = torch.outer(positions, frequencies)  # (T, hs/2)
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's: std 0.02, the 2 * n_layer outputs into the residual stream scaled down."""
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif p.ndim == 1:
                p.fill_(1.0)
            elif self.config.zero_init and name.endswith(("c_proj.weight", "lm_head.weight")):
                p.zero_()
            else:
                scaled = name.endswith("c_proj.weight")
                p.normal_(0.0, 0.02 / math.sqrt(2 * self.config.n_layer) if scaled else 0.02)

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """idx (B, T) -> the last block's normalized output (B, T, C), and the cache grows by T."""
        past, T = cache.length if cache else 0, idx.size(1)
        x = self.transformer.wte(idx)
        rotation = None
        if self.config.rotary:
            rotation = self.cos[past : past + T], self.sin[past : past + T]
        else:
            x = x + self.transformer.wpe.weight[past : past + T]
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.transformer.h:
            x = block(x, rotation, cache)
        if cache is not None:
            cache.length += T
        return self.transformer.ln_f(x)

    def head(self, x: Tensor) -> Tensor:
        """(..., C) -> fp32 logits (..., V) of the tokens that exist."""
        logits = self.lm_head(x)[..., : self.config.vocab_size].float()
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def forward(self, idx: Tensor, targets: Tensor | None = None, reduction="mean") -> Tensor:
        """idx (B, T) -> logits (B, T, V); with targets (B, T), -1 where not graded -> the loss.

        The loss is cross-entropy in nats, its mean or "sum" over the graded tokens.
        """
        T = idx.size(1)
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens exceed block_size={self.config.block_size}")
        logits = self.head(self.hidden(idx))
        if targets is None:
            return logits
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=reduction
        )

    @torch.no_grad()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop_tokens: tuple[int, ...] = (),
        seed: int | None = None,
        use_cache: bool = True,
    ) -> Iterator[Tensor]:
        """Continue idx (B, T), T >= 1, yielding the next token of every row (B,) as it comes.

        temperature 0 takes the likeliest token; see `sample` for the rest. A row that drew one of
        stop_tokens yields -1 from there on, and when all rows have, generation ends. Past
        block_size the newest half of the context is kept. Without the cache the tokens are the
        same, only later.
        """
        if idx.size(1) < 1:
            raise ValueError("generate needs a token to start from")
        block_size, device = self.config.block_size, idx.device
        generator = torch.Generator(device).manual_seed(seed) if seed is not None else None
        context = unread = idx[:, -block_size:]
        size = min(block_size, context.size(1) + max_new_tokens)
        dtype = self.cache_dtype()
        cache = KVCache(self.config, len(idx), size, device, dtype) if use_cache else None
        done = torch.zeros(len(idx), dtype=torch.bool, device=device)
        for _ in range(max_new_tokens):
            logits = self.head(self.hidden(unread, cache)[:, -1])
            logits = penalize(logits, context, repetition_penalty)
            token = sample(logits, temperature, top_k, top_p, min_p, generator)
            for stop in stop_tokens:
                done |= token == stop
            if stop_tokens and done.all():
                return
            yield token.masked_fill(done, -1) if stop_tokens else token
            unread = token[:, None]
            context = torch.cat((context, unread), dim=1)
            if context.size(1) > block_size:
                context = unread = context[:, -max(1, block_size // 2) :]
                if cache is not None:
                    cache.length = 0
            if cache is None:
                unread = context

    def cache_dtype(self) -> torch.dtype:
        """What the attention's products are in: autocast's format where it is on."""
        weight = self.lm_head.weight
        kind = weight.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype

    def flops_per_token(self) -> float:
        """Of one training step: 6 a weight that multiplies, 12 * C * T a layer for attention.

        PaLM, appendix B: https://arxiv.org/abs/2204.02311. T is the full block_size.
        """
        c = self.config
        weights = sum(p.numel() for p in self.transformer.h.parameters() if p.ndim == 2)
        weights += self.lm_head.weight.numel()
        return 6 * weights + 12 * c.n_layer * c.n_embd * c.block_size

    def crop_block_size(self, block_size: int) -> None:
        """Forget the positions past block_size, to fine-tune on shorter rows."""
        self.config.block_size = block_size
        if self.config.rotary:
            self.cos, self.sin = self.cos[:block_size], self.sin[:block_size]
        else:
            positions = self.transformer.wpe
            positions.weight = nn.Parameter(positions.weight[:block_size].clone())

    @classmethod
    def from_weights(cls, model_args: dict, weights: dict[str, Tensor]) -> "GPT":
        """The model of GPTConfig(**model_args) around these tensors, which are not copied."""
        with torch.device("meta"):  # no weights are drawn that would be thrown away
            model = cls(GPTConfig(**model_args))
        model.load_state_dict(weights, assign=True)
        if not model.config.untied_head:
            model.lm_head.weight = model.transformer.wte.weight
        return model

    @classmethod
    def from_gpt2(cls, model_args: dict, weights: dict[str, Tensor]) -> "GPT":
        """The same, of transformers' GPT2LMHeadModel, whose matrices stand transposed."""
        transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        mine = {}
        for name, tensor in weights.items():
            if name.endswith((".attn.bias", ".attn.masked_bias")):
                continue  # causal masks that old versions kept
            name = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
            mine[name] = tensor.t().contiguous() if name.endswith(transposed) else tensor
        wte = mine["transformer.wte.weight"]
        wte = F.pad(wte, (0, 0, 0, -len(wte) % 64))
        return cls.from_weights(
            model_args, {**mine, "transformer.wte.weight": wte, "lm_head.weight": wte}
        )


def penalize(logits: Tensor, context: Tensor, penalty: float) -> Tensor:
    """Make the tokens of the context (B, T) less likely: CTRL, https://arxiv.org/abs/1909.05858"""
    if penalty == 1.0:
        return logits
    seen = logits.gather(1, context)
    return logits.scatter(1, context, torch.where(seen < 0, seen * penalty, seen / penalty))


def sample(
    logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float, generator
) -> Tensor:
    """Draw one token (B,) of logits (B, V), after temperature, in this order:

    top_k: among the k likeliest, 0 = all. top_p: among the fewest that hold this share of the
    probability (https://arxiv.org/abs/1904.09751), 1 = all. min_p: among those at least this
    fraction as likely as the likeliest (https://arxiv.org/abs/2407.01082), 0 = all.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if 0 < top_k < logits.size(-1):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
    if top_p < 1:
        values, order = logits.softmax(-1).sort(-1, descending=True)
        beyond = values.cumsum(-1) - values >= top_p  # the share before this token suffices
        logits = logits.masked_fill(beyond.scatter(1, order, beyond), -math.inf)
    if min_p > 0:
        probabilities = logits.softmax(-1)
        floor = min_p * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < floor, -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
