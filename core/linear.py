"""Linear layers for generation on a CPU, where few rows at a time wait for the weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def product(weight: Tensor, rows: Tensor) -> Tensor:
    """weight (out, in), rows (N, in) -> (N, out), as F.linear, but a third faster for 5 to 50 rows.

    oneDNN and MKL then take the weights for the long side of the product; in bf16 that is better
    for fewer rows too, and one row is a vector.
    """
    if len(rows) == 1:
        return torch.mv(weight, rows[0])[None]
    if len(rows) < 5 and rows.dtype == torch.float32:
        return F.linear(rows, weight)
    return (weight @ rows.mT).mT


class FewRowsLinear(nn.Module):
    """nn.Linear by `product`."""

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


def replace_linear(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """The model with a layer of that kind, made of it, for every nn.Linear, changed in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, kind(child))
    return model
