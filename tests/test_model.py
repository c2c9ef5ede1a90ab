"""The model against a reference: transformers' GPT-2, itself in other forms, and causality."""

import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import VARIANTS, greedy, small, tokens

from core import UserError
from core.device import compile_model
from core.extras import hf_folder
from model import GPT, GPTConfig, rotary_table


def test_logits_equal_those_of_transformers_gpt2():
    transformers = pytest.importorskip("transformers")
    shape = dict(n_layer=3, n_head=4, n_embd=64)
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=1000, n_positions=48, **shape)
    ).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, 0.0, 0.1)
    args = dict(vocab_size=1000, block_size=48, **shape)
    weights = hf_folder.from_hf(theirs.state_dict(), args["vocab_size"])
    ours = GPT.from_state_dict(args, weights).eval()
    idx = torch.randint(1000, (2, 48))
    with torch.no_grad():
        expected, logits = theirs(idx, labels=idx), ours(idx)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    loss = ours(idx[:, :-1], idx[:, 1:])
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=0)
    text = theirs.generate(idx[:1, :5], max_new_tokens=20, do_sample=False)
    assert greedy(ours, idx[:1, :5], 20).tolist() == text[:, 5:].tolist()


@pytest.mark.parametrize("fields", VARIANTS)
def test_a_future_token_changes_nothing_before_it(fields):
    model, idx = small(**fields), tokens(2, 16)
    changed = idx.clone()
    changed[:, 9] = (idx[:, 9] + 1) % 65
    before, after = model(idx), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("sparse", [False, True])
def test_targets_of_minus_one_are_ignored(sparse):
    model, idx, targets = small(), tokens(2, 8), tokens(2, 8, seed=2)
    masked = targets.clone()
    masked[0, 3:] = -1
    kept = masked >= 0
    at = kept if sparse else None
    logs = model(idx).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(model(idx, masked, at=at), -logs[kept].mean())
    torch.testing.assert_close(model(idx, masked, reduction="sum", at=at), -logs[kept].sum())
    at = torch.zeros_like(kept) if sparse else None
    none = model(idx, torch.full_like(masked, -1), reduction="sum", at=at)
    none.backward()  # as the sequences that pad a batch do
    assert none == 0 and not any(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("fields", VARIANTS[:2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sparse_targets_give_the_same_loss_and_gradients(fields, reduction):
    dense, sparse = small(**fields), small(**fields)
    idx, targets = tokens(2, 16), tokens(2, 16, seed=2)
    targets[0, :7] = targets[1, 3:14] = -1
    losses = [dense(idx, targets, reduction=reduction)]
    losses.append(sparse(idx, targets, reduction=reduction, at=targets >= 0))
    assert torch.equal(sparse(idx, at=targets >= 0), dense(idx)[targets >= 0])
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for p, q in zip(dense.parameters(), sparse.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fields", [*VARIANTS, {"zero_init": True}])
def test_every_parameter_learns(fields):
    torch.manual_seed(0)
    model = GPT(GPTConfig(65, 16, n_layer=3, n_head=2, n_embd=32, **fields))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        model(tokens(4, 16), tokens(4, 16, seed=2)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        assert not torch.equal(p, start[name]), name


def test_every_second_layer_has_the_window():
    banded = small(window=4, n_layer=2)
    idx = tokens(1, 16)
    dense = small(n_layer=2)
    assert torch.allclose(banded(idx)[:, :4], dense(idx)[:, :4], atol=1e-5)
    assert not torch.allclose(banded(idx)[:, 5:], dense(idx)[:, 5:], atol=1e-3)
    banded, dense = small(window=4, n_layer=3), small(n_layer=3)
    for model in (banded, dense):  # without the second layer's attention no window is left
        model.transformer.h[1].attn.c_proj.weight.data.zero_()
    torch.testing.assert_close(banded(idx), dense(idx), atol=1e-5, rtol=0)


def test_gpt2_124m_has_its_published_shape():
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257))
    padding = (50304 - 50257) * 768
    assert sum(p.numel() for p in model.parameters()) - padding == 124_439_808


def test_a_shorter_block_size_crops_positions():
    model, idx = small(), tokens(1, 8)
    cropped = GPT.from_state_dict(
        {**vars(model.config), "block_size": 8}, model.state_dict()
    ).eval()
    torch.testing.assert_close(cropped(idx), model(idx))
    assert cropped.transformer.wpe.weight.shape == (8, 32)


def test_heads_that_do_not_divide_the_width_are_one_sentence():
    with pytest.raises(UserError, match=r"n_embd=30 is not divisible by n_head=4"):
        GPTConfig(vocab_size=65, n_embd=30, n_head=4)
    with pytest.raises(UserError, match="even"):
        GPTConfig(vocab_size=65, n_embd=12, n_head=4, rotary=True)


def test_initialization_refuses_a_parameter_that_it_does_not_know():
    model = small()
    model.transformer["surprise"] = torch.nn.Linear(4, 4)
    with pytest.raises(AssertionError, match="does not know transformer"):
        model.init_weights()


def test_stacked_matrices_count_as_flops():
    model = small()
    before = model.flops_per_token()
    model.transformer.h[0].experts = torch.nn.Parameter(torch.zeros(3, 8, 8))
    assert model.flops_per_token() == before + 6 * 3 * 8 * 8


def test_compiled_equals_eager(capsys):
    idx, targets = tokens(2, 16), tokens(2, 16, seed=2)
    for fields, sparse in zip(VARIANTS[:2], (False, True), strict=True):
        model = small(**fields)
        if sparse:
            targets[:, :14] = -1
        at = targets >= 0 if sparse else None
        eager = model(idx, targets, at=at)
        eager.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        compile_model(model, idx, targets, nullcontext(), sparse, "auto")
        assert "done" in capsys.readouterr().out
        loss = model(idx, targets, at=at)
        loss.backward()
        torch.testing.assert_close(loss, eager)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, gradients[name], atol=1e-4, rtol=1e-3)


def test_the_rotary_table_is_exact_at_any_position():
    config = GPTConfig(65, 4096, n_embd=64, n_head=2, rotary=True)
    angles = np.arange(4096)[:, None] * 10000.0 ** -(np.arange(0, 32, 2) / 32)  # in fp64
    cos, sin = rotary_table(config)[:, :, 0].numpy()
    assert np.abs(cos - np.cos(angles)).max() < 1e-7 and np.abs(sin - np.sin(angles)).max() < 1e-7


def test_a_model_can_be_pickled():
    model = GPT(GPTConfig(65, 16, 2, 2, 32, rotary=True)).eval()
    again, idx = pickle.loads(pickle.dumps(model)), torch.randint(65, (2, 16))
    assert torch.equal(again(idx), model(idx))
    assert again.lm_head.weight is again.transformer.wte.weight
