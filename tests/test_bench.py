"""tools/bench.py measures what it says: the figures fit together; it takes what train.py takes."""

import json

from conftest import ROOT, TINY

from model import GPT, GPTConfig


def test_the_figures_fit_together(script, toy, tmp_path):
    arguments = ["--dataset=toy", *TINY, "--optimizer=muon", "--compile=False", "--updates=4"]
    generation = ["--new_tokens=12", "--prompt_tokens=3", "--num_samples=2"]
    script("tools.bench", *arguments, *generation, "--json_file=figures.jsonl", "--profile=t.json")
    (line,) = (tmp_path / "figures.jsonl").read_text().splitlines()
    got = json.loads(line)
    assert 0 < got["update, fastest"] <= got["update"]
    assert 0.2 < got["training"] * got["update"] / 1e3 / (4 * 16) < 5
    assert got["parameters"] == sum(
        p.numel() for p in GPT(GPTConfig(35, 16, n_layer=2, n_head=2, n_embd=32)).parameters()
    )
    assert got["peak memory"] > 50 and got["prefill"] > 0
    weights = 4 * (2 * 12 * 32 * 32 + 64 * 32 + 2 * 13 * 32)  # matrices, head, biases and gains
    assert abs(got["weights read"] * 1e9 / (got["generation"] / 2) / weights - 1) < 1e-3
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert any("addmm" in event.get("name", "") for event in events)


def test_a_config_whose_data_is_missing_is_measured_on_random_tokens(script):
    tiny = [*TINY, "--n_embd=16", "--n_layer=1", "--updates=1", "--new_tokens=2", "--compile=False"]
    out = script("tools.bench", ROOT / "config" / "gpt2.py", *tiny).stdout
    assert "random tokens" in out and "vocabulary 50257" in out
    assert all(name in out for name in ("update", "training", "peak memory", "generation"))


def test_no_updates_leave_training_alone(script):
    tiny = [*TINY, "--n_embd=16", "--n_layer=1", "--new_tokens=4", "--generation_dtype=int8"]
    out = script("tools.bench", *tiny, "--updates=0", "--generation_compile").stdout
    assert "compile  done" in out and "generation" in out
    assert "training" not in out and "data" not in out


def test_a_mistake_is_one_sentence(script):
    assert "the nearest is batch_size" in script("tools.bench", "--batchsize=3", status=2).stderr
    said = script("tools.bench", *TINY, "--updates=0", "--n_head=5", status=2).stderr
    assert "n_head=5" in said
