"""bench.py measures train.py itself, and its figures hang together."""

import json
import types

import pytest
import torch
from conftest import ROOT, TINY

from core import checkpoint
from core.device import should_compile
from model import GPT, GPTConfig

EAGER = [*TINY, "--compile=False"]
TRAINING_ONLY = "--new_tokens=0"
GENERATION_ONLY = "--updates=0"


@pytest.fixture
def bench(script, tmp_path):
    """A function that runs the tool: what it printed, and the figures that it added to a file."""

    def run(*arguments) -> tuple[str, dict]:
        output = script("tools.bench", *arguments, "--json_file=figures.jsonl").stdout
        lines = (tmp_path / "figures.jsonl").read_text().splitlines()
        return output, json.loads(lines[-1])

    return run


def test_the_figures_of_training_hang_together(bench, toy):
    # of an odd number of steps the median of the times and that of the rates are the same step
    muon = ["--optimizer=muon", "--ramp_iters=50"]  # full batches are timed, whatever the ramp
    output, got = bench(*EAGER, "--dataset=toy", *muon, "--updates=5", TRAINING_ONLY)
    model = GPT(GPTConfig(28, 16, n_layer=2, n_head=2, n_embd=32))
    tokens, seconds = 4 * 16, got["update"] / 1e3
    assert 0 < got["update, fastest"] <= got["update"]
    assert got["training"] * seconds == pytest.approx(tokens)
    flops = model.flops_per_token() * tokens
    assert got["training, arithmetic"] * 1e12 * seconds == pytest.approx(flops)
    assert got["parameters"] == sum(p.numel() for p in model.parameters())
    assert got["peak memory"] > 50 and "compilation" not in got and "generation" not in got
    assert got["torch"] == torch.__version__ and got["command"][:3] == [
        "python",
        "-m",
        "tools.bench",
    ]
    assert "of 5" in output


def test_it_runs_train_with_its_settings_for_a_few_steps(bench, toy, tmp_path):
    options = ["--batch_size=6", "--optimizer=muon", "--eval_only", "--init_from=auto"]
    output, _ = bench(*EAGER, "--dataset=toy", *options, "--updates=1", TRAINING_ONLY)
    assert "step 3/3" in output  # two steps come before the timed one
    assert "6 sequences of 16 tokens" in output and "muon " in output
    assert "step 3: train_loss" in output and "step 0: train_loss" not in output
    assert not (tmp_path / "out").exists()


def test_the_figures_of_generation_hang_together(bench):
    options = ["--new_tokens=12", "--prompt_tokens=3", "--num_samples=2", "--untied_head"]
    output, got = bench(*TINY, GENERATION_ONLY, *options)
    assert got["prefill"] > 0 and got["memory reads"] > 0
    padded = 50304  # GPT-2's vocabulary, since there is no dataset
    weights = 4 * (2 * 12 * 32 * 32 + padded * 32 + 2 * 13 * 32)  # matrices, head, biases and gains
    assert got["weights read"] * 1e9 / (got["generation"] / 2) == pytest.approx(weights)
    assert "update" not in got and "random tokens" not in output


def test_a_dataset_gives_its_vocabulary_and_a_checkpoint_its_own_shape(bench, script, toy):
    sizes = [bench(*EAGER, "--dataset=toy", GENERATION_ONLY, "--new_tokens=2")[1]["parameters"]]
    script("train.py", *EAGER, "--dataset=toy", "--max_iters=1", "--out_dir=run", "--n_embd=64")
    start = ["--init_from=run", "--new_tokens=2"]
    sizes.append(bench(*TINY, GENERATION_ONLY, *start)[1]["parameters"])
    loaded = checkpoint.load(str(toy.parent.parent / "run"))
    trained = GPT.from_state_dict(loaded["model_args"], loaded["model"])
    assert sizes[1] == sum(p.numel() for p in trained.parameters()) > sizes[0]


def test_a_config_whose_data_cannot_be_had_is_measured_on_random_tokens(bench):
    tiny = [*EAGER, "--n_embd=16", "--n_layer=1", "--updates=1", "--new_tokens=2"]
    generation = ["--generation_dtype=bfloat16", "--generation_compile"]
    output, got = bench(ROOT / "config" / "gpt2.py", *tiny, *generation)
    assert "tokens of random tokens" in " ".join(output.split())
    assert {"update", "training", "generation"} <= set(got)
    away = "--prepare=prepare_shakespeare.py --url=http://127.0.0.1:9/input.txt"
    output, _ = bench(*tiny, "--dataset=missing", away, TRAINING_ONLY)
    assert "tokens of random tokens" in " ".join(output.split())


def test_missing_data_is_prepared_as_train_prepares_it(bench, tmp_path):
    (tmp_path / "my.txt").write_text("to be or not to be\n" * 100)
    prepare = ["--dataset=shakespeare_char", "--prepare=prepare_shakespeare.py --input=my.txt"]
    output, _ = bench(*EAGER, *prepare, "--updates=1", TRAINING_ONLY)
    assert "tokens of my.txt" in output


def test_whether_to_compile_is_decided_for_the_whole_run(bench, toy):
    model, long = GPT(GPTConfig(28, 16, n_layer=2, n_head=2, n_embd=32)), 10**9
    data = {"device": torch.device("cpu"), "batch_size": 4, "T": 16, "world_size": 1}
    data = types.SimpleNamespace(**data, full_batches=float)
    assert should_compile("auto", model, data, 0, long)
    assert not should_compile("auto", model, data, 0, 3)
    assert not should_compile("auto", model, data, long - 3, long)  # a run that is almost done
    options = ["--dataset=toy", "--updates=1", TRAINING_ONLY]
    compiled, got = bench(*TINY, *options, f"--max_iters={long}")
    assert "float32, compiled" in compiled and got["compilation"] >= 0
    eager, got = bench(*TINY, *options, "--max_iters=3")
    assert "float32, eager" in eager and "compilation" not in got


def test_several_processes_share_the_batch(bench, toy):
    two = ["--processes=2", "--updates=3", TRAINING_ONLY]
    output, got = bench(*EAGER, "--dataset=toy", *two)
    assert "device   2 x" in output
    assert got["training"] * got["update"] / 1e3 == pytest.approx(4 * 16)


def test_the_profile_is_a_trace_of_train(bench, toy, tmp_path):
    options = ["--dataset=toy", GENERATION_ONLY, TRAINING_ONLY, "--profile=trace.json"]
    _, got = bench(*EAGER, *options)
    assert "--profile=trace.json" in got["command"]
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"aten::addmm", "autograd::engine::evaluate_function: AddmmBackward0"} <= names


def test_a_mistake_is_one_sentence(script, toy):
    assert "the nearest is batch_size" in script("tools.bench", "--batchsize=3", status=2).stderr
    assert "n_head=5" in script("tools.bench", *TINY, "--n_head=5", status=2).stderr
    wrong = script("tools.bench", *TINY, "--dataset=toy", "--dtype=float16", status=2)
    assert "float16" in wrong.stderr  # train.py's own sentence
