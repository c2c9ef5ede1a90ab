"""Labelled texts: what is asked where, which vocabulary is taken, what is trained, what is said."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from test_chat import write_dialogues

from core import checkpoint, log
from core.dataset import read_meta
from core.tokenizer import from_dict
from model import GPT

GOOD, BAD = "good fine lovely great nice".split(), "bad poor awful dirty loud".split()


def write_reviews(path, count=300, labels=("1", "0"), label_column="label"):
    rng = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([label_column, "review"])
        for i in range(count):
            words = rng.choice(GOOD if i % 2 else BAD, size=rng.integers(2, 9))
            rows.writerow([labels[0] if i % 2 else labels[1], f"{i} it was {', '.join(words)}"])
        rows.writerow([labels[0], "0 it was"])
        rows.writerow([labels[0], "\uff10 it  was"])  # the same once it is plain
        rows.writerow([labels[0], " "])


@pytest.fixture
def reviews(script, tmp_path):
    """data/reviews in the test's folder."""
    write_reviews(tmp_path / "r.csv")
    script("projects.reviews.prepare", "--input=r.csv", "--length=32")
    return tmp_path / "data" / "reviews"


def examples_of(folder, split):
    """Token ids and loss mask, (examples, row_length) both."""
    meta = read_meta(str(folder))
    ids = np.fromfile(folder / f"{split}.bin", np.uint16).reshape(-1, meta["row_length"])
    return ids, np.fromfile(folder / f"{split}.mask.bin", np.uint8).reshape(ids.shape)


def read_csv(path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("masked", [True, False])
def test_each_text_is_asked_for_its_label_once_it_has_been_read(script, tmp_path, masked):
    write_reviews(tmp_path / "r.csv")
    options = [f"--masked={masked}", "--length=32"]
    result = script("projects.reviews.prepare", "--input=r.csv", *options)
    assert "1 repeated texts, 1 without" in result.stdout
    folder = tmp_path / "data" / "reviews"
    coder = from_dict(read_meta(str(folder))["tokenizer"])
    extract, pad = coder.special["<extract>"], coder.special["<pad>"]
    texts = set()
    for split in ("train", "val"):
        ids, mask = examples_of(folder, split)
        assert (mask.sum(1) == 1).all()
        for example, marks in zip(ids, mask, strict=True):
            at = int(marks.argmax())
            assert coder.pieces[example[at]] in ("<label 0>", "<label 1>")
            assert example[at - 1] == extract and (masked or at == 32)
            body = example[: at - 1][example[: at - 1] != pad]
            texts.add(coder.decode(body.tolist()))
            assert (example[at + 1 :] == pad).all()
    assert "0 it was" in texts
    held_out = read_csv(folder / "val.csv")
    trained_on = (folder / "train.txt").read_text(encoding="utf-8").split("\n\n")[:-1]
    assert len(held_out) + len(trained_on) == 301
    assert 30 < len(held_out) < 100 and not {r["text"] for r in held_out} & set(trained_on)


def test_bad_csv_files_are_one_sentence(script, tmp_path):
    def error(content, *options):
        (tmp_path / "r.csv").write_text(content, encoding="utf-8")
        return script("projects.reviews.prepare", "--input=r.csv", *options, status=2).stderr

    assert "no column label" in error("a,b\n1,2\n")
    assert "names one of label" in error("label\n1\n")
    assert "has 1 labels" in error("label,text\n1,x\n1,y\n1,z\n")
    assert "has 0 labels" in error("label,text\n1,\n,x\n1\n")
    rare = "label,text\n2,first\n" + "".join(f"{i % 2},text {i}\n" for i in range(20))
    assert "no text to train on has the label 2" in error(rare)
    assert "--length=1 leaves no room" in error(rare, "--length=1")
    (tmp_path / "r.csv").write_bytes("label,text\n1,你好\n".encode("gb18030"))
    mistakes = ["--input=r.csv"], ["--input=no.csv"], []
    sentences = "not UTF-8", "no.csv: No such file", "--input= names"
    for options, sentence in zip(mistakes, sentences, strict=True):
        assert sentence in script("projects.reviews.prepare", *options, status=2).stderr


def test_reviews_in_another_encoding_are_read(script, tmp_path):
    rows = "".join(f"{'好坏'[i % 2]},文字{i}\n" for i in range(20))
    (tmp_path / "r.csv").write_bytes(("label,text\n" + rows).encode("gb18030"))
    options = ["--input=r.csv", "--encoding=gb18030"]
    said = script("projects.reviews.prepare", *options).stdout
    assert "labels 坏, 好" in said and "4 texts" in said
    texts = {row["text"] for row in read_csv(tmp_path / "data" / "reviews" / "val.csv")}
    assert len(texts) == 4 and texts < {f"文字{i}" for i in range(20)}


RUN = [
    *TINY,
    "--batch_size=16",
    "--optimizer=muon",
    "--compile=False",
    "--block_size=32",
    "--rotary",
]


@pytest.fixture
def learned(reviews, script):
    """out/r in the test's folder: a model that has learned the labels."""
    options = ["--dataset=reviews", "--out_dir=out/r", "--max_iters=120", "--eval_interval=60"]
    script("train.py", *RUN, *options, "--log_interval=20", "--eval_iters=50")


@pytest.fixture
def classify(script):
    def run(*options, status=0):
        return script("projects.reviews.classify", *options, status=status)

    return run


def test_it_labels_a_text(learned, classify):
    line = classify("--text=it was lovely, great, nice").stdout
    assert re.fullmatch(r"1 0\.\d+\n", line) and float(line.split()[1]) > 0.8
    assert classify("--text=it was lovely\uff0c great\uff0c nice").stdout == line


def test_it_scores_and_labels_files(learned, classify, tmp_path):
    out = classify("--input=data/reviews/val.csv", "--predictions=p.csv").stdout
    truth = [row["label"] for row in read_csv(tmp_path / "data/reviews/val.csv")]
    guesses = [row["label"] for row in read_csv(tmp_path / "p.csv")]
    pairs = list(zip(truth, guesses, strict=True))
    correct = sum(label == guess for label, guess in pairs)
    assert correct / len(truth) > 0.9
    assert f"accuracy {correct / len(truth):.4f} of {len(truth)} texts" in out
    # precision, recall and F1 of label 1, and its row of the confusion table, by hand
    hits, found, there = pairs.count(("1", "1")), guesses.count("1"), truth.count("1")
    line = next(line for line in out.splitlines() if line.split()[0] == "1").split()
    expected = [hits / found, hits / there, 2 * hits / (found + there), there - hits, hits]
    assert [float(figure) for figure in line[1:]] == pytest.approx(expected, abs=1e-4)
    (tmp_path / "new.csv").write_text("text\nit was awful\nit was fine\n")
    lines = classify("--input=new.csv").stdout.splitlines()
    assert [re.sub(r"\t.*\t", "\t", line) for line in lines] == [
        "0\tit was awful",
        "1\tit was fine",
    ]


def test_the_probabilities_of_the_parts_of_a_long_text_are_averaged(learned, classify, tmp_path):
    long = ", ".join(["awful", "loud"] * 20)  # 278 characters: 9 parts of 31
    loaded = checkpoint.load(f"{tmp_path}/out/r")
    coder = from_dict(loaded["tokenizer"])
    model = GPT.from_state_dict(loaded["model_args"], loaded["model"]).eval()
    labels = [coder.special[f"<label {label}>"] for label in "01"]
    of_parts = []
    for first in range(0, len(long), 31):
        ids = [*coder.encode_prompt(long[first : first + 31]), coder.special["<extract>"]]
        with torch.no_grad():
            of_parts.append(model(torch.tensor([ids]))[0, -1, labels].softmax(-1))
    probability = torch.stack(of_parts).mean(0).max().item()
    label, printed = classify(f"--text={long}", "--dtype=float32").stdout.split()
    assert label == "0" and len(of_parts) == 9
    assert float(printed) == pytest.approx(probability, abs=1e-3)


def test_what_cannot_be_labelled_is_one_sentence(learned, classify, script, toy, tmp_path):
    (tmp_path / "odd.csv").write_text("label,text\nfunny,it was awful\n")
    assert "label funny" in classify("--input=odd.csv", status=2).stderr
    assert "either" in classify(status=2).stderr
    assert "either" in classify("--text=x", "--input=odd.csv", status=2).stderr
    script("train.py", *TINY, "--dataset=toy", "--out_dir=out/toy", "--max_iters=1")
    error = classify("--text=x", "--out_dir=out/toy", status=2).stderr
    assert "has not learned labels" in error


def test_val_accuracy_rises_as_labels_are_learned(learned, tmp_path):
    records = log.read(f"{tmp_path}/out/r/log.jsonl")
    accuracy = [r["val_accuracy"] for r in records if "val_accuracy" in r]
    assert accuracy[0] < 0.8 < accuracy[-1]


def test_padding_changes_no_probability(learned, tmp_path):
    loaded = checkpoint.load(f"{tmp_path}/out/r/ckpt.pt")
    model = GPT.from_state_dict(loaded["model_args"], loaded["model"]).eval()
    coder = from_dict(loaded["tokenizer"])
    ids = [*coder.encode_prompt("it was fine"), coder.special["<extract>"]]
    with torch.no_grad():
        short = model(torch.tensor([ids]))[0, -1].softmax(-1)
        padded = ids + [coder.special["<pad>"]] * (32 - len(ids))
        long = model(torch.tensor([padded]))[0, len(ids) - 1].softmax(-1)
    torch.testing.assert_close(short, long, atol=1e-6, rtol=0)


def test_a_pretrained_vocabulary_is_taken_token_by_token(script, tmp_path):
    texts = [["it was good, lovely", "was it fine"], ["bad, loud"]] * 20
    write_dialogues(tmp_path / "d.txt", texts)
    script("projects.chat.prepare", "--input=d.txt")
    script("train.py", *RUN, "--dataset=dialogue", "--out_dir=out/d", "--max_iters=20")
    write_reviews(tmp_path / "r.csv")
    script("projects.reviews.prepare", "--input=r.csv", "--length=32", "--vocab_from=out/d")
    tune = [*RUN, "--dataset=reviews", "--init_from=out/d", "--out_dir=out/r"]
    result = script("train.py", *tune, "--max_iters=0")
    old, new = (checkpoint.load(f"{tmp_path}/out/{run}/ckpt.pt") for run in ("d", "r"))
    first, second = (from_dict(loaded["tokenizer"]) for loaded in (old, new))
    assert second.vocab_size == first.vocab_size + 3
    added = [piece for piece in second.pieces if piece not in first.pieces]
    assert added == ["<extract>", "<label 0>", "<label 1>"]
    assert f"{first.vocab_size} of {second.vocab_size} tokens are the checkpoint's" in result.stdout
    wte = "transformer.wte.weight"
    for piece in first.pieces:
        before = old["model"][wte][first.pieces.index(piece)]
        assert torch.equal(before, new["model"][wte][second.pieces.index(piece)])
    rows = new["model"][wte][[second.pieces.index(piece) for piece in added]]
    assert 0.7 < rows.std() / old["model"][wte][: first.vocab_size].std() < 1.4
    assert new["task"]["labels"] == ["0", "1"]


def test_a_vocabulary_of_bytes_is_not_taken(script, numbers, tmp_path):
    numbers()
    script("train.py", *TINY, "--dataset=numbers", "--out_dir=out/bytes", "--max_iters=1")
    write_reviews(tmp_path / "r.csv")
    options = ["--input=r.csv", "--vocab_from=out/bytes"]
    assert (
        "another vocabulary than bytes"
        in script("projects.reviews.prepare", *options, status=2).stderr
    )


LAST = ["--untied_head", "--train_only=transformer.h.1.*,transformer.ln_f.*,lm_head.*"]


@pytest.mark.parametrize("start", ["scratch", "out/d"])
def test_train_only_changes_what_matches_and_resumes_exactly(reviews, script, tmp_path, start):
    run = [*RUN, "--dataset=reviews", "--lr_decay_iters=10"]
    script("train.py", *run, "--out_dir=out/d", "--max_iters=10")
    partly = [*run, *LAST, f"--init_from={start}"]
    script("train.py", *partly, "--out_dir=out/before", "--max_iters=0")
    script("train.py", *partly, "--out_dir=out/after", "--max_iters=10")
    script("train.py", *partly, "--out_dir=out/resumed", "--max_iters=5")
    resume = [*run, *LAST, "--init_from=resume"]
    script("train.py", *resume, "--out_dir=out/resumed", "--max_iters=10")
    before, after, resumed = (
        checkpoint.load(f"{tmp_path}/out/{name}/ckpt.pt")["model"]
        for name in ("before", "after", "resumed")
    )
    for name in after:
        matches = name.startswith(("transformer.h.1.", "transformer.ln_f.", "lm_head."))
        assert torch.equal(before[name], after[name]) != matches, name
        assert torch.equal(after[name], resumed[name]), name
    vocab_size = from_dict(read_meta(str(reviews))["tokenizer"]).vocab_size
    head = "lm_head.weight"  # the whole of it learns
    assert (before[head] != after[head])[:vocab_size].any(1).all()
    script("projects.reviews.classify", "--out_dir=out/after", "--text=it was fine")


def test_the_configs_follow_each_other(script, tmp_path):
    def train(config, *options):
        small = ["--n_embd=32", "--batch_size=8", "--max_iters=2", "--eval_iters=1"]
        return script("train.py", ROOT / "projects" / config, *small, "--compile=False", *options)

    write_dialogues(tmp_path / "d.txt")
    write_reviews(tmp_path / "r.csv")
    script("projects.reviews.prepare", "--input=r.csv")
    texts = "data/reviews/train.txt"
    script(
        "projects.chat.prepare",
        f"--input=d.txt,{texts}",
        "--name=dialogue_reviews",
        "--val_fraction=0.1",
    )
    train("chat/tiny.py", "--dataset=dialogue_reviews", "--out_dir=out/dialogue_reviews")
    script("projects.chat.prepare", f"--input={texts}", "--name=reviews_text", "--val_fraction=0.1")
    train("reviews/text.py")
    labels = ["--input=r.csv", "--vocab_from=out/reviews_text"]
    script("projects.reviews.prepare", *labels)
    script("projects.reviews.prepare", *labels, "--masked=False", "--name=reviews_unmasked")
    train("reviews/masked.py")
    train("reviews/unmasked.py")
    result = train("reviews/frozen.py")
    assert "model    n_layer" not in result.stdout
    for run in ("reviews", "reviews_unmasked", "reviews_frozen"):
        options = [f"--out_dir=out/{run}", "--input=data/reviews/val.csv"]
        assert "accuracy" in script("projects.reviews.classify", *options).stdout
    start, end = (
        checkpoint.load(f"{tmp_path}/out/{run}/ckpt.pt")["model"]
        for run in ("reviews_text", "reviews_frozen")
    )
    changed = {name for name in end if not torch.equal(start[name], end[name])}
    kept = [f"transformer.h.{layer}." for layer in range(3)]
    # wte gets rows for the new tokens; lm_head starts as its copy
    assert not any(name.startswith(tuple(kept)) for name in changed)
    assert "lm_head.weight" in changed and "transformer.h.3.mlp.c_fc.weight" in changed


def test_two_processes_learn_labels_as_one_does(reviews, script, torchrun, tmp_path):
    run = [*RUN, "--dataset=reviews", "--max_iters=10"]
    script("train.py", *run, "--out_dir=one")
    torchrun(*run, "--out_dir=two")
    one, two = (
        [r["loss"] for r in log.read(f"{tmp_path}/{name}/log.jsonl") if "loss" in r]
        for name in ("one", "two")
    )
    assert len(one) == 10 and one == pytest.approx(two, abs=1e-4)
    assert json.loads((reviews / "meta.json").read_text())["task"]["length"] == 32
