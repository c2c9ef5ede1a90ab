"""What a run says: on the screen, to trackers, and before it starts where it cannot."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import types

import pytest
import torch
from conftest import ROOT, TINY

from core import checkpoint, log
from core.dataset import Writer
from core.tokenizer import ByteTokenizer

RUN = [*TINY, "--dataset=toy", "--eval_interval=15", "--max_iters=40", "--compile=False"]


def test_wandb_is_imported_only_when_asked_for(script, toy, tmp_path):
    (tmp_path / "wandb.py").write_text("raise ModuleNotFoundError(name='wandb')")
    command = [sys.executable, ROOT / "train.py", *RUN, "--max_iters=1"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert subprocess.run(command, cwd=tmp_path, env=env).returncode == 0
    asked = subprocess.run([*command, "--wandb_log"], cwd=tmp_path, env=env, stderr=subprocess.PIPE)
    assert asked.returncode == 2 and b"pip install wandb" in asked.stderr


FAKE_WANDB = """
import json, types
def write(**record):
    with open("wandb.jsonl", "a") as file:
        file.write(json.dumps(record) + chr(10))
def init(config, **settings):
    write(**settings)
    return types.SimpleNamespace(log=lambda record, step: write(at=step, **record))
"""


def test_a_resumed_run_continues_its_wandb_run(toy, tmp_path):
    (tmp_path / "wandb.py").write_text(FAKE_WANDB)
    for more in ("--max_iters=4", "--init_from=resume", "--init_from=scratch"):
        command = [sys.executable, ROOT / "train.py", *RUN, "--wandb_log", "--out_dir=out/mine"]
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        subprocess.run([*command, "--max_iters=6", more], cwd=tmp_path, env=env, check=True)
    records = log.read(f"{tmp_path}/wandb.jsonl")
    first, resumed, again = (record for record in records if "id" in record)
    assert first == resumed and first["id"] != again["id"]
    assert first["name"] == "mine" and first["resume"] == "allow"
    assert sorted({record["at"] for record in records if "loss" in record}) == [1, 2, 3, 4, 5, 6]


def test_wandb_is_finished_under_torchrun_too(toy, tmp_path):
    (tmp_path / "wandb.py").write_text(
        FAKE_WANDB + "import atexit\natexit.register(write, finished=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, ROOT / "train.py", *RUN, "--max_iters=3", "--wandb_log"]
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    assert log.read(f"{tmp_path}/wandb.jsonl")[-1] == {"finished": True}


def test_a_resumed_run_has_no_point_twice_in_tensorboard(script, toy, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = [*RUN, "--tensorboard_log", "--out_dir=run", "--eval_interval=5"]
    script("train.py", *run, "--max_iters=10")
    script("train.py", *run, "--max_iters=15", "--init_from=resume")
    points = EventAccumulator(str(tmp_path / "run")).Reload()
    steps = [point.step for point in points.Scalars("loss")]
    assert steps == [*range(1, 10), *range(11, 16)]  # the last before the stop is in log.jsonl
    assert [point.step for point in points.Scalars("val_loss")] == [0, 5, 10, 15]


def test_what_a_run_writes_to_is_checked_before_its_work(script, toy, tmp_path):
    script("train.py", *RUN, "--out_dir=run", "--max_iters=1")
    (tmp_path / "file").touch()
    for out_dir in ("", "file", "file/run", "r" * 300):
        refused = script("train.py", *RUN, f"--out_dir={out_dir}", status=2)
        assert "cannot be written" in refused.stderr and not refused.stdout
    (tmp_path / "tensorboard.py").write_text("raise ModuleNotFoundError(name='tensorboard')")
    command = [sys.executable, ROOT / "train.py", *RUN, "--out_dir=run", "--tensorboard_log"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 2 and "pip install tensorboard" in result.stderr
    assert not result.stdout and not (tmp_path / "run-1").exists()


def test_the_last_line_is_the_command_that_shows_what_was_learned(script, toy, tmp_path):
    said = script("train.py", *RUN, "--out_dir=my run", "--max_iters=2").stdout
    python, name, *options = shlex.split(said.splitlines()[-1])
    assert (python, name) == ("python", str(ROOT / "sample.py"))
    assert options == ["--out_dir=my run", "--start=the quick brown"]
    script("sample.py", *options, "--num_samples=1", "--max_new_tokens=2")
    with Writer(str(toy), ByteTokenizer(), {"name": "b"}, use="python show.py {out_dir}") as writer:
        writer.append("train", range(100))
        writer.append("val", range(100))
    said = script("train.py", *RUN, "--out_dir=my run", "--max_iters=1").stdout
    assert said.endswith("\npython show.py 'my run'\n")


def test_the_screen_has_80_columns(script, toy, capsys):
    said = script("train.py", *RUN, "--out_dir=run", "--max_iters=2", "--eval_only").stdout
    said += script("train.py", *RUN, "--out_dir=run", "--max_iters=2").stdout
    run_log = object.__new__(log.RunLog)  # of GPT-2 on eight fast GPUs
    run_log.data = types.SimpleNamespace(T=1024, sequences_before=lambda step: step * 480)
    run_log.step, run_log.max_iters, run_log.writes = 9990, 600000, False
    run_log.time, run_log.peak_tokens_per_s = time.perf_counter() - 2.5, 8e6
    run_log.training(10000, torch.tensor(3.2), 6e-4, torch.tensor(1.0))
    assert max(map(len, (said + capsys.readouterr().out).splitlines())) <= 80


def test_settings_that_are_hardly_meant_are_warned_of(script, toy, tmp_path):
    def warnings(*options) -> list[str]:
        said = script("train.py", *RUN, "--max_iters=3", *options).stdout
        unwrapped = said.replace("\n" + 9 * " ", " ")
        return re.findall("^warning  (.*)$", unwrapped, re.MULTILINE)

    assert warnings() == []
    (rising,) = warnings("--min_lr=0.1")
    assert rising.startswith("min_lr=0.1 is above learning_rate=0.01: the learning rate rises")
    (short,) = warnings("--warmup_iters=3")
    assert short.startswith("max_iters=3 ends within warmup_iters=3")
    assert warnings("--min_lr=0.1", "--warmup_iters=3", "--decay_lr=False") == []


def test_damaged_lines_of_a_log_are_left_out_and_counted(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    log.append(str(path), {"step": 1, "loss": 2.0})
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "lo\n\xff\xfe\n[1]\n\n{"step": 3, "loss": 1.5}\n{"step": 4')
    assert [record["step"] for record in log.read(str(path))] == [1, 3]
    log.rewind(str(path), 3)
    assert "warning  4 damaged lines" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


def test_a_folder_in_use_is_refused_and_free_again_when_its_run_has_ended(script, toy, tmp_path):
    command = [sys.executable, ROOT / "train.py", *RUN, "--max_iters=100000", "--out_dir=run"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    next(line for line in first.stdout if line.startswith("step 1/"))
    for init_from in ("scratch", "resume"):
        said = script("train.py", *RUN, "--out_dir=run", f"--init_from={init_from}", status=2)
        assert f"out_dir=run is in use by process {first.pid}" in said.stderr
    first.kill()
    first.communicate()
    script("train.py", *RUN, "--out_dir=run", "--max_iters=1")


def run_with_small_files(toy, kilobytes: int, *more) -> subprocess.CompletedProcess:
    """A run that can write no file larger than that, as on a full disk."""
    options = shlex.join([str(ROOT / "train.py"), *RUN, "--out_dir=run", *more])
    command = f"ulimit -f {kilobytes}; exec {shlex.quote(sys.executable)} {options}"
    return subprocess.run(
        ["bash", "-c", command], cwd=toy.parent.parent, capture_output=True, text=True
    )


def test_a_full_disk_is_warned_of_and_the_run_goes_on(script, toy, tmp_path):
    full = run_with_small_files(toy, 20, "--max_iters=12", "--eval_interval=3")
    assert full.returncode == 1 and "Traceback" not in full.stderr
    assert "step 12/12" in full.stdout and full.stdout.count("warning") == 1
    assert "ckpt.pt cannot be written (File too large)" in full.stdout
    assert "the last checkpoint is not on the disk" in full.stdout
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "log.jsonl"]
    script("train.py", *RUN, "--out_dir=run", "--max_iters=6", "--eval_interval=3")
    kept = (tmp_path / "run" / "ckpt.pt").read_bytes()
    full = run_with_small_files(toy, 20, "--max_iters=12", "--init_from=resume")
    assert full.returncode == 1 and (tmp_path / "run" / "ckpt.pt").read_bytes() == kept
    again = script("train.py", *RUN, "--out_dir=run", "--max_iters=12", "--init_from=resume")
    assert "steps 6 to 12" in again.stdout


def test_a_closed_console_does_not_end_a_run(toy, tmp_path):
    options = shlex.join([str(ROOT / "train.py"), *RUN, "--out_dir=run", "--max_iters=60"])
    command = f"{shlex.quote(sys.executable)} {options} | head -n 3; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert checkpoint.load(f"{tmp_path}/run/ckpt.pt")["step"] == 60
