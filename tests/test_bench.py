"""bench.py measures what it says: the figures hang together, and it takes what train.py takes."""

import json

from conftest import ROOT, TINY

from model import GPT, GPTConfig


def test_the_figures_hang_together(script, toy, tmp_path):
    arguments = ["--dataset=toy", *TINY, "--optimizer=muon", "--compile=False", "--updates=4"]
    generation = ["--new_tokens=12", "--prompt_tokens=3", "--num_samples=2"]
    script("bench.py", *arguments, *generation, "--json_file=figures.jsonl", "--profile=trace.json")
    (line,) = (tmp_path / "figures.jsonl").read_text().splitlines()
    got = json.loads(line)
    config = GPTConfig(35, 16, n_layer=2, n_head=2, n_embd=32)
    seconds = got["update"] / 1e3
    assert 0 < got["update, fastest"] <= got["update"]
    assert abs(got["training"] * seconds / (4 * 16) - 1) < 1e-6
    flops = GPT(config).flops_per_token() * 4 * 16
    assert abs(got["training, arithmetic"] * 1e12 * seconds / flops - 1) < 1e-6
    assert got["peak memory"] > 50 and got["data"] > 0 and got["prefill"] > 0
    weights = 4 * (2 * 12 * 32 * 32 + 64 * 32 + 2 * 13 * 32)  # matrices, head, biases and gains
    assert abs(got["weights read"] * 1e9 / (got["generation"] / 2) / weights - 1) < 1e-3
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any("addmm" in event.get("name", "") for event in events)


def test_a_config_whose_data_is_missing_is_measured_on_random_tokens(script):
    tiny = [*TINY, "--n_embd=16", "--n_layer=1", "--updates=1", "--new_tokens=2", "--compile=False"]
    generation = ["--generation_dtype=int8", "--generation_compile"]
    out = script("bench.py", ROOT / "config" / "gpt2.py", *tiny, *generation).stdout
    assert "compile  done" in out
    assert "random tokens" in out and "vocabulary" not in out
    assert all(name in out for name in ("update", "training", "peak memory", "generation"))


def test_a_mistake_is_one_sentence(script):
    assert "the nearest is batch_size" in script("bench.py", "--batchsize=3", status=2).stderr
    assert "n_head=5" in script("bench.py", *TINY, "--n_head=5", status=2).stderr
