"""Models and tokenizers of the hub: each family's own format gives transformers' logits, text."""

import json
import os

import pytest
import torch
from test_gpt2 import GREEDY, load, save_theirs

from core import UserError, checkpoint
from core.extras.gpt2 import is_hub_id
from core.extras.hub import find_tokenizer
from core.tokenizer import from_dict

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
tiktoken_load = pytest.importorskip("tiktoken.load")

ENCODINGS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
CHINESE = "这是很久之前的事情了。我曾经把这个当做一种思想的传承。Hello world"
NAMES = ["[PAD]", *(f"[unused{i}]" for i in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def bpe(folio_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folio_data("tiktoken-cache")))


def gpt2_files(folder) -> None:
    for name, original in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        (folder / name).write_bytes(tiktoken_load.read_file_cached(f"{ENCODINGS}/{original}"))


def gpt2_tokenizer_json(folder) -> None:
    gpt2_files(folder)
    transformers.GPT2Tokenizer.from_pretrained(folder).save_pretrained(folder)


def bert_files(folder) -> None:
    """As uer/gpt2-chinese-cluecorpussmall has them: 21,128 tokens, Google's order of names."""
    pieces = [*NAMES, *sorted(set(CHINESE.lower()) - {" "}), "##o", "##ll", "##ello", "##orld"]
    others = map(chr, range(0x4E00, 0x9FA6))
    pieces += [c for c in others if c not in pieces][: 21128 - len(pieces)]
    pieces += [f"##{i}" for i in range(21128 - len(pieces))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    about = {"do_lower_case": False, "max_len": 1024, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def sentencepiece_json(folder) -> None:
    """As Llama's: spaces are letters of the tokens, unknown characters become bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"Helowrd"]
    merges = [("▁", "w"), ("l", "l"), ("ll", "o"), ("▁w", "o"), ("▁wo", "r")]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    theirs = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True)
    )
    theirs.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    decoders = tokenizers.decoders
    theirs.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    theirs.add_special_tokens(["<unk>", "<s>", "</s>"])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=theirs, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def as_pickle(folder, theirs, shards=1, old=False) -> None:
    """The weights as torch.save writes them, beside the masks that old files have."""
    (folder / "model.safetensors").unlink()
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state |= {"transformer.h.0.attn.bias": torch.ones(1, 1, 80, 80).tril().bool()}
    state |= {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    names = list(state)
    paths = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    paths = ["pytorch_model.bin"] if shards == 1 else paths
    for i, path in enumerate(paths):
        part = {name: state[name] for name in names[i::shards]}
        torch.save(part, folder / path, _use_new_zipfile_serialization=not old)
    if shards > 1:
        weight_map = {name: paths[i % shards] for i, name in enumerate(names)}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def distilgpt2(folder):
    theirs = save_theirs(folder)
    gpt2_tokenizer_json(folder)
    return theirs


def dialogpt(folder):
    theirs = save_theirs(folder)
    as_pickle(folder, theirs, old=True)
    gpt2_files(folder)
    return theirs


def chinese(folder):
    theirs = save_theirs(folder, vocab_size=21128, bos_token_id=None, eos_token_id=None)
    as_pickle(folder, theirs)
    bert_files(folder)
    return theirs


def cerebras(folder):
    shape = {"shape": (3, 17, 68), "n_inner": 4 * 68, "positions": 96}
    theirs = save_theirs(folder, **shape, activation_function="gelu")
    as_pickle(folder, theirs, shards=2)
    gpt2_files(folder)
    return theirs


def llama_like(folder):
    theirs = save_theirs(folder, vocab_size=272, bos_token_id=1, eos_token_id=2)
    with torch.no_grad():
        theirs.transformer.wte.weight[:259] = 0.0  # bytes, few of which are text
    theirs.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    sentencepiece_json(folder)
    return theirs


FAMILIES = {
    "distilgpt2": distilgpt2,
    "microsoft/DialoGPT-medium": dialogpt,
    "uer/gpt2-chinese-cluecorpussmall": chinese,
    "cerebras/Cerebras-GPT-256M": cerebras,
    "someone/with-sentencepiece": llama_like,
}


@pytest.fixture
def on_the_hub(hub, tmp_path):
    """A function name -> the model that the hub has by that name, and what reaches it."""

    def publish(name: str):
        (tmp_path / "theirs").mkdir()
        theirs = FAMILIES[name](tmp_path / "theirs")
        where = "distilbert/distilgpt2" if name == "distilgpt2" else name
        base = f"/{where}/resolve/main"
        files = {f"{base}/{p.name}": p.read_bytes() for p in (tmp_path / "theirs").iterdir()}
        return theirs, dict(HF_ENDPOINT=hub(files), HF_HOME=str(tmp_path / "cache"))

    return publish


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_the_hub_gives_transformers_logits_tokens_and_text(
    bpe, script, tmp_path, on_the_hub, hub, name
):
    theirs, environment = on_the_hub(name)
    prompt = "这是很久之前" if "chinese" in name else "Hello world"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    if "chinese" in name:  # config.json does not say it, but tokenizer_config.json
        tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path / "theirs")
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    theirs.generation_config.eos_token_id = None  # ours goes on after it, too
    out = theirs.generate(torch.tensor([ids]), max_new_tokens=50, do_sample=False, pad_token_id=0)
    expected = out[0, len(ids) :].tolist()
    ours = load(tmp_path / "theirs")
    coder = from_dict(checkpoint.load(str(tmp_path / "theirs"))["tokenizer"])
    assert coder.encode(prompt).tolist() == ids and coder.vocab_size == len(tokenizer)
    with torch.no_grad():
        idx = torch.randint(coder.vocab_size, (2, 80))
        torch.testing.assert_close(ours(idx), theirs(idx).logits, atol=1e-4, rtol=0)
    command = ("sample.py", f"--init_from={name}", f"--start={prompt}", *GREEDY)
    whole = tokenizer.decode(out[0], clean_up_tokenization_spaces=False)
    shown = whole[len(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) :]
    text = f"{prompt}{shown}"
    assert coder.decode([*ids, *expected]) == whole
    printed = script(*command, **environment).stdout.removesuffix("\n---------------\n")
    assert text.startswith(printed) and set(text.removeprefix(printed)) <= {"�"}
    asked = len(hub.asked)
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # no network is needed any more
    assert script(*command, **environment).stdout.startswith(printed)
    assert len(hub.asked) == asked


def test_a_model_of_the_hub_is_trained_evaluated_and_exported(script, tmp_path, on_the_hub):
    name = "uer/gpt2-chinese-cluecorpussmall"
    _, environment = on_the_hub(name)
    (tmp_path / "text.txt").write_text(f"{CHINESE}\n" * 200, encoding="utf-8")
    script("prepare_text.py", "--input=text.txt", f"--tokenizer={name}", **environment)
    blobs = {path.stat().st_size for path in (tmp_path / "cache").rglob("blobs/*")}
    assert max(blobs) < 10**6  # not the weights
    tune = ["--dataset=text", "--out_dir=out/tuned", "--block_size=32", "--max_iters=20"]
    tune += ["--batch_size=4", "--gradient_accumulation_steps=1", "--learning_rate=0.01"]
    tune += ["--warmup_iters=2", "--eval_interval=20", "--eval_iters=2", "--device=cpu"]
    out = script("train.py", *tune, f"--init_from={name}", "--compile=False", **environment).stdout
    losses = [float(words.split()[0]) for words in out.split("val_loss ")[1:]]
    assert losses[-1] < losses[0] - 1
    (tmp_path / "lambada.jsonl").write_text(json.dumps({"text": "这是 很久"}))
    task = ("--task=lambada", "--input=lambada.jsonl", "--device=cpu")
    for source in (f"--init_from={name}", "--out_dir=out/tuned"):
        assert "1 examples" in script("tools.evaluate", *task, source, **environment).stdout
    script("tools.export", f"--init_from={name}", "--to=one", **environment)
    script("tools.export", "--out_dir=out/tuned", "--to=two")
    for folder in ("one", "two"):
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        coder = from_dict(find_tokenizer(str(tmp_path / folder)))
        assert again.encode(CHINESE, add_special_tokens=False) == coder.encode(CHINESE).tolist()
        assert not os.path.exists(tmp_path / folder / "folio_tokenizer.json")
        assert coder.to_dict() == checkpoint.load(str(tmp_path / "out" / "tuned"))["tokenizer"]


def test_adapters_of_the_hub_bring_their_base_and_are_trained_on(script, tmp_path, hub):
    peft = pytest.importorskip("peft")
    files = {}

    def publish(folder: str, name: str) -> None:
        for path in (tmp_path / folder).iterdir():
            files[f"/{name}/resolve/main/{path.name}"] = path.read_bytes()

    theirs = llama_like(tmp_path)  # with its tokenizer
    publish(".", "someone/base")
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(theirs, config)
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, 0.0, 0.2)
    theirs.peft_config["default"].base_model_name_or_path = "someone/base"
    theirs.save_pretrained(tmp_path / "adapter")
    publish("adapter", "someone/adapter")
    environment = dict(HF_ENDPOINT=hub(files), HF_HOME=str(tmp_path / "cache"))

    def printed(source: str) -> str:
        return script("sample.py", source, "--start=Hello world", *GREEDY, **environment).stdout

    found = printed("--init_from=someone/adapter")
    assert found == printed("--init_from=adapter") != printed("--init_from=someone/base")
    asked = len(hub.asked)
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # no network is needed any more
    assert printed("--init_from=someone/adapter") == found
    (tmp_path / "text.txt").write_text("Hello world " * 300)
    prepare = ("--input=text.txt", "--tokenizer=someone/base")
    script("prepare_text.py", *prepare, **environment)
    tune = ["--dataset=text", "--out_dir=out/tuned", "--block_size=32", "--max_iters=4"]
    tune += ["--batch_size=4", "--gradient_accumulation_steps=1", "--learning_rate=0.01"]
    tune += ["--eval_iters=1", "--device=cpu", "--compile=False", "--lora_rank=2"]
    script("train.py", *tune, "--init_from=someone/adapter", "--warmup_iters=0", **environment)
    assert printed("--out_dir=out/tuned") not in ("", found)
    assert len(hub.asked) == asked


def test_dialogpt_of_the_hub_talks(bpe, script, on_the_hub):
    _, environment = on_the_hub("microsoft/DialoGPT-medium")
    options = ("--init_from=microsoft/DialoGPT-medium", "--max_new_tokens=8", "--device=cpu")
    out = script("projects.chat.talk", *options, input="Hello\nWho?\n", **environment).stdout
    assert len(out.splitlines()) >= 2 and len(out) > 2


def test_what_is_there_is_a_path_and_not_the_hubs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("gpt2", "distilgpt2", "microsoft/DialoGPT-small"):
        assert is_hub_id(source)
    (tmp_path / "runs").mkdir()
    for source in ("runs/none", "out/none", "some/ckpt.pt", "a/b/c", "./a", "/a/b", "~/a", "", "a"):
        assert not is_hub_id(source)
    (tmp_path / "microsoft" / "DialoGPT-small").mkdir(parents=True)
    assert not is_hub_id("microsoft/DialoGPT-small")


def test_a_repository_without_weights_is_one_sentence(script, tmp_path, hub):
    base = "/someone/something/resolve/main"
    for number, (files, words) in enumerate(
        (
            ({f"{base}/config.json": b"{}"}, "it has none of model.safetensors"),
            ({f"{base}/adapter_config.json": b"{}"}, "it has none of adapter_model.safetensors"),
            ({f"{base}/README.md": b""}, "it has no config.json or adapter_config.json"),
            ({}, "cannot be downloaded"),
        )
    ):
        environment = dict(HF_ENDPOINT=hub(files), HF_HOME=str(tmp_path / str(number)))
        result = script("sample.py", "--init_from=someone/something", status=2, **environment)
        assert words in result.stderr


def test_weights_that_would_run_code_are_refused(tmp_path):
    theirs = save_theirs(tmp_path / "hf", vocab_size=70)
    as_pickle(tmp_path / "hf", theirs)
    for content in ({"a": os.system}, {"a": 1}, [torch.ones(1)]):
        torch.save(content, tmp_path / "hf" / "pytorch_model.bin")
        with pytest.raises(UserError, match=r"pytorch_model\.bin (is damaged|has no weights)"):
            load(tmp_path / "hf")


def test_a_tokenizer_that_is_none_is_one_sentence(script, tmp_path):
    (tmp_path / "text.txt").write_text("some text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{}")
    for name, words in (("empty", "ORG/NAME"), ("bert", "ORG/NAME"), ("bad.json", "is damaged")):
        result = script("prepare_text.py", "--input=text.txt", f"--tokenizer={name}", status=2)
        assert words in result.stderr
    assert not (tmp_path / "data").exists()


def test_files_that_are_damaged_are_one_sentence_and_added_tokens_count(bpe, tmp_path):
    gpt2_files(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<b>": 50258, "<a>": 50257}')
    assert find_tokenizer(str(tmp_path)) == {"kind": "gpt2", "special": ["<a>", "<b>"]}
    for name, content in (
        ("merges.txt", "no merge"),
        ("vocab.json", '{"a": "b"}'),
        ("vocab.json", "[1]"),
        ("added_tokens.json", "what"),
    ):
        gpt2_files(tmp_path)
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="damaged"):
            from_dict(find_tokenizer(str(tmp_path)))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="not BERT's"):
        find_tokenizer(str(tmp_path / "bert"))
    (tmp_path / "bert" / "tokenizer.json").write_text('{"model": []}')
    with pytest.raises(UserError, match="damaged"):
        from_dict(find_tokenizer(str(tmp_path / "bert" / "tokenizer.json")))
