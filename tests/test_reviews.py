"""Labelled texts: what is asked where, what stays frozen, what vocabulary is taken over."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from conftest import TINY

from core import checkpoint, log
from core.dataset import read_meta
from core.tokenizer import from_dict
from model import GPT

GOOD, BAD = "good fine lovely great nice".split(), "bad poor awful dirty loud".split()


def write_reviews(path, count=300, labels=("1", "0"), label_column="label"):
    chance = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([label_column, "review"])
        for i in range(count):
            words = chance.choice(GOOD if i % 2 else BAD, size=chance.integers(2, 9))
            rows.writerow([labels[0] if i % 2 else labels[1], f"{i} it was {', '.join(words)}"])
        rows.writerow([labels[0], "0 it was"])
        rows.writerow([labels[0], "\uff10 it  was"])  # the same once it is plain
        rows.writerow([labels[0], " "])


def rows_of(folder, split):
    meta = read_meta(str(folder))
    ids = np.fromfile(folder / f"{split}.bin", np.uint16).reshape(-1, meta["row_length"])
    return ids, np.fromfile(folder / f"{split}.mask.bin", np.uint8).reshape(ids.shape)


@pytest.mark.parametrize("masked", [True, False])
def test_each_text_is_asked_for_its_label_once_it_has_been_read(script, tmp_path, masked):
    write_reviews(tmp_path / "r.csv")
    options = [f"--masked={masked}", "--length=32"]
    result = script("prepare_reviews.py", "--input=r.csv", *options)
    assert "1 texts that came before, 1 without" in result.stdout
    folder = tmp_path / "data" / "reviews"
    coder = from_dict(read_meta(str(folder))["tokenizer"])
    extract, pad = coder.special["<extract>"], coder.special["<pad>"]
    texts = set()
    for split in ("train", "val"):
        ids, mask = rows_of(folder, split)
        assert (mask.sum(1) == 1).all()
        for row, marks in zip(ids, mask, strict=True):
            at = int(marks.argmax())
            assert row[at - 1] == extract and coder.pieces[row[at]] in ("<label 0>", "<label 1>")
            assert masked or at == 32
            body = row[: at - 1][row[: at - 1] != pad]
            texts.add(coder.decode(body.tolist()))
            assert (row[at + 1 :] == pad).all()
    assert "0 it was" in texts
    held_out = list(csv.DictReader(open(folder / "val.csv", encoding="utf-8")))
    trained_on = (folder / "train.txt").read_text().split("\n\n")[:-1]
    assert len(held_out) + len(trained_on) == 301
    assert 30 < len(held_out) < 100 and not {r["text"] for r in held_out} & set(trained_on)


def test_bad_csv_files_are_one_sentence(script, tmp_path):
    def said(content, *options):
        (tmp_path / "r.csv").write_text(content, encoding="utf-8")
        return script("prepare_reviews.py", "--input=r.csv", *options, status=2).stderr

    assert "no column label" in said("a,b\n1,2\n")
    assert "names one of label" in said("label\n1\n")
    assert "1 labels" in said("label,text\n1,x\n1,y\n1,z\n")
    assert "0 labels" in said("label,text\n1,\n,x\n")
    rare = "label,text\n2,first\n" + "".join(f"{i % 2},text {i}\n" for i in range(20))
    assert "no text to train on has the label 2" in said(rare)
    assert "can't be read" in script("prepare_reviews.py", "--input=no.csv", status=2).stderr


RUN = [
    *TINY,
    "--batch_size=16",
    "--optimizer=muon",
    "--compile=False",
    "--block_size=32",
    "--rotary",
]


@pytest.fixture
def learned(script, tmp_path):
    write_reviews(tmp_path / "r.csv")
    script("prepare_reviews.py", "--input=r.csv", "--length=32")
    options = ["--dataset=reviews", "--out_dir=out/r", "--max_iters=120", "--eval_interval=60"]
    script("train.py", *RUN, *options, "--log_interval=20", "--eval_iters=50")


def test_it_labels_a_text_and_scores_a_file(learned, script, tmp_path):
    said = script("classify.py", "--text=it was lovely, great, nice").stdout
    assert re.fullmatch(r"1 0\.\d+\n", said) and float(said.split()[1]) > 0.8
    wide = script("classify.py", "--text=it was lovely\uff0c great\uff0c nice").stdout
    assert wide == said
    long = ", ".join(["awful", "loud"] * 20)  # several rows, whose probabilities are averaged
    assert script("classify.py", f"--text={long}").stdout.startswith("0 ")
    said = script("classify.py", "--input=data/reviews/val.csv", "--predictions=p.csv").stdout
    assert float(re.search(r"accuracy (\S+)", said)[1]) > 0.9
    truth = [r["label"] for r in csv.DictReader(open(tmp_path / "data/reviews/val.csv"))]
    rows = list(csv.DictReader(open(tmp_path / "p.csv")))
    right = sum(r["label"] == t for r, t in zip(rows, truth, strict=True))
    assert f"accuracy {right / len(truth):.4f} of {len(truth)}" in said
    # precision, recall and F1 of label 1, and its row of the confusion matrix, by hand
    hits = sum(r["label"] == t == "1" for r, t in zip(rows, truth, strict=True))
    found, there = sum(r["label"] == "1" for r in rows), truth.count("1")
    line = next(line for line in said.splitlines() if line.split()[0] == "1").split()
    expected = [hits / found, hits / there, 2 * hits / (found + there), there - hits, hits]
    assert [float(figure) for figure in line[1:]] == pytest.approx(expected, abs=1e-4)
    (tmp_path / "new.csv").write_text("text\nit was awful\nit was fine\n")
    lines = script("classify.py", "--input=new.csv").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["0", "1"]
    (tmp_path / "odd.csv").write_text("label,text\nfunny,it was awful\n")
    assert "label funny" in script("classify.py", "--input=odd.csv", status=2).stderr
    assert "either" in script("classify.py", status=2).stderr


def test_val_accuracy_is_that_of_the_rows(learned, script, tmp_path):
    records = log.read(f"{tmp_path}/out/r/log.jsonl")
    accuracy = [r["val_accuracy"] for r in records if "val_accuracy" in r]
    assert accuracy[0] < 0.8 < accuracy[-1]


def test_padding_changes_no_probability(learned, tmp_path):
    loaded = checkpoint.load(f"{tmp_path}/out/r/ckpt.pt")
    model = GPT.from_weights(loaded["model_args"], loaded["model"]).eval()
    coder = from_dict(loaded["tokenizer"])
    row = [*coder.encode("it was fine"), coder.special["<extract>"]]
    with torch.no_grad():
        short = model(torch.tensor([row]))[0, -1].softmax(-1)
        padded = row + [coder.special["<pad>"]] * (32 - len(row))
        long = model(torch.tensor([padded]))[0, len(row) - 1].softmax(-1)
    torch.testing.assert_close(short, long, atol=1e-6, rtol=0)


def test_a_pretrained_vocabulary_is_taken_over_by_token(script, tmp_path):
    texts = [["it was good, lovely", "was it fine"], ["bad, loud"]] * 20
    (tmp_path / "d.txt").write_text("\n\n".join("\n".join(t) for t in texts))
    script("prepare_dialogue.py", "--input=d.txt")
    script("train.py", *RUN, "--dataset=dialogue", "--out_dir=out/d", "--max_iters=20")
    write_reviews(tmp_path / "r.csv")
    script("prepare_reviews.py", "--input=r.csv", "--length=32", "--vocab_from=out/d")
    tune = [*RUN, "--dataset=reviews", "--init_from=out/d", "--out_dir=out/r"]
    result = script("train.py", *tune, "--max_iters=0")
    old, new = (checkpoint.load(f"{tmp_path}/out/{run}/ckpt.pt") for run in ("d", "r"))
    first, second = (from_dict(c["tokenizer"]) for c in (old, new))
    assert second.vocab_size == first.vocab_size + 3
    added = [p for p in second.pieces if p not in first.pieces]
    assert added == ["<extract>", "<label 0>", "<label 1>"]
    assert f"{first.vocab_size} of {second.vocab_size} tokens are the checkpoint's" in result.stdout
    wte = "transformer.wte.weight"
    for piece in first.pieces:
        before = old["model"][wte][first.pieces.index(piece)]
        assert torch.equal(before, new["model"][wte][second.pieces.index(piece)])
    rows = new["model"][wte][[second.pieces.index(piece) for piece in added]]
    assert 0.7 < rows.std() / old["model"][wte][: first.vocab_size].std() < 1.4
    assert new["task"]["labels"] == ["0", "1"]


@pytest.mark.parametrize("start", ["scratch", "out/d"])
def test_freezing_changes_the_last_block_the_last_norm_and_the_label_rows(script, tmp_path, start):
    write_reviews(tmp_path / "r.csv")
    script("prepare_reviews.py", "--input=r.csv", "--length=32")
    run = [*RUN, "--dataset=reviews", "--lr_decay_iters=10"]
    script("train.py", *run, "--out_dir=out/d", "--max_iters=10")
    frozen = [*run, f"--init_from={start}", "--freeze", "--out_dir=out/r"]
    script("train.py", *frozen, "--max_iters=0")
    before = checkpoint.load(f"{tmp_path}/out/r/ckpt.pt")["model"]
    before = {name: tensor.clone() for name, tensor in before.items()}
    script("train.py", *frozen, "--max_iters=10")
    loaded = checkpoint.load(f"{tmp_path}/out/r/ckpt.pt")
    after, special = loaded["model"], from_dict(loaded["tokenizer"]).special
    labels = [i for name, i in special.items() if name.startswith("<label")]
    others = [i for i in range(len(after["lm_head.weight"])) if i not in labels]
    free = ("transformer.h.1.", "transformer.ln_f.")
    for name in after:
        same = torch.equal(before[name], after[name])
        if name == "lm_head.weight":
            assert torch.equal(before[name][others], after[name][others])
            assert all(not torch.equal(before[name][i], after[name][i]) for i in labels)
        else:
            assert same != name.startswith(free), name
    # resumed, it goes on as if it had never stopped
    script("train.py", *frozen[:-1], "--out_dir=out/s", "--max_iters=5")
    resume = [*run, "--freeze", "--init_from=resume", "--out_dir=out/s", "--max_iters=10"]
    script("train.py", *resume)
    resumed = checkpoint.load(f"{tmp_path}/out/s/ckpt.pt")["model"]
    assert all(torch.equal(after[name], resumed[name]) for name in after)
    script("classify.py", "--out_dir=out/r", "--text=it was fine")


def test_freezing_needs_labels(script, toy):
    assert "no labels" in script("train.py", *TINY, "--dataset=toy", "--freeze", status=2).stderr


def test_classify_needs_a_model_of_labels(script, toy):
    script("train.py", *TINY, "--dataset=toy", "--out_dir=out/toy", "--max_iters=1")
    assert "has not learned labels" in script("classify.py", "--text=x", status=2).stderr


def test_two_processes_learn_labels_as_one_does(script, torchrun, tmp_path):
    write_reviews(tmp_path / "r.csv")
    script("prepare_reviews.py", "--input=r.csv", "--length=32")
    run = [*RUN, "--dataset=reviews", "--max_iters=10"]
    script("train.py", *run, "--out_dir=one")
    torchrun(*run, "--out_dir=two")
    one, two = (
        [r["loss"] for r in log.read(f"{tmp_path}/{name}/log.jsonl") if "loss" in r]
        for name in ("one", "two")
    )
    assert len(one) == 10 and one == pytest.approx(two, abs=1e-4)
    assert json.loads((tmp_path / "data/reviews/meta.json").read_text())["task"]["length"] == 32
