"""Weights rounded to eight bits, for generation on a CPU, which waits for memory."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core import UserError


class Int8Linear(nn.Module):
    """nn.Linear whose every weight is one of 255 multiples of its row's scale, a byte each.

    Rounding by the largest weight of a row, as in https://arxiv.org/abs/2208.07339; activations
    stay bf16. A token then reads a quarter of the bytes.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale = linear.weight.detach().float().abs().amax(dim=1).clamp(min=1e-8) / 127
        self.register_buffer("weight", (linear.weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.bfloat16())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if len(rows) <= 8:  # few tokens: the time is that of reading the bytes
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            y = F.linear(rows, self.weight.to(rows.dtype)) * self.scale
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1)


def to_int8(model: nn.Module) -> nn.Module:
    """The model with every nn.Linear an Int8Linear and the rest in bf16, changed in place."""
    if next(model.parameters()).device.type != "cpu":
        raise UserError("dtype=int8 is for CPUs: on a GPU use --dtype=bfloat16.")
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    return model.bfloat16()
