"""Dialogues: what the targets are, what is remembered from turn to turn, what is never printed."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

from core import checkpoint
from core.dataset import read_meta
from core.extras.gpt2_tokenizer import GPT2Tokenizer
from core.generate import KVCache, Sampling, generate
from core.tokenizer import CharTokenizer, from_dict
from model import GPT, GPTConfig

DIALOGUES = [
    ["你好", "你也好", "再见"],
    ["hi", "hello"],
    ["一句话"],
    *[[f"问{i % 7}", f"答{i % 7}"] for i in range(60)],
]


def write_dialogues(path, dialogues=DIALOGUES):
    path.write_text("\n\n".join("\n".join(turns) for turns in dialogues) + "\n", encoding="utf-8")


def read(folder, split):
    """The ids of a split and their loss mask."""
    ids = np.fromfile(folder / f"{split}.bin", np.uint16)
    return ids, np.fromfile(folder / f"{split}.mask.bin", np.uint8)


def tokenizer_of(folder):
    return from_dict(read_meta(str(folder))["tokenizer"])


def test_in_a_stream_all_tokens_but_the_first_of_a_dialogue_are_targets(script, tmp_path):
    write_dialogues(tmp_path / "d.txt")
    script("projects.chat.prepare", "--input=d.txt", "--min_freq=1")
    folder = tmp_path / "data" / "dialogue"
    coder, found = tokenizer_of(folder), {"train": [], "val": []}
    for split in found:
        ids, mask = read(folder, split)
        ends = np.flatnonzero(ids == coder.special["<eos>"]) + 1
        starts = np.array([0, *ends[:-1]])
        assert (mask[starts] == 0).all() and mask.sum() == len(ids) - len(starts)
        found[split] = [coder.decode(part.tolist()) for part in np.split(ids, ends)[:-1]]
    expected = ["<sep>".join(turns) + "<eos>" for turns in DIALOGUES]
    assert sorted(found["train"] + found["val"]) == sorted(expected)
    for split, dialogues in found.items():  # the bytes of the text, without those names
        text = "".join(dialogues).replace("<sep>", "").replace("<eos>", "")
        assert read_meta(str(folder))[f"{split}_bytes"] == len(text.encode())


def test_several_files_are_one_dataset_and_end_dialogues(script, tmp_path):
    write_dialogues(tmp_path / "a.txt", DIALOGUES[:2])
    write_dialogues(tmp_path / "b.txt", DIALOGUES[2:4])
    script("projects.chat.prepare", "--input=a.txt,b.txt", "--min_freq=1", "--name=both")
    folder = tmp_path / "data" / "both"
    coder, source = tokenizer_of(folder), read_meta(str(folder))["source"]
    assert source == {"name": "a.txt, b.txt", "dialogues": 4}
    text = "".join(coder.decode(read(folder, split)[0].tolist()) for split in ("val", "train"))
    assert "hi<sep>hello<eos>" in text and "一句话<eos>" in text


def test_examples_keep_dialogues_apart_and_cut_long_ones_between_turns(script, tmp_path):
    long = [f"这是第{i}句" for i in range(20)] + ["长" * 50]
    write_dialogues(tmp_path / "d.txt", [*DIALOGUES, long])
    options = ["--layout=rows", "--row_length=17", "--min_freq=1"]
    script("projects.chat.prepare", "--input=d.txt", *options)
    folder, found = tmp_path / "data" / "dialogue", []
    coder, meta = tokenizer_of(folder), read_meta(str(folder))
    assert meta["row_length"] == 17 and meta["train_bytes"] == 0
    for split in ("train", "val"):
        ids, mask = read(folder, split)
        for example, marks in zip(ids.reshape(-1, 17), mask.reshape(-1, 17), strict=True):
            text = coder.decode(example.tolist())
            assert text.count("<eos>") <= 1 and not marks[example == coder.special["<pad>"]].any()
            found.append(text.replace("<pad>", ""))
    assert "你好<sep>你也好<sep>再见<eos>" in found
    assert "这是第0句<sep>这是第1句<sep>" in found and "长" * 17 in found


def test_replies_alone_are_targets_in_bpe_too(script, folio_data, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folio_data("tiktoken-cache")))
    talk = ["How are you?", "Fine, thanks.", "Good!", "Bye."]
    write_dialogues(tmp_path / "d.txt", [talk] * 8 + [["short"]])
    script("projects.chat.prepare", "--input=d.txt", "--tokenizer=gpt2", "--mask=replies")
    folder = tmp_path / "data" / "dialogue"
    coder = tokenizer_of(folder)
    assert isinstance(coder, GPT2Tokenizer) and coder.vocab_size == 50260
    ids, mask = read(folder, "train")
    assert coder.decode(ids[mask == 1][:9].tolist()) == "Fine, thanks.<sep>Bye.<eos>"


def messages(*turns) -> str:
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]})


def test_with_roles_the_assistants_turns_are_the_targets(script, tmp_path):
    rows = [
        messages(
            ("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "and you")
        ),
        messages(("user", "a"), ("assistant", "b"), ("user", " "), ("assistant", "c\nd")),
        json.dumps({"prompt": "what", "response": "that", "more": 1}),
        *[messages(("user", f"q{i}"), ("assistant", f"a{i}")) for i in range(9)],
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(rows))
    script("projects.chat.prepare", "--input=d.jsonl", "--min_freq=1", "--val_fraction=0.3")
    folder, found = tmp_path / "data" / "dialogue", {}
    coder = tokenizer_of(folder)
    for split in ("train", "val"):
        ids, mask = read(folder, split)
        ends = np.flatnonzero(ids == coder.special["<eos>"]) + 1
        for dialogue, marks in zip(
            np.split(ids, ends)[:-1], np.split(mask, ends)[:-1], strict=True
        ):
            targets = coder.decode(dialogue[marks == 1].tolist())
            found[coder.decode(dialogue.tolist())] = targets
    assert len(found) == len(rows)
    first = "<system>be kind<sep><user>hi<sep><assistant>hello<sep><user>and you<eos>"
    assert found[first] == "hello<sep>"
    assert found["<user>a<sep><assistant>b<sep><assistant>c\nd<eos>"] == "b<sep>c\nd<eos>"
    assert found["<user>what<sep><assistant>that<eos>"] == "that<eos>"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ('{"text": "hi"}', "line 1 has neither messages nor a prompt and a response"),
        ('{"messages": []}', "line 1 has neither messages"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "a message of role 'tool' with str"),
        ('{"prompt": "a", "response": 3}', "role 'assistant' with int as content"),
        ('{"messages": ["hi"]}', "a message of role None"),
        ("[1]", "line 1 has neither"),
        ("{", "line 1 is not JSON"),
    ],
)
def test_rows_without_a_conversation_are_one_sentence(script, tmp_path, row, sentence):
    (tmp_path / "d.jsonl").write_text(f"{row}\n")
    assert sentence in script("projects.chat.prepare", "--input=d.jsonl", status=2).stderr


def test_copies_of_a_dialogue_share_a_split(script, tmp_path):
    write_dialogues(tmp_path / "d.txt", DIALOGUES * 3)
    options = ["--input=d.txt", "--min_freq=1", "--val_fraction=0.3"]
    said = script("projects.chat.prepare", *options).stdout
    coder, found = tokenizer_of(tmp_path / "data" / "dialogue"), {}
    for split in ("train", "val"):
        text = coder.decode(read(tmp_path / "data" / "dialogue", split)[0].tolist())
        found[split] = text.split("<eos>")[:-1]
    assert not set(found["train"]) & set(found["val"])
    assert len(found["train"]) + len(found["val"]) == 3 * len(DIALOGUES)
    val_fraction = float(re.search(r"val.bin: .* tokens, (.*)% of the characters", said)[1])
    assert 25 < val_fraction < 35


def test_dialogues_in_another_encoding_are_read_and_a_mark_is_no_character(script, tmp_path):
    text = "\n\n".join("\n".join(turns) for turns in DIALOGUES)
    for encoding, option in (("gb18030", "gb18030"), ("utf-8-sig", "utf-8"), ("utf-16", "utf-8")):
        (tmp_path / "d.txt").write_bytes(text.encode(encoding))
        options = ["--input=d.txt", "--min_freq=1", f"--encoding={option}"]
        script("projects.chat.prepare", *options)
        chars = tokenizer_of(tmp_path / "data" / "dialogue").chars
        assert chars == sorted(set(text) - {"\n"})


def test_rare_and_unknown_characters_become_unk(script, tmp_path):
    write_dialogues(tmp_path / "d.txt", [*DIALOGUES, ["龘", "你好"]])
    script("projects.chat.prepare", "--input=d.txt", "--min_freq=2")
    coder = tokenizer_of(tmp_path / "data" / "dialogue")
    unknown = coder.special["<unk>"]
    assert coder.encode("龘你x").tolist() == [unknown, coder.ids["你"], unknown]


def test_bad_dialogues_are_one_sentence(script, tmp_path):
    def error(*options):
        return script("projects.chat.prepare", *options, status=2).stderr

    page = "<!DOCTYPE html>\n\nDownload anyway?\n"
    contents = ("", "0 dialogues"), ("a\nb\n", "1 dialogues"), (page, "web page")
    for content, sentence in contents:
        (tmp_path / "d.txt").write_text(content)
        assert sentence in error("--input=d.txt")
    (tmp_path / "d.txt").write_bytes("你好".encode("gb18030"))
    assert "line 1, is not UTF-8" in error("--input=d.txt")
    assert "--encoding=gb18030" in error("--input=d.txt")
    assert "--val_fraction=0 leaves nothing" in error("--input=d.txt", "--val_fraction=0")
    assert "no.txt: No such file" in error("--input=no.txt")


@pytest.mark.parametrize("fields", [{}, {"rotary": True, "smear": 2}])
def test_a_cache_kept_from_turn_to_turn_changes_no_token(fields):
    torch.manual_seed(0)
    shape = dict(vocab_size=65, block_size=64, n_layer=2, n_head=2, n_embd=32)
    model = GPT(GPTConfig(**shape, **fields)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0 if p.ndim > 1 else 1.0, 0.3)
    greedy = Sampling(temperature=0)
    cache, idx = KVCache(model, 1, 64), torch.zeros(1, 0, dtype=torch.long)
    for turn in range(4):
        idx = torch.cat((idx, torch.randint(65, (1, 5))), dim=1)
        before = cache.length
        reply = torch.stack(list(generate(model, idx, 6, greedy, cache=cache)), 1)
        assert torch.equal(reply, torch.stack(list(generate(model, idx, 6, greedy)), 1))
        assert cache.length == idx.size(1) + 5 and (turn == 0 or before > 0)
        idx = torch.cat((idx, reply), dim=1)


@pytest.fixture
def talk(script, tmp_path):
    """A function that talks to a model that knows its answers by heart: lines -> the result."""
    write_dialogues(tmp_path / "d.txt", [*DIALOGUES[3:] * 5, ["甲" * 9, "乙" * 9]])  # it validates
    script("projects.chat.prepare", "--input=d.txt")
    options = ["--dataset=dialogue", "--out_dir=out/d", "--max_iters=150", "--optimizer=muon"]
    script("train.py", *TINY, "--batch_size=16", *options, "--compile=False", "--rotary")

    def run(*lines, **settings):
        options = [f"--{k}={v}" for k, v in {"temperature": 0, **settings}.items()]
        return script("projects.chat.talk", *options, input="".join(f"{line}\n" for line in lines))

    return run


def test_a_model_of_conversations_with_roles_answers_as_the_assistant(script, tmp_path):
    rows = [messages(("user", f"问{i % 7}"), ("assistant", f"答{i % 7}")) for i in range(60)]
    other = messages(("user", "甲" * 9), ("assistant", "乙" * 9))  # it validates
    (tmp_path / "d.jsonl").write_text("\n".join([*rows * 5, other]))
    script("projects.chat.prepare", "--input=d.jsonl")
    options = ["--dataset=dialogue", "--out_dir=out/d", "--max_iters=150", "--optimizer=muon"]
    script("train.py", *TINY, "--batch_size=16", *options, "--compile=False", "--rotary")
    lines = ["问3", "/undo", "问5", "/reset", *[f"问{i % 7}" for i in range(12)]]
    options = ["--temperature=0", "--repetition_penalty=1"]
    said = script("projects.chat.talk", *options, input="\n".join(lines)).stdout.splitlines()
    assert said[:3] == ["答3", "答5", "答0"] and len(said) == 14
    assert not any("<" in answer for answer in said)


def test_a_folder_such_as_dialogpts_talks_at_once(script, folio_data, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folio_data("tiktoken-cache")))
    torch.manual_seed(0)
    shape = dict(n_positions=64, n_layer=1, n_head=2, n_embd=16)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    model.save_pretrained(tmp_path / "dialogpt")
    coder = GPT2Tokenizer()
    theirs, expected = torch.zeros(1, 0, dtype=torch.long), []
    for line in ("Hello there", "How are you"):
        new = torch.tensor([[*coder.encode(line).tolist(), 50256]])
        theirs = torch.cat((theirs, new), dim=1)
        answer = model.generate(theirs, max_new_tokens=8, do_sample=False, pad_token_id=50256)
        reply = [i for i in answer[0, theirs.size(1) :].tolist() if i != 50256]
        expected.append(coder.decode(reply))
        theirs = torch.cat((theirs, torch.tensor([[*reply, 50256]])), dim=1)
    options = ["--temperature=0", "--repetition_penalty=1", "--top_k=0", "--max_new_tokens=8"]
    said = script(
        "projects.chat.talk", "--out_dir=dialogpt", *options, input="Hello there\nHow are you\n"
    ).stdout
    assert said == "".join(f"{text}\n" for text in expected)


def test_it_answers_forgets_and_obeys_commands(talk):
    lines = ["问3", "/reset", "问5", "", "/temp warm", "/temp 0", "/reset", "问0", "/quit", "问1"]
    result = talk(*lines, repetition_penalty=1)
    assert result.stdout.splitlines() == ["答3", "答5", "答0"]
    assert result.stderr == "/temp takes a number, such as /temp 0.7\n"
    # a conversation longer than block_size, characters that it never saw, wide ones
    long = [f"问{i % 7}" for i in range(12)] + ["😀 strange 龘" * 5]
    answers = talk(*long, repetition_penalty=1).stdout.splitlines()
    assert len(answers) == 13 and not any("<" in answer for answer in answers)
    assert answers[0] == "答0"


def test_the_same_seed_gives_the_same_replies(talk):
    hot = ["/temp 2.5", "问3", "问4", "问5"]
    first = talk(*hot, top_k=0, top_p=1).stdout
    assert first == talk(*hot, top_k=0, top_p=1).stdout
    assert first != talk(*hot, top_k=0, top_p=1, seed=2).stdout


def save_endless(folder):
    """A model that says a and b and never ends a turn."""
    coder = CharTokenizer("ab", ["<sep>"])
    args = dict(vocab_size=3, block_size=4096, n_layer=2, n_head=2, n_embd=32, untied_head=True)
    model = GPT(GPTConfig(**args))
    torch.nn.init.zeros_(model.transformer.ln_f.weight)
    torch.nn.init.ones_(model.transformer.ln_f.bias)
    torch.nn.init.ones_(model.lm_head.weight)
    torch.nn.init.constant_(model.lm_head.weight[coder.special["<sep>"]], -1)
    state = {"model": model.state_dict(), "model_args": args, "tokenizer": coder.to_dict()}
    checkpoint.save(state, f"{folder}/ckpt.pt")


def test_ctrl_c_ends_a_reply_and_not_the_conversation(tmp_path):
    save_endless(tmp_path)
    module = ["-m", "projects.chat.talk", f"--out_dir={tmp_path}", "--max_new_tokens=2000"]
    talk = subprocess.Popen(
        [sys.executable, *module, "--device=cpu"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    for _ in range(2):
        talk.stdin.write(b"ab\n")
        reply = talk.stdout.read(1)
        talk.send_signal(signal.SIGINT)
        while not reply.endswith(b"\n"):
            reply += talk.stdout.read(1)
        assert set(reply) <= set(b"ab\n") and 1 < len(reply) < 2000
    talk.stdin.close()
    assert talk.wait(30) == 0


def test_a_model_of_other_text_cannot_chat(script, toy, tmp_path):
    script("train.py", *TINY, "--dataset=toy", "--out_dir=out/toy", "--max_iters=1")
    assert "has no <sep>" in script("projects.chat.talk", status=2).stderr
