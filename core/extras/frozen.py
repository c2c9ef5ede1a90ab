"""Which parameters are trained; the others are frozen."""

import re
from fnmatch import fnmatchcase

import torch
from torch import nn

from core import UserError
from core.extras import lora


def select_trainable(model: nn.Module, patterns: str, dtype=torch.float32) -> None:
    """Train only the parameters whose names match one of the patterns, separated by commas.

    Such as "transformer.h.3.*,lm_head.*"; "" changes nothing: all are trained, or the adapters of
    core/extras/lora.py, whose frozen matrices are then kept in `dtype`, that of matrix products.
    UserError if a pattern matches none.
    """
    if patterns:
        model.requires_grad_(False)
    named = list(model.named_parameters(remove_duplicate=False))  # tied ones have two names
    for pattern in filter(None, patterns.split(",")):
        matching = [p for name, p in named if fnmatchcase(name, pattern)]
        if not matching:
            kinds = dict.fromkeys(re.sub("[.][0-9]+[.]", ".*.", name) for name, _ in named)
            names = ", ".join(kinds)
            raise UserError(f"train_only={pattern}: no parameter is named so; there are {names}.")
        for p in matching:
            p.requires_grad_(True)
    if hasattr(model, "lora"):
        lora.store_frozen(model, dtype)
