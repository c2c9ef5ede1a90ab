"""Any tokenizer.json: trained, read, streamed without half a character; special tokens by name."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hub import CHINESE, bert_files, sentencepiece_json
from test_tokenizer import TEXT, round_trip

from core import UserError, checkpoint
from core.dataset import read_meta
from core.extras import vocabulary
from core.extras.hf_tokenizer import HFTokenizer, train
from core.extras.hub import find_tokenizer
from core.tokenizer import END, from_dict

ENGLISH = "The quick brown fox jumps over the lazy dog, doesn't it? Hello world. " * 20
TRAINED = train([ENGLISH, "你好, 世界 🙂 " * 20], 400)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict:
    """Tokenizers of several formats, each in a folder."""
    made = {}
    for name, write in (("wordpiece", bert_files), ("sentencepiece", sentencepiece_json)):
        made[name] = tmp_path_factory.mktemp(name)
        write(made[name])
    made["bpe"] = tmp_path_factory.mktemp("bpe")
    (made["bpe"] / "tokenizer.json").write_text(TRAINED.to_dict()["json"], encoding="utf-8")
    return made


KINDS = ["wordpiece", "sentencepiece", "bpe"]


def test_a_trained_bpe_gives_any_text_back():
    round_trip(TRAINED)
    assert TRAINED.kind == "hf" and TRAINED.vocab_size <= 400
    assert len(TRAINED.encode(ENGLISH)) < len(ENGLISH) / 3


def test_training_is_a_function_of_the_text():
    code = "import sys; from core.extras.hf_tokenizer import train; "
    code += "print(train([open(sys.argv[1], encoding='utf-8').read()], 600).to_dict())"
    source = str(ROOT / "core" / "tokenizer.py")
    found = Counter()
    for threads in ("1", "2", "4"):
        command = [sys.executable, "-c", code, source]
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
        found[run.stdout] += 1
    assert list(found.values()) == [3] and b"hf" in next(iter(found))


def test_a_name_of_a_special_token_is_text_except_in_a_prompt():
    end = TRAINED.special[END]
    assert TRAINED.end_token == TRAINED.start_token == end
    assert end not in TRAINED.encode(f"a{END}b")
    assert TRAINED.decode(TRAINED.encode(f"a{END}b")) == f"a{END}b"
    assert TRAINED.encode_prompt(f"a{END}b")[1] == end
    assert end not in TRAINED.encode(f"a{END}b")  # nor after a prompt


def test_the_names_of_special_tokens_say_what_they_are_for(folders):
    bert = from_dict(find_tokenizer(str(folders["wordpiece"])))
    assert bert.special == {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    assert (bert.start_token, bert.end_token, bert.unknown) == (101, 102, 100)
    assert bert.unsampled == (0, 100)
    llama = from_dict(find_tokenizer(str(folders["sentencepiece"])))
    assert (llama.unknown, llama.start_token, llama.end_token) == (0, 1, 2)
    more = from_dict({**llama.to_dict(), "special": ["<sep>", "</s>"]})
    assert more.special == {**llama.special, "<sep>": llama.vocab_size}
    assert from_dict(more.to_dict()).special == more.special


def test_ids_without_a_token_are_never_sampled():
    saved = json.loads(TRAINED.to_dict()["json"])
    token = {**saved["added_tokens"][0], "content": "<far>", "id": TRAINED.vocab_size + 2}
    saved["added_tokens"].append(token)
    saved["model"]["vocab"]["<far>"] = TRAINED.vocab_size + 2
    far = HFTokenizer(json.dumps(saved))
    assert far.vocab_size == TRAINED.vocab_size + 3
    assert far.unsampled == (TRAINED.vocab_size, TRAINED.vocab_size + 1)
    assert far.decode([*range(far.vocab_size), -1, 10**9])


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_text_is_that_of_all_tokens(folders, kind):
    coder = from_dict(find_tokenizer(str(folders[kind])))
    for text in (TEXT, CHINESE, "Hello world, 你好🙂 low wo  rld", "é"):
        ids = coder.encode(text).tolist()
        assert "".join(map(coder.stream(), ids)) == coder.decode(ids)
        for i in range(len(ids)):
            shown = coder.decode(ids[:i])
            if not shown.endswith("�"):
                rest = "".join(map(coder.stream(ids[:i]), ids[i:]))
                assert shown + rest == coder.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_no_ids_make_streaming_fail_or_show_half_a_character(folders, kind, data):
    coder = from_dict(find_tokenizer(str(folders[kind])))
    ids = data.draw(st.lists(st.integers(0, min(coder.vocab_size, 400) - 1), max_size=40))
    pieces = list(map(coder.stream(ids[:3]), ids[3:]))
    assert not any(piece.endswith("�") for piece in pieces)
    if not any("�" in coder.decode(part) for part in (ids, ids[:3])):  # whole characters
        assert coder.decode(ids[:3]) + "".join(pieces) == coder.decode(ids)


def test_what_is_no_tokenizer_is_one_sentence():
    for text in ("", "{}", "[]", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'):
        with pytest.raises(UserError, match="damaged"):
            HFTokenizer(text)
    with pytest.raises(UserError, match="unknown tokenizer 'hf'"):
        from_dict({"kind": "hf"})


def test_a_bpe_is_trained_on_the_training_split_alone(script, tmp_path):
    (tmp_path / "text.txt").write_text("abcd " * 900 + "wxyz " * 100, encoding="utf-8")
    options = ("--input=text.txt", "--tokenizer=train", "--vocab_size=300")
    script("prepare_text.py", *options)
    first = (tmp_path / "data" / "text" / "meta.json").read_bytes()
    coder = from_dict(read_meta(str(tmp_path / "data" / "text"))["tokenizer"])
    assert " abcd" in map(coder.decode, [[i] for i in range(coder.vocab_size)])
    assert len(coder.encode(" wxyz")) == 5  # nothing was learned from what validates
    ids = np.fromfile(tmp_path / "data" / "text" / "val.bin", "<u2")
    assert coder.decode(ids.tolist()) == "wxyz " * 100
    script("prepare_text.py", *options)
    assert (tmp_path / "data" / "text" / "meta.json").read_bytes() == first
    script("prepare_text.py", *options[:2], "--vocab_size=256", status=2)


def test_documents_are_separated_by_the_end_token_of_any_tokenizer(script, tmp_path, folders):
    (tmp_path / "texts").mkdir()
    for i in range(9):
        (tmp_path / "texts" / f"{i}.txt").write_text("Hello world" * (i + 1))
    bare = json.loads(TRAINED.to_dict()["json"])
    bare["added_tokens"] = []
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    for name, end in ((folders["wordpiece"], "[SEP]"), (tmp_path / "bare.json", END)):
        script("prepare_text.py", "--input=texts", f"--tokenizer={name}")
        coder = from_dict(read_meta(str(tmp_path / "data" / "texts"))["tokenizer"])
        assert coder.end_token == coder.special[end]
        ids = np.fromfile(tmp_path / "data" / "texts" / "train.bin", "<u2")
        val = np.fromfile(tmp_path / "data" / "texts" / "val.bin", "<u2")
        for split in (ids, val):
            assert split[-1] == coder.end_token
        assert sum((split == coder.end_token).sum() for split in (ids, val)) >= 9


def test_a_run_of_a_trained_bpe_resumes_samples_and_takes_new_tokens(script, tmp_path):
    (tmp_path / "text.txt").write_text(ENGLISH * 5)
    script("prepare_text.py", "--input=text.txt", "--tokenizer=train", "--vocab_size=300")
    tiny = ["--dataset=text", "--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16"]
    tiny += ["--batch_size=4", "--gradient_accumulation_steps=1", "--eval_iters=2"]
    tiny += ["--device=cpu", "--compile=False", "--out_dir=out/a", "--learning_rate=0.01"]
    script("train.py", *tiny, "--max_iters=20")
    script("train.py", *tiny, "--max_iters=30", "--init_from=resume")
    (tmp_path / "data").rename(tmp_path / "gone")  # the checkpoint has the tokenizer
    out = script("sample.py", "--start=The quick", "--num_samples=1", "--max_new_tokens=30")
    assert out.stdout.startswith("The quick") and len(out.stdout) > 40
    old = checkpoint.load(str(tmp_path / "out" / "a"))
    coder = from_dict(old["tokenizer"])
    more = from_dict({**coder.to_dict(), "special": ["<sep>"]})
    new = vocabulary.resize_token_embeddings(old, more)
    wte = "transformer.wte.weight"
    kept = coder.vocab_size
    assert new["model_args"]["vocab_size"] == kept + 1
    assert (new["model"][wte][:kept] == old["model"][wte][:kept]).all()
    (tmp_path / "reviews.csv").write_text(
        "label,text\n" + "".join(f"{i % 2},The lazy fox number {i} jumps\n" for i in range(40))
    )
    options = ("--input=reviews.csv", "--vocab_from=out/a", "--length=32")
    script("projects.reviews.prepare", *options)
    labelled = from_dict(read_meta(str(tmp_path / "data" / "reviews"))["tokenizer"])
    assert labelled.encode("The fox").tolist() == coder.encode("The fox").tolist()
    assert labelled.special["<label 1>"] >= kept
