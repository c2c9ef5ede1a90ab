"""GPT-2 from Hugging Face and back: the same logits, the same text, the same bits."""

import json
import math
import re

import pytest
import torch
from conftest import TINY

from core import UserError, checkpoint, huggingface
from core.dataset import Writer
from core.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer
from model import GPT, GPTConfig

transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")

SHAPES = {"small": (3, 4, 64), "as deep as medium": (24, 16, 64)}
GREEDY = ["--temperature=0", "--num_samples=1", "--device=cpu", "--max_new_tokens=50"]


def save_theirs(folder, shape=SHAPES["small"], vocab_size=50257, positions=80, **more):
    """A GPT-2 of random weights, as transformers saves it."""
    torch.manual_seed(0)
    n_layer, n_head, n_embd = shape
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        **more,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, 0.0, 0.1)
    theirs.save_pretrained(folder)
    return theirs


def load(path) -> GPT:
    loaded = checkpoint.load(checkpoint.find(str(path)))
    return GPT.from_weights(loaded["model_args"], loaded["model"]).eval()


def greedy_text(theirs, ids: list[int]) -> str:
    out = theirs.generate(
        torch.tensor([ids]), max_new_tokens=50, do_sample=False, pad_token_id=50256
    )
    return GPT2Tokenizer().decode(out[0].tolist())


@pytest.fixture
def bpe(folio_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folio_data("tiktoken-cache")))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_a_folder_gives_the_same_logits_and_the_same_text(bpe, script, tmp_path, shape):
    theirs = save_theirs(tmp_path / "hf", shape)
    ours = load(tmp_path / "hf")
    idx = torch.randint(50257, (2, 80))
    with torch.no_grad():
        torch.testing.assert_close(ours(idx), theirs(idx).logits, atol=1e-4, rtol=0)
    result = script("sample.py", "--init_from=hf", "--start=Hello world", *GREEDY)
    expected = greedy_text(theirs, [15496, 995])
    assert result.stdout == f"{expected}\n---------------\n"


def test_the_hub_gives_the_same_and_is_asked_once(bpe, script, tmp_path, hub):
    theirs = save_theirs(tmp_path / "hf")
    base = "/openai-community/gpt2-medium/resolve/main/"
    files = {base + f: (tmp_path / "hf" / f).read_bytes() for f in FILES}
    cuts = {base + "model.safetensors": [("cut", 15 << 16), 503, ("cut", 30 << 16)]}
    url = hub(files, cuts)
    environment = dict(HF_ENDPOINT=url, HF_TOKEN="secret", XDG_CACHE_HOME=str(tmp_path / "cache"))
    command = ("sample.py", "--init_from=gpt2-medium", "--start=Hello world", *GREEDY)
    expected = f"{greedy_text(theirs, [15496, 995])}\n---------------\n"
    assert script(*command, **environment).stdout == expected
    assert [r for _, r, _ in hub.asked] == [
        *(None, None),  # config.json, model.safetensors
        *(f"bytes={n << 16}-" for n in (15, 15, 45)),  # which goes on where it broke
    ]
    assert {token for _, _, token in hub.asked} == {"Bearer secret"}
    asked = len(hub.asked)
    assert script(*command, **environment).stdout == expected
    assert len(hub.asked) == asked  # nothing is downloaded twice


FILES = ("config.json", "model.safetensors")


@pytest.mark.parametrize("fault", ["404", "hash", "away"])
def test_a_hub_that_fails_is_one_sentence_and_leaves_nothing(script, tmp_path, hub, fault):
    base = "/openai-community/gpt2/resolve/main/"
    files = {base + name: b"{}" for name in FILES}
    url = {
        "404": lambda: hub({}),
        "hash": lambda: hub(files, sha256="0" * 64),
        "away": lambda: "http://127.0.0.1:9",
    }[fault]()
    environment = dict(HF_ENDPOINT=url, XDG_CACHE_HOME=str(tmp_path / "cache"))
    result = script("sample.py", "--init_from=gpt2", status=None, **environment)
    words = {"404": "404", "hash": "sha256", "away": "cannot be reached"}
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert words[fault] in result.stderr.splitlines()[-1]
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_old_and_bare_files_are_read_too(tmp_path):
    from safetensors.torch import load_file, save_file

    save_theirs(tmp_path / "hf")
    expected = load(tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(path).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 80, 80).tril()  # the mask that old files carry
    save_file(tensors, path)
    ours = load(tmp_path / "hf")
    assert all(map(torch.equal, ours.state_dict().values(), expected.state_dict().values()))


def test_what_is_not_gpt2_is_one_sentence(tmp_path):
    def said(**more):
        save_theirs(tmp_path / "hf", **more)
        with pytest.raises(UserError) as caught:
            load(tmp_path / "hf")
        return str(caught.value)

    assert "activation_function=silu" in said(activation_function="silu")
    assert "n_inner=100" in said(n_inner=100)
    assert "scale_attn_by_inverse_layer_idx" in said(scale_attn_by_inverse_layer_idx=True)
    save_theirs(tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(config.read_text().replace('"n_positions": 80', '"n_positions": 96'))
    with pytest.raises(UserError, match=r"don't fit.*wpe"):
        load(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").write_bytes(b"what is this")
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no \.safetensors"):
        load(tmp_path / "hf")
    config.write_text("{}")
    with pytest.raises(UserError, match="not a GPT-2"):
        load(tmp_path / "hf")


def save_ours(path, tokenizer, **fields) -> GPT:
    torch.manual_seed(1)
    args = dict(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=2, n_head=2, n_embd=32)
    args |= fields
    model = GPT(GPTConfig(**args)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.2)
    state = {"model": model.state_dict(), "model_args": args, "tokenizer": tokenizer.to_dict()}
    more = {"optimizers": [], "scaler": {}, "step": 3, "best_val_loss": 1.0, "config": {}}
    checkpoint.save({**state, **more}, str(path))
    return model


TEXTS = ["Hello world! It's 10 o'clock;\n\n  naïve 你好 don't", "def f(x):\n\treturn x  # 3.14\n"]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("gpt2", {}),
        ("char", {"bias": False, "activation": "gelu"}),
        ("byte", {"activation": "relu2"}),
    ],
)
def test_an_export_is_the_same_model_and_tokenizer(bpe, script, tmp_path, kind, fields):
    coders = {"gpt2": GPT2Tokenizer, "byte": ByteTokenizer}
    coder = coders.get(kind, lambda: CharTokenizer.from_text("".join(TEXTS), ["<|endoftext|>"]))()
    ours = save_ours(tmp_path / "ckpt.pt", coder, **fields)
    script("export.py", "--out_dir=ckpt.pt", "--to=hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    theirs_coder = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    idx = torch.randint(coder.vocab_size, (2, 64))
    with torch.no_grad():
        torch.testing.assert_close(theirs(idx).logits, ours(idx), atol=1e-4, rtol=0)
    ids = torch.tensor([coder.encode("Hello")])
    theirs.generation_config.eos_token_id = None  # ours was not told to stop there either
    same = theirs.generate(ids, max_new_tokens=30, do_sample=False, pad_token_id=0)
    mine = torch.stack(list(ours.generate(ids, 30, temperature=0)), dim=1)
    assert same[:, ids.size(1) :].tolist() == mine.tolist()
    for text in TEXTS:
        assert theirs_coder.encode(text) == coder.encode(text)
        assert theirs_coder.decode(coder.encode(text)) == text
    # and back: not a bit is lost, nor the tokenizer
    back = checkpoint.load(str(tmp_path / "hf"))
    assert back["tokenizer"] == coder.to_dict()
    first, second = ours.state_dict(), back["model"]
    for name in first:
        rows = coder.vocab_size if name in ("transformer.wte.weight", "lm_head.weight") else None
        assert torch.equal(first[name][:rows], second[name][:rows]), name
    script("export.py", "--out_dir=hf", "--to=again")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("field", ["rotary", "rms_norm", "untied_head", "smear", "window"])
def test_what_gpt2_cannot_express_is_refused_by_name(script, tmp_path, field):
    save_ours(tmp_path / "ckpt.pt", ByteTokenizer(), **{field: 1})
    said = script("export.py", "--out_dir=ckpt.pt", "--to=hf", status=2).stderr
    assert f"{field}=" in said and not (tmp_path / "hf").exists()
    assert not (tmp_path / "hf.tmp").exists()


def test_an_export_never_overwrites(script, tmp_path):
    save_ours(tmp_path / "ckpt.pt", ByteTokenizer())
    (tmp_path / "hf").mkdir()
    assert "already" in script("export.py", "--out_dir=ckpt.pt", "--to=hf", status=2).stderr
    assert "--to=" in script("export.py", "--out_dir=ckpt.pt", status=2).stderr


def val_losses(out: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"val_loss ([\d.]+)", out)]


def test_an_export_trains_on_at_the_same_loss(script, toy, tmp_path):
    run = [*TINY, "--dataset=toy", "--compile=False", "--eval_iters=1000"]
    script("train.py", *run, "--out_dir=first", "--max_iters=30")
    script("export.py", "--out_dir=first", "--to=hf")
    tune = [*run, "--init_from=hf", "--out_dir=second", "--max_iters=30"]
    losses = val_losses(script("train.py", *tune).stdout)
    before = val_losses(script("train.py", *run, "--init_from=first", "--eval_only").stdout)[0]
    assert losses[0] == pytest.approx(before, abs=2e-4) and losses[-1] < losses[0] - 0.1


def test_fine_tuning_a_folder_lowers_the_loss(bpe, script, torchrun, folio_data, tmp_path):
    save_theirs(tmp_path / "hf")
    text = folio_data("tinyshakespeare.txt").read_text()[:100_000]
    (tmp_path / "small.txt").write_text(text)
    script("prepare_shakespeare.py", "--input=small.txt", "--tokenizer=gpt2")
    tune = ["config/finetune_shakespeare.py", "--init_from=hf", "--block_size=32"]
    tune += ["--eval_interval=10", "--eval_iters=4", "--max_iters=10", "--learning_rate=0.01"]
    tune += [
        "--gradient_accumulation_steps=2",
        "--batch_size=2",
        "--device=cpu",
        "--compile=False",
        "--dtype=float32",
    ]
    (tmp_path / "config").symlink_to(huggingface.__file__.replace("core/huggingface.py", "config"))
    start, one = val_losses(script("train.py", *tune, "--out_dir=one").stdout)
    two = val_losses(torchrun(*tune, "--out_dir=two"))[-1]
    assert one < start - 0.3 and two == pytest.approx(one, abs=1e-3)
    loaded = checkpoint.load(str(tmp_path / "one" / "ckpt.pt"))
    assert loaded["model_args"]["block_size"] == 32


def test_eval_only_says_loss_perplexity_and_bits_per_byte(bpe, script, tmp_path):
    text = "It was the best of times, it was the worst of times. " * 40
    coder = GPT2Tokenizer()
    with Writer(str(tmp_path / "data" / "two"), coder, {"name": "two"}) as writer:
        writer.append("train", coder.encode(text))
        writer.append("val", coder.encode(text)[:101])
    save_theirs(tmp_path / "hf")
    options = [
        "--dataset=two",
        "--init_from=hf",
        "--eval_only",
        "--block_size=20",
        "--dtype=float32",
    ]
    out = script("train.py", *options, "--eval_iters=1", "--batch_size=2").stdout
    figures = dict(re.findall(r"(\w+) ([\d.]+)", out[out.index("step 0:") :]))
    model, idx = load(tmp_path / "hf"), torch.tensor(coder.encode(text)[:101])
    with torch.no_grad():  # the whole split, though one batch of two rows was asked for
        loss = model(idx[:-1].view(5, 20), idx[1:].view(5, 20)).item()
    size = len(coder.decode(idx.tolist()).encode())
    assert float(figures["val_loss"]) == pytest.approx(loss, abs=1e-3)
    assert float(figures["perplexity"]) == pytest.approx(math.exp(loss), rel=1e-3)
    bits = loss / math.log(2) * 101 / size
    assert float(figures["bits_per_byte"]) == pytest.approx(bits, abs=1e-3)


def their_scores(theirs, context: list[int], ending: list[int]) -> tuple[float, bool]:
    idx = torch.tensor([context + ending])
    with torch.no_grad():
        logs = theirs(idx).logits[0].log_softmax(-1)
    where = range(len(context) - 1, len(context) + len(ending) - 1)
    total = sum(logs[i, t].item() for i, t in zip(where, ending, strict=True))
    return total, all(logs[i].argmax() == t for i, t in zip(where, ending, strict=True))


def test_hellaswag_and_lambada_as_transformers_scores_them(bpe, script, tmp_path):
    theirs, coder = save_theirs(tmp_path / "hf"), GPT2Tokenizer()
    words = "the a man dog runs very quickly to an open door and then falls asleep".split()
    generator = torch.Generator().manual_seed(0)

    def phrase(low, high):
        n = int(torch.randint(low, high, (), generator=generator))
        return " ".join(words[i] for i in torch.randint(len(words), (n,), generator=generator))

    rows = [
        {"ctx": phrase(3, 12), "endings": [phrase(1, 8) for _ in range(4)], "label": i % 4}
        for i in range(36)
    ]
    passages = [{"text": f"{phrase(5, 20)} {words[i % 5]}"} for i in range(36)]
    # some whose last word the model does find: its own continuation
    for row in passages[::3]:
        ids = coder.encode(row["text"])
        out = theirs.generate(torch.tensor([ids]), max_new_tokens=1, do_sample=False)
        word = coder.decode(out[0, -1:].tolist())
        if word.startswith(" ") and " " not in word[1:] and coder.encode(word) == [out[0, -1]]:
            row["text"] += word
    for name, content in (("h.jsonl", rows), ("l.jsonl", passages)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    by_sum = by_mean = found = 0
    for row in rows:
        context, endings = coder.encode(row["ctx"]), [coder.encode(f" {e}") for e in row["endings"]]
        sums = [their_scores(theirs, context, ending)[0] for ending in endings]
        means = [s / len(e) for s, e in zip(sums, endings, strict=True)]
        by_sum += sums.index(max(sums)) == row["label"]
        by_mean += means.index(max(means)) == row["label"]
    log_likely = 0.0
    for row in passages:
        context, word = row["text"].rsplit(" ", 1)
        total, greedy = their_scores(theirs, coder.encode(context), coder.encode(f" {word}"))
        log_likely, found = log_likely + total, found + greedy
    options = ["--init_from=hf", "--dtype=float32", "--batch_size=5"]
    said = script("evaluate.py", "--task=hellaswag", "--input=h.jsonl", *options).stdout
    assert f"36 examples, accuracy {by_sum / 36:.4f}, by mean a token {by_mean / 36:.4f}" in said
    said = script("evaluate.py", "--task=lambada", "--input=l.jsonl", *options).stdout
    assert f"36 examples, accuracy {found / 36:.4f}, perplexity " in said and found > 0
    assert float(said.split()[-1]) == pytest.approx(math.exp(-log_likely / 36), rel=1e-3)
    (tmp_path / "h.jsonl").write_text('{"ctx": "no endings"}\n')
    said = script("evaluate.py", "--input=h.jsonl", *options, status=2).stderr
    assert "line 1 is no example of hellaswag" in said
