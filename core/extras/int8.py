"""Linear layers by products of bytes, for generation on a CPU."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def has_fbgemm() -> bool:
    """Whether this CPU multiplies bytes by FBGEMM: x86 with AVX2 does."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class Int8Linear(nn.Module):
    """nn.Linear on a CPU by products of bytes, without gradients; x and y are fp32.

    The weights of an output are multiples of their largest one / 127, a token's activations of
    their range / 255 ("zeropoint, vector-wise" in https://arxiv.org/abs/2208.07339). A token takes
    two thirds of the time of bf16 weights. Without FBGEMM int8 only saves memory.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()  # (out, in)
        self.scale = weight.abs().amax(dim=1).clamp(min=1e-8) / 127
        weight = (weight / self.scale[:, None]).round()
        self.bias = weight.new_zeros(len(weight))
        if linear.bias is not None:
            self.bias += linear.bias.detach()
        self.sums = weight.sum(dim=1) * self.scale
        self.weight = weight.to(torch.int8)
        # without VNNI two products are added in 16 bits, which 2 * 255 * 127 would overflow
        self.levels = 255 if torch.cpu._is_vnni_supported() else 127
        if has_fbgemm():
            self.weight = fbgemm_weight(self.weight, self.scale, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        fbgemm = torch.ops.quantized
        if isinstance(self.weight, Tensor):
            y = F.linear(rows, self.weight.float()) * self.scale + self.bias
        elif len(rows) == 1:  # the same but for rounding, by one kernel
            y = fbgemm.linear_dynamic(rows, self.weight, self.levels == 127)
        else:
            low, high = rows.aminmax(dim=-1, keepdim=True)
            step = (high - low).clamp(min=1e-8) / self.levels
            scaled = (rows - low) / step  # 0 to levels, which the kernel rounds
            y = fbgemm.linear_with_input_q_dq_qweight_dq_output_fp32(scaled, 1.0, 0, self.weight)
            y = (y - self.bias) * step + low * self.sums + self.bias
        return y.view(*x.shape[:-1], y.size(-1))


def fbgemm_weight(weight: Tensor, scale: Tensor, bias: Tensor):
    """int8 (out, in) with a scale and bias per output, in the order in which FBGEMM reads it."""
    zero_points = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():  # such tensors are deprecated; those that can replace them
        warnings.simplefilter("ignore")  # have no kernel of this speed
        weight = torch._make_per_channel_quantized_tensor(weight, scale.double(), zero_points, 0)
        return torch.ops.quantized.linear_prepack(weight, bias)
