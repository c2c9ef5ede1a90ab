"""tools/export.py: transformers gives the same logits, text and tokens, and nothing is lost."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from conftest import ROOT, TINY
from test_gpt2 import FILES, val_losses

from core import checkpoint
from core.dataset import Writer
from core.extras.gpt2_tokenizer import GPT2Tokenizer
from core.generate import Sampling, generate
from core.tokenizer import UNK, ByteTokenizer, CharTokenizer, from_dict
from model import GPT, GPTConfig

transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")


@pytest.fixture
def bpe(folio_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folio_data("tiktoken-cache")))


def save_ours(path, tokenizer, **more) -> GPT:
    torch.manual_seed(1)
    args = dict(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=2, n_head=2, n_embd=32)
    args |= more
    model = GPT(GPTConfig(**args)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.2)
    state = {"model": model.state_dict(), "model_args": args, "tokenizer": tokenizer.to_dict()}
    checkpoint.save({**state, "step": 3, "best_val_loss": 1.0}, str(path))
    return model


TEXTS = ["Hello world! It's 10 o'clock;\n\n  naïve 你好 don't", "def f(x):\n\treturn x  # 3.14\n"]
TEXTS += ["Āē, \x00 and Ċ"]  # letters by which GPT-2 spells bytes, and a byte
MORE = [" <|user|>", "<|assistant|>"]  # tokens beyond GPT-2's own
TOKENIZERS = {
    "gpt2": GPT2Tokenizer(),
    "gpt2 and more": GPT2Tokenizer(MORE),
    "char": CharTokenizer(sorted(set("".join(TEXTS))), ["<|endoftext|>", UNK]),
    "char alone": CharTokenizer(sorted(set("".join(TEXTS)))),
    "byte": ByteTokenizer(),
}

CASES = [
    ("gpt2", {}),
    ("gpt2 and more", {"dropout": 0.2}),
    ("char", {"bias": False, "activation": "gelu"}),
    ("char alone", {"zero_init": True}),
    ("char", {"untied_head": True}),
    ("byte", {"activation": "relu2"}),
]


@pytest.mark.parametrize(("kind", "fields"), CASES)
def test_transformers_gives_the_same_logits_text_and_tokens(bpe, script, tmp_path, kind, fields):
    tokenizer = TOKENIZERS[kind]
    ours = save_ours(tmp_path / "ckpt.pt", tokenizer, **fields)
    script("tools.export", "--out_dir=ckpt.pt", "--to=hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    idx = torch.randint(tokenizer.vocab_size, (2, 64))
    with torch.no_grad():
        torch.testing.assert_close(theirs(idx).logits, ours(idx), atol=1e-4, rtol=0)
    ids = torch.tensor([tokenizer.encode("Hello").tolist()])
    theirs.generation_config.eos_token_id = None  # ours was not told to stop there either
    expected = theirs.generate(ids, max_new_tokens=30, do_sample=False, pad_token_id=0)
    found = torch.stack(list(generate(ours, ids, 30, Sampling(temperature=0))), dim=1)
    assert expected[:, ids.size(1) :].tolist() == found.tolist()
    for text in TEXTS:
        assert theirs_tokenizer.encode(text) == tokenizer.encode(text).tolist()
        assert theirs_tokenizer.decode(tokenizer.encode(text).tolist()) == text
    end = tokenizer.start_token if tokenizer.end_token is None else tokenizer.end_token
    assert theirs_tokenizer.bos_token_id == theirs_tokenizer.eos_token_id == end
    assert theirs_tokenizer.unk_token_id == tokenizer.special.get(UNK, end)
    assert theirs.config.n_ctx == 64  # which llama.cpp asks for
    assert len(theirs_tokenizer) == tokenizer.vocab_size  # nothing that the model has no row for
    for name, i in tokenizer.special.items():
        assert theirs_tokenizer.convert_tokens_to_ids(name) == i


@pytest.mark.parametrize(("kind", "fields"), CASES)
def test_there_and_back_again_loses_not_a_bit(bpe, script, tmp_path, kind, fields):
    tokenizer = TOKENIZERS[kind]
    ours = save_ours(tmp_path / "ckpt.pt", tokenizer, **fields)
    script("tools.export", "--out_dir=ckpt.pt", "--to=hf")
    loaded = checkpoint.load(str(tmp_path / "hf"))
    assert loaded["tokenizer"] == tokenizer.to_dict()
    for name, tensor in ours.state_dict().items():
        padded = name in ("transformer.wte.weight", "lm_head.weight")
        rows = tokenizer.vocab_size if padded else None
        assert torch.equal(tensor[:rows], loaded["model"][name][:rows]), name
    script("tools.export", "--out_dir=hf", "--to=again")
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("hf", "again")
    )
    assert b"| steps | 3 |" in first.pop("README.md")  # which others' folders do not tell
    assert b"| steps | unknown |" in second.pop("README.md")
    assert first == second and len(first) == 5


def test_gpt2_in_tokenizer_json_is_recognised_by_its_tokens(bpe, script, tmp_path):
    for kind in ("gpt2", "gpt2 and more", "byte"):
        save_ours(tmp_path / "ckpt.pt", TOKENIZERS[kind])
        script("tools.export", "--out_dir=ckpt.pt", f"--to={kind}")
        (tmp_path / kind / "folio_tokenizer.json").unlink()  # as others write the folder
        found = checkpoint.load(str(tmp_path / kind))["tokenizer"]
        assert found["kind"] == ("hf" if kind == "byte" else "gpt2")
        for text in TEXTS[:2]:  # the byte 0 is a name there
            assert from_dict(found).encode(text).tolist() == TOKENIZERS[kind].encode(text).tolist()


def test_another_tokenizer_of_gpt2s_size_is_not_taken_for_it(bpe, script, tmp_path):
    save_ours(tmp_path / "ckpt.pt", TOKENIZERS["gpt2"])
    script("tools.export", "--out_dir=ckpt.pt", "--to=hf")
    (tmp_path / "hf" / "folio_tokenizer.json").unlink()
    path = tmp_path / "hf" / "tokenizer.json"
    saved = json.loads(path.read_text())

    def recognised(**change) -> dict | None:
        path.write_text(json.dumps({**saved, "model": {**saved["model"], **change}}))
        return checkpoint.load(str(tmp_path / "hf"))["tokenizer"]

    vocab, merges = saved["model"]["vocab"], saved["model"]["merges"]
    assert recognised() == {"kind": "gpt2"}
    pairs = [m.split(" ") if isinstance(m, str) else m for m in merges]
    for spelled in (pairs, [" ".join(pair) for pair in pairs]):
        assert recognised(merges=spelled) == {"kind": "gpt2"}
    words = recognised(type="WordLevel", unk_token="a")
    assert words["kind"] == "hf" and from_dict(words).vocab_size == 50257
    assert recognised(merges=merges[1:] + merges[:1])["kind"] == "hf"
    first, second = list(vocab)[1000:1002]
    assert recognised(vocab={**vocab, first: vocab[second], second: vocab[first]})["kind"] == "hf"


def test_gpt2_is_recognised_in_vocab_json_and_merges_txt(bpe, script, tmp_path):
    save_ours(tmp_path / "ckpt.pt", TOKENIZERS["gpt2"])
    script("tools.export", "--out_dir=ckpt.pt", "--to=hf")
    folder = tmp_path / "hf"
    (folder / "folio_tokenizer.json").unlink()
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    assert checkpoint.load(str(folder))["tokenizer"] == {"kind": "gpt2"}
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges[:-1], ""]))
    other = from_dict(checkpoint.load(str(folder))["tokenizer"])
    assert other.kind == "hf" and other.special == {"<|endoftext|>": 50256}
    assert other.encode("Hello world").tolist() == [15496, 995]


EXPRESSED = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias", "activation"}
EXPRESSED |= {"untied_head", "dropout", "zero_init"}  # which matter in training only
BEYOND = [field.name for field in fields(GPTConfig) if field.name not in EXPRESSED]


@pytest.mark.parametrize("field", BEYOND)
def test_what_gpt2_cannot_express_is_refused_by_name(script, tmp_path, field):
    value = type(getattr(GPTConfig, field))(1)  # True, 1 or 1.0
    save_ours(tmp_path / "ckpt.pt", ByteTokenizer(), **{field: value})
    said = script("tools.export", "--out_dir=ckpt.pt", "--to=hf", status=2).stderr
    assert f"{field}={value}" in said
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(("name", "value"), [("activation", "silu"), ("experts", 8)])
def test_a_field_that_nobody_has_thought_of_yet_is_refused_too(script, tmp_path, name, value):
    save_ours(tmp_path / "ckpt.pt", ByteTokenizer())
    saved = torch.load(tmp_path / "ckpt.pt")
    saved["model_args"][name] = value
    checkpoint.save(saved, str(tmp_path / "ckpt.pt"))
    said = script("tools.export", "--out_dir=ckpt.pt", "--to=hf", status=2).stderr
    assert f"{name}={value}" in said
    assert not (tmp_path / "hf").exists()


def test_a_parameter_that_gpt2_does_not_have_is_refused_by_name(script, tmp_path):
    save_ours(tmp_path / "ckpt.pt", ByteTokenizer())
    saved = torch.load(tmp_path / "ckpt.pt")
    saved["model"]["transformer.h.0.gate.bias"] = torch.ones(1)
    checkpoint.save(saved, str(tmp_path / "ckpt.pt"))
    said = script("tools.export", "--out_dir=ckpt.pt", "--to=hf", status=2).stderr
    assert "transformer.h.0.gate.bias" in said
    assert not (tmp_path / "hf").exists()


def test_an_export_never_overwrites(script, tmp_path):
    save_ours(tmp_path / "ckpt.pt", ByteTokenizer())
    (tmp_path / "hf").mkdir()
    assert "exists" in script("tools.export", "--out_dir=ckpt.pt", "--to=hf", status=2).stderr
    assert list((tmp_path / "hf").iterdir()) == []
    assert "--to=" in script("tools.export", "--out_dir=ckpt.pt", status=2).stderr


def test_an_export_to_a_full_disk_leaves_nothing(tmp_path):
    save_ours(tmp_path / "ckpt.pt", ByteTokenizer(), n_embd=256)
    command = f"ulimit -f 100; {sys.executable} -m tools.export --out_dir=ckpt.pt --to=hf"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2 and "--to=hf cannot be written" in result.stderr
    assert not (tmp_path / "hf").exists()


def test_without_a_tokenizer_the_weights_are_exported(script, tmp_path):
    save_ours(tmp_path / "ckpt.pt", ByteTokenizer())
    saved = torch.load(tmp_path / "ckpt.pt") | {"tokenizer": None}
    checkpoint.save(saved, str(tmp_path / "ckpt.pt"))
    assert "no tokenizer" in script("tools.export", "--out_dir=ckpt.pt", "--to=hf").stdout
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {*FILES, "README.md"}
    assert "has no tokenizer" in (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")


def read_by_transformers(folder) -> tuple:
    """Its tokenizer, and a function (ids, n) -> the n likeliest ids after them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def generate(ids: list[int], n: int) -> list[int]:
        found = model.generate(torch.tensor([ids]), max_new_tokens=n, do_sample=False)
        return found[0, len(ids) :].tolist()

    return transformers.AutoTokenizer.from_pretrained(folder), generate


def read_by_ctranslate2(folder) -> tuple:
    """As above."""
    import ctranslate2

    ctranslate2.converters.TransformersConverter(str(folder)).convert(f"{folder}-ct2")
    generator = ctranslate2.Generator(f"{folder}-ct2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def generate(ids: list[int], n: int) -> list[int]:
        prompt, options = tokenizer.convert_ids_to_tokens(ids), {"max_length": n, "end_token": []}
        found = generator.generate_batch([prompt], include_prompt_in_result=False, **options)
        return found[0].sequences_ids[0]

    return tokenizer, generate


missing = not importlib.util.find_spec("ctranslate2")
with_ctranslate2 = pytest.mark.skipif(missing, reason="it needs pip install ctranslate2")
CLIENTS = [read_by_transformers, pytest.param(read_by_ctranslate2, marks=with_ctranslate2)]


@pytest.mark.parametrize("read", CLIENTS)
@pytest.mark.parametrize("kind", ["gpt2", "char", "char alone", "byte"])
def test_others_continue_a_prompt_as_sample_does(bpe, script, tmp_path, kind, read):
    tokenizer = TOKENIZERS[kind]
    with Writer(str(tmp_path / "data" / "toy"), tokenizer, {"name": "toy"}) as writer:
        for split in ("train", "val"):
            writer.append(split, tokenizer.encode(TEXTS[0] * 100))
    train = [*TINY, "--dataset=toy", "--compile=False", "--max_iters=40", "--out_dir=out"]
    script("train.py", *train, "--block_size=40")
    greedy = ["--temperature=0", "--num_samples=1", "--max_new_tokens=25", "--dtype=float32"]
    said = script("sample.py", "--out_dir=out", "--start=Hello wor", *greedy).stdout
    script("tools.export", "--out_dir=out", "--to=hf")
    theirs, generate = read(tmp_path / "hf")
    ids = theirs.encode("Hello wor")
    assert said == theirs.decode([*ids, *generate(ids, 25)]) + "\n---------------\n"
    assert len(set(said)) > 10  # it has learned something


def test_the_model_card_says_what_was_trained_and_how(script, toy, tmp_path):
    options = ["--learning_rate=0.02", "--max_iters=2", "--eval_interval=1", "--out_dir=run"]
    out = script("train.py", *TINY, "--compile=False", "--dataset=toy", *options).stdout
    script("tools.export", "--out_dir=run", "--to=hf")
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    loss = min(val_losses(out))
    for fact in ("trained on | toy", "steps | 2", f"token | {loss:.4f}", "char, 29 tokens"):
        assert f"{fact} |" in card
    assert '"learning_rate": 0.02' in card and "pipeline_tag: text-generation" in card
    code = "\n".join(line[4:] for line in card.splitlines() if line.startswith("    "))
    command, environment = [sys.executable, "-c", code], {**os.environ, "HF_HUB_OFFLINE": "1"}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0 and len(shown.stdout) >= 16, shown.stderr  # what it shows works


def test_an_export_continues_training_at_the_same_loss(script, toy, tmp_path):
    run = [*TINY, "--dataset=toy", "--compile=False", "--eval_iters=1000"]
    script("train.py", *run, "--out_dir=first", "--max_iters=30")
    script("tools.export", "--out_dir=first", "--to=hf")
    tune = [*run, "--init_from=hf", "--out_dir=second", "--max_iters=30"]
    losses = val_losses(script("train.py", *tune).stdout)
    before = val_losses(script("train.py", *run, "--init_from=first", "--eval_only").stdout)[0]
    assert losses[0] == pytest.approx(before, abs=2e-4) and losses[-1] < losses[0] - 0.1
