"""Generation: with a cache as without, sampling as its options say, int8, compiled steps."""

import math
from collections import Counter

import pytest
import torch
from conftest import VARIANTS, greedy, small, tokens

from core import generate as generation
from core.extras import decoding, int8
from core.extras.int8 import Int8Linear
from core.generate import (
    KVCache,
    Sampling,
    compile_decoding,
    generate,
    prepare_for_inference,
    sample_next_token,
)
from core.kernels import PackedLinear, replace_linear
from model import GPT, GPTConfig


def continuation(model, idx, n, seed=None, stop_tokens=(), **sampling) -> torch.Tensor:
    sampling = Sampling(**{"top_k": 0, "temperature": 1.0, **sampling})
    return torch.stack(list(generate(model, idx, n, sampling, seed, stop_tokens)), dim=1)


def greedy_without_a_cache(model, idx, n) -> torch.Tensor:
    """The reference: everything is read again for each token."""
    block_size, new = model.config.block_size, []
    context = idx[:, -block_size:]
    for _ in range(n):
        new.append(model(context)[:, -1].argmax(-1, keepdim=True))
        context = torch.cat((context, new[-1]), dim=1)
        if context.size(1) > block_size:
            context = context[:, -(block_size // 2) :]
    return torch.cat(new, dim=1)


@pytest.mark.parametrize("fields", VARIANTS)
def test_cached_logits_equal_uncached_in_any_split_of_the_tokens(fields):
    model, idx = small(**fields), tokens(2, 16)
    whole = model(idx)
    for parts in ([16], [5, 1, 1, 9], [1] * 16):
        cache = KVCache(model, 2, 16)
        for part in idx.split(parts, 1):
            cache.advance(part.size(1))
            last = whole[:, cache.length - 1]
            torch.testing.assert_close(model(part, cache=cache)[:, 0], last, atol=1e-4, rtol=0)


def test_a_cache_that_is_too_small_is_noticed():
    model = small()
    with pytest.raises(AssertionError, match="the cache is full"):
        list(generate(model, tokens(1, 4), 10, Sampling(), cache=KVCache(model, 1, 8)))


@pytest.mark.parametrize("fields", VARIANTS)
def test_a_cache_changes_no_token_even_past_block_size(fields):
    model = small(**fields)
    for length in (1, 7, 16, 40):  # the last is longer than block_size
        idx = tokens(2, length)
        cached = greedy(model, idx, 40)
        assert torch.equal(cached, greedy_without_a_cache(model, idx, 40))
        alone = [greedy(model, sequence[None], 40)[0] for sequence in idx]
        assert torch.equal(cached, torch.stack(alone))


def test_the_same_seed_samples_the_same_text():
    model, idx = small(), tokens(1, 4)
    a, b, c = (continuation(model, idx, 30, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_padding_of_the_vocabulary_is_never_sampled_nor_a_target():
    model = small()
    assert model.lm_head.weight.shape[0] == 128
    with torch.no_grad():
        model.lm_head.weight[65:] = 100.0  # tied: the padded rows would win every time
    assert continuation(model, tokens(8, 4), 50, temperature=3.0, seed=0).max() < 65
    assert model(tokens(1, 4)).shape == (1, 4, 65)


def test_stop_tokens_end_a_sequence_and_then_the_batch():
    model, idx = small(), tokens(4, 4)
    free = continuation(model, idx, 30, temperature=2.0, seed=3)
    stop = int(free[0, 3])
    stopped = continuation(model, idx, 30, temperature=2.0, seed=3, stop_tokens=(stop,))
    assert (stopped == -1).any() and (stopped >= 0).any()
    for row, full in zip(stopped.tolist(), free.tolist(), strict=True):
        end = full.index(stop) if stop in full else len(full)
        assert row == (full[:end] + [-1] * len(full))[: len(row)]
    every = tuple(range(65))
    assert list(generate(model, idx, 30, Sampling(), stop_tokens=every)) == []


def sampled(logits, n=4000, **options) -> Counter:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([logits]).repeat(n, 1)
    context = torch.zeros(n, 1, dtype=torch.long)
    options = Sampling(**{"top_k": 0, "temperature": 1.0, **options})
    return Counter(sample_next_token(logits, context, options, generator).tolist())


def test_sampling_keeps_exactly_what_each_option_says():
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    counts = sampled(logits)
    for token, p in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert abs(counts[token] / 4000 - p) < 0.03
    assert set(sampled(logits, temperature=0)) == {0}
    assert set(sampled(logits, top_k=2)) == {0, 1}
    assert set(sampled(logits, top_k=0)) == {0, 1, 2, 3}
    assert set(sampled(logits, top_p=0.79)) == {0, 1}
    assert set(sampled(logits, top_p=0.81)) == {0, 1, 2}
    assert set(sampled(logits, top_p=0.001)) == {0}  # never nothing
    assert set(sampled(logits, min_p=0.25)) == {0, 1, 2}
    assert sampled(logits, temperature=0.5)[0] > counts[0] > sampled(logits, temperature=2.0)[0]
    # token 0 is the context: log(0.5) * 4 makes it the least likely but one
    assert sampled(logits, repetition_penalty=4.0)[0] < counts[0] / 4
    logits, context = torch.tensor([[2.0, 1.5]]), torch.tensor([[0]])
    assert sample_next_token(logits, context, Sampling(temperature=0)) == 0
    penalized = Sampling(temperature=0, repetition_penalty=2.0)
    assert sample_next_token(logits, context, penalized) == 1


@pytest.mark.parametrize("fields", VARIANTS[:2])
def test_int8_weights_are_a_small_change(fields):
    sizes = dict(vocab_size=65, block_size=32, n_layer=2, n_head=2, n_embd=64)
    torch.manual_seed(0)
    exact, rounded = GPT(GPTConfig(**sizes, **fields)), GPT(GPTConfig(**sizes, **fields))
    rounded.load_state_dict(exact.state_dict())
    replace_linear(rounded, Int8Linear)
    assert not [m for m in rounded.modules() if isinstance(m, torch.nn.Linear)]
    idx = tokens(3, 5)
    assert (exact(idx) - rounded(idx)).norm() < 0.02 * exact(idx).norm()


@pytest.mark.parametrize("cpu", ["as it is", "no VNNI", "no FBGEMM"])
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_product_is_close_and_no_row_changes_another(monkeypatch, cpu, bias):
    if cpu == "no VNNI":
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    if cpu == "no FBGEMM":
        monkeypatch.setattr(int8, "has_fbgemm", lambda: False)
    torch.manual_seed(0)
    exact = torch.nn.Linear(64, 32, bias)
    rounded = Int8Linear(exact)
    x = torch.randn(3, 2, 64) + 1
    x[1] *= 100  # one scale for all rows would round the others to nothing
    with torch.inference_mode():
        expected, found = exact(x), rounded(x)
        error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)  # (3, 2)
        assert error.max() < 0.03
        torch.testing.assert_close(rounded(x[1:])[-1], found[-1])
        alone = rounded(x[2, 1:])  # on x86 one row has a kernel of its own
        assert (alone - expected[2, 1:]).norm() < 0.03 * expected[2, 1:].norm()


def test_weights_that_cannot_be_packed_give_the_same_tokens(monkeypatch):
    packed, plain = small(), small()
    packed = prepare_for_inference(packed, "auto", torch.device("cpu"))
    monkeypatch.setattr(generation, "can_pack", lambda dtype: False)
    plain = prepare_for_inference(plain, "auto", torch.device("cpu"))
    assert isinstance(packed.lm_head, PackedLinear)
    assert type(plain.lm_head) is torch.nn.Linear
    assert torch.equal(greedy(packed, tokens(2, 5), 8), greedy(plain, tokens(2, 5), 8))


@pytest.mark.parametrize("fields", VARIANTS)
def test_a_cache_carried_from_turn_to_turn_changes_no_token(fields):
    model = small(block_size=64, **fields)
    cache, said = KVCache(model, 1, 64), torch.zeros(1, 0, dtype=torch.long)
    for turn in range(4):
        said = torch.cat((said, tokens(1, 5, seed=turn)), dim=1)
        reply = list(generate(model, said, 6, Sampling(temperature=0), cache=cache))
        reply = torch.stack(reply, dim=1)
        assert torch.equal(reply, greedy(model, said, 6))
        assert cache.length == said.size(1) + 5
        said = torch.cat((said, reply), dim=1)


@pytest.mark.parametrize("compile", [decoding.trace, decoding.compile_to_graph])
@pytest.mark.parametrize("fields", [VARIANTS[0], {**VARIANTS[1], "window": 4}])
def test_compiled_generation_equals_eager_past_block_size_and_for_another_text(fields, compile):
    on_gpu = torch.cuda.is_available() and compile == decoding.compile_to_graph
    device = "cuda" if on_gpu else "cpu"
    model = small(**fields).to(device)
    texts = [tokens(2, 7), tokens(2, 1, seed=2), tokens(2, 40, seed=3)]
    texts = [idx.to(device) for idx in texts]
    expected = [greedy(model, idx, 20) for idx in texts]
    cache = KVCache(model, 2, 16)
    decode, outcome = compile(model, cache)
    assert decode is not model and (not outcome or "done" in outcome)
    cache.reset()
    options = {"sampling": Sampling(temperature=0), "cache": cache, "decode": decode}
    with torch.compiler.set_stance("fail_on_recompile"):  # it is compiled once
        for idx, wanted in zip(texts, expected, strict=True):
            cache.reset()
            found = torch.stack(list(generate(model, idx, 20, **options)), dim=1)
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("fields", VARIANTS)
def test_traced_decoding_has_the_logits_of_eager_code_to_the_bit(dtype, fields):
    model = prepare_for_inference(small(block_size=64, **fields), dtype, torch.device("cpu"))
    for batch in (1, 3):
        caches = [KVCache(model, batch, 64) for _ in range(2)]
        decode = compile_decoding(model, caches[0])
        assert decode is not model
        with torch.inference_mode():
            for T in (5, 1, 1, 2, *[1] * 20):
                idx, logits = tokens(batch, T, seed=T), []
                for cache, step in zip(caches, (decode, model), strict=True):
                    cache.advance(T)
                    logits.append((step if T == 1 else model)(idx, cache=cache))
                assert torch.equal(*logits)


def test_what_cannot_be_traced_stays_eager(monkeypatch, capsys):
    def fail(*arguments, **options):
        raise RuntimeError("no such operation\nand more")

    monkeypatch.setattr(torch.jit, "trace", fail)
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: None)  # it would stay
    model = small()
    assert compile_decoding(model, KVCache(model, 1, 16)) is model
    said = "compile  failed, continuing without it: RuntimeError: no such operation\n"
    assert capsys.readouterr().err == said


def test_decoding_is_compiled_where_that_pays():
    model = small()
    cache = KVCache(model, 1, 16)
    assert compile_decoding(model, cache, "auto", 100) is model
    assert compile_decoding(model, cache, "auto", 1000) is not model
    assert compile_decoding(model, cache, False) is model


def test_tokens_that_stand_for_no_text_are_never_sampled():
    torch.manual_seed(0)
    logits, context = torch.randn(1000, 8), torch.zeros(1000, 1, dtype=torch.long)
    logits[:, 5] = 9.0
    for options in ({"temperature": 0}, {"temperature": 5, "top_k": 0}, {"repetition_penalty": 2}):
        assert (sample_next_token(logits.clone(), context, Sampling(**options)) == 5).any()
        without = Sampling(**options, unsampled=(5, 6))
        found = sample_next_token(logits.clone(), context, without)
        assert set(found.tolist()) <= {0, 1, 2, 3, 4, 7}
