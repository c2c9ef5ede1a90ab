"""The parts of gpu_check.sh that are Python.

python -m tools.gpu_check record STAGE STATUS SECONDS REASON: the stage's line of JSON
python -m tools.gpu_check attention DEVICE: which kernels PyTorch chooses
python -m tools.gpu_check group DEVICE: a step in a process group of one, under torchrun
"""

import json
import re
import sys
from pathlib import Path

LEFT_OUT = {"config", "versions", "optimizers", "source", "command", "run_id"}


def record(stage: str, status: str, seconds: str, reason: str) -> dict:
    """Every figure that a stage left: in what it printed, its file of JSON, the log of its run."""
    paths = (Path(f"{stage}.txt"), Path(f"{stage}.json"), Path(stage, "log.jsonl"))
    text = "\n".join(path.read_text(errors="replace") for path in paths if path.exists())
    if status in ("failed", "timed out"):
        reason = next(filter(str.strip, reversed(text.splitlines())), "it printed nothing")
    line = {"stage": stage, "status": status, "seconds": int(seconds)}
    line |= {"reason": reason} if reason else {}
    for figures in re.findall(r"^\{.*\}$", text, re.MULTILINE):
        line |= {k: v for k, v in json.loads(figures).items() if k not in LEFT_OUT}
    for found in re.findall(r"compile  done in ([\d.]+) s", text):
        line["compilation"] = float(found)
    for found in re.findall(r"time per iteration: ([\d.]+)ms", text):  # nanoGPT's bench.py
        line["update"] = float(found)
    return line


def attention(device: str) -> dict:
    import torch
    from torch.nn.attention import SDPBackend

    from core.generate import prepare_for_inference

    def chosen(T: int, S: int, masked: bool, dtype=torch.bfloat16, train=False) -> str:
        options = {"device": device, "dtype": dtype, "requires_grad": train}
        q, k = (torch.zeros(1, 12, length, 64, **options) for length in (T, S))
        mask = torch.ones(T, S, dtype=torch.bool, device=device) if masked else None
        causal = T > 1 and not masked
        return SDPBackend(torch._fused_sdp_choice(q, k, k, mask, 0.0, causal)).name

    found = {
        "torch": torch.__version__,
        "training": chosen(1024, 1024, False, train=True),
        "training, fp16": chosen(1024, 1024, False, torch.float16, train=True),
        "training, window": chosen(1024, 1024, True, train=True),
    }
    prepare_for_inference(torch.nn.Identity(), "auto", torch.device(device))
    return found | {"token": chosen(1, 500, False), "token, compiled": chosen(1, 1024, True)}


def group(kind: str) -> None:
    import torch
    import torch.distributed as dist

    from core import distributed
    from model import GPT, GPTConfig

    device = torch.device(kind, 0)
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    distributed.WORLD_SIZE = 2  # of a single process, a group is not used
    net = distributed.parallel(GPT(GPTConfig(64, 16, n_layer=1, n_head=2, n_embd=32)).to(device))
    idx = torch.zeros(2, 16, dtype=torch.long, device=device)
    net(idx, idx).backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    print(json.dumps({"grad_norm": distributed.all_reduce_sum(norm)[0]}), flush=True)
    distributed.leave(0)


if __name__ == "__main__":
    part, *arguments = sys.argv[1:]
    if part == "group":
        group(*arguments)
    else:
        print(json.dumps({"record": record, "attention": attention}[part](*arguments)), flush=True)
