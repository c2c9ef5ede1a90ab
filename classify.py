"""Label texts with a model that was trained on labelled ones.

    python classify.py --out_dir=out/reviews --text="a lovely place"
    python classify.py --out_dir=out/reviews --input=data/reviews/val.csv
    python classify.py --out_dir=out/reviews --input=new.csv --predictions=labelled.csv

A CSV with a column of labels is scored; one without is labelled. The parts of a long text are
labelled each, and their probabilities averaged.
"""

import csv
import math
from typing import Literal

from tqdm import tqdm

from configurator import configure
from core import UserError, checkpoint, corpus, runtime
from core.score import questions, score
from core.tokenizer import from_dict
from model import GPT

# ---- settings ------------------------------------------------------------------------------------
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
text = ""  # one text to label
input = ""  # a UTF-8 CSV file of texts, with or without their labels
label_column = "label"  # its column of labels
column = ""  # its column of texts, by default the first other one
predictions = ""  # a CSV file for each text's label and probability; by default it is not written
batch_size = 32  # rows computed at once
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products
globals().update(configure(__file__))
if bool(text) == bool(input):
    raise UserError("give either --text= or --input=: a text to label, or a CSV file of texts.")

# ---- the model and the texts ---------------------------------------------------------------------
run = runtime.start(device)
path = checkpoint.find(out_dir or checkpoint.newest_run())
loaded = checkpoint.load(path)
task = loaded.get("task")
if not task or task["kind"] != "labels":
    raise UserError(f"{path} has not learned labels: train on what prepare_reviews.py writes.")
tokenizer, labels = from_dict(loaded["tokenizer"]), task["labels"]
model = GPT.from_weights(loaded["model_args"], loaded["model"]).to(run.device).eval()
autocast = runtime.autocast(run.device, runtime.choose_dtype(dtype, run.device))

texts, truth = [corpus.plain(text)], None
if input:
    rows = corpus.labelled_rows(input, column, label_column)
    texts, truth = [text for text, _ in rows], [label for _, label in rows]
    truth = None if None in truth else truth
    if truth and (strange := sorted(set(truth) - set(labels))):
        raise UserError(f"--input={input} has the label {strange[0]}; learned were {labels}.")

# ---- the labels ----------------------------------------------------------------------------------
answers = [[tokenizer.special[f"<label {label}>"]] for label in labels]
shares: list[list[float]] = []  # of each text, the probability of each label
for first in tqdm(range(0, len(texts), 64), disable=not input):
    asked = [questions(tokenizer, text, task) for text in texts[first : first + 64]]
    pairs = [(part, answer) for parts in asked for part in parts for answer in answers]
    scores = iter(score(model, pairs, batch_size, autocast))
    for parts in asked:
        total = [0.0] * len(labels)
        for _ in parts:
            likely = [math.exp(next(scores).log_probability) for _ in labels]
            total = [t + p / sum(likely) / len(parts) for t, p in zip(total, likely, strict=True)]
        shares.append(total)
guesses = [labels[max(range(len(labels)), key=share.__getitem__)] for share in shares]

if text:
    print(f"{guesses[0]} {max(shares[0]):.4f}")
if predictions:
    with open(predictions, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "probability", "text"])
        for guess, share, one in zip(guesses, shares, texts, strict=True):
            writer.writerow([guess, f"{max(share):.4f}", one])
    print(f"{predictions}: {len(texts):,} texts")
elif input and truth is None:
    for guess, share, one in zip(guesses, shares, texts, strict=True):
        print(f"{guess}\t{max(share):.4f}\t{one}")
if truth:
    pairs_of = list(zip(truth, guesses, strict=True))
    print(f"accuracy {sum(t == g for t, g in pairs_of) / len(truth):.4f} of {len(truth):,} texts")
    width = max(9, *map(len, labels))
    head = " ".join(f"{label:>{width}}" for label in labels)
    print(f"{'label':>{width}} precision    recall        F1   taken for: {head}")
    for label in labels:
        hits = pairs_of.count((label, label))
        precision = hits / max(1, guesses.count(label))
        recall = hits / max(1, truth.count(label))
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        taken = " ".join(f"{pairs_of.count((label, other)):>{width}}" for other in labels)
        print(f"{label:>{width}} {precision:9.4f} {recall:9.4f} {f1:9.4f}              {taken}")
