"""Linear layers for generation on a CPU, where few rows at a time wait for the weights."""

import torch
from torch import Tensor, nn

from core import UserError


def product(weight: Tensor, rows: Tensor) -> Tensor:
    """weight (out, in), rows (N, in) -> (N, out), as F.linear: in bf16 of few rows a third faster.

    oneDNN then takes the weights for its long side, and a single row for a vector.
    """
    if len(rows) == 1:
        return torch.mv(weight, rows[0])[None]
    return (weight @ rows.mT).mT


class Bf16Linear(nn.Module):
    """nn.Linear in bf16, by `product`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = product(self.weight, x.flatten(0, -2))
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1)


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
            y = product(self.weight.to(rows.dtype), rows) * self.scale
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1)


def for_cpu(model: nn.Module, kind: type[Bf16Linear] | type[Int8Linear]) -> nn.Module:
    """The model in bf16 with every nn.Linear one of that kind instead, changed in place."""
    if next(model.parameters()).device.type != "cpu":
        raise UserError("dtype=int8 is for CPUs: on a GPU use --dtype=bfloat16.")
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, kind(child))
    return model.bfloat16()
