"""The fault injection itself: that it finds nothing, and that it would find something."""

import json
import subprocess
import sys
from random import Random

import pytest
import soak
import torch
from conftest import ROOT
from soaked_run import Lost, Run


@pytest.mark.skipif(sys.platform != "linux", reason="it limits other processes, as Linux can")
def test_runs_survive_random_faults_and_end_bit_for_bit(tmp_path):
    options = ["--minutes=0.3", "--seed=5", f"--json={tmp_path}/table.json", f"--folder={tmp_path}"]
    command = [sys.executable, ROOT / "tests" / "soak.py", *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    faults = json.loads((tmp_path / "table.json").read_text())["faults"]
    ends = faults.pop(soak.END)["times"]
    assert ends >= 1 and sum(row["times"] for row in faults.values()) >= 1
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def change_weights(out) -> None:
    state = torch.load(out / "ckpt.pt", weights_only=True)
    state["model"]["transformer.ln_f.weight"][3] += 1e-6
    torch.save(state, out / "ckpt.pt")


def change_moments(out) -> None:
    state = torch.load(out / "ckpt.pt", weights_only=True)
    state["optimizers"]["adamw"]["state"][0]["exp_avg"][0] += 1e-6
    torch.save(state, out / "ckpt.pt")


def change_log(out) -> None:
    records = soak.read_log(out)
    records[-2]["loss"] += 1e-6
    (out / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def drop_line(out) -> None:
    lines = (out / "log.jsonl").read_text().splitlines(keepends=True)
    (out / "log.jsonl").write_text("".join(lines[:-3] + lines[-2:]))


def drop_best(out) -> None:
    (out / "best.pt").unlink()


def leave_temporary_file(out) -> None:
    (out / "ckpt.pt.tmp").write_bytes(b"half")


CHANGES = [change_weights, change_moments, change_log, drop_line, drop_best, leave_temporary_file]


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_differs_in_anything_counts_as_lost(script, toy, tmp_path, change):
    for name in ("ours", "undisturbed"):
        script("train.py", *soak.TINY, "--max_iters=40", f"--out_dir=out/{name}")
    run = Run(tmp_path, "ours", [], 1, Random(0))
    soak.compare(run, tmp_path / "out" / "undisturbed")
    change(run.out)
    with pytest.raises(Lost):
        soak.compare(run, tmp_path / "out" / "undisturbed")


def test_a_checkpoint_that_fell_back_or_is_not_the_best_counts_as_lost(script, toy, tmp_path):
    script("train.py", *soak.TINY, "--max_iters=60", "--out_dir=out/ours")
    run = Run(tmp_path, "ours", [], 1, Random(0))
    assert run.check_disk() == 60
    (run.out / "ckpt.prev.pt").rename(run.out / "best.pt")
    with pytest.raises(Lost, match="that of best"):
        run.check_disk()
    (run.out / "best.pt").rename(run.out / "ckpt.pt")
    with pytest.raises(Lost, match="fell back from step 60 to 40"):
        run.check_disk()
