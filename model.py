"""The GPT: one file, GPT-2 by default; each later idea is one field of GPTConfig, off by default.

Shapes: B batch, T sequence length, C channels (n_embd), nh heads, hs head size (C / nh),
V vocabulary, S length of the KV cache. Parameter names are those of GPT-2, as in nanoGPT:
Radford et al. 2019, https://github.com/openai/gpt-2
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core import UserError, checkpoint
from core.device import SkipInit
from core.kernels import attention, causal_mask, dropout, padded_vocab_size, residual_stream


@dataclass
class GPTConfig:
    vocab_size: int  # number of tokens; the embedding is padded to a multiple of 64
    block_size: int = 1024  # context length in tokens
    n_layer: int = 12  # number of blocks
    n_head: int = 12  # attention heads per block
    n_embd: int = 768  # channels
    dropout: float = 0.0  # of embeddings, attention weights and block outputs
    bias: bool = True  # in linear layers and LayerNorms, as in GPT-2
    activation: Literal["gelu_tanh", "gelu", "relu2"] = "gelu_tanh"  # GPT-2's, nanoGPT's, Primer's
    rotary: bool = False  # rotary instead of learned positions: https://arxiv.org/abs/2104.09864
    rotary_base: float = 10000.0  # the longest wavelength is almost 2 pi times this, in tokens
    window: int = 0  # sliding window in tokens of every second layer, as in GPT-3; 0 = none
    smear: int = 0  # add the embeddings of this many previous tokens, as in modded-nanogpt
    rms_norm: bool = False  # RMSNorm instead of LayerNorm: https://arxiv.org/abs/1910.07467
    qk_norm: bool = False  # LayerNorm of queries and keys: https://arxiv.org/abs/2302.05442
    logit_softcap: float = 0.0  # c * tanh(logits / c): https://arxiv.org/abs/2408.00118; 0 = off
    untied_head: bool = False  # lm_head does not share the token embedding's weight
    zero_init: bool = False  # residual projections start at zero: https://arxiv.org/abs/2203.03466

    def __post_init__(self):
        hs, rest = divmod(self.n_embd, self.n_head)
        if rest:
            raise UserError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}.")
        if self.rotary and hs % 2:
            raise UserError(f"rotary=True needs an even n_embd / n_head, not {hs}.")


def norm_layer(config: GPTConfig) -> nn.Module:
    if config.rms_norm:
        return nn.RMSNorm(config.n_embd, eps=1e-5)
    return nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)


def rotary_table(config: GPTConfig) -> Tensor:
    """cos and sin of the angles of each position, (2, block_size, 1, hs / 2).

    In fp64: MKL's fp32 cosine differs in the last bit from one process to another.
    """
    hs = config.n_embd // config.n_head
    inv_freq = config.rotary_base ** -(torch.arange(0, hs, 2, dtype=torch.float64) / hs)
    angles = torch.outer(torch.arange(config.block_size, dtype=torch.float64), inv_freq)[:, None]
    return torch.stack((angles.cos(), angles.sin())).float()


def apply_rotary_emb(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + hs / 2) of x (B, T, nh, hs); cos_sin (2, T, 1, hs / 2)."""
    cos, sin = cos_sin.to(x.dtype)
    x1, x2 = x.chunk(2, dim=-1)
    y1 = torch.addcmul(x1 * cos, x2, sin, value=-1)  # x1 * cos - x2 * sin
    y2 = torch.addcmul(x2 * cos, x1, sin)  # x2 * cos + x1 * sin
    return torch.cat((y1, y2), dim=-1)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k, v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.config, self.layer = config, layer

    def forward(self, x: Tensor, cos_sin, mask, cache) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.config.n_head, -1).unbind(2)  # (B, T, nh, hs)
        if self.config.qk_norm:  # LayerNorm is one kernel on a CPU, which RMSNorm is not
            q = F.layer_norm(q, q.shape[-1:]).to(v.dtype)
            k = F.layer_norm(k, k.shape[-1:]).to(v.dtype)
        if cos_sin is not None:
            q, k = apply_rotary_emb(q, cos_sin), apply_rotary_emb(k, cos_sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, nh, T, hs)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (B, nh, S, hs)
        y = attention(q, k, v, mask, self.config.dropout if self.training else 0.0)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return dropout(y, self.config.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        if self.config.activation == "relu2":  # https://arxiv.org/abs/2109.08668
            x = F.relu(x, inplace=True).square()
        else:
            x = F.gelu(x, approximate="tanh" if self.config.activation == "gelu_tanh" else "none")
        return dropout(self.c_proj(x), self.config.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = norm_layer(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = norm_layer(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos_sin, mask, cache) -> Tensor:
        x = x + self.attn(self.ln_1(x), cos_sin, mask, cache)
        x = x + self.mlp(self.ln_2(x))
        return x


class Smear(nn.Module):
    """Add the embeddings of the n previous tokens, each times a learned gain per channel.

    Cf. the token shift of RWKV, https://arxiv.org/abs/2305.13048, and modded-nanogpt.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.smear, config.n_embd))

    def forward(self, x: Tensor, cache) -> Tensor:
        n, (B, T, C) = len(self.weight), x.shape
        previous = x.new_zeros(B, n, C) if cache is None else cache.shift(x)  # (B, n, C)
        padded = torch.cat((previous, x), dim=1)
        for i, gain in enumerate(self.weight, start=1):
            x = x + gain * padded[:, n - i : n - i + T]
        return x


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        C, V = config.n_embd, padded_vocab_size(config.vocab_size)
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(V, C)})
        if config.rotary:
            self.register_buffer("cos_sin", rotary_table(config), persistent=False)
        else:
            self.transformer["wpe"] = nn.Embedding(config.block_size, C)
        if config.smear:
            self.transformer["smear"] = Smear(config)
        self.transformer["h"] = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.transformer["ln_f"] = norm_layer(config)
        self.lm_head = nn.Linear(C, V, bias=False)
        if not config.untied_head:  # weight tying: https://arxiv.org/abs/1608.05859
            self.lm_head.weight = self.transformer.wte.weight
        self.init_weights()

    def init_weights(self) -> None:
        """GPT-2's: std 0.02, residual projections scaled down, gains 1, biases 0."""
        std = dict.fromkeys(("wte", "wpe", "c_attn", "c_fc", "lm_head"), 0.02)
        std["c_proj"] = 0.02 / math.sqrt(2 * self.config.n_layer)
        std["smear"] = 0.0
        if self.config.zero_init:
            std["c_proj"] = std["lm_head"] = 0.0
        for name, p in self.named_parameters():
            module, kind = name.split(".")[-2:]
            if kind == "bias" or std.get(module) == 0.0:
                nn.init.zeros_(p)
            elif module in ("ln_1", "ln_2", "ln_f"):
                nn.init.ones_(p)
            else:
                assert module in std, f"init_weights does not know {name}: give its std"
                nn.init.normal_(p, 0.0, std[module])

    def forward(self, idx, targets=None, cache=None, reduction="mean", at=None) -> Tensor:
        """idx (B, T) -> logits (B, T, V), or, with targets (B, T), the cross-entropy in nats.

        targets: -1 is ignored. reduction: "mean" or "sum" over the targets that are not ignored.
        at: bool (B, T), the only n positions that count; logits are then (n, V).
        cache: a core.generate.KVCache with the tokens before idx; only the last logits are given.
        """
        x = self.hidden(idx, cache)
        if at is not None:
            x, targets = x[at], None if targets is None else targets[at]
        if targets is None:
            return self.logits(x)
        return self.cross_entropy(x.flatten(0, -2), targets.flatten(), reduction)

    def hidden(self, idx: Tensor, cache=None) -> Tensor:
        """idx (B, T) -> the normalized output of the last block, (B, T, C), or with a cache that
        of the last token, (B, 1, C)."""
        c, x = self.config, self.transformer.wte(idx)  # x (B, T, C)
        if c.smear:
            x = self.transformer.smear(x, cache)
        pos = torch.arange(idx.size(1), device=idx.device) if cache is None else cache.pos  # (T,)
        cos_sin = None
        if c.rotary:
            cos_sin = self.cos_sin.index_select(1, pos)
        else:
            x = x + self.transformer.wpe(pos)
        x = dropout(residual_stream(x), c.dropout, self.training)
        S, plain = (len(pos), True) if cache is None else (cache.end, cache.plain)
        full = None if plain else causal_mask(pos, S)
        banded = causal_mask(pos, S, c.window, c.dropout) if c.window else full
        for i, block in enumerate(self.transformer.h):
            x = block(x, cos_sin, banded if i % 2 else full, cache)
        return self.transformer.ln_f(x if cache is None else x[:, -1:])

    def logits(self, x: Tensor) -> Tensor:
        """x (..., C) -> fp32 logits (..., V), without the padding of the vocabulary."""
        logits = self.lm_head(x)[..., : self.config.vocab_size].float()
        if c := self.config.logit_softcap:
            logits = c * torch.tanh(logits / c)
        return logits

    def cross_entropy(self, x: Tensor, targets: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(self.logits(x), targets, ignore_index=-1, reduction=reduction)

    @classmethod
    def from_pretrained(cls, source: str) -> "GPT":
        """The model of a run's folder, a .pt file, a Hugging Face folder, or such as "gpt2"."""
        loaded = checkpoint.load(source)
        return cls.from_state_dict(loaded["model_args"], loaded["model"])

    @classmethod
    def from_state_dict(cls, model_args: dict, state_dict: dict[str, Tensor]) -> "GPT":
        """GPTConfig(**model_args) with these tensors, which are not copied.

        A shorter block_size drops the later positions. UserError where a tensor does not fit.
        """
        model_args = checkpoint.check_model_args(GPTConfig, model_args, state_dict)
        state_dict, wpe = dict(state_dict), "transformer.wpe.weight"
        try:
            with SkipInit():
                model = cls(GPTConfig(**model_args))
            if wpe in state_dict:
                state_dict[wpe] = state_dict[wpe][: model.config.block_size]
            model.load_state_dict(state_dict, assign=True)
        except (RuntimeError, TypeError, IndexError) as error:
            reason = str(error).split("\n\t", 1)[-1].splitlines()[0]
            raise UserError(f"the weights do not fit their own model_args: {reason}") from None
        if not model.config.untied_head:
            model.lm_head.weight = model.transformer.wte.weight
        return model

    def flops_per_token(self) -> float:
        """Of training, PaLM's appendix B: https://arxiv.org/abs/2204.02311; 4, not 6, if frozen."""
        c, blocks = self.config, self.transformer.h
        matrices = [self.lm_head.weight, *(p for p in blocks.parameters() if p.ndim >= 2)]
        products = sum(p.numel() * (6 if p.requires_grad else 4) for p in matrices)
        return products + 12 * c.n_layer * c.n_embd * c.block_size
