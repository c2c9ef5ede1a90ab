"""FSDP: the losses of DDP, its checkpoints, its resumption; memory falls as it is counted."""

import json
import shutil

import pytest
from conftest import ROOT, TINY

from core import checkpoint, log

RUN = [*TINY, "--dataset=toy", "--compile=False", "--max_iters=10", "--eval_interval=5"]
RUN += ["--gradient_accumulation_steps=8", "--ramp_iters=4", "--lr_decay_iters=10"]
MUON = ["--optimizer=muon", "--rotary", "--smear=2", "--untied_head", "--qk_norm"]


def losses(folder) -> dict[tuple, float]:
    records = [r for r in log.read(f"{folder}/log.jsonl") if "step" in r]
    return {
        (r["step"], name): r[name] for r in records for name in ("loss", "val_loss") if name in r
    }


def test_fsdp_has_ddps_losses_and_each_resumes_the_others_checkpoints(script, toy, tmp_path):
    run = [*RUN, *MUON, "--dropout=0.1"]
    for strategy in ("ddp", "fsdp"):
        script("train.py", *run, f"--out_dir={strategy}", f"--strategy={strategy}", ranks=(2, 1))
    wanted = losses(tmp_path / "ddp")
    assert len(wanted) == 13 and losses(tmp_path / "fsdp") == pytest.approx(wanted, abs=1e-4)
    for first, second in (("ddp", "fsdp"), ("fsdp", "ddp"), ("fsdp", "fsdp")):
        folder = tmp_path / f"{first}-{second}"
        shutil.copytree(tmp_path / first, folder)
        (folder / "ckpt.prev.pt").replace(folder / "ckpt.pt")  # of step 5
        options = [f"--out_dir={folder}", "--init_from=resume", f"--strategy={second}"]
        script("train.py", *run, *options, ranks=(2, 1))
        assert losses(folder) == pytest.approx(wanted, abs=1e-4)
    assert losses(tmp_path / "fsdp-fsdp") == losses(tmp_path / "fsdp")  # bit for bit


def test_fsdp_has_the_losses_of_one_process_with_adamw(script, toy, tmp_path):
    script("train.py", *RUN, "--out_dir=one")
    script("train.py", *RUN, "--out_dir=fsdp", "--strategy=fsdp", ranks=(2, 1))
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_a_checkpoint_is_one_file_for_any_number_of_processes(script, toy, tmp_path):
    """On four, shards of two rows are empty, and at first some ranks have no sequence."""
    run = [*RUN, *MUON, "--strategy=fsdp"]
    script("train.py", *run, "--out_dir=one")
    four = [*run, "--out_dir=four"]
    script("train.py", *four, "--max_iters=4", ranks=(4, 1))
    script("sample.py", "--out_dir=four", "--max_new_tokens=5", "--device=cpu")
    script("train.py", *four, "--max_iters=7", "--init_from=resume", ranks=(2, 1))
    script("train.py", *four, "--init_from=resume")
    wanted, found = losses(tmp_path / "one"), losses(tmp_path / "four")
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-4)
    one, made = (checkpoint.load(f"{tmp_path}/{out}/ckpt.pt") for out in ("one", "four"))
    assert all(made["model"][name].shape == t.shape for name, t in one["model"].items())


def test_two_machines_hold_a_model_each(script, toy, tmp_path):
    run = [*RUN, *MUON, "--dropout=0.1"]
    script("train.py", *run, "--out_dir=ddp", ranks=(4, 1))
    hybrid = ["--out_dir=hybrid", "--strategy=hybrid", "--activation_checkpointing"]
    script("train.py", *run, *hybrid, ranks=(4, 2))
    assert losses(tmp_path / "hybrid") == pytest.approx(losses(tmp_path / "ddp"), abs=1e-4)


STEP = ["--vocab_size=65", "--block_size=64", "--n_layer=3", "--n_head=2", "--n_embd=64"]


@pytest.mark.parametrize(
    ("strategy", "optimizer", "ranks"),
    [("ddp", "adamw", (2, 1)), ("fsdp", "muon", (2, 1)), ("hybrid", "adamw", (4, 2))],
)
def test_memory_and_traffic_are_those_that_are_counted(
    script, tmp_path, strategy, optimizer, ranks
):
    measured = ROOT / "tests" / "measured_step.py"
    found = json.loads(
        script(measured, strategy, optimizer, *STEP, ranks=ranks).stdout.split("\n")[-2]
    )
    for name, size in found["kept"].items():
        assert size == pytest.approx(found["counted"][name], rel=0.1), name
    # each process has two micro-batches of one sequence
    gpus = [f"--processes={ranks[0]}", f"--gpus_per_node={ranks[0] // ranks[1]}"]
    batch = ["--batch_size=1", f"--gradient_accumulation_steps={2 * ranks[0]}"]
    options = [*STEP, *gpus, *batch, f"--optimizer={optimizer}", "--json_file=rows.jsonl"]
    script("tools.scaling", *options)
    row = next(row for row in log.read(f"{tmp_path}/rows.jsonl") if row["strategy"] == strategy)
    assert row["sent_gb"] * 1e9 == pytest.approx(found["sent"], rel=1e-6)
    assert row["gib"] * 2**30 == pytest.approx(sum(found["counted"].values()))
