"""The GPT, whole. By default it is GPT-2; each later idea is a field of GPTConfig, off by default.

Shapes: B batch, T time, C channels (n_embd), nh heads, hs head size (C / nh), V vocabulary.
GPT-2: Radford et al. 2019, https://github.com/openai/gpt-2, whose parameter names these are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from core import UserError


@dataclass
class GPTConfig:
    vocab_size: int  # tokens that exist; the embedding is padded to a multiple of 64
    block_size: int = 1024  # longest context, in tokens
    n_layer: int = 12  # blocks
    n_head: int = 12  # attention heads a block; divides n_embd
    n_embd: int = 768  # width: channels of the residual stream
    dropout: float = 0.0  # of block outputs, embeddings and attention weights; 0 for pretraining
    bias: bool = True  # biases in linear layers and LayerNorms, as GPT-2
    activation: Literal["gelu_tanh", "gelu", "relu2"] = "gelu_tanh"  # GPT-2's, nanoGPT's, Primer's
    rotary: bool = False  # rotary instead of learned positions: https://arxiv.org/abs/2104.09864
    rotary_base: float = 10000.0  # its longest wavelength, in tokens, is nearly 2 pi times this
    window: int = 0  # tokens that every second layer sees, 0 = all: Sparse Transformer, GPT-3
    smear: int = 0  # add the last so many tokens' embeddings, cf. https://arxiv.org/abs/2305.13048
    rms_norm: bool = False  # RMSNorm instead of LayerNorm: https://arxiv.org/abs/1910.07467
    qk_norm: bool = False  # LayerNorm of queries and keys: https://arxiv.org/abs/2302.05442
    logit_softcap: float = 0.0  # c: c * tanh(logits / c), 0 = off: https://arxiv.org/abs/2408.00118
    untied_head: bool = False  # an output matrix apart from the token embedding
    loss_chunk: int = 0  # tokens whose logits are in memory at once, 0 = all; one more product
    zero_init: bool = False  # block outputs start at 0: https://arxiv.org/abs/2203.03466

    def __post_init__(self):
        if self.n_embd % self.n_head or (self.rotary and self.n_embd // self.n_head % 2):
            even = "an even number of" if self.rotary else "as many"
            raise UserError(
                f"n_embd={self.n_embd} channels can't be shared by n_head={self.n_head} heads: "
                f"each takes {even} channels."
            )


# Layers, heads and width by name, for --model=NAME. GPT-2's are its paper's, the three small ones
# minGPT's; GPT-3's are table 2.1 of https://arxiv.org/abs/2005.14165, whose 24 heads of 128 don't
# make up the 2048 channels of its XL: 16 do.
SIZES = {
    **{"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024)},
    **{"gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)},
    **{"gpt-mini": (6, 6, 192), "gpt-micro": (4, 4, 128), "gpt-nano": (3, 3, 48)},
    **{"gpt3-small": (12, 12, 768), "gpt3-medium": (24, 16, 1024)},
    **{"gpt3-large": (24, 16, 1536), "gpt3-xl": (24, 16, 2048)},
}
SIZES = {
    name: {"n_layer": layers, "n_head": heads, "n_embd": width}
    for name, (layers, heads, width) in SIZES.items()
}

# relu2 is relu(x)**2: So et al. 2021, https://arxiv.org/abs/2109.08668
ACTIVATIONS = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu2": lambda x: F.relu(x, inplace=True).square(),
}


class KVCache:
    """Keys and values, (B, nh, size, hs) a layer, of which the first `length` tokens are known.

    While it is `fixed`, compiled code adds one token: a number would be a constant to it, so the
    token's place is a tensor then, and all places are read, later ones behind a mask, so that no
    shape or address changes from token to token.
    """

    def __init__(self, size: int):
        self.size, self.length = size, 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.embeddings: Tensor | None = None  # of the last tokens, for Smear
        self.fixed = False
        self.place: Tensor | None = None  # (1,), `length` while it is fixed

    def clear(self) -> None:
        """Forget all tokens but keep the memory, for another text."""
        self.length, self.fixed = 0, False

    def fix(self, device: torch.device) -> None:
        """Expect one token from compiled code. Tokens before it have come already."""
        assert self.length < self.size, "the cache is full"
        if self.place is None:
            self.place = torch.empty(1, dtype=torch.long, device=device)
            for tensor in (self.place, self.embeddings, *chain(*self.layers.values())):
                if tensor is not None:  # CUDA graphs then write to it where it is
                    torch._dynamo.mark_static_address(tensor)
        self.place.fill_(self.length)
        self.fixed = True

    def advance(self, T: int) -> None:
        """Count T more tokens as known: every layer has stored its own."""
        self.length, self.fixed = self.length + T, False

    def next(self, T: int) -> slice | Tensor:
        """The places of the T tokens that come next."""
        return self.place if self.fixed else slice(self.length, self.length + T)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more tokens of one layer and return those of all its tokens so far."""
        if layer not in self.layers:
            shape = (*k.shape[:2], self.size, k.size(3))
            self.layers[layer] = k.new_zeros(shape), v.new_zeros(shape)
        keys, values = self.layers[layer]
        places = self.next(k.size(2))
        assert self.fixed or places.stop <= self.size, "the cache is full"
        keys[:, :, places] = k
        values[:, :, places] = v
        end = self.size if self.fixed else places.stop
        return keys[:, :, :end], values[:, :, :end]


def norm_layer(config: GPTConfig) -> nn.Module:
    if config.rms_norm:
        return nn.RMSNorm(config.n_embd, eps=1e-5)
    return nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (i, i + hs/2) of x (..., T, hs) by their position's angles.

    cos, sin: (T, hs), each angle's twice, its first sine negative.
    """
    half = x.size(-1) // 2
    return torch.addcmul(x * cos.to(x.dtype), x.roll(half, dims=-1), sin.to(x.dtype))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """F.dropout, but on a CPU, where drawing the mask is what costs, with a byte an element.

    Eight come with each random word, ten times as fast; p is then rounded to a multiple of 1/256.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 8),))
    dropped = max(1, round(256 * p))
    # compared as floats: compilers turn a mask of bytes into one of floats element by element
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape).float() >= dropped
    return x * keep * (256 / (256 - dropped))


def attention(q: Tensor, k: Tensor, v: Tensor, past: int | Tensor, window: int, p: float) -> Tensor:
    """Causal attention of T queries to `past + T` keys, with dropout p: (B, nh, T, hs).

    Where `past` is a tensor, (1,), there is one query, and keys beyond those are not looked at.
    A query sees itself and what came before it, with a window only the last so many of these.
    On a CPU the fused kernel draws its dropout masks slowly, and is slower than these four lines
    in bf16 at short contexts; at long ones, and in fp32, it is faster and needs less memory.
    """
    T = q.size(2)
    if isinstance(past, Tensor):
        places = torch.arange(k.size(2), device=k.device)
        mask = (places <= past) & (places > past - (window or k.size(2)))
        return F.scaled_dot_product_attention(q, k, v, mask[None])
    if window and past + 1 > window:  # the first query sees none of the keys before these
        hidden = past + 1 - window
        k, v, past = k[:, :, hidden:], v[:, :, hidden:], past - hidden
    banded = 0 < window < past + T
    fused = q.device.type != "cpu" or (p == 0 and (q.dtype == torch.float32 or T > 256))
    fused = fused or past > 0 or T == 1
    mask = None
    if T > 1 and (past or banded or not fused):
        mask = torch.ones(T, past + T, dtype=torch.bool, device=q.device).tril(past)
        mask = mask.triu(past + 1 - window) if banded else mask
    if fused:
        is_causal = T > 1 and mask is None
        return F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=is_causal)
    bias = torch.where(mask, 0.0, -math.inf).to(q.dtype)  # unlike masking, no work in backward
    weights = ((q * q.size(-1) ** -0.5) @ k.mT + bias).softmax(dim=-1)  # (B, nh, T, T)
    return dropout(weights, p, training=True) @ v


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k, v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head, self.dropout, self.qk_norm = config.n_head, config.dropout, config.qk_norm
        self.layer, self.window = layer, config.window if layer % 2 else 0

    def forward(self, x: Tensor, rotation, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        qk, v = qkv.permute(2, 0, 3, 1, 4).split((2, 1))  # (2, B, nh, T, hs), (1, B, nh, T, hs)
        if self.qk_norm:
            # one kernel on a CPU, which RMSNorm is not; autocast on a GPU makes it fp32
            qk = F.layer_norm(qk, qk.shape[-1:]).to(v.dtype)
        if rotation is not None:
            qk = rotate(qk, *rotation)
        (q, k), (v,) = qk, v  # (B, nh, T, hs) each
        past = 0
        if cache:
            past = cache.place if cache.fixed else cache.length
            k, v = cache.extend(self.layer, k, v)
        y = attention(q, k, v, past, self.window, self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, C)
        return dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.activation, self.dropout = ACTIVATIONS[config.activation], config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(self.activation(self.c_fc(x)))
        return dropout(x, self.dropout, self.training)


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


class Smear(nn.Module):
    """Adds to each embedding those of the n tokens before it, times a learned share a channel.

    RWKV's token shift (https://arxiv.org/abs/2305.13048), of the embeddings only, as modded-nanogpt
    has it: what stands just before is then known without a layer of attention that finds it.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.smear, config.n_embd))

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        n, T = len(self.weight), x.size(1)
        if cache and (cache.fixed or cache.length):
            known = torch.cat((cache.embeddings, x), dim=1)
        else:
            known = F.pad(x, (0, 0, n, 0))
        if cache:
            if cache.embeddings is None:
                cache.embeddings = torch.empty_like(known[:, -n:])
            cache.embeddings.copy_(known[:, -n:])
        for i, share in enumerate(self.weight, start=1):
            x = x + share * known[:, n - i : n - i + T]
        return x


class Undrawn(TorchFunctionMode):
    """Under it, modules leave the memory of their weights as it is: a checkpoint replaces them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig, init: bool = True):
        super().__init__()
        self.config = config
        C, V = config.n_embd, -(-config.vocab_size // 64) * 64  # matrix units like round numbers
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(V, C)})
        if not config.rotary:
            self.transformer["wpe"] = nn.Embedding(config.block_size, C)
        if config.smear:
            self.transformer["smear"] = Smear(config)
        self.transformer["h"] = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.transformer["ln_f"] = norm_layer(config)
        self.lm_head = nn.Linear(C, V, bias=False)
        if not config.untied_head:  # weight tying: https://arxiv.org/abs/1608.05859
            self.lm_head.weight = self.transformer.wte.weight
        if config.rotary:
            hs = C // config.n_head
            frequencies = config.rotary_base ** -(torch.arange(0, hs, 2) / hs)
            angles = torch.outer(torch.arange(config.block_size), frequencies)
            cos, sin = angles.cos(), angles.sin()  # (block_size, hs/2)
            self.register_buffer("cos", torch.cat((cos, cos), dim=1), persistent=False)
            self.register_buffer("sin", torch.cat((-sin, sin), dim=1), persistent=False)
        self.few_graded = False  # so many targets are -1 that the others are looked for
        self.compiled_step = None  # next_logits for single tokens, see runtime.compile_generation
        if init:
            self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's: std 0.02, the 2 * n_layer outputs into the residual stream scaled down."""
        for name, p in self.named_parameters():
            if p.ndim == 1:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
            elif name.endswith("smear.weight"):
                p.zero_()
            elif self.config.zero_init and name.endswith(("c_proj.weight", "lm_head.weight")):
                p.zero_()
            else:
                scale = (2 * self.config.n_layer) ** -0.5 if name.endswith("c_proj.weight") else 1
                p.normal_(0.0, 0.02 * scale)

    @classmethod
    def from_weights(cls, model_args: dict, weights: dict[str, Tensor]) -> "GPT":
        """The model GPTConfig(**model_args) around these tensors, which are not copied.

        A block_size below that of the weights forgets the later positions. Raises UserError where
        a tensor is missing or has another shape.
        """
        with Undrawn():
            model = cls(GPTConfig(**model_args), init=False)
        if (wpe := "transformer.wpe.weight") in weights:
            weights = {**weights, wpe: weights[wpe][: model.config.block_size]}
        head, wte = "lm_head.weight", "transformer.wte.weight"
        if model.config.untied_head and weights[head].data_ptr() == weights[wte].data_ptr():
            weights = {**weights, head: weights[head].clone()}  # it was tied so far
        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            reason = str(error).split("\n\t", 1)[-1].splitlines()[0]
            raise UserError(f"the weights don't fit the model that is theirs: {reason}") from None
        if not model.config.untied_head:
            model.lm_head.weight = model.transformer.wte.weight
        return model

    def freeze(self, tokens: list[int]) -> None:
        """Let only the last block, the last norm and these tokens' rows of the head learn, which
        has to be untied."""
        self.requires_grad_(False)
        for part in (self.transformer.h[-1], self.transformer.ln_f, self.lm_head):
            part.requires_grad_(True)
        rows = torch.zeros_like(self.lm_head.weight[:, :1])
        rows[tokens] = 1
        self.lm_head.weight.register_hook(lambda gradient: gradient * rows)

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """idx (B, T) -> the last block's normalized output (B, T, C), idx following the cache."""
        places = cache.next(idx.size(1)) if cache else slice(0, idx.size(1))
        longest = cache.size if cache and cache.fixed else places.stop
        assert longest <= self.config.block_size, "the context is longer than block_size"
        x = self.transformer.wte(idx)
        if self.config.smear:
            x = self.transformer.smear(x, cache)
        rotation = None
        if self.config.rotary:
            rotation = self.cos[places], self.sin[places]
        else:
            x = x + self.transformer.wpe.weight[places]
        x = dropout(x, self.config.dropout, self.training)
        for block in self.transformer.h:
            x = block(x, rotation, cache)
        return self.transformer.ln_f(x)

    def head(self, x: Tensor) -> Tensor:
        """(..., C) -> fp32 logits (..., V) of the tokens that exist."""
        logits = self.lm_head(x)[..., : self.config.vocab_size].float()
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def forward(self, idx: Tensor, targets: Tensor | None = None, reduction="mean") -> Tensor:
        """idx (B, T) -> logits (B, T, V). With targets (B, T), -1 where not graded -> the loss.

        The loss is the cross-entropy in nats, its mean or its "sum" over the graded tokens.
        """
        x = self.hidden(idx)
        if targets is None:
            return self.head(x)
        x, targets = x.flatten(0, 1), targets.flatten()
        if self.few_graded:
            graded = targets >= 0
            x, targets = x[graded], targets[graded]
        if chunk := self.config.loss_chunk:  # each piece's logits are computed again in backward
            pieces = zip(x.split(chunk), targets.split(chunk), strict=True)
            loss = sum(checkpoint(self.loss, *piece, use_reentrant=False) for piece in pieces)
        else:
            loss = self.loss(x, targets)
        return loss if reduction == "sum" else loss / (targets >= 0).sum()

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.head(x), targets)

    def new_cache(self, tokens: int) -> KVCache:
        """An empty cache for so many tokens, or for block_size: more are never known at once."""
        return KVCache(min(self.config.block_size, tokens))

    def next_logits(self, unread: Tensor, cache: KVCache | None) -> Tensor:
        """(B, T) of a context's tokens, those that the cache lacks -> fp32 logits (B, V)."""
        return self.head(self.hidden(unread, cache)[:, -1])

    @torch.inference_mode()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        stop_tokens=(),
        seed=None,
        use_cache: bool | KVCache = True,
        **drawing,
    ) -> Iterator[Tensor]:
        """Continue idx (B, T), T >= 1, yielding the next token of every row, (B,), as it comes.

        stop_tokens: a row that draws one yields -1 from there on; when all rows have, it ends.
        use_cache: without it the tokens are the same, only later; a cache of the first tokens of
        idx is gone on with, and then holds those of the continuation but the last, for next time.
        drawing: the options of `draw`. Past block_size the newest half of the context goes on.
        """
        assert idx.size(1), "a continuation needs a token to start from"
        generator = None if seed is None else torch.Generator(idx.device).manual_seed(seed)
        block_size = self.config.block_size
        context = idx[:, -block_size:]
        cache = use_cache if isinstance(use_cache, KVCache) else None
        if use_cache is True:
            cache = self.new_cache(context.size(1) + max_new_tokens)
        unread = context[:, cache.length if cache else 0 :]
        done = torch.zeros(len(idx), dtype=torch.bool, device=idx.device)
        for _ in range(max_new_tokens):
            step = self.next_logits
            if self.compiled_step and cache and cache.length and unread.size(1) == 1:
                cache.fix(idx.device)
                step = self.compiled_step
            logits = step(unread, cache)
            if cache:
                cache.advance(unread.size(1))
            token = draw(logits, context, generator, **drawing)
            for stop in stop_tokens:
                done |= token == stop
            if stop_tokens and done.all():
                return
            yield token.masked_fill(done, -1) if stop_tokens else token
            unread = token[:, None]
            context = torch.cat((context, unread), dim=1)
            if context.size(1) > block_size:
                context = unread = context[:, -max(1, block_size // 2) :]
                if cache:
                    cache.clear()
            if cache is None:
                unread = context

    def flops_per_token(self) -> float:
        """Of training: 6 a weight that multiplies, 12 * C * T a layer for attention over T tokens.

        PaLM, appendix B: https://arxiv.org/abs/2204.02311.
        """
        c = self.config
        matrices = [p for p in self.transformer.h.parameters() if p.ndim == 2]
        weights = sum(p.numel() for p in [*matrices, self.lm_head.weight])
        return 6 * weights + 12 * c.n_layer * c.n_embd * c.block_size


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(..., V), (...) -> its sum over the graded targets, which are not -1, in nats."""
    logits, targets = logits.flatten(0, -2), targets.flatten()
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")


def draw(
    logits: Tensor,
    context: Tensor,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Tensor:
    """The next token (B,), drawn from logits (B, V) that follow context (B, T). In this order:

    repetition_penalty makes what the context holds less likely (https://arxiv.org/abs/1909.05858);
    temperature divides the logits, 0 takes the likeliest; top_k keeps the k likeliest, 0 = all;
    top_p keeps the fewest that hold this share of the probability
    (https://arxiv.org/abs/1904.09751);
    min_p keeps those at least this fraction as likely as the likeliest
    (https://arxiv.org/abs/2407.01082).
    """
    if repetition_penalty != 1:
        seen = logits.gather(1, context)
        seen = torch.where(seen < 0, seen * repetition_penalty, seen / repetition_penalty)
        logits = logits.scatter(1, context, seen)
    if temperature == 0:
        return logits.argmax(-1)
    tokens = None
    if 0 < top_k < logits.size(-1) or top_p < 1:  # the likeliest first
        logits, tokens = logits.topk(min(top_k or logits.size(-1), logits.size(-1)))
    likely = (logits / temperature).softmax(-1)
    if top_p < 1:
        beyond = likely.cumsum(-1) - likely >= top_p  # the tokens before it are enough
        likely = likely.masked_fill(beyond, 0)
    if min_p > 0:
        likely = likely.masked_fill(likely < min_p * likely.amax(-1, keepdim=True), 0)
    # the winner of a race of exponential clocks: torch.multinomial would wait for a GPU
    clocks = torch.empty_like(likely).exponential_(generator=generator)
    drawn = (likely / clocks).argmax(-1, keepdim=True)
    return (drawn if tokens is None else tokens.gather(1, drawn))[:, 0]
