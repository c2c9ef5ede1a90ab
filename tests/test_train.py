"""The loop: exact resume, many processes equal one, and what becomes of a run that is stopped."""

import re
import signal
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, start_torchrun

from core import checkpoint, log
from core.dataset import Writer
from core.tokenizer import ByteTokenizer
from model import GPT, GPTConfig

RUN = [*TINY, "--dataset=toy", "--eval_interval=15", "--max_iters=40", "--compile=False"]
MODERN = ["--rotary", "--rms_norm", "--qk_norm", "--activation=relu2", "--zero_init", "--smear=2"]


def losses(folder) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in log.read(f"{folder}/log.jsonl") if "loss" in r}


def evaluations(folder) -> dict[int, float]:
    return {r["step"]: r["val_loss"] for r in log.read(f"{folder}/log.jsonl") if "val_loss" in r}


def weights(folder) -> dict[str, torch.Tensor]:
    return checkpoint.load(f"{folder}/ckpt.pt")["model"]


def assert_same_run(a, b):
    assert losses(a) == losses(b) and evaluations(a) == evaluations(b)
    first, second = weights(a), weights(b)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer=adamw"],
        ["--optimizer=muon", *MODERN],
        ["--optimizer=muon", *MODERN, "--dtype=bfloat16", "--compile=True"],
    ],
    ids=["adamw-eager", "muon-eager", "muon-bf16-compiled"],
)
def test_resumed_equals_uninterrupted_bit_for_bit(script, toy, tmp_path, options):
    run = [*RUN, "--dropout=0.1", "--lr_decay_iters=40", *options]
    script("train.py", *run, "--out_dir=straight")
    script("train.py", *run, "--out_dir=resumed", "--max_iters=20")
    # how often a run is evaluated changes nothing either
    script("train.py", *run, "--out_dir=resumed", "--init_from=resume", "--eval_interval=7")
    assert losses(tmp_path / "straight") == losses(tmp_path / "resumed")
    assert sorted(losses(tmp_path / "resumed")) == list(range(1, 41))
    first, second = weights(tmp_path / "straight"), weights(tmp_path / "resumed")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_is_stopped_or_killed_resumes_as_if_it_never_was(script, toy, tmp_path):
    run = [*RUN, "--dropout=0.1", "--max_iters=400"]
    script("train.py", *run, "--out_dir=straight")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        folder = tmp_path / number.name
        stopped = subprocess.Popen(
            [sys.executable, ROOT / "train.py", *run, f"--out_dir={folder}"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in stopped.stdout:
            if line.startswith("step 50/"):
                stopped.send_signal(number)
        status = stopped.wait(60)
        done = checkpoint.load(f"{folder}/ckpt.pt")["step"]
        if number == signal.SIGKILL:  # no more is lost than the steps since the last save
            assert status == -number and done >= 45
            with open(folder / "log.jsonl", "a") as file:
                file.write('{"step": 51, "lo')  # a line that was cut off
        else:
            assert status == 128 + number and 50 <= done < 400
        script("train.py", *run, f"--out_dir={folder}", "--init_from=auto")
        assert_same_run(tmp_path / "straight", folder)


def stop_after(line_start: str, run: list[str], folder, number) -> str:
    """Send a run a signal once it has printed such a line; all that it printed."""
    command = [sys.executable, ROOT / "train.py", *run, f"--out_dir={folder}"]
    process = subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(line_start):
            process.send_signal(number)
    assert process.wait(60) == 128 + number
    return "".join(lines)


@pytest.mark.parametrize("stop", [3, 5, 9])
def test_best_pt_is_the_best_of_the_log_after_a_stop_in_an_evaluation(script, toy, tmp_path, stop):
    run = [*RUN, "--eval_interval=1", "--eval_iters=2000", "--max_iters=12"]  # mostly evaluation
    stop_after(f"step {stop}/", run, tmp_path / "run", signal.SIGTERM)
    stopped_at = checkpoint.load(f"{tmp_path}/run/ckpt.pt")["step"]
    for end in (stopped_at, 12):  # first nothing but the evaluation that was cut short
        script("train.py", *run, "--out_dir=run", "--init_from=resume", f"--max_iters={end}")
        found, best = evaluations(tmp_path / "run"), checkpoint.load(f"{tmp_path}/run/best.pt")
        assert found[best["step"]] == min(found[step] for step in found if step > 0)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_and_a_clusters_warning_save_too(toy, tmp_path, number):
    run = [*RUN, "--max_iters=100000", "--eval_interval=0"]
    said = stop_after("step 20/", run, tmp_path / "run", number)
    assert "stopping after this step" in said and "--init_from=resume continues" in said
    assert checkpoint.load(f"{tmp_path}/run/ckpt.pt")["step"] >= 20


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


DISTRIBUTED = [*RUN, "--gradient_accumulation_steps=3", "--max_iters=20", "--optimizer=muon"]


@pytest.mark.parametrize("how", ["plain", "masked", "compiled"])
def test_two_processes_equal_one(script, toy, numbers, tmp_path, how):
    run = [
        *DISTRIBUTED,
        "--ramp_iters=9",
        "--warmup_tokens=300",
    ]  # one has none of the first sequence
    if how == "masked":  # sequences with more and fewer targets weigh as they do in one process
        numbers(mask=lambda i: (i // 10) % 7 == 0)
        run.append("--dataset=numbers")
    if how == "compiled":
        run.append("--n_embd=128")  # more than DDP's first bucket: the compiler splits the graph
    script("train.py", *run, "--out_dir=one")
    if how == "compiled":
        run.append("--compile=True")
    two = start_torchrun(tmp_path, *run, "--out_dir=two")
    out = two.communicate(timeout=300)[0]
    assert two.returncode == 0, out
    assert ("compile  done" in out) == (how == "compiled")
    assert "device   2 x" in out and out.count("step 20/20") == 1  # printed once
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert sorted(two) == list(range(1, 21))
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4
    one, two = (evaluations(tmp_path / name) for name in ("one", "two"))
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4


def test_the_schedule_and_the_log_count_the_tokens_of_a_growing_batch(script, toy, tmp_path):
    ramp = ["--ramp_iters=4", "--warmup_tokens=640", "--max_iters=8", "--batch_size=16"]
    ramp.append("--peak_tflops=0.25")
    script("train.py", *RUN, *ramp, "--lr_schedule=constant", "--out_dir=run")
    records = [r for r in log.read(f"{tmp_path}/run/log.jsonl") if "loss" in r]
    sizes = [1, 4, 8, 12, 16, 16, 16, 16]  # sequences of 16 tokens: a sixteenth and up
    assert [r["tokens"] for r in records] == [16 * sum(sizes[: i + 1]) for i in range(8)]
    # 640 tokens are 2.5 full batches
    before = [sum(sizes[:i]) / 16 for i in range(8)]
    expected = [0.01 * min(1, (n + 1) / 3.5) if n < 2.5 else 0.01 for n in before]
    assert [r["lr"] for r in records] == pytest.approx(expected)
    flops = GPT(GPTConfig(28, 16, n_layer=2, n_head=2, n_embd=32)).flops_per_token()
    assert all(r["mfu"] == pytest.approx(r["tokens_per_s"] * flops / 0.25e12) for r in records)


def test_two_machines_equal_one(script, toy, tmp_path):
    script("train.py", *DISTRIBUTED, "--out_dir=one")
    port = free_port()
    agents = [
        start_torchrun(
            tmp_path,
            *DISTRIBUTED,
            "--out_dir=two",
            launcher=(
                *("--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1"),
                *("--master_addr=127.0.0.1", f"--master_port={port}"),
            ),
        )
        for node in (0, 1)
    ]
    for agent in agents:
        out = agent.communicate(timeout=300)[0]
        assert agent.returncode == 0, out
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert sorted(two) == sorted(one) and all(abs(one[s] - two[s]) < 1e-4 for s in one)


def test_sigterm_to_torchrun_saves_too(script, toy, tmp_path):
    run = start_torchrun(tmp_path, *DISTRIBUTED, "--max_iters=100000", "--out_dir=two")
    for line in run.stdout:
        if line.startswith("step 30/"):
            run.send_signal(signal.SIGTERM)
    run.wait(60)
    assert checkpoint.load(f"{tmp_path}/two/ckpt.pt")["step"] >= 30


def test_a_batch_that_the_processes_cannot_divide_is_one_sentence(toy, tmp_path):
    run = start_torchrun(tmp_path, *RUN, "--batch_size=5", "--out_dir=two")
    out = run.communicate(timeout=300)[0]
    assert run.returncode != 0
    sentence = "batch_size=5 is not divisible by 2 processes."
    assert out.count(sentence) == 1 and sentence in out.splitlines()[-2]  # the report's last words


@pytest.mark.parametrize(
    ("option", "sentence"),
    [("--out_dir=file/run", "cannot be written"), ("--learning_rate=1e30", "has diverged")],
)
def test_one_mistake_of_many_processes_is_said_once(toy, tmp_path, option, sentence):
    (tmp_path / "file").touch()
    run = start_torchrun(tmp_path, *RUN, "--warmup_iters=0", option)
    out = run.communicate(timeout=60)[0]
    assert run.returncode != 0 and "[rank" not in out and "terminate called" not in out
    assert out.count(sentence) == 1 and sentence in out.splitlines()[-2]


def test_the_log_and_the_checkpoints_say_what_happened(script, toy, tmp_path):
    run = [*RUN, "--max_iters=30", "--log_interval=10", "--optimizer=muon"]
    script("train.py", *run, "--out_dir=run")
    records = log.read(f"{tmp_path}/run/log.jsonl")
    assert records[0]["config"]["max_iters"] == 30 and records[0]["parameters"] > 1000
    assert {"seed", "n_layer", "optimizer"} <= set(records[0]["config"])
    assert records[0]["source"] == {"name": "toy text"} and "torch" in records[0]["versions"]
    train = [r for r in records if "loss" in r]
    assert [r["step"] for r in train] == [1, 10, 20, 30]
    wanted = {"step", "loss", "lr", "grad_norm", "ms", "tokens_per_s", "mfu", "tokens"}
    assert all(set(r) == wanted for r in train)
    assert train[-1]["tokens"] == 30 * 4 * 16 and train[-1]["mfu"] is None
    found = evaluations(tmp_path / "run")
    assert sorted(found) == [0, 15, 30] and found[30] < found[0]
    latest, best = (checkpoint.load(f"{tmp_path}/run/{n}") for n in ("ckpt.pt", "best.pt"))
    assert latest["step"] == 30 and latest["best_val_loss"] == min(
        found[step] for step in found if step > 0
    )
    assert found[best["step"]] == min(found[step] for step in found if step > 0)
    assert latest["tokenizer"]["kind"] == "char"
    for kind, peak in (("adamw", 0.01), ("muon", 0.02)):  # each rate falls from its own peak
        rates = [group["lr"] for group in latest["optimizers"][kind]["param_groups"]]
        assert rates == pytest.approx([peak * train[-1]["lr"] / 0.01] * 2)


def test_a_worse_evaluation_does_not_replace_the_best(script, toy, tmp_path):
    # a rate this high lets the loss rise again
    run = [*RUN, "--learning_rate=0.3", "--lr_schedule=constant", "--eval_interval=2"]
    script("train.py", *run, "--out_dir=run", "--always_save_checkpoint=False")
    found = evaluations(tmp_path / "run")
    best = checkpoint.load(f"{tmp_path}/run/best.pt")
    assert found[best["step"]] == min(found[step] for step in found if step > 0)
    assert checkpoint.load(f"{tmp_path}/run/ckpt.pt")["step"] == 40


def test_a_diverging_run_stops_with_a_sentence_and_keeps_the_last_good_checkpoint(
    script, toy, tmp_path
):
    run = [*RUN, "--out_dir=run", "--log_interval=5", "--eval_interval=5", "--warmup_iters=0"]
    script("train.py", *run, "--max_iters=10")
    result = script("train.py", *run, "--init_from=resume", "--learning_rate=1e30", status=2)
    assert "diverged" in result.stderr and "--learning_rate" in result.stderr
    kept = checkpoint.load(f"{tmp_path}/run/ckpt.pt")
    assert kept["step"] == 10 and all(p.isfinite().all() for p in kept["model"].values())


def test_starting_over_keeps_the_earlier_run(script, toy, tmp_path):
    script("train.py", *RUN, "--out_dir=run", "--max_iters=5")
    script("train.py", *RUN, "--out_dir=run", "--max_iters=3")
    assert checkpoint.load(f"{tmp_path}/run-1/ckpt.pt")["step"] == 5
    assert checkpoint.load(f"{tmp_path}/run/ckpt.pt")["step"] == 3


def test_resuming_where_all_is_done_or_nothing_is_there(script, toy, tmp_path):
    assert "no checkpoint" in script("train.py", *RUN, "--init_from=resume", status=2).stderr
    script("train.py", *RUN, "--init_from=auto", "--out_dir=run", "--max_iters=5")
    resume = [*RUN, "--out_dir=run", "--init_from=resume"]
    assert "nothing to do" in script("train.py", *resume, "--max_iters=3").stdout
    wrong = script("train.py", *resume, "--optimizer=muon", status=2)
    assert "trained with adamw" in wrong.stderr


def test_fine_tuning_starts_from_a_checkpoints_weights(script, toy, tmp_path):
    script("train.py", *RUN, "--out_dir=first", "--max_iters=30")
    tune = [*RUN, "--init_from=first", "--out_dir=second", "--block_size=8", "--n_layer=5"]
    result = script("train.py", *tune)
    assert "n_layer=2 as in the checkpoint" in result.stdout
    assert evaluations(tmp_path / "second")[0] < evaluations(tmp_path / "first")[0] - 0.5
    assert checkpoint.load(f"{tmp_path}/second/ckpt.pt")["model_args"]["block_size"] == 8


def test_other_data_than_the_checkpoints_is_one_sentence(script, toy, tmp_path):
    script("train.py", *RUN, "--out_dir=run", "--max_iters=2")
    with Writer(str(tmp_path / "data" / "bytes"), ByteTokenizer(), {"name": "b"}) as writer:
        writer.append("train", range(100))
        writer.append("val", range(100))
    result = script("train.py", *RUN, "--init_from=run", "--dataset=bytes", status=2)
    assert "another vocabulary" in result.stderr


def test_masked_examples_report_the_fraction_that_is_correct(script, numbers, tmp_path):
    # each example counts on from a random number; only its last token is a target
    folder = str(tmp_path / "data" / "counting")
    generator = torch.Generator().manual_seed(0)
    with Writer(folder, ByteTokenizer(), {"name": "counting"}, row_length=4) as writer:
        for split, n in (("train", 2000), ("val", 100)):
            starts = torch.randint(20, (n, 1), generator=generator)
            ids = (starts + torch.arange(4)).flatten().tolist()
            writer.append(split, ids, [0, 0, 0, 1] * n)
    run = [*RUN, "--dataset=counting", "--max_iters=150", "--batch_size=32", "--eval_interval=50"]
    script("train.py", *run, "--out_dir=run", "--eval_iters=200")
    records = [r for r in log.read(f"{tmp_path}/run/log.jsonl") if "val_accuracy" in r]
    assert records[0]["val_accuracy"] < 0.2 and records[-1]["val_accuracy"] > 0.95


def test_an_evaluation_without_a_target_is_one_sentence(script, numbers, tmp_path):
    numbers(mask=lambda i: i > 600)  # none of val's 500 tokens
    said = script("train.py", *RUN, "--dataset=numbers", status=2).stderr
    assert "the sequences of val that are evaluated have no target" in said


def test_an_interval_of_zero_evaluates_after_the_last_step_only(script, toy, tmp_path):
    script("train.py", *RUN, "--max_iters=4", "--eval_interval=0", "--out_dir=out")
    assert list(evaluations(tmp_path / "out")) == [4]
    assert {"ckpt.pt", "best.pt"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_eval_only_evaluates_whatever_max_iters_says(script, toy, tmp_path):
    script("train.py", *RUN, "--max_iters=4", "--out_dir=run")
    evaluate = ["--eval_only=True", "--init_from=resume", "--out_dir=run", "--max_iters=2"]
    assert re.search(r"step 4: .*val_loss \d", script("train.py", *RUN, *evaluate).stdout)


def test_eval_only_writes_nothing(script, toy, tmp_path):
    result = script("train.py", *RUN, "--eval_only", "--out_dir=run")
    assert "run      one evaluation, nothing is saved" in result.stdout
    assert re.search(r"step 0: train_loss \d\.\d+, val_loss \d\.\d+", result.stdout)
    assert not (tmp_path / "run").exists()


def test_a_failing_compiler_warns_and_goes_on(script, toy, tmp_path):
    run = [*RUN, "--compile=True", "--max_iters=3", "--out_dir=run"]
    cache = str(tmp_path / "cache")
    result = script("train.py", *run, CXX="/bin/false", TORCHINDUCTOR_CACHE_DIR=cache)
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]
    assert "failed, continuing without it" in result.stdout


def test_a_failing_compiler_stops_none_of_two_processes(toy, torchrun, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    out = torchrun(*DISTRIBUTED, "--compile=True", "--max_iters=3", "--out_dir=run")
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]
    assert "failed, continuing without it" in out


FP16_ON_A_CPU = """
import functools, runpy, sys, torch
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].removesuffix("train.py"))
import core.device
core.device.choose_dtype = lambda name, device: torch.float16
class Scaler(torch.amp.GradScaler):
    def __init__(self, *args, **more):
        super().__init__(*args, **more, init_scale=2.0**24, growth_interval=2)
        self.stepped = 0
    def step(self, optimizer):
        self.stepped += not sum(self._found_inf_per_device(optimizer).values()).item()
        return super().step(optimizer)
    def update(self):
        print("stepped", self.stepped)
        self.stepped = 0
        super().update()
torch.amp.GradScaler = Scaler
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_after_an_overflow_in_fp16_all_optimizers_skip_the_step(toy, tmp_path):
    options = [*RUN, "--optimizer=muon", "--out_dir=run", "--grad_clip=0"]
    command = [sys.executable, "-c", FP16_ON_A_CPU, ROOT / "train.py", *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    stepped = re.findall(r"^stepped (\d)$", result.stdout, re.MULTILINE)
    assert len(stepped) == 40 and set(stepped) == {"0", "2"}
    assert all(p.isfinite().all() for p in weights(tmp_path / "run").values())


def test_wrong_devices_are_one_sentence(script, toy):
    assert "unknown" in script("train.py", *RUN, "--device=tpu", status=2).stderr
    if not torch.cuda.is_available():
        assert "not there" in script("train.py", *RUN, "--device=cuda", status=2).stderr
    assert "float16" in script("train.py", *RUN, "--dtype=float16", status=2).stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_gpu_learns_in_every_format_and_resumes(script, toy, tmp_path, dtype):
    run = [*RUN, "--device=cuda", f"--dtype={dtype}", "--optimizer=muon", "--compile=True"]
    script("train.py", *run, "--out_dir=run", "--max_iters=20")
    script("train.py", *run, "--out_dir=run", "--init_from=resume", timeout=600)
    found = evaluations(tmp_path / "run")
    assert found[40] < found[0] - 0.5
    script("sample.py", "--out_dir=run", "--num_samples=2", "--max_new_tokens=40")


def test_the_loss_of_a_split_does_not_depend_on_the_batch_size(script, toy, tmp_path):
    values = []
    for batch_size in (7, 64):
        options = [f"--batch_size={batch_size}", "--eval_iters=1000", "--eval_only"]
        out = script("train.py", *RUN, *options).stdout
        values.append(float(re.search(r"val_loss ([\d.]+)", out)[1]))
    assert max(values) - min(values) < 1e-3
