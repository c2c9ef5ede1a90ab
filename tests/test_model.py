"""The model against a reference: transformers' GPT-2, itself without a cache, and causality."""

import copy
import math
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from core import UserError, huggingface, runtime
from core.linear import FewRowsLinear, Int8Linear, replace_linear
from model import GPT, GPTConfig, KVCache, attention, draw, dropout

SMALL = dict(vocab_size=65, block_size=16, n_layer=3, n_head=2, n_embd=32)
MODERN = dict(
    activation="relu2", rotary=True, rms_norm=True, qk_norm=True, logit_softcap=15.0,
    untied_head=True, bias=False,
)  # fmt: skip
VARIANTS = [
    {},
    {**MODERN, "smear": 2},
    {"rotary": True},
    {"activation": "gelu"},
    {"smear": 1},
    {"window": 4},
]


def small(seed=0, **fields) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SMALL, **fields})).eval()
    for p in model.parameters():  # away from the symmetric start, so that every term counts
        torch.nn.init.normal_(p, 0.0 if p.ndim > 1 else 1.0, 0.3)
    return model


def tokens(*shape, seed=1) -> torch.Tensor:
    return torch.randint(65, shape, generator=torch.Generator().manual_seed(seed))


def continuation(model, idx, n, **options) -> torch.Tensor:
    return torch.stack(list(model.generate(idx, n, **options)), dim=1)


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
    ours = GPT.from_weights(args, huggingface.to_ours(theirs.state_dict())).eval()
    idx = torch.randint(1000, (2, 48))
    with torch.no_grad():
        expected, logits = theirs(idx, labels=idx), ours(idx)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    loss = ours(idx[:, :-1], idx[:, 1:])
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=0)
    text = theirs.generate(idx[:1, :5], max_new_tokens=20, do_sample=False)
    assert continuation(ours, idx[:1, :5], 20, temperature=0).tolist() == text[:, 5:].tolist()


@pytest.mark.parametrize("fields", VARIANTS)
def test_a_future_token_changes_nothing_before_it(fields):
    model, idx = small(**fields), tokens(2, 16)
    changed = idx.clone()
    changed[:, 9] = (idx[:, 9] + 1) % 65
    before, after = model(idx), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("fields", VARIANTS)
def test_cached_logits_equal_uncached_in_any_split_of_the_tokens(fields):
    model, idx = small(**fields), tokens(2, 16)
    whole = model(idx)
    for parts in ([16], [5, 1, 1, 9], [1] * 16):
        cache, logits = KVCache(16), []
        for part in idx.split(parts, 1):
            logits.append(model.head(model.hidden(part, cache)))
            cache.advance(part.size(1))
        torch.testing.assert_close(torch.cat(logits, 1), whole, atol=1e-4, rtol=0)


def test_a_cache_that_is_too_small_is_noticed():
    assert small().new_cache(7).size == 7 and small().new_cache(40).size == 16
    with pytest.raises(AssertionError, match="the cache is full"):
        continuation(small(), tokens(1, 4), 10, use_cache=KVCache(8))


@pytest.mark.parametrize("fields", VARIANTS)
def test_cache_changes_no_token_even_past_block_size(fields):
    model = small(**fields)
    for length in (1, 7, 16, 40):  # the last is longer than block_size
        idx = tokens(2, length)
        with_cache = continuation(model, idx, 40, temperature=0)
        assert torch.equal(with_cache, continuation(model, idx, 40, temperature=0, use_cache=False))
        alone = [continuation(model, row[None], 40, temperature=0)[0] for row in idx]
        assert torch.equal(with_cache, torch.stack(alone))


def test_past_block_size_the_newest_half_of_the_context_goes_on():
    model, idx = small(), tokens(1, 16)
    first, second = continuation(model, idx, 2, temperature=0)[0]
    assert first == model(idx)[0, -1].argmax()
    context = torch.cat((idx[0], first[None]))[-8:]
    assert second == model(context[None])[0, -1].argmax()


def test_the_same_seed_draws_the_same_text():
    model, idx = small(), tokens(1, 4)
    a, b, c = (continuation(model, idx, 30, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_padding_of_the_vocabulary_is_never_drawn_nor_graded():
    model = small()
    assert model.lm_head.weight.shape[0] == 128
    with torch.no_grad():
        model.lm_head.weight[65:] = 100.0  # tied: the padded rows would win every time
    drawn = continuation(model, tokens(8, 4), 50, temperature=3.0, seed=0)
    assert drawn.max() < 65
    assert model(tokens(1, 4)).shape == (1, 4, 65)


@pytest.mark.parametrize("few_graded", [False, True])
def test_targets_of_minus_one_are_not_graded(few_graded):
    model, idx, targets = small(), tokens(2, 8), tokens(2, 8, seed=2)
    model.few_graded = few_graded
    masked = targets.clone()
    masked[0, 3:] = -1
    kept = masked >= 0
    logs = model(idx).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(model(idx, masked), -logs[kept].mean())
    torch.testing.assert_close(model(idx, masked, "sum"), -logs[kept].sum())
    none = model(idx, torch.full_like(masked, -1), "sum")
    none.backward()  # as the rows that fill up a batch do
    assert none == 0 and not any(p.grad.any() for p in model.parameters())


def test_stop_tokens_end_a_row_and_then_the_batch():
    model, idx = small(), tokens(4, 4)
    free = continuation(model, idx, 30, temperature=2.0, seed=3)
    stop = int(free[0, 3])
    stopped = continuation(model, idx, 30, temperature=2.0, seed=3, stop_tokens=(stop,))
    assert (stopped == -1).any() and (stopped >= 0).any()
    for row, full in zip(stopped.tolist(), free.tolist(), strict=True):
        end = full.index(stop) if stop in full else len(full)
        assert row == (full[:end] + [-1] * len(full))[: len(row)]
    every = tuple(range(65))
    assert list(model.generate(idx, 30, stop_tokens=every)) == []


def drawn(logits, n=4000, **options) -> Counter:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([logits]).repeat(n, 1)
    context = torch.zeros(n, 1, dtype=torch.long)
    return Counter(draw(logits, context, generator, **options).tolist())


def test_draw_keeps_exactly_what_each_option_says():
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    counts = drawn(logits)
    for token, p in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert abs(counts[token] / 4000 - p) < 0.03
    assert set(drawn(logits, temperature=0)) == {0}
    assert set(drawn(logits, top_k=2)) == {0, 1}
    assert set(drawn(logits, top_k=0)) == {0, 1, 2, 3}
    assert set(drawn(logits, top_p=0.79)) == {0, 1}
    assert set(drawn(logits, top_p=0.81)) == {0, 1, 2}
    assert set(drawn(logits, top_p=0.001)) == {0}  # never nothing
    assert set(drawn(logits, min_p=0.25)) == {0, 1, 2}
    assert drawn(logits, temperature=0.5)[0] > counts[0] > drawn(logits, temperature=2.0)[0]
    # token 0 is the context: log(0.5) * 4 makes it the least likely but one
    assert drawn(logits, repetition_penalty=4.0)[0] < counts[0] / 4
    assert draw(torch.tensor([[2.0, 1.5]]), torch.tensor([[0]]), temperature=0) == 0
    penalized = dict(temperature=0, repetition_penalty=2.0)
    assert draw(torch.tensor([[2.0, 1.5]]), torch.tensor([[0]]), **penalized) == 1


@pytest.mark.parametrize("fields", [*VARIANTS, {"zero_init": True}])
def test_every_parameter_learns(fields):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SMALL, **fields}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        model(tokens(4, 16), tokens(4, 16, seed=2)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        assert not torch.equal(p, start[name]), name


def test_dropout_drops_a_share_and_keeps_the_mean():
    torch.manual_seed(0)
    for p in (0.001, 0.1, 0.5):
        y = dropout(torch.ones(500, 1001), p, True)
        share = max(1, round(256 * p)) / 256  # the nearest that a byte can decide
        assert abs((y == 0).float().mean() - share) < 0.002 and abs(y.mean() - 1) < 0.005
        assert len(y.unique()) == 2
    x = torch.ones(4)
    assert dropout(x, 0.5, False) is x and torch.equal(dropout(x, 0.0, True), x)


@pytest.mark.parametrize("T", [1, 2, 64])
def test_attention_written_out_equals_fused_attention(T):
    torch.manual_seed(0)
    leaves = [torch.randn(2, 3, T, 8, requires_grad=True) for _ in range(3)]
    q, k, v = (leaf.bfloat16() for leaf in leaves)  # bf16 is written out, fp32 is fused
    y = attention(q, k, v, past=0, window=0, p=0.0).float()
    expected = F.scaled_dot_product_attention(*leaves, is_causal=True)
    torch.testing.assert_close(y, expected, atol=0.03, rtol=0.03)
    got, wanted = (torch.autograd.grad(out.square().sum(), leaves) for out in (y, expected))
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).norm() <= 0.03 * b.norm() + 1e-3
    assert torch.equal(attention(*leaves, past=0, window=0, p=0.0), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("past", [0, 3, 20])
def test_a_window_equals_dense_attention_with_the_band_as_its_mask(past, dtype):
    q, k, v = torch.randn(3, 2, 4, 40, 16, dtype=dtype).unbind()
    i, j = torch.arange(40)[:, None], torch.arange(40)
    band = (j <= i) & (j > i - 8)  # a token sees itself and the seven before
    expected = F.scaled_dot_product_attention(q, k, v, band)
    y = attention(q[:, :, past:], k, v, past=past, window=8, p=0.0)
    torch.testing.assert_close(y, expected[:, :, past:], atol=2e-2 if past == 0 else 1e-2, rtol=0)


def test_every_second_layer_has_the_window():
    model = small(window=4)
    assert [block.attn.window for block in model.transformer.h] == [0, 4, 0]
    banded = small(window=4, n_layer=2)
    idx = tokens(1, 16)
    dense = small(n_layer=2)
    assert torch.allclose(banded(idx)[:, :4], dense(idx)[:, :4], atol=1e-5)
    assert not torch.allclose(banded(idx)[:, 5:], dense(idx)[:, 5:], atol=1e-3)


def test_attention_dropout_keeps_the_mean():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    draws = [attention(q, k, v, past=0, window=0, p=0.3) for _ in range(4000)]
    exact = attention(q, k, v, past=0, window=0, p=0.0)
    assert not torch.equal(draws[0], draws[1])
    assert (torch.stack(draws).mean(0) - exact).abs().max() < 0.08


@pytest.mark.parametrize("fields", VARIANTS[:2])
def test_the_loss_in_chunks_is_the_loss(fields):
    whole, chunked = small(**fields), small(**fields, loss_chunk=5)
    idx, targets = tokens(2, 16), tokens(2, 16, seed=2)
    targets[0, :7] = -1
    for reduction in ("mean", "sum"):
        losses = [model(idx, targets, reduction) for model in (whole, chunked)]
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
    for p, q in zip(whole.parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fields", VARIANTS[:2])
def test_int8_weights_are_a_small_change(fields):
    sizes = dict(vocab_size=65, block_size=32, n_layer=2, n_head=2, n_embd=64)
    torch.manual_seed(0)
    exact, rounded = GPT(GPTConfig(**sizes, **fields)), GPT(GPTConfig(**sizes, **fields))
    rounded.load_state_dict(exact.state_dict())
    replace_linear(rounded, Int8Linear).bfloat16()
    assert not [m for m in rounded.modules() if isinstance(m, torch.nn.Linear)]
    for rows in (1, 3):  # few tokens, and more of them than are multiplied as bytes
        idx = tokens(rows, 5)
        a, b = exact(idx), rounded(idx)
        assert (a - b).norm() < 0.02 * a.norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_products_of_few_rows_are_those_of_many(bias, dtype, tolerance):
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 200, bias=bias).to(dtype)
    ours, exact = FewRowsLinear(linear), copy.deepcopy(linear).float()
    for shape in ((1, 1), (1, 3), (2, 20)):
        x = torch.randn(*shape, 96).to(dtype)
        assert ours(x).dtype == dtype
        torch.testing.assert_close(ours(x).float(), exact(x.float()), atol=tolerance, rtol=0.01)


def test_gpt2_124m_has_its_published_shape():
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257))
    padding = (50304 - 50257) * 768
    assert sum(p.numel() for p in model.parameters()) - padding == 124_439_808


def test_a_shorter_block_size_crops_positions():
    model, idx = small(), tokens(1, 8)
    cropped = GPT.from_weights({**SMALL, "block_size": 8}, model.state_dict()).eval()
    torch.testing.assert_close(cropped(idx), model(idx))
    assert cropped.transformer.wpe.weight.shape == (8, 32)


def test_heads_that_do_not_divide_the_width_are_one_sentence():
    with pytest.raises(UserError, match=r"n_embd=30 .* n_head=4"):
        GPTConfig(vocab_size=65, n_embd=30, n_head=4)
    with pytest.raises(UserError, match="even number"):
        GPTConfig(vocab_size=65, n_embd=12, n_head=4, rotary=True)


def test_compiled_equals_eager():
    idx, targets = tokens(2, 16), tokens(2, 16, seed=2)
    for fields, few_graded in zip(VARIANTS[:2], (False, True), strict=True):
        model = small(**fields)
        model.few_graded = few_graded
        if few_graded:
            targets[:, :14] = -1
        eager = model(idx, targets)
        eager.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        assert "done" in runtime.compile_model(model, idx, targets, nullcontext())
        loss = model(idx, targets)
        loss.backward()
        torch.testing.assert_close(loss, eager)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, gradients[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("fields", [VARIANTS[0], {**VARIANTS[1], "window": 4}])
def test_compiled_generation_equals_eager_past_block_size_and_for_another_text(fields):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, cache = small(**fields).to(device), KVCache(16)
    texts = [tokens(2, 7), tokens(2, 1, seed=2), tokens(2, 40, seed=3)]
    texts = [idx.to(device) for idx in texts]
    expected = [continuation(model, idx, 20, temperature=0) for idx in texts]
    assert "done" in runtime.compile_generation(model, texts[0], cache)
    with torch.compiler.set_stance("fail_on_recompile"):  # it is compiled once
        for idx, wanted in zip(texts, expected, strict=True):
            cache.clear()
            assert torch.equal(continuation(model, idx, 20, temperature=0, use_cache=cache), wanted)
