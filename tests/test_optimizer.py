"""Optimizers and schedules, against torch's Muon, the SVD and nanoGPT's formula."""

import itertools
import math
import subprocess
import sys
import types

import pytest
import torch
from conftest import ROOT

from core import UserError
from core.extras.frozen import select_trainable
from core.optimizer import Muon, build_optimizers, lr_factor, orthogonalize
from model import GPT, GPTConfig

SETTINGS = {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1}
SETTINGS |= {"muon_lr": 0.02, "muon_momentum": 0.95, "train_only": "", "lora_rank": 0}


def build(model, kind: str) -> dict:
    return build_optimizers(model, {**SETTINGS, "optimizer": kind}, torch.float32)


def gpt(**fields) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(65, 16, n_layer=2, n_head=2, n_embd=32, **fields))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("fields", [{}, {"untied_head": True, "rotary": True, "rms_norm": True}])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(kind, fields):
    model = gpt(**fields)
    optimizers = build(model, kind)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [group for o in optimizers.values() for group in o.param_groups]
    for group in groups:
        assert [names[id(p)] for p in group["params"]] == group["names"]
        assert all((p.ndim == 2) == (group["weight_decay"] > 0) for p in group["params"])
    assert sorted(name for group in groups for name in group["names"]) == sorted(names.values())
    if kind == "muon":
        hidden = [name for group in optimizers["muon"].param_groups for name in group["names"]]
        assert len(hidden) == 8 and all(".h." in name for name in hidden)


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    values = torch.linspace(0.05, 1, min(shape))  # none is lost below the iteration's reach
    exact, updates = left @ right, orthogonalize(left * values @ right)
    S = torch.linalg.svdvals(updates)
    assert 0.65 < S.min() and S.max() < 1.25
    cosine = (updates * exact).sum((1, 2)) / updates.norm(dim=(1, 2)) / exact.norm(dim=(1, 2))
    assert cosine.min() > 0.97


def test_muon_is_torchs_muon_on_single_matrices():
    torch.manual_seed(0)
    start = [torch.randn(48, 32), torch.randn(32, 48), torch.randn(32, 32)]
    ours = [torch.nn.Parameter(p.clone()) for p in start]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    groups = [{"params": ours, "stacked": 1}]
    a = Muon(groups, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, p0 in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.02 * (q - p0).norm()  # both multiply in bf16


def test_adamw_is_torchs_and_leaves_the_compiler_alone():
    code = """if True:
        import sys, torch
        from core.optimizer import build_optimizers
        from model import GPT, GPTConfig
        s = dict(learning_rate=0.01, beta1=0.9, beta2=0.95, weight_decay=0.1)
        s |= dict(muon_lr=0.02, muon_momentum=0.9, train_only="", lora_rank=0)
        for kind in ("adamw", "muon"):
            model = GPT(GPTConfig(65, 16, n_layer=1, n_head=2, n_embd=16))
            mine = build_optimizers(model, {**s, "optimizer": kind}, torch.float32)
            x = torch.randint(65, (4, 16))
            model(x, x).backward()
            for optimizer in mine.values():
                optimizer.step()
                optimizer.load_state_dict(optimizer.state_dict())
        assert "torch._dynamo" not in sys.modules, "importing it takes seconds"
        p = [torch.nn.Parameter(torch.randn(5, 3)) for _ in range(2)]
        q = [torch.nn.Parameter(x.detach().clone()) for x in p]
        from core.optimizer import AdamW
        options = dict(lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        a, b = AdamW(p, **options), torch.optim.AdamW(q, **options)
        for _ in range(5):
            for x, y in zip(p, q):
                x.grad = torch.randn_like(x)
                y.grad = x.grad.clone()
            a.step()
            b.step()
        assert all(torch.equal(x, y) for x, y in zip(p, q))
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_micro_batches_have_the_gradient_of_the_whole_batch():
    x = torch.randint(65, (6, 16), generator=torch.Generator().manual_seed(0))
    y = x.roll(-1, 1)
    y[:3, 5:] = -1  # sequences with fewer targets do not count for more
    y[4:] = -1  # and the last micro-batch has none
    gradients = []
    for micro_batch in (6, 2):
        model = gpt()
        for xs, ys in zip(x.split(micro_batch), y.split(micro_batch), strict=True):
            (model(xs, ys, reduction="sum") / (y >= 0).sum()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_exactly_the_parameters_that_match_are_trained():
    model = gpt()
    select_trainable(model, "transformer.h.1.*,*ln_f*")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if ".h.1." in n or "ln_f" in n}
    groups = [g for o in build(model, "muon").values() for g in o.param_groups]
    assert {name for group in groups for name in group["names"]} == trained
    select_trainable(model, "")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert all(p.requires_grad for p in gpt().parameters())
    with pytest.raises(
        UserError, match=r"so; there are transformer.wte.weight, .*\.h\.\*\.ln_1"
    ) as it:
        select_trainable(model, "transformer.h.7.*")
    assert str(it.value).count("ln_1.weight") == 1  # a kind for all layers


def test_a_tied_head_is_trained_by_either_of_its_names():
    for pattern in ("lm_head.*", "transformer.wte.*"):
        model = GPT(GPTConfig(vocab_size=65, block_size=8, n_layer=1, n_head=1, n_embd=8))
        select_trainable(model, pattern)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {"transformer.wte.weight"}


def test_muon_takes_query_key_and_value_apart():
    torch.manual_seed(0)
    stacked = torch.nn.Parameter(torch.randn(96, 32))
    parts = [torch.nn.Parameter(p.clone()) for p in stacked.detach().chunk(3)]
    stacked.grad = torch.randn(96, 32)
    for p, grad in zip(parts, stacked.grad.chunk(3), strict=True):
        p.grad = grad.clone()
    Muon([{"params": [stacked], "stacked": 3}], lr=0.02).step()
    Muon([{"params": parts, "stacked": 1}], lr=0.02).step()
    torch.testing.assert_close(stacked.detach(), torch.cat([p.detach() for p in parts]))


def test_muon_takes_three_dimensions_as_a_stack_of_matrices():
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(4, 16, 8))
    parts = [torch.nn.Parameter(p.clone()) for p in stack.detach()]
    stack.grad = torch.randn(4, 16, 8)
    for p, grad in zip(parts, stack.grad, strict=True):
        p.grad = grad.clone()
    Muon([{"params": [stack], "stacked": 1}], lr=0.02).step()
    Muon([{"params": parts, "stacked": 1}], lr=0.02).step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in parts]))


def factor(schedule, step, warmup, end, floor, warmdown) -> float:
    """lr_factor with these settings, of steps whose batches are full."""
    s = {"lr_schedule": schedule, "warmup_iters": warmup, "warmup_tokens": 0, "decay_lr": True}
    s |= {"lr_decay_iters": end, "max_iters": end, "warmdown": warmdown}
    s |= {"learning_rate": 1.0, "min_lr": floor}
    return lr_factor(s, types.SimpleNamespace(full_batches=float), step)


def nanogpt_lr(it, learning_rate, warmup, decay, min_lr):
    if it < warmup:
        return learning_rate * (it + 1) / (warmup + 1)
    if it > decay:
        return min_lr
    ratio = (it - warmup) / (decay - warmup)
    return min_lr + 0.5 * (1 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


def test_cosine_is_nanogpts():
    for it in range(120):
        ours = 1e-3 * factor("cosine", it, 10, 100, 0.1, 0.4)
        assert math.isclose(ours, nanogpt_lr(it, 1e-3, 10, 100, 1e-4))


def test_schedules_have_their_shapes():
    linear = [factor("linear", step, 10, 100, 0.0, 0.4) for step in range(101)]
    assert 0 < linear[0] < linear[9] < 1 and set(linear[10:61]) == {1.0}
    assert math.isclose(linear[80], 0.5) and linear[100] == 0.0
    assert all(a > b for a, b in itertools.pairwise(linear[60:]))
    assert [factor("constant", step, 0, 100, 0.0, 0.4) for step in (0, 50, 500)] == [1.0] * 3


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_no_setting_divides_by_zero(schedule):
    for warmup in (0, 1, 5, 100):
        for end in (0, 1, 5, 100):
            for step in range(110):
                fraction = factor(schedule, step, warmup, end, 0.1, 0.01)
                assert 0 < fraction <= 1, (warmup, end, step)
