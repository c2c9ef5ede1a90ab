"""Addition and sorting: each problem once, held-out ones never train, only answers are targets."""

import re
import shlex

import numpy as np
import pytest
import torch
from conftest import ROOT

from core import checkpoint, log
from core.dataset import read_meta
from core.generate import Sampling, generate
from core.tokenizer import from_dict
from model import GPT

SORTING = ROOT / "projects" / "arithmetic" / "sorting.py"


def examples_of(folder, split: str) -> tuple[list[str], np.ndarray]:
    """The examples as text, and the mask."""
    meta = read_meta(str(folder))
    ids = np.fromfile(folder / f"{split}.bin", np.uint16).reshape(-1, meta["row_length"])
    mask = np.fromfile(folder / f"{split}.mask.bin", np.uint8).reshape(ids.shape)
    coder = from_dict(meta["tokenizer"])
    return [coder.decode(example.tolist()) for example in ids], mask


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_addition_holds_every_problem_once(script, tmp_path, digits):
    held_out = 20 if digits == 1 else 500
    problems = ["--problems=5000"] if digits == 3 else []
    options = [f"--digits={digits}", f"--held_out={held_out}", *problems]
    script("projects.arithmetic.prepare_addition", *options)
    folder = tmp_path / "data" / "addition"
    train, mask = examples_of(folder, "train")
    val, _ = examples_of(folder, "val")
    assert len(val) == held_out and not set(train) & set(val)
    for example in train + val:
        a, b = example[:digits], example[digits : 2 * digits]
        total = example[2 * digits :][::-1]
        assert int(a) + int(b) == int(total) and len(total) == digits + 1
    if digits < 3:
        assert len(set(train + val)) == 100**digits
    assert (mask == ([0] * 2 * digits + [1] * (digits + 1))).all()
    before = (folder / "val.bin").read_bytes()
    script("projects.arithmetic.prepare_addition", *options)
    assert (folder / "val.bin").read_bytes() == before
    script("projects.arithmetic.prepare_addition", *options, "--seed=2")
    assert (folder / "val.bin").read_bytes() != before


def test_sorting_holds_every_problem_once(script, tmp_path):
    script("projects.arithmetic.prepare_sorting", "--length=5", "--symbols=4")
    train, mask = examples_of(tmp_path / "data" / "sorting", "train")
    val, _ = examples_of(tmp_path / "data" / "sorting", "val")
    assert len(set(train + val)) == len(train + val) == 4**5 and len(val) == 256
    assert all("".join(sorted(e[:5])) == e[5:] for e in train + val)
    assert (mask == [0] * 5 + [1] * 5).all()
    script("projects.arithmetic.prepare_sorting", "--length=20", "--symbols=12", "--problems=1000")
    assert len(examples_of(tmp_path / "data" / "sorting", "train")[0]) == 750


def test_wrong_sizes_are_one_sentence(script):
    for options in (["--digits=0"], ["--digits=1", "--held_out=100"]):
        script("projects.arithmetic.prepare_addition", *options, status=2)
    script("projects.arithmetic.prepare_sorting", "--symbols=99", status=2)


def test_sorting_is_learned_and_accuracy_is_that_of_the_generated_answers(script, tmp_path):
    few = "--max_iters=40"  # so that some answers are still incorrect
    script("train.py", SORTING, few, "--eval_interval=20")
    records = log.read(f"{tmp_path}/out/sorting/log.jsonl")
    logged = [r["val_accuracy"] for r in records if "val_accuracy" in r][-1]
    examples, _ = examples_of(tmp_path / "data" / "sorting", "val")
    loaded = checkpoint.load(f"{tmp_path}/out/sorting/ckpt.pt")
    model = GPT.from_state_dict(loaded["model_args"], loaded["model"]).eval()
    coder = from_dict(loaded["tokenizer"])
    prompts = torch.tensor([coder.encode_prompt(example[:6]) for example in examples])
    answers = torch.stack(list(generate(model, prompts, 6, Sampling(temperature=0))), 1).tolist()
    pairs = zip(answers, examples, strict=True)
    correct = [coder.decode(answer) == example[6:] for answer, example in pairs]
    assert sum(correct) / len(correct) == pytest.approx(logged, abs=0.02) and 0.1 < logged < 1
    said = script("train.py", SORTING).stdout  # all of its steps
    records = log.read(f"{tmp_path}/out/sorting/log.jsonl")
    assert [r["val_accuracy"] for r in records if "val_accuracy" in r][-1] == 1.0
    greedy = ["--temperature=0", "--num_samples=1", "--max_new_tokens=6"]
    assert script("sample.py", "--start=201102", *greedy).stdout.startswith("201102001122\n")
    _, name, *options = shlex.split(said.split("learned:\n")[1].replace("\\\n", ""))
    question = options[1].removeprefix("--start=")
    answer = "".join(sorted(question))
    assert question in [example[:6] for example in examples]  # the model has not seen it
    assert script(name, *options).stdout == f"{question}{answer}\n---------------\n"


def test_tensorboard_gets_what_the_log_gets(script, tmp_path):
    options = [SORTING, "--max_iters=4", "--tensorboard_log"]
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
