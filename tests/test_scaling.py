"""tools/scaling.py: laws of its arithmetic; docs/SCALING.md says what it prints."""

import re

import pytest
import torch
from conftest import ROOT

from core import log
from model import GPT, GPTConfig

TINY = ["--vocab_size=65", "--block_size=64", "--n_layer=3", "--n_head=2", "--n_embd=64"]
TINY += ["--batch_size=2", "--gradient_accumulation_steps=64"]
PAPER = (ROOT / "docs" / "SCALING.md").read_text(encoding="utf-8")


@pytest.fixture
def predict(script, tmp_path):
    """A function that runs the tool and gives its rows, (GPUs, strategy) -> row."""

    def run(*arguments) -> dict[tuple, dict]:
        path = tmp_path / "rows.jsonl"
        path.unlink(missing_ok=True)
        script("tools.scaling", *arguments, "--json_file=rows.jsonl")
        return {(row["gpus"], row["strategy"]): row for row in log.read(str(path))}

    return run


def ring_all_reduce(ranks: list[torch.Tensor]) -> list[int]:
    """Sum them in place as a ring does; elements that each has sent."""
    n, sent = len(ranks), [0] * len(ranks)
    parts = [tensor.tensor_split(n) for tensor in ranks]
    for turn in range(2 * n - 2):
        moved = [parts[i][(i - turn) % n].clone() for i in range(n)]
        for i, part in enumerate(moved):
            target = parts[(i + 1) % n][(i - turn) % n]
            target.copy_(target + part if turn < n - 1 else part)
            sent[i] += part.numel()
    return sent


def test_one_gpu_sends_nothing_and_waits_for_nothing(predict):
    (row,) = predict(*TINY, "--processes=1").values()
    assert row["sent_gb"] == row["waits"] == 0 and row["speed_up"] == pytest.approx(1)


@pytest.mark.parametrize("n", [4, 8])
def test_ddp_sends_the_bytes_of_a_ring(predict, n):
    model = GPT(GPTConfig(65, 64, n_layer=3, n_head=2, n_embd=64))
    size = sum(p.numel() for p in model.parameters())
    ranks = [torch.full((size,), float(i)) for i in range(n)]
    sent = ring_all_reduce(ranks)
    assert all((tensor == sum(range(n))).all() for tensor in ranks)
    row = predict(*TINY, f"--processes={n}")[n, "ddp"]
    assert row["sent_gb"] * 1e9 == pytest.approx(4 * sum(sent) / n)


@pytest.mark.parametrize("network", [1, 3200])
def test_n_gpus_are_never_faster_than_n_times_one_with_the_same_batch(predict, network):
    rows = predict(*TINY, "--processes=2,8,16,64,1024", f"--network_gbits={network}")
    one = {}
    for steps in (64, 1024):  # until 64 GPUs the config's batch will do
        same = f"--gradient_accumulation_steps={steps}"
        (row,) = predict(*TINY, same, "--processes=1").values()
        one[row["batch"]] = row["tokens_per_s"]
    assert len(rows) == 2 + 2 + 3 * 3 and {row["batch"] for row in rows.values()} == set(one)
    for (n, _), row in rows.items():
        assert row["tokens_per_s"] <= n * one[row["batch"]] * (1 + 1e-9)
        assert 0 <= row["waits"] < 1 and row["mfu"] < 1


def test_a_slower_network_makes_no_step_faster_and_no_byte_more(predict):
    fast, slow = (predict(*TINY, f"--network_gbits={speed}") for speed in (3200, 10))
    for key, row in fast.items():
        assert slow[key]["ms"] >= row["ms"] and slow[key]["sent_gb"] == row["sent_gb"]
    assert slow[64, "ddp"]["ms"] > fast[64, "ddp"]["ms"]
    assert slow[8, "fsdp"]["ms"] == fast[8, "fsdp"]["ms"]  # one node needs no network


def test_the_paper_shows_what_its_commands_print(script):
    blocks = re.findall(
        r"^    python -m (tools\.scaling) (.*)\n((?:    .*\n)+)", PAPER, re.MULTILINE
    )
    assert len(blocks) == 4
    for module, arguments, shown in blocks:
        printed = iter(script(module, *arguments.split()).stdout.splitlines())
        for line in shown.splitlines():  # some lines may be left out
            assert line[4:] in printed, (arguments, line)


def test_beside_published_figures_stands_what_the_tool_computes(predict):
    rows = re.findall(
        r"^\|.*\| ([\d,]+) \| (\w+) \| ([\d,]+) \| ([\d.]+) \| `(.*)` \|$", PAPER, re.M
    )
    assert len(rows) == 10
    for published, strategy, computed, ratio, options in rows:
        found = predict(*options.split())
        (speed,) = (row["tokens_per_s"] for (_, name), row in found.items() if name == strategy)
        assert f"{speed:,.0f}" == computed, options
        assert f"{speed / float(published.replace(',', '')):.2f}" == ratio


def test_mistakes_are_one_sentence(script):
    for wrong in ("--processes=a", "--processes=12", "--nvlink=0", "--hbm_efficiency=0"):
        assert wrong.split("=")[0][2:] in script("tools.scaling", wrong, status=2).stderr
