"""FSDP: the losses of DDP, its checkpoints, its resumption; memory falls as it is counted."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, TINY, start_torchrun

from core import checkpoint, log

RUN = [*TINY, "--dataset=toy", "--compile=False", "--max_iters=20", "--eval_interval=10"]
RUN += ["--gradient_accumulation_steps=8", "--ramp_iters=6", "--lr_decay_iters=20"]
MUON = ["--optimizer=muon", "--rotary", "--smear=2", "--untied_head", "--qk_norm"]


def processes(count: int) -> tuple[str, ...]:
    return ("--standalone", f"--nproc_per_node={count}")


def finish(*runs) -> None:
    for run in runs:
        out = run.communicate(timeout=200)[0]
        assert run.returncode == 0, out


def losses(folder) -> dict[tuple, float]:
    records = [r for r in log.read(f"{folder}/log.jsonl") if "step" in r]
    return {
        (r["step"], name): r[name] for r in records for name in ("loss", "val_loss") if name in r
    }


def test_fsdp_has_ddps_losses_and_each_resumes_the_others_checkpoints(toy, tmp_path):
    run = [*RUN, *MUON, "--dropout=0.1"]
    kinds = ("ddp", "fsdp")
    finish(*(start_torchrun(tmp_path, *run, f"--out_dir={k}", f"--strategy={k}") for k in kinds))
    wanted = losses(tmp_path / "ddp")
    assert len(wanted) == 23 and losses(tmp_path / "fsdp") == pytest.approx(wanted, abs=1e-4)
    for first, second in (("ddp", "fsdp"), ("fsdp", "ddp"), ("fsdp", "fsdp")):
        folder = tmp_path / f"{first}-{second}"
        shutil.copytree(tmp_path / first, folder)
        (folder / "ckpt.prev.pt").replace(folder / "ckpt.pt")  # of step 10
        options = [f"--out_dir={folder}", "--init_from=resume", f"--strategy={second}"]
        finish(start_torchrun(tmp_path, *run, *options))
        assert losses(folder) == pytest.approx(wanted, abs=1e-4)
    assert losses(tmp_path / "fsdp-fsdp") == losses(tmp_path / "fsdp")  # bit for bit


def test_fsdp_has_ddps_losses_with_adamw(toy, tmp_path):
    run, kinds = [*RUN, "--dropout=0.1"], ("ddp", "fsdp")
    finish(*(start_torchrun(tmp_path, *run, f"--out_dir={k}", f"--strategy={k}") for k in kinds))
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), abs=1e-4)


def test_a_checkpoint_is_one_file_for_any_number_of_processes(script, toy, tmp_path):
    """On four, shards of two rows are empty, and at first some ranks have no sequence."""
    run = [*RUN, *MUON, "--strategy=fsdp"]
    script("train.py", *run, "--out_dir=one")
    four = [*run, "--out_dir=four"]
    finish(start_torchrun(tmp_path, *four, "--max_iters=7", launcher=processes(4)))
    script("sample.py", "--out_dir=four", "--max_new_tokens=5", "--device=cpu")
    finish(start_torchrun(tmp_path, *four, "--max_iters=14", "--init_from=resume"))
    script("train.py", *four, "--init_from=resume")
    wanted, found = losses(tmp_path / "one"), losses(tmp_path / "four")
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-4)
    one, made = (checkpoint.load(f"{tmp_path}/{out}/ckpt.pt") for out in ("one", "four"))
    assert all(made["model"][name].shape == t.shape for name, t in one["model"].items())


def test_two_machines_hold_a_model_each(toy, tmp_path):
    run = [*RUN, *MUON, "--dropout=0.1"]
    plain = start_torchrun(tmp_path, *run, "--out_dir=ddp", launcher=processes(4))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends = ("--nnodes=2", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}")
    hybrid = [*run, "--out_dir=hybrid", "--strategy=hybrid", "--activation_checkpointing"]
    machines = [
        start_torchrun(tmp_path, *hybrid, launcher=(*ends, f"--node_rank={rank}"))
        for rank in range(2)
    ]
    finish(plain, *machines)
    assert losses(tmp_path / "hybrid") == pytest.approx(losses(tmp_path / "ddp"), abs=1e-4)


MEASURE = """
import json, os, sys
import torch
from core import distributed, sharding
from core.optimizer import build_optimizers
from model import GPT, GPTConfig

distributed.init(torch.device("cpu"), "auto", 60)
s = {"optimizer": "muon", "strategy": "fsdp", "activation_checkpointing": False, "lora_rank": 0}
s |= {"gradient_accumulation_steps": 4, "batch_size": 4, "learning_rate": 0.01, "muon_lr": 0.01}
s |= {"muon_momentum": 0.9, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.9}
config = GPTConfig(65, 64, n_layer=3, n_head=2, n_embd=64)
torch.manual_seed(0)
whole = GPT(config)
random = torch.get_rng_state()
torch.manual_seed(0)
build = distributed.model_builder(s, torch.device("cpu"), torch.float32)
model = build(lambda: GPT(config))
assert torch.equal(random, torch.get_rng_state())
for (name, p), wanted in zip(model.named_parameters(), whole.parameters(), strict=True):
    assert torch.equal(p.full_tensor(), wanted), name
optimizers = build_optimizers(model, s, torch.float32)
x = torch.randint(65, (4, 64))
model(x, x).backward()
for o in optimizers.values():
    o.step()
moments = [t for o in optimizers.values() for state in o.state.values() for t in state.values()]
size = lambda tensors: sum(distributed.local(t).nbytes for t in tensors)
measured = {"parameters": size(model.parameters()), "optimizer": size(moments)}
measured["gradients"] = size(p.grad for p in model.parameters())
counted = sharding.bytes_per_process(whole, s, torch.float32, 4, distributed.WORLD_SIZE)
if distributed.RANK == 0:
    print("FOUND", json.dumps([measured, counted]))
distributed.leave(0)
"""


def test_weights_are_those_of_one_process_and_memory_falls_as_counted(tmp_path):
    (tmp_path / "measure.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{MEASURE}"
    )
    command = [sys.executable, "-m", "torch.distributed.run", *processes(2)]
    run = subprocess.run(
        [*command, tmp_path / "measure.py"], capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    found = next(line for line in run.stdout.splitlines() if line.startswith("FOUND"))
    measured, counted = json.loads(found.removeprefix("FOUND"))
    for name, size in measured.items():
        assert size == pytest.approx(counted[name], rel=0.1), name
