"""The fast ways of a CPU against PyTorch's own."""

import copy

import pytest
import torch
from torch.nn import functional as F

from core.kernels import (
    PackedLinear,
    attention,
    can_pack,
    causal_mask,
    dropout,
    residual_stream,
    window_blocks,
)


def test_dropout_drops_a_fraction_and_keeps_the_mean():
    torch.manual_seed(0)
    for p in (0.001, 0.1, 0.5):
        y = dropout(torch.ones(500, 1001), p, True)
        fraction = max(1, round(256 * p)) / 256  # the nearest that a byte can decide
        assert abs((y == 0).float().mean() - fraction) < 0.002 and abs(y.mean() - 1) < 0.005
        assert len(y.unique()) == 2
    most = dropout(torch.ones(500, 1001), 0.999, True)  # a byte can decide no more than 255/256
    assert most.unique().tolist() == [0, 256] and abs(most.mean() - 1) < 0.1
    x = torch.ones(4)
    assert dropout(x, 0.5, False) is x and torch.equal(dropout(x, 0.0, True), x)


@pytest.mark.parametrize("T", [1, 2, 64])
def test_attention_written_out_equals_fused_attention(T):
    torch.manual_seed(0)
    leaves = [torch.randn(2, 3, T, 8, requires_grad=True) for _ in range(3)]
    q, k, v = (leaf.bfloat16() for leaf in leaves)  # bf16 is written out, fp32 is fused
    y = attention(q, k, v, None).float()
    expected = F.scaled_dot_product_attention(*leaves, is_causal=True)
    torch.testing.assert_close(y, expected, atol=0.03, rtol=0.03)
    got, wanted = (torch.autograd.grad(out.square().sum(), leaves) for out in (y, expected))
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).norm() <= 0.03 * b.norm() + 1e-3
    assert torch.equal(attention(*leaves, None), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("past", [0, 3, 20])
def test_a_window_equals_dense_attention_with_the_band_as_its_mask(past, dtype):
    q, k, v = torch.randn(3, 2, 4, 40, 16, dtype=dtype).unbind()
    i, j = torch.arange(40)[:, None], torch.arange(40)
    band = (j <= i) & (j > i - 8)  # a token sees itself and the seven before
    expected = F.scaled_dot_product_attention(q, k, v, band)
    y = attention(q[:, :, past:], k, v, causal_mask(torch.arange(past, 40), 40, 8))
    torch.testing.assert_close(y, expected[:, :, past:], atol=2e-2 if past == 0 else 1e-2, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [1, 100, 128, 300])
def test_the_blocks_of_a_window_are_its_mask(window):
    q, k, v = torch.randn(3, 2, 2, 300, 16)
    expected = attention(q, k, v, causal_mask(torch.arange(300), 300, window))
    blocks = window_blocks(300, window, q.device)
    torch.testing.assert_close(attention(q, k, v, blocks), expected)


def test_the_residual_stream_of_a_cpu_stays_fp32():
    x = torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert residual_stream(x) is x


def test_attention_dropout_keeps_the_mean():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    samples = [attention(q, k, v, None, 0.3) for _ in range(4000)]
    exact = attention(q, k, v, None)
    assert not torch.equal(samples[0], samples[1])
    assert (torch.stack(samples).mean(0) - exact).abs().max() < 0.08


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_packed_linear_layers_are_linear_layers(bias, dtype, tolerance):
    if not can_pack(dtype):
        pytest.skip(f"oneDNN does not multiply in {dtype} on this CPU")
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 200, bias=bias).to(dtype)
    ours, exact = PackedLinear(linear), copy.deepcopy(linear).float()
    for shape in ((1, 1), (1, 3), (2, 20)):
        x = torch.randn(*shape, 96).to(dtype)
        assert ours(x).dtype == dtype
        torch.testing.assert_close(ours(x).float(), exact(x.float()), atol=tolerance, rtol=0.01)
