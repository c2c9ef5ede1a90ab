"""LoRA: a run of adapters is the paper's formula, exact to resume, and what PEFT computes."""

import copy
import json
import os
import shutil

import pytest
import torch
from conftest import TINY, small, tokens
from test_gpt2 import save_theirs
from test_train import MODERN, assert_same_run, evaluations, losses

from core import UserError, checkpoint
from core.dataset import Writer
from core.device import autocast
from core.extras import lora
from core.extras.frozen import select_trainable
from core.optimizer import build_optimizers
from core.tokenizer import CharTokenizer
from model import GPT

RUN = [*TINY, "--dataset=toy", "--eval_interval=15", "--max_iters=40", "--compile=False"]
TUNED = [*RUN, "--lora_rank=4", "--init_from=base"]
ABOUT = {"base": ["base.pt"], "weights": "", "rank": 4, "alpha": 12.0, "trained": []}


@pytest.fixture
def base(script, toy, tmp_path):
    script("train.py", *RUN, "--out_dir=base", "--max_iters=20")
    return tmp_path / "base"


def with_adapters(model: GPT) -> GPT:
    lora.add(model, ABOUT, {})
    return randomized(model)


def randomized(model: GPT) -> GPT:
    for name, p in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(p, 0.0, 0.1)
    return model


def write_toy(folder, text: str) -> None:
    shutil.rmtree(folder)
    tokenizer = CharTokenizer(sorted(set(text)))
    with Writer(str(folder), tokenizer, {"name": "toy text"}) as writer:
        for split in ("train", "val"):
            writer.append(split, tokenizer.encode(text))


@pytest.mark.parametrize("fields", [{}, {"untied_head": True, "rotary": True, "bias": False}])
def test_at_the_start_the_logits_are_the_bases_and_then_the_papers_formula(fields):
    model, x = small(**fields), tokens(2, 16)
    expected = model(x)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    lora.add(model, ABOUT, {})
    assert torch.equal(model(x), expected)
    randomized(model)
    for name, p in model.named_parameters():
        if ".lora_B" in name:
            A = model.get_parameter(name.replace("lora_B", "lora_A"))
            weights[name.replace("lora_B", "weight")] += 12 / 4 * p @ A
    changed = small(**fields)
    changed.load_state_dict({**changed.state_dict(), **weights})
    assert (model(x) - expected).abs().max() > 0.1
    torch.testing.assert_close(model(x), changed(x), atol=1e-4, rtol=1e-4)


def test_only_adapters_have_gradients_optimizer_state_and_a_place_in_the_checkpoint():
    model, x = with_adapters(small()), tokens(2, 16)
    settings = {"optimizer": "muon", "learning_rate": 0.01, "beta1": 0.9, "beta2": 0.95}
    settings |= {"weight_decay": 0.1, "muon_lr": 0.02, "muon_momentum": 0.9}
    settings |= {"train_only": "", "lora_rank": 4}
    optimizers = build_optimizers(model, settings, torch.float32)
    model(x, x).backward()
    optimizers["adamw"].step()
    adapters = {name for name in model.state_dict() if ".lora_" in name}
    assert len(adapters) == 3 * 4 * 2 and list(optimizers) == ["adamw"]
    assert {name for name, p in model.named_parameters() if p.grad is not None} == adapters
    assert len(optimizers["adamw"].state) == len(adapters)
    assert lora.model_state(model)["model"].keys() == adapters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("fields", [{}, {"untied_head": True, "rotary": True, "bias": False}])
def test_frozen_matrices_in_the_products_dtype_give_autocasts_loss_and_gradients(fields, dtype):
    model, x = with_adapters(small(**fields)), tokens(2, 16)
    stored, trained = copy.deepcopy(model), "transformer.h.1.mlp.c_fc.weight"
    select_trainable(stored, f"*.lora_*,{trained}", dtype)
    model.get_parameter(trained).requires_grad_(True)
    for one in (model, stored):
        with autocast(x.device, dtype):
            one.loss = one(x, x)
        one.loss.backward()
    assert torch.equal(stored.loss, model.loss)
    kept_fp32 = ("bias", "wpe.weight", "wte.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")
    for (name, p), other in zip(stored.named_parameters(), model.parameters(), strict=True):
        if p.requires_grad:
            assert p.dtype == torch.float32 and torch.equal(p.grad, other.grad), name
        else:
            assert p.dtype == (torch.float32 if name.endswith(kept_fp32) else dtype), name
    assert stored.get_parameter(trained).requires_grad


def test_a_frozen_matrix_costs_four_flops_and_a_trained_one_six():
    model = small()
    full = model.flops_per_token()
    frozen = sum(p.numel() for p in model.transformer.h.parameters() if p.ndim == 2)
    frozen += model.lm_head.weight.numel()
    lora.add(model, ABOUT, {})
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.flops_per_token() == full - 2 * frozen + 6 * adapters


@pytest.mark.parametrize(
    "options",
    [[], ["--optimizer=muon", "--dtype=bfloat16", "--compile=True"]],
    ids=["eager", "muon-bf16-compiled"],
)
def test_resumed_equals_uninterrupted_bit_for_bit(script, base, tmp_path, options):
    run = [*TUNED, "--dropout=0.1", "--lr_decay_iters=40", *options]
    script("train.py", *run, "--out_dir=straight")
    script("train.py", *run, "--out_dir=resumed", "--max_iters=20")
    script("train.py", *run, "--out_dir=resumed", "--init_from=resume")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    found = evaluations(tmp_path / "resumed")
    assert sorted(losses(tmp_path / "resumed")) == list(range(1, 41)) and found[40] < found[0]


@pytest.mark.parametrize(("dtype", "abs"), [("float32", 1e-4), ("bfloat16", 1e-3)])
def test_two_processes_equal_one(script, torchrun, base, tmp_path, dtype, abs):
    run = [*TUNED, "--gradient_accumulation_steps=2", "--max_iters=15", f"--dtype={dtype}"]
    script("train.py", *run, "--out_dir=one")
    torchrun(*run, "--out_dir=two")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one == pytest.approx(two, abs=abs) and one[15] < one[1]


def test_blocks_computed_again_in_the_backward_pass_give_the_same_run(script, base, tmp_path):
    run = [*TUNED, "--dropout=0.1", "--max_iters=15"]
    script("train.py", *run, "--out_dir=kept")
    script("train.py", *run, "--out_dir=again", "--activation_checkpointing=True")
    assert losses(tmp_path / "kept") == losses(tmp_path / "again")


def test_the_checkpoint_is_small_and_every_reader_gets_the_merged_weights(script, base, tmp_path):
    script("train.py", *TUNED, *MODERN, "--out_dir=tuned", "--optimizer=muon")
    raw = torch.load(tmp_path / "tuned" / "ckpt.pt", weights_only=True)
    assert all(".lora_" in name for name in raw["model"])
    size, whole = (os.path.getsize(tmp_path / name / "ckpt.pt") for name in ("tuned", "base"))
    assert size < whole / 4
    start, end = (checkpoint.load(str(tmp_path / name))["model"] for name in ("base", "tuned"))
    for name in start:
        is_adapted = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        assert torch.equal(start[name], end[name]) == (not is_adapted), name
    found = evaluations(tmp_path / "tuned")[40]  # what unmerged weights had
    script("train.py", *RUN, "--init_from=tuned", "--out_dir=next", "--max_iters=1")
    assert evaluations(tmp_path / "next")[0] == pytest.approx(found, abs=1e-4)
    said = script("sample.py", "--out_dir=tuned", "--num_samples=1", "--max_new_tokens=5").stderr
    assert "tuned/best.pt: 40 steps" in said


def test_adapters_of_a_run_of_adapters_add_up(script, base, tmp_path):
    script("train.py", *TUNED, "--out_dir=first")
    script("train.py", *TUNED, "--init_from=first", "--out_dir=second", "--lora_rank=2")
    a, b = evaluations(tmp_path / "first"), evaluations(tmp_path / "second")
    assert b[0] == pytest.approx(a[40], abs=1e-4) and b[40] < b[0]
    script("train.py", *TUNED, "--init_from=second", "--out_dir=third", "--max_iters=1")
    assert evaluations(tmp_path / "third")[0] == pytest.approx(b[40], abs=1e-4)


def test_new_tokens_are_learned_with_their_embeddings(script, base, toy, tmp_path):
    write_toy(toy, "the lazy fox jumps over 23 quick dogs.\n" * 60)
    run = [*TUNED, "--dropout=0.1", "--lr_decay_iters=40"]
    script("train.py", *run, "--out_dir=straight")
    script("train.py", *run, "--out_dir=resumed", "--max_iters=20")
    script("train.py", *run, "--out_dir=resumed", "--init_from=resume")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    trained = torch.load(tmp_path / "resumed" / "ckpt.pt", weights_only=True)["model"]
    others = {name for name in trained if ".lora_" not in name}
    assert others == {"transformer.wte.weight", "lm_head.weight"}
    script("sample.py", "--out_dir=resumed", "--num_samples=1", "--max_new_tokens=5", "--start=23")


def test_the_base_is_found_wherever_both_are_moved_and_must_not_change(script, base, tmp_path):
    script("train.py", *TUNED, "--out_dir=out/tuned", "--init_from=base/ckpt.pt", "--max_iters=5")
    expected = checkpoint.load(str(tmp_path / "out" / "tuned"))["model"]
    for name in ("out", "base"):  # this process is in another folder than that of the run
        (tmp_path / "moved").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "moved" / name)
    tuned = str(tmp_path / "moved" / "out" / "tuned")
    found = checkpoint.load(tuned)["model"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    path = tmp_path / "moved" / "base" / "ckpt.pt"
    state = torch.load(path)
    state["model"]["transformer.h.0.mlp.c_fc.weight"][3, 4] += 1e-3
    torch.save(state, path)
    with pytest.raises(UserError, match=r"base/ckpt\.pt has changed since"):
        checkpoint.load(tuned)
    path.unlink()
    with pytest.raises(UserError, match=r"adapts .*base/ckpt\.pt, which is not there"):
        checkpoint.load(tuned)


def test_wrong_use_is_one_sentence(script, base, tmp_path):
    def said(*options) -> str:
        return script("train.py", *TUNED, "--max_iters=2", *options, status=2).stderr

    assert "name them by --init_from" in said("--init_from=scratch", "--out_dir=a")
    assert "choose another --out_dir" in said("--out_dir=base")
    script("train.py", *TUNED, "--max_iters=2", "--out_dir=tuned")
    for rank in (0, 8):
        resumed = said("--init_from=resume", "--out_dir=tuned", f"--lora_rank={rank}")
        assert "was trained with --lora_rank=4" in resumed
    whole = said("--init_from=resume", "--out_dir=base")
    assert "was trained with --lora_rank=0" in whole
    path = tmp_path / "tuned" / "ckpt.pt"
    state = torch.load(path, weights_only=True)
    for about in ({"base": []}, {"rank": 4}, {**state["lora"], "base": 3, "alpha": "16"}):
        torch.save({**state, "lora": about}, path)
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(str(path))


# ---- PEFT's folders ------------------------------------------------------------------------------
@pytest.fixture
def peft():
    pytest.importorskip("transformers")
    return pytest.importorskip("peft")


def test_pefts_folder_gives_its_logits(peft, script, tmp_path, monkeypatch):
    import transformers

    monkeypatch.chdir(tmp_path)
    save_theirs("hf", vocab_size=272)
    theirs = transformers.AutoModelForCausalLM.from_pretrained("hf")
    before, x = GPT.from_pretrained("hf").eval(), torch.randint(272, (2, 80))
    config = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=["c_attn", "c_proj"], task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(theirs, config).eval()
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, 0.0, 0.1)
    theirs.save_pretrained("adapter")
    with torch.no_grad():
        expected, found = theirs(x).logits, GPT.from_pretrained("adapter").eval()(x)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert (before(x) - expected).abs().max() > 1e-2
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    for wrong in ({"use_dora": True}, {"alpha_pattern": {"c_attn": 3}}, {"peft_type": "IA3"}):
        path.write_text(json.dumps({**config, **wrong}))
        with pytest.raises(UserError, match="is not implemented"):
            checkpoint.load("adapter")
    path.write_text(json.dumps({**config, "base_model_name_or_path": "nowhere.pt"}))
    with pytest.raises(UserError, match=r"adapts nowhere\.pt, which is not there"):
        checkpoint.load("adapter")


def test_pefts_model_of_our_folder_gives_our_logits(peft, script, base, tmp_path):
    import transformers

    script("train.py", *TUNED, "--out_dir=tuned")
    script("tools.export", "--out_dir=base", "--to=hf")
    script("tools.export", "--out_dir=tuned", "--to=adapter", "--peft_base=hf")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    ours, x = GPT.from_pretrained(str(tmp_path / "tuned")).eval(), torch.randint(29, (2, 16))
    again = GPT.from_pretrained(str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(x).logits, ours(x), atol=1e-4, rtol=0)
        torch.testing.assert_close(again(x), ours(x), atol=1e-5, rtol=0)
        assert (GPT.from_pretrained(str(base)).eval()(x) - ours(x)).abs().max() > 0.1
    for options, sentence in (
        (["--out_dir=base", "--peft_base=hf"], "has no adapters"),
        (["--out_dir=tuned", "--peft_base=base"], "--peft_base=base is not what"),
    ):
        said = script("tools.export", *options, "--to=another", status=2).stderr
        assert sentence in said and not (tmp_path / "another").exists()
