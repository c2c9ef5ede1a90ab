"""Dialogues: what is graded, what is remembered from turn to turn, and what is never printed."""

import numpy as np
import pytest
import torch
from conftest import TINY

from core.dataset import read_meta
from core.tokenizer import GPT2Tokenizer, from_dict
from model import GPT, GPTConfig, KVCache

DIALOGUES = [
    ["你好", "你也好", "再见"],
    ["hi", "hello"],
    ["一句话"],
    *[[f"问{i % 7}", f"答{i % 7}"] for i in range(60)],
]


def write_dialogues(path, dialogues=DIALOGUES):
    path.write_text("\n\n".join("\n".join(turns) for turns in dialogues) + "\n", encoding="utf-8")


def read(folder, split):
    ids = np.fromfile(folder / f"{split}.bin", np.uint16)
    return ids, np.fromfile(folder / f"{split}.mask.bin", np.uint8)


def test_a_stream_of_dialogues_grades_all_but_their_first_tokens(script, tmp_path):
    write_dialogues(tmp_path / "d.txt")
    script("prepare_dialogue.py", "--input=d.txt", "--min_freq=1")
    folder = tmp_path / "data" / "dialogue"
    coder = from_dict(read_meta(str(folder))["tokenizer"])
    expected = ["<sep>".join(turns) + "<eos>" for turns in DIALOGUES]
    found = []
    for split in ("train", "val"):
        ids, mask = read(folder, split)
        ends = np.flatnonzero(ids == coder.special["<eos>"]) + 1
        starts = np.array([0, *ends[:-1]])
        assert (mask[starts] == 0).all() and mask.sum() == len(ids) - len(starts)
        found += [coder.decode(part.tolist()) for part in np.split(ids, ends)[:-1]]
    assert sorted(found) == sorted(expected)


def test_rows_keep_dialogues_apart_and_cut_long_ones_between_turns(script, tmp_path):
    long = [f"这是第{i}句" for i in range(20)] + ["长" * 50]
    write_dialogues(tmp_path / "d.txt", [*DIALOGUES, long])
    options = ["--layout=rows", "--row_length=17", "--min_freq=1"]
    script("prepare_dialogue.py", "--input=d.txt", *options)
    folder, found = tmp_path / "data" / "dialogue", []
    coder = from_dict(read_meta(str(folder))["tokenizer"])
    for split in ("train", "val"):
        ids, mask = read(folder, split)
        for row, marks in zip(ids.reshape(-1, 17), mask.reshape(-1, 17), strict=True):
            text = coder.decode(row.tolist())
            assert text.count("<eos>") <= 1 and not marks[row == coder.special["<pad>"]].any()
            found.append(text.replace("<pad>", ""))
    assert "你好<sep>你也好<sep>再见<eos>" in found
    assert "这是第0句<sep>这是第1句<sep>" in found and "长" * 17 in found


def test_replies_alone_are_graded_in_bpe_too(script, folio_data, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folio_data("tiktoken-cache")))
    write_dialogues(tmp_path / "d.txt", [["How are you?", "Fine, thanks.", "Good!", "Bye."]] * 9)
    script("prepare_dialogue.py", "--input=d.txt", "--tokenizer=gpt2", "--mask=replies")
    folder = tmp_path / "data" / "dialogue"
    coder = from_dict(read_meta(str(folder))["tokenizer"])
    assert isinstance(coder, GPT2Tokenizer) and coder.vocab_size == 50260
    ids, mask = read(folder, "train")
    assert coder.decode(ids[mask == 1][:9].tolist()) == "Fine, thanks.<sep>Bye.<eos>"


def test_rare_and_unknown_characters_become_unk(script, tmp_path):
    write_dialogues(tmp_path / "d.txt", [*DIALOGUES, ["龘", "你好"]])
    script("prepare_dialogue.py", "--input=d.txt", "--min_freq=2")
    coder = from_dict(read_meta(str(tmp_path / "data" / "dialogue"))["tokenizer"])
    unknown = coder.special["<unk>"]
    assert coder.encode("龘你x") == [unknown, coder.ids["你"], unknown]
    assert coder.encode_array("龘你x").tolist() == coder.encode("龘你x")


def test_bad_dialogues_are_one_sentence(script, tmp_path):
    for content, sentence in (("", "0 dialogues"), ("a\nb\n", "1 dialogues")):
        (tmp_path / "d.txt").write_text(content)
        assert sentence in script("prepare_dialogue.py", "--input=d.txt", status=2).stderr
    (tmp_path / "d.txt").write_bytes("你好".encode("gb18030"))
    assert "not UTF-8" in script("prepare_dialogue.py", "--input=d.txt", status=2).stderr
    assert "can't be read" in script("prepare_dialogue.py", "--input=no.txt", status=2).stderr


@pytest.mark.parametrize("fields", [{}, {"rotary": True, "smear": 2}])
def test_a_cache_carried_from_turn_to_turn_changes_no_token(fields):
    torch.manual_seed(0)
    shape = dict(vocab_size=65, block_size=64, n_layer=2, n_head=2, n_embd=32)
    model = GPT(GPTConfig(**shape, **fields)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0 if p.ndim > 1 else 1.0, 0.3)
    cache, said = KVCache(64), torch.zeros(1, 0, dtype=torch.long)
    for turn in range(4):
        said = torch.cat((said, torch.randint(65, (1, 5))), dim=1)
        before = cache.length
        reply = torch.stack(list(model.generate(said, 6, temperature=0, use_cache=cache)), 1)
        fresh = torch.stack(list(model.generate(said, 6, temperature=0)), 1)
        assert torch.equal(reply, fresh)
        assert cache.length == said.size(1) + 5 and (turn == 0 or before > 0)
        said = torch.cat((said, reply), dim=1)


@pytest.fixture
def chat(script, tmp_path):
    """A function that talks to a model that knows its answers by heart: lines in, lines out."""
    write_dialogues(tmp_path / "d.txt", DIALOGUES[3:] * 5)
    script("prepare_dialogue.py", "--input=d.txt")
    options = ["--dataset=dialogue", "--out_dir=out/d", "--max_iters=150", "--optimizer=muon"]
    script("train.py", *TINY, "--batch_size=16", *options, "--compile=False", "--rotary")

    def talk(*lines, **more):
        options = [f"--{k}={v}" for k, v in {"temperature": 0, **more}.items()]
        said = script("chat.py", *options, input="".join(f"{line}\n" for line in lines))
        return said.stdout.splitlines()

    return talk


def test_it_answers_forgets_and_takes_commands(chat):
    lines = ["问3", "/reset", "问5", "", "/temp warm", "/temp 0", "/reset", "问0", "/quit", "问1"]
    assert chat(*lines, repetition_penalty=1) == ["答3", "答5", "答0"]
    # a conversation longer than block_size, characters it never saw, wide ones
    long = [f"问{i % 7}" for i in range(12)] + ["😀 strange 龘" * 5]
    answers = chat(*long, repetition_penalty=1)
    assert len(answers) == 13 and not any("<" in answer for answer in answers)
    assert answers[0] == "答0"
    assert chat("问3", "问4", temperature=1.5) == chat("问3", "问4", temperature=1.5)


def test_a_model_of_other_text_cannot_chat(script, toy, tmp_path):
    script("train.py", *TINY, "--dataset=toy", "--out_dir=out/toy", "--max_iters=1")
    assert "has no <sep>" in script("chat.py", status=2).stderr
