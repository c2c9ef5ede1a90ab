"""Addition and sorting: each problem once, held-out ones never trained on, only answers graded."""

import re

import numpy as np
import pytest
import torch
from conftest import ROOT

from core import checkpoint, log
from core.dataset import read_meta
from core.tokenizer import from_dict
from model import GPT


def rows_of(folder, split: str) -> tuple[list[str], np.ndarray]:
    """The rows as text, and the mask."""
    meta = read_meta(str(folder))
    ids = np.fromfile(folder / f"{split}.bin", np.uint16).reshape(-1, meta["row_length"])
    mask = np.fromfile(folder / f"{split}.mask.bin", np.uint8).reshape(ids.shape)
    coder = from_dict(meta["tokenizer"])
    return [coder.decode(row.tolist()) for row in ids], mask


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_addition_holds_every_problem_once(script, tmp_path, digits):
    held_out = 20 if digits == 1 else 500
    problems = ["--problems=5000"] if digits == 3 else []
    options = [f"--digits={digits}", f"--held_out={held_out}", *problems]
    script("prepare_addition.py", *options)
    folder = tmp_path / "data" / "addition"
    train, mask = rows_of(folder, "train")
    val, _ = rows_of(folder, "val")
    assert len(val) == held_out and not set(train) & set(val)
    for row in train + val:
        a, b, total = row[:digits], row[digits : 2 * digits], row[2 * digits :][::-1]
        assert int(a) + int(b) == int(total) and len(total) == digits + 1
    if digits < 3:
        assert len(set(train + val)) == 100**digits
    assert (mask == ([0] * 2 * digits + [1] * (digits + 1))).all()
    before = (folder / "val.bin").read_bytes()
    script("prepare_addition.py", *options)
    assert (folder / "val.bin").read_bytes() == before
    script("prepare_addition.py", *options, "--seed=2")
    assert (folder / "val.bin").read_bytes() != before


def test_sorting_holds_every_row_once(script, tmp_path):
    script("prepare_sorting.py", "--length=5", "--symbols=4")
    train, mask = rows_of(tmp_path / "data" / "sorting", "train")
    val, _ = rows_of(tmp_path / "data" / "sorting", "val")
    assert len(set(train + val)) == len(train + val) == 4**5 and len(val) == 256
    assert all("".join(sorted(row[:5])) == row[5:] for row in train + val)
    assert (mask == [0] * 5 + [1] * 5).all()
    script("prepare_sorting.py", "--length=20", "--symbols=12", "--problems=1000")
    assert len(rows_of(tmp_path / "data" / "sorting", "train")[0]) == 750


def test_wrong_sizes_are_one_sentence(script):
    for options in (["--digits=0"], ["--digits=1", "--held_out=100"]):
        script("prepare_addition.py", *options, status=2)
    script("prepare_sorting.py", "--symbols=99", status=2)


def test_sorting_is_learned_and_accuracy_is_that_of_the_generated_answers(script, tmp_path):
    config = ROOT / "config" / "sorting.py"
    few = "--max_iters=40"  # so that some answers are still wrong
    script("train.py", config, few, "--eval_interval=20")
    records = log.read(f"{tmp_path}/out/sorting/log.jsonl")
    logged = [r["val_accuracy"] for r in records if "val_accuracy" in r][-1]
    rows, _ = rows_of(tmp_path / "data" / "sorting", "val")
    loaded = checkpoint.load(f"{tmp_path}/out/sorting/ckpt.pt")
    model = GPT.from_weights(loaded["model_args"], loaded["model"]).eval()
    coder = from_dict(loaded["tokenizer"])
    prompts = torch.tensor([coder.encode(row[:6]) for row in rows])
    answers = torch.stack(list(model.generate(prompts, 6, temperature=0)), dim=1).tolist()
    right = [coder.decode(a) == row[6:] for a, row in zip(answers, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(logged, abs=0.02) and 0.1 < logged < 1
    script("train.py", config)  # all of its updates
    records = log.read(f"{tmp_path}/out/sorting/log.jsonl")
    assert [r["val_accuracy"] for r in records if "val_accuracy" in r][-1] == 1.0
    greedy = ["--temperature=0", "--num_samples=1", "--max_new_tokens=6"]
    assert script("sample.py", "--start=201102", *greedy).stdout.startswith("201102001122\n")


def test_plot_draws_runs_over_every_axis(script, tmp_path):
    pytest.importorskip("matplotlib")
    script("train.py", ROOT / "config" / "sorting.py", "--max_iters=4", "--log_interval=2")
    script("train.py", ROOT / "config" / "sorting.py", "--max_iters=6", "--out_dir=out/other")
    for x in ("tokens", "time"):
        script("plot.py", "out/sorting", "out/other", f"--x={x}", f"--png={x}.png")
        assert (tmp_path / f"{x}.png").read_bytes().startswith(b"\x89PNG")
    assert "name the folders" in script("plot.py", status=2).stderr
    assert "nothing to draw" in script("plot.py", "out/nowhere", status=2).stderr


def test_tensorboard_gets_what_the_log_gets(script, tmp_path):
    options = [ROOT / "config" / "sorting.py", "--max_iters=4", "--tensorboard_log"]
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        assert "pip install tensorboard" in script("train.py", *options, status=2).stderr
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    script("train.py", *options, "--log_interval=1")
    events = EventAccumulator(str(tmp_path / "out" / "sorting"))
    events.Reload()
    wanted = {"loss", "lr", "grad_norm", "tokens_per_s", "val_loss", "val_accuracy"}
    assert wanted <= set(events.Tags()["scalars"])
    logged = [r["loss"] for r in log.read(f"{tmp_path}/out/sorting/log.jsonl") if "loss" in r]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(logged)
    assert re.match(r"events", next((tmp_path / "out" / "sorting").glob("events*")).name)
