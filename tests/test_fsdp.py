"""FSDP: the losses of DDP, its checkpoints, its resumption; memory falls as it is counted."""

import json
import shutil

import pytest
import torch
from conftest import ROOT, TINY
from soaked_run import same, whole

from core import UserError, checkpoint, log

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


def test_a_checkpoint_in_parts_is_that_of_one_file(script, toy, tmp_path):
    run = [*RUN, *MUON, "--strategy=fsdp"]
    in_parts = [*run, "--checkpoint_parts=True"]
    script("train.py", *run, "--out_dir=one", ranks=(2, 1))
    script("train.py", *in_parts, "--out_dir=parts", ranks=(2, 1))
    assert len(list((tmp_path / "parts" / "parts").iterdir())) == 2  # of ckpt.pt and ckpt.prev.pt
    assert (tmp_path / "parts" / "ckpt.pt").stat().st_size < 30_000
    script("sample.py", "--out_dir=parts", "--max_new_tokens=5", "--device=cpu")
    script("tools.join", "--out_dir=parts/ckpt.pt", "--to=joined.pt")
    one, joined = (whole(tmp_path / path) for path in ("one/ckpt.pt", "joined.pt"))
    for state in (one, joined):
        del state["config"]
    assert same(joined, one)
    wanted = losses(tmp_path / "one")
    for ranks, options in ((2, in_parts), (4, in_parts), (2, [*RUN, *MUON]), (1, [*RUN, *MUON])):
        folder = tmp_path / f"resumed-{ranks}-{len(options)}"
        shutil.copytree(tmp_path / "parts", folder)
        (folder / "ckpt.prev.pt").replace(folder / "ckpt.pt")  # of step 5
        options = [*options, f"--out_dir={folder}", "--init_from=resume"]
        script("train.py", *options, ranks=(ranks, 1))
        assert losses(folder) == pytest.approx(wanted, abs=1e-4)
        assert options[:-2] != in_parts or ranks != 2 or losses(folder) == wanted  # bit for bit


def test_the_checkpoint_before_takes_the_place_of_one_with_a_damaged_part(script, toy, tmp_path):
    run = [*RUN, "--out_dir=out", "--strategy=fsdp", "--checkpoint_parts=True"]
    script("train.py", *run, ranks=(2, 1))
    wanted = losses(tmp_path / "out")
    part = tmp_path / "out" / "parts" / whole(tmp_path / "out" / "ckpt.pt")["parts"][1]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    said = script("train.py", *run, "--init_from=resume", ranks=(2, 1)).stdout
    assert f"{part.name} is damaged" in said.replace("\n         ", "") and "of step 5" in said
    assert losses(tmp_path / "out") == wanted
    part = tmp_path / "out" / "parts" / whole(tmp_path / "out" / "best.pt")["parts"][0]
    part.unlink()
    result = script("sample.py", "--out_dir=out", status=2)
    assert f"best.pt lacks its part {part.relative_to(tmp_path)}" in result.stderr


def test_where_one_process_cannot_write_its_part_the_old_checkpoint_stays(script, toy, tmp_path):
    run = [*RUN, "--out_dir=out", "--strategy=fsdp", "--checkpoint_parts=True"]
    script("train.py", *run, "--max_iters=5", ranks=(2, 1))
    before = (tmp_path / "out" / "ckpt.pt").read_bytes()
    limited = tmp_path / "limited.py"  # no file of rank 1 may exceed 5,000 bytes
    limited.write_text(
        f"import os, resource, runpy, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "size = 5000 if os.environ['RANK'] == '1' else resource.RLIM_INFINITY\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    result = script(limited, *run, "--init_from=resume", ranks=(2, 1), status=None)
    said = result.stdout.replace("\n" + " " * 9, " ")
    assert result.returncode == 1 and "1.pt cannot be written (File too large)" in said
    assert "training goes on" in said and "step 10: " in said
    assert before == (tmp_path / "out" / "ckpt.pt").read_bytes()
    script("train.py", *run, "--init_from=resume", ranks=(2, 1))
    assert whole(tmp_path / "out" / "ckpt.pt")["step"] == 10
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 2


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


@pytest.mark.parametrize(
    "change",
    [
        {"parts": ["0.pt"]},
        {"parts": ["0.pt", "1.pt", "1.pt"]},
        {"parts": ["0.pt", "other.pt"]},
        {"parts": "0.pt"},
        {"parts": [0]},
        {"parts": []},
        {"model": {"w": torch.empty(3, device="meta"), "v": torch.empty(3, device="meta")}},
        {"model": {"w": torch.empty(3, 4, device="meta")}},
        {"model": 5},
    ],
)
def test_parts_that_do_not_fit_are_a_damaged_checkpoint(change, tmp_path):
    (tmp_path / "parts").mkdir()
    for name, part in (("0", [torch.ones(2)]), ("1", [torch.zeros(1)]), ("other", {"a": 1})):
        torch.save(part, tmp_path / "parts" / f"{name}.pt")
    state = {"model": {"w": torch.empty(3, device="meta")}, "model_args": {"vocab_size": 3}}
    state |= {"tokenizer": None, "parts": ["0.pt", "1.pt"]}
    torch.save(state, tmp_path / "ckpt.pt")
    path = str(tmp_path / "ckpt.pt")
    assert torch.equal(checkpoint.load_file(path)["model"]["w"], torch.tensor([1.0, 1, 0]))
    torch.save(state | change, path)
    with pytest.raises(UserError, match=r"damaged|lacks its part"):
        checkpoint.load_file(path)
