"""Runs survive what befalls them: killed ranks, other data, damaged files, gradients of NaN."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY, start_torchrun
from test_train import assert_same_run, free_port, losses, weights

from core import checkpoint, log
from core.dataset import Writer
from core.tokenizer import ByteTokenizer

RUN = [*TINY, "--dataset=toy", "--eval_interval=15", "--max_iters=40", "--lr_decay_iters=40"]
RUN += ["--compile=False"]


def damage(path) -> None:
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)[0]
        file.seek(size // 2)
        file.write(bytes([byte ^ 16]))


@pytest.mark.parametrize("init_from", ["resume", "auto"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    script, toy, tmp_path, init_from
):
    script("train.py", *RUN, "--out_dir=straight")
    script("train.py", *RUN, "--out_dir=run", "--max_iters=30")
    damage(tmp_path / "run" / "ckpt.pt")
    assert (tmp_path / "run" / "best.pt").samefile(tmp_path / "run" / "ckpt.pt")
    said = script("train.py", *RUN, "--out_dir=run", f"--init_from={init_from}").stdout
    assert "is damaged" in said and "steps 15 to 40" in said
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_damaged_checkpoint_never_takes_the_place_of_the_whole_one_before_it(
    script, toy, tmp_path
):
    script("train.py", *RUN, "--out_dir=run", "--max_iters=30")
    damage(tmp_path / "run" / "ckpt.pt")
    kept = (tmp_path / "run" / "ckpt.prev.pt").read_bytes()
    # resumed from ckpt.prev.pt, of step 15; its first save is its last
    script("train.py", *RUN, "--out_dir=run", "--init_from=resume", "--eval_interval=0")
    assert checkpoint.load(f"{tmp_path}/run/ckpt.pt")["step"] == 40
    assert (tmp_path / "run" / "ckpt.prev.pt").read_bytes() == kept
    assert (tmp_path / "run" / "ckpt.pt.damaged").exists()


def test_where_no_checkpoint_is_whole_nothing_starts_over(script, toy, tmp_path):
    script("train.py", *RUN, "--out_dir=run")
    for name in ("ckpt.pt", "ckpt.prev.pt"):  # best.pt is one of the two
        damage(tmp_path / "run" / name)
    before = (tmp_path / "run" / "log.jsonl").read_bytes()
    result = script("train.py", *RUN, "--out_dir=run", "--init_from=auto", status=2)
    assert "run/ckpt.pt is damaged" in result.stderr
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == before


def write_toy(folder, text: bytes) -> None:
    with Writer(str(folder), ByteTokenizer(), {"name": "toy text"}) as writer:
        writer.append("train", list(text))
        writer.append("val", list(text[:500]))


def test_resuming_on_other_data_is_refused_unless_it_is_meant(script, tmp_path):
    write_toy(tmp_path / "data" / "toy", b"to be or not to be " * 100)
    script("train.py", *RUN, "--out_dir=run", "--max_iters=20")
    write_toy(tmp_path / "data" / "toy", b"to see or not to see" * 95)
    resume = [*RUN, "--out_dir=run", "--init_from=resume"]
    result = script("train.py", *resume, status=2)
    assert "run/ckpt.pt was trained on other data" in result.stderr
    script("train.py", *resume, "--allow_other_data=True")
    assert checkpoint.load(f"{tmp_path}/run/ckpt.pt")["step"] == 40


def test_a_run_keeps_its_text_when_its_dataset_is_replaced(script, tmp_path):
    folder, run = tmp_path / "data" / "toy", [*RUN, "--max_iters=200", "--eval_interval=50"]
    write_toy(folder, b"to be or not to be " * 100)
    script("train.py", *run, "--out_dir=straight")
    command = [sys.executable, ROOT / "train.py", *run, "--out_dir=run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 20/"):
            write_toy(folder, b"x" * 500)
    assert process.wait(60) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_replacement_of_a_dataset_that_was_cut_short_is_one_sentence(script, tmp_path):
    folder = tmp_path / "data" / "toy"
    write_toy(folder, b"to be or not to be " * 100)
    shutil.copytree(folder, tmp_path / "old")
    write_toy(folder, b"to do or not to do " * 100)  # as many tokens
    shutil.copy(tmp_path / "old" / "train.bin", folder)
    result = script("train.py", *RUN, status=2)
    assert "data/toy/train.bin is not the file that meta.json describes" in result.stderr


NAN = """
import runpy, sys, torch
first, last = map(int, sys.argv[1:3])
sys.argv = sys.argv[3:]
sys.path.insert(0, sys.argv[0].removesuffix("train.py"))
calls, norm = 0, torch.nn.utils.get_total_norm
def get_total_norm(grads):
    global calls
    calls += 1
    if first <= calls <= last:
        for grad in grads:
            grad.fill_(torch.nan)
    return norm(grads)
torch.nn.utils.get_total_norm = get_total_norm
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def train_with_nan(tmp_path, first: int, last: int, *options):
    command = [sys.executable, "-c", NAN, str(first), str(last), ROOT / "train.py", *RUN, *options]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_with_a_gradient_of_nan_is_skipped_and_said(toy, tmp_path, optimizer):
    result = train_with_nan(tmp_path, 5, 7, "--out_dir=run", f"--optimizer={optimizer}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the gradient is nan, the weights stay") == 3
    records = [r for r in log.read(f"{tmp_path}/run/log.jsonl") if "loss" in r]
    assert [r["step"] for r in records if r["grad_norm"] is None] == [5, 6, 7]
    assert records[-1]["loss"] < records[0]["loss"]
    assert all(p.isfinite().all() for p in weights(tmp_path / "run").values())
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_too_many_skipped_steps_in_a_row_end_a_run_with_its_weights_untouched(toy, tmp_path):
    options = ["--out_dir=run", "--skip_nonfinite=3", "--eval_interval=10"]
    result = train_with_nan(tmp_path, 11, 99, *options)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "the gradient of 4 steps in a row is nan: training has diverged" in result.stderr
    assert checkpoint.load(f"{tmp_path}/run/ckpt.pt")["step"] == 10
    assert max(losses(tmp_path / "run")) == 13  # 14 was the fourth


def test_ranks_that_start_from_different_places_are_told_apart(script, toy, tmp_path):
    """Two machines without a shared folder: only one has a checkpoint to resume."""
    script("train.py", *RUN, "--out_dir=run", "--max_iters=20")
    for folder in ("a", "b"):
        shutil.copytree(tmp_path / "data", tmp_path / folder / "data")
    shutil.copytree(tmp_path / "run", tmp_path / "a" / "run")
    options = [*RUN, "--out_dir=run", "--init_from=auto"]
    port = free_port()
    agents = [
        start_torchrun(
            tmp_path / folder,
            *options,
            launcher=(
                *("--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1"),
                *("--master_addr=127.0.0.1", f"--master_port={port}"),
            ),
        )
        for node, folder in enumerate("ab")
    ]
    for agent in agents:
        out = agent.communicate(timeout=120)[0]
        assert agent.returncode != 0
        assert "rank 1 has init_from=scratch and rank 0 resume: all machines need" in out, out


def pid_of_rank(launcher: int, rank: str) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            is_child = f"PPid:\t{launcher}\n" in (folder / "status").read_text()
            if is_child and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(
                b"\0"
            ):
                return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.skipif(not os.path.exists("/proc"), reason="finds the ranks in /proc, as Linux has it")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchrun_restarts_killed_ranks_as_if_nothing_had_happened(toy, tmp_path, strategy):
    run = [*RUN, "--max_iters=160", "--eval_interval=20", "--init_from=auto"]
    run.append(f"--strategy={strategy}")
    straight = start_torchrun(tmp_path, *run, "--out_dir=straight")
    launcher = ("--standalone", "--nproc_per_node=2", "--max-restarts=3")
    process = start_torchrun(tmp_path, *run, "--out_dir=run", launcher=launcher)
    out, kills = [], {50: 0, 110: 1}  # at a step, the rank that is killed
    for line in process.stdout:
        out.append(line)
        found = re.match(r"step (\d+)/", line)
        if found and int(found[1]) in kills:
            rank = str(kills.pop(int(found[1])))
            os.kill(pid_of_rank(process.pid, rank), signal.SIGKILL)
    assert process.wait(60) == 0 and not kills, "".join(out)
    assert straight.wait(120) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the ranks outlive torchrun")
def test_when_torchrun_is_killed_its_ranks_save_and_end(toy, tmp_path):
    run = [*RUN, "--max_iters=250", "--eval_interval=200", "--init_from=auto"]
    straight = start_torchrun(tmp_path, *run, "--out_dir=straight")
    assert straight.wait(120) == 0
    process = start_torchrun(tmp_path, *run, "--out_dir=run")
    for line in process.stdout:
        if line.startswith("step 50/"):
            process.kill()
    # the pipe is closed: the last of them has ended
    assert 50 <= checkpoint.load(f"{tmp_path}/run/ckpt.pt")["step"] < 200
    assert start_torchrun(tmp_path, *run, "--out_dir=run").wait(120) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.skipif(not os.path.exists("/proc"), reason="finds the ranks in /proc, as Linux has it")
def test_a_rank_that_hangs_is_one_sentence_after_the_timeout(toy, tmp_path):
    options = [*RUN, "--max_iters=100000", "--eval_interval=0", "--dist_timeout=3"]
    process = start_torchrun(tmp_path, *options)
    out = []
    for line in process.stdout:
        out.append(line)
        if line.startswith("step 20/"):
            hanging = pid_of_rank(process.pid, "1")
            os.kill(hanging, signal.SIGSTOP)
        if "closing signal SIGTERM" in line:  # for half a minute torchrun does no more
            os.kill(hanging, signal.SIGKILL)
    assert process.wait(60) != 0 and "rank0]: Traceback" not in "".join(out)
    assert "the other processes cannot be reached: one has ended, or hangs" in "".join(out)


SLOW_SAVE = """
import runpy, sys, time, torch
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].removesuffix("train.py"))
save = torch.save
def slow(state, file):
    print("saving", flush=True)
    time.sleep(1)
    save(state, file)
torch.save = slow
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_cost_the_save_that_the_first_began(toy, tmp_path, second):
    options = [*RUN, "--out_dir=run", "--eval_interval=0", "--max_iters=100000"]
    command = [sys.executable, "-c", SLOW_SAVE, ROOT / "train.py", *options]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 20/"):
            process.send_signal(signal.SIGTERM)
        if line.startswith("saving"):
            process.send_signal(second)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert checkpoint.load(f"{tmp_path}/run/ckpt.pt")["step"] >= 20
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "ckpt.pt", "log.jsonl"]
