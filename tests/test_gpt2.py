"""GPT-2 from Hugging Face and back: the same logits, the same text, the same bits."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from core import UserError, checkpoint
from core.extras.gpt2_tokenizer import GPT2Tokenizer
from model import GPT

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
    return GPT.from_pretrained(str(path)).eval()


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


BASE = "/openai-community/gpt2-medium/resolve/main"
FILES = ("config.json", "model.safetensors")


def test_the_hub_gives_the_same_and_is_asked_once(bpe, script, tmp_path, hub):
    theirs = save_theirs(tmp_path / "hf")
    files = {f"{BASE}/{name}": (tmp_path / "hf" / name).read_bytes() for name in FILES}
    url = hub(files, {f"{BASE}/model.safetensors": [("cut", 12_000_000)]})
    environment = dict(HF_ENDPOINT=url, HF_TOKEN="secret", HF_HOME=str(tmp_path / "cache"))
    command = ("sample.py", "--init_from=gpt2-medium", "--start=Hello world", *GREEDY)
    expected = f"{greedy_text(theirs, [15496, 995])}\n---------------\n"
    assert script(*command, **environment).stdout == expected
    assert [path for path, *_ in hub.asked] == [f"{BASE}/{FILES[i]}" for i in (0, 1, 1)]
    ranges = [span for _, span, _ in hub.asked]
    assert ranges[:2] == [None, None] and ranges[2].startswith("bytes=")  # continued at the cut
    assert {token for *_, token in hub.asked} == {"Bearer secret"}
    assert script(*command, **environment).stdout == expected
    assert len(hub.asked) == 3  # nothing is downloaded twice
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nor is a network needed any more
    assert script(*command, **environment).stdout == expected
    environment |= {"HF_HUB_CACHE": str(tmp_path / "cache" / "hub"), "HF_HOME": str(tmp_path)}
    assert script(*command, **environment, HF_HUB_OFFLINE="1").stdout == expected


@pytest.mark.parametrize("fault", ["404", "403", "away", "cut"])
def test_a_hub_that_fails_is_one_sentence_and_leaves_nothing(tmp_path, hub, fault):
    files = {f"{BASE}/{name}": b"{}" for name in FILES}
    config = f"{BASE}/config.json"
    url = {
        "404": lambda: hub({}),
        "403": lambda: hub(files, {config: [403]}),
        "cut": lambda: hub(files, {config: [("cut", 1)] * 20}),
        "away": lambda: "http://127.0.0.1:9",
    }[fault]()
    # sample.py --init_from=gpt2-medium, without the pauses of the hub's client
    code = "import runpy, sys, time; time.sleep = lambda seconds: None; sys.argv = sys.argv[1:]; "
    code += "sys.path.insert(0, sys.argv[0][:-9]); runpy.run_path(sys.argv[0])"
    result = subprocess.run(
        [sys.executable, "-c", code, ROOT / "sample.py", "--init_from=gpt2-medium"],
        cwd=tmp_path,
        env={**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    words = {"403": "403", "404": "404"}.get(fault, "cannot be downloaded")
    assert words in result.stderr.splitlines()[-1]
    assert not list((tmp_path / "cache").rglob("blobs/*"))


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


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu_fast", "gelu", "gelu_new"])
@pytest.mark.parametrize("tied", [True, False])
def test_each_activation_and_an_untied_head_give_the_same_logits(tmp_path, activation, tied):
    theirs = save_theirs(
        tmp_path / "hf", vocab_size=70, activation_function=activation, tie_word_embeddings=tied
    )
    idx = torch.randint(70, (2, 80))
    with torch.no_grad():
        expected = theirs(idx).logits
        torch.testing.assert_close(load(tmp_path / "hf")(idx), expected, atol=1e-4, rtol=0)


def test_rows_beyond_gpt2s_tokenizer_are_padding(tmp_path):
    theirs = save_theirs(tmp_path / "hf", vocab_size=50304)
    ours = checkpoint.load(str(tmp_path / "hf"))
    assert ours["tokenizer"] == {"kind": "gpt2"} and ours["model_args"]["vocab_size"] == 50257
    idx = torch.randint(50257, (1, 80))
    with torch.no_grad():
        expected = theirs(idx).logits[..., :50257]
        torch.testing.assert_close(load(tmp_path / "hf")(idx), expected, atol=1e-4, rtol=0)


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
    with pytest.raises(UserError, match=r"do not fit.*wpe"):
        load(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").write_bytes(b"what is this")
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights: a \.safetensors"):
        load(tmp_path / "hf")
    config.write_text("{}")
    with pytest.raises(UserError, match="not a GPT-2"):
        load(tmp_path / "hf")


def val_losses(out: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"val_loss ([\d.]+)", out)]


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
    (tmp_path / "config").symlink_to(ROOT / "config")
    start, one = val_losses(script("train.py", *tune, "--out_dir=one").stdout)
    two = val_losses(torchrun(*tune, "--out_dir=two"))[-1]
    assert one < start - 0.3 and two == pytest.approx(one, abs=1e-3)
    loaded = checkpoint.load(str(tmp_path / "one" / "ckpt.pt"))
    assert loaded["model_args"]["block_size"] == 32
