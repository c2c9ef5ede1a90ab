"""Figures of a model on a dataset, on HellaSwag and on LAMBADA, as transformers computes them."""

import json
import math
import re
import runpy
import sys
from contextlib import nullcontext

import pytest
import torch
from test_gpt2 import load, save_theirs

from core.dataset import Writer
from core.extras.gpt2_tokenizer import GPT2Tokenizer
from core.extras.score import Score, score
from model import GPT, GPTConfig


@pytest.fixture
def bpe(folio_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folio_data("tiktoken-cache")))
    return GPT2Tokenizer()


def test_eval_only_says_loss_perplexity_and_bits_per_byte(bpe, script, tmp_path):
    text = "It was the best of times, it was the worst of times. " * 40
    with Writer(str(tmp_path / "data" / "two"), bpe, {"name": "two"}) as writer:
        ids = bpe.encode(text)
        writer.append("train", ids)
        num_bytes = len(bpe.decode(ids[:101]).encode())
        writer.append("val", ids[:101], num_bytes=num_bytes)
    save_theirs(tmp_path / "hf")
    options = ["--dataset=two", "--init_from=hf", "--block_size=20", "--dtype=float32"]
    out = script("train.py", *options, "--eval_only", "--eval_iters=1", "--batch_size=2").stdout
    figures = dict(re.findall(r"(\w+) ([\d.]+)", out[out.index("step 0:") :]))
    model, idx = load(tmp_path / "hf"), torch.tensor(ids[:101].astype("int64"))
    with torch.no_grad():  # the whole split, though one batch of two sequences was asked for
        loss = model(idx[:-1].view(5, 20), idx[1:].view(5, 20)).item()
    assert float(figures["val_loss"]) == pytest.approx(loss, abs=1e-3)
    assert float(figures["perplexity"]) == pytest.approx(math.exp(loss), rel=1e-3)
    bits = loss / math.log(2) * 101 / num_bytes
    assert float(figures["bits_per_byte"]) == pytest.approx(bits, abs=1e-3)


def reference_score(model, context: list[int], ending: list[int]) -> tuple[float, bool]:
    """Log-probability of the ending, and whether it is the greedy continuation.

    model: a function ids (1, T) -> logits (1, T, V).
    """
    with torch.no_grad():
        log_probs = model(torch.tensor([context + ending[:-1]]))[0].log_softmax(-1)
    log_probs = log_probs[-len(ending) :]
    total = sum(at[token].item() for at, token in zip(log_probs, ending, strict=True))
    return total, log_probs.argmax(-1).tolist() == ending


WORDS = "the a man dog runs very quickly to an open door and then falls asleep".split()
OPTIONS = ["--init_from=hf", "--dtype=float32", "--batch_size=5"]


@pytest.fixture
def phrase():
    """A function that gives random words, at least `low` and fewer than `high`."""
    generator = torch.Generator().manual_seed(0)

    def sample(low: int, high: int) -> str:
        n = int(torch.randint(low, high, (), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator))

    return sample


def write_lines(path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_hellaswag_as_transformers_scores_it(bpe, script, tmp_path, phrase):
    model = save_theirs(tmp_path / "hf")
    rows = [
        {"ctx": phrase(3, 12), "endings": [phrase(1, 8) for _ in range(4)], "label": i % 4}
        for i in range(36)
    ]
    write_lines(tmp_path / "h.jsonl", rows)
    by_sum = by_mean = 0
    for row in rows:
        context = bpe.encode(row["ctx"]).tolist()
        endings = [bpe.encode(f" {ending}").tolist() for ending in row["endings"]]
        sums = [
            reference_score(lambda idx: model(idx).logits, context, ending)[0] for ending in endings
        ]
        means = [total / len(ending) for total, ending in zip(sums, endings, strict=True)]
        by_sum += sums.index(max(sums)) == row["label"]
        by_mean += means.index(max(means)) == row["label"]
    said = script("tools.evaluate", "--task=hellaswag", "--input=h.jsonl", *OPTIONS).stdout
    expected = f"accuracy {by_sum / 36:.4f}, by mean per token {by_mean / 36:.4f}, as llm.c"
    assert said == f"hellaswag: 36 examples, {expected}\n"
    said = script("tools.evaluate", "--input=h.jsonl", "--limit=7", *OPTIONS).stdout
    assert said.startswith("hellaswag: 7 examples")


# rows of HellaSwag's file -> what lm-eval 0.4.13 makes of them
SHINGLES = {"activity_label": "Roof shingle removal", "ctx_a": "A man is on a roof.", "ctx_b": "he"}
SHINGLES["endings"] = ["is holding a rubik's cube.", "rips tiles off.", "sits.", "starts pulling."]
BREAD = {"activity_label": "Food", "ctx_b": ""}
BREAD["ctx_a"] = "[header] How to bake bread [title] Mix the dough. [step] Use warm  water."
BREAD["endings"] = ["[substeps] Let it rest. [title] Then eat.", "Wait [an hour] or more."]
BREAD["endings"] += ["Add   three spaces. ", " [title] Bake."]
DOG = {"activity_label": "Walking the dog", "ctx_a": "A girl laughs.", "ctx_b": "the DOG and Bob"}
DOG["endings"] = ["run.", "run to an open door.", "sleep [] well.", "fall asleep, naïve as ever."]
LM_EVAL = [
    (SHINGLES, "Roof shingle removal: A man is on a roof. He", SHINGLES["endings"]),
    (
        BREAD,
        "Food: How to bake bread. Mix the dough. Use warm water.",
        [" Let it rest.. Then eat.", "Wait or more.", "Add  three spaces.", " Bake."],
    ),
    (
        DOG,
        "Walking the dog: A girl laughs. The dog and bob",
        ["run.", "run to an open door.", "sleep well.", "fall asleep, naïve as ever."],
    ),
]


def test_hellaswag_as_lm_eval_reads_and_scores_it(bpe, tmp_path, monkeypatch, capsys):
    save_theirs(tmp_path / "hf")
    write_lines(tmp_path / "h.jsonl", [{**row, "label": "1"} for row, *_ in LM_EVAL])
    expected = [(context, f" {ending}") for _, context, endings in LM_EVAL for ending in endings]

    def score(model, pairs, *_) -> list[Score]:
        """Ending 1 is the likeliest per character, a shorter one in all."""
        assert [tuple(map(bpe.decode, pair)) for pair in pairs] == expected
        rates = [1.001, 1, 1.001, 1.001] * len(LM_EVAL)  # nats per character
        nats = [rate * (len(text) - 1) for rate, (_, text) in zip(rates, expected, strict=True)]
        return [Score(-n, tokens=1, greedy=False) for n in nats]

    monkeypatch.setattr("core.extras.score.score", score)
    options = ["--input=h.jsonl", "--protocol=lm-eval", *OPTIONS]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *options])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)
    runpy.run_module("tools.evaluate")
    said = "hellaswag: 3 examples, accuracy 0.0000, by mean per character 1.0000, as lm-eval\n"
    assert capsys.readouterr().out == said


def test_the_help_names_the_protocols(script):
    said = script("tools.evaluate", "--help").stdout
    assert "--protocol=llm.c" in said and "one of llm.c, lm-eval" in said


def test_a_model_whose_weights_are_no_numbers_is_not_scored(bpe, script, tmp_path):
    model = save_theirs(tmp_path / "hf")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "hf")
    row = {"ctx": "a", "endings": ["b", "c"], "label": 0, "text": "a man runs"}
    write_lines(tmp_path / "h.jsonl", [row])
    for task in ("hellaswag", "lambada"):
        said = script("tools.evaluate", "--input=h.jsonl", f"--task={task}", *OPTIONS, status=None)
        assert (
            said.returncode == 2 and "holds NaN or infinite weights" in said.stderr.splitlines()[-1]
        )
        assert "Traceback" not in said.stderr and said.stdout == ""


def test_lambada_as_transformers_scores_it(bpe, script, tmp_path, phrase):
    model = save_theirs(tmp_path / "hf")
    rows = [{"text": f"{phrase(5, 20)} {WORDS[i % 5]}"} for i in range(36)]
    # some whose last word the model does find: its own continuation
    for row in rows[::3]:
        ids = torch.tensor([bpe.encode(row["text"]).tolist()])
        last = model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1:].tolist()
        word = bpe.decode(last)
        if word.startswith(" ") and " " not in word[1:] and bpe.encode(word).tolist() == last:
            row["text"] += word
    write_lines(tmp_path / "l.jsonl", rows)
    log_probability = correct = 0
    for row in rows:
        context, word = row["text"].rsplit(" ", 1)
        ids = bpe.encode(context).tolist(), bpe.encode(f" {word}").tolist()
        total, greedy = reference_score(lambda idx: model(idx).logits, *ids)
        log_probability, correct = log_probability + total, correct + greedy
    said = script("tools.evaluate", "--task=lambada", "--input=l.jsonl", *OPTIONS).stdout
    assert f"36 examples, accuracy {correct / 36:.4f}, perplexity " in said and correct > 0
    assert float(said.split()[-1]) == pytest.approx(math.exp(-log_probability / 36), rel=1e-3)


@pytest.mark.parametrize(
    "line",
    [
        *('{"ctx": "no endings"}', "[1, 2]", "no JSON"),
        '{"ctx": "a", "endings": ["b", "c"], "label": 2}',
        '{"ctx": "a", "endings": ["b", "c"], "label": -1}',
        '{"ctx": "a", "endings": [], "label": 0}',
        '{"ctx": "a", "endings": "bcde", "label": 0}',
    ],
)
def test_a_bad_example_is_one_sentence(script, tmp_path, line):
    save_theirs(tmp_path / "hf")
    (tmp_path / "h.jsonl").write_text(f"\n{line}\n")
    said = script("tools.evaluate", "--input=h.jsonl", *OPTIONS, status=2).stderr
    assert "line 2 is no example of hellaswag" in said
    (tmp_path / "h.jsonl").write_text("\n")
    assert "is empty" in script("tools.evaluate", "--input=h.jsonl", *OPTIONS, status=2).stderr


def test_a_score_depends_on_its_own_pair_alone():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=20, block_size=12, n_layer=2, n_head=2, n_embd=16)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.5)
    shapes = [(1, 1), (3, 2), (3, 5), (9, 4), (30, 3), (2, 30), (9, 4)]
    pairs = [tuple(torch.randint(20, (n,)).tolist() for n in shape) for shape in shapes]
    pairs += [(pairs[1][0], [token]) for token in range(20)]  # labels of one token
    together = score(model, pairs, 4, nullcontext())
    for pair, found in zip(pairs, together, strict=True):
        context, continuation = pair
        idx = (context + continuation)[-13:]  # one more than the block: the last is only a target
        continuation = continuation[-12:]
        expected, greedy = reference_score(model, idx[: -len(continuation)], continuation)
        assert found.log_probability == pytest.approx(expected, abs=1e-4)
        assert (found.greedy, found.tokens) == (greedy, len(continuation))
    one_token = [math.exp(found.log_probability) for found in together[-20:]]
    assert sum(one_token) == pytest.approx(1.0, abs=1e-4)
