"""LoRA, small trained matrices beside frozen weights: https://arxiv.org/abs/2106.09685

y = W x + alpha / rank * B A x, where W (out, in) is frozen, A (rank, in) is trained from random
values and B (out, rank) from zero. The checkpoint of such a run holds what is trained, and

    "lora": {"base": [path of W from the checkpoint's folder, and as it was named],
             "weights": sha256 of W, "rank": 8, "alpha": 16.0, "trained": [names of others]}
"""

import hashlib
import math
import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core import UserError
from core.distributed import print0
from core.extras.gpt2 import is_hub_id

MODULES = ("c_attn", "c_proj", "c_fc")  # of every block
EMBEDDINGS = ["transformer.wte.weight", "lm_head.weight"]
ALPHA = 16.0  # with AdamW another one is almost another learning rate, says the paper
KINDS = {"base": list, "weights": str, "rank": int, "alpha": float, "trained": list}


class LoRALinear(nn.Module):
    """An nn.Linear, whose weight and bias keep their names, with A and B."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.weight, self.bias, self.scale = linear.weight, linear.bias, alpha / rank
        self.lora_A = nn.Parameter(self.weight.new_empty(rank, linear.in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as in the authors' code

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.lora_A), self.lora_B)
        return torch.add(F.linear(x, self.weight, self.bias), change, alpha=self.scale)


def as_base(loaded: dict | None, source: str, out_dir: str, tokenizer, rank: int) -> dict:
    """The checkpoint of that source as the base of a run in out_dir."""
    if loaded is None:
        raise UserError(f"lora_rank={rank} adapts weights: name them by --init_from, not scratch.")
    path = loaded["path"]
    if os.path.isfile(path) and os.path.relpath(path, out_dir) == os.path.basename(path):
        raise UserError(f"out_dir={out_dir} holds the weights to adapt: choose another --out_dir.")
    names = [source] if is_hub_id(source) else [os.path.relpath(path, out_dir), path]
    about = {"base": names, "weights": fingerprint(loaded["model"]), "rank": rank}
    is_new = loaded["tokenizer"] not in (None, tokenizer.to_dict())  # new tokens mean nothing yet
    about |= {"alpha": ALPHA, "trained": EMBEDDINGS if is_new else []}
    return {**merged(loaded), "lora": about}


def fingerprint(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def add(model: nn.Module, about: dict, weights: dict[str, Tensor]) -> nn.Module:
    """The model, frozen, with adapters: those among the weights, or new ones."""
    for name, p in model.named_parameters(remove_duplicate=False):
        p.requires_grad_(name in about["trained"])
    for module in list(model.modules()):
        for name, child in module.named_children():
            if name in MODULES:
                setattr(module, name, LoRALinear(child, about["rank"], about["alpha"]))
    model.load_state_dict({k: v for k, v in weights.items() if ".lora_" in k}, strict=False)
    model.lora = about
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print0(f"lora     {count:,} parameters are trained, those of {about['base'][-1]} are frozen")
    return model


def store_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep frozen matrices in the dtype of products, of which autocast would make a copy each."""
    for linear in [m for m in model.modules() if isinstance(m, (LoRALinear, nn.Linear))]:
        if not (linear.weight.requires_grad or linear.weight is model.transformer.wte.weight):
            linear.weight = nn.Parameter(linear.weight.to(dtype), requires_grad=False)


def model_state(model: nn.Module) -> dict:
    """The part of a checkpoint that a model with adapters has: the trained tensors."""
    state = {k: p.detach() for k, p in model.state_dict(keep_vars=True).items() if p.requires_grad}
    others = [name for name in state if ".lora_" not in name]
    return {"model": state, "lora": {**model.lora, "trained": others}}


def with_base(loaded: dict, load) -> dict:
    """The checkpoint with its base's weights, by checkpoint.load. UserError if those changed."""
    path, about = loaded["path"], loaded["lora"]
    if any(type(about.get(key)) is not kind for key, kind in KINDS.items()):
        raise UserError(f"{path} is damaged: lora is {str(about)[:60]}.")
    named = [str(name) for name in about["base"]]
    names = [os.path.join(os.path.dirname(path), name) for name in named] + named
    there = [name for name in names if os.path.exists(name) or is_hub_id(name)]
    if not there:
        raise UserError(f"{path} adapts {' or '.join(named)}, which is not there: put it back.")
    base = load(there[0], merge=False)
    if about["weights"] not in ("", fingerprint(base["model"])):
        raise UserError(f"{there[0]} has changed since {path} adapted it: put the old one back.")
    lacking = () if "model_args" in loaded else ("model_args", "tokenizer", "task")  # from PEFT
    inherited = {key: base[key] for key in lacking}
    return {**loaded, **inherited, "model": {**merged(base)["model"], **loaded["model"]}}


def merged(loaded: dict) -> dict:
    """The checkpoint without adapters: they are added to its weights, in place."""
    weights = dict(loaded["model"])
    try:
        for name in [name for name in weights if name.endswith(".lora_B")]:
            module = name.removesuffix(".lora_B")
            A, B = weights.pop(f"{module}.lora_A"), weights.pop(name)
            weights[f"{module}.weight"] += loaded["lora"]["alpha"] / len(A) * (B @ A)
    except (KeyError, RuntimeError):
        raise UserError(f"{loaded['path']}: the adapters do not fit the weights.") from None
    return {**loaded, "model": weights, "lora": {}}
