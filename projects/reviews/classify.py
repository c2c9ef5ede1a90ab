"""Label texts with a model that was trained on labelled ones.

    python -m projects.reviews.classify --out_dir=out/reviews \\
        --text="a lovely place"
    python -m projects.reviews.classify --input=data/reviews/val.csv
    python -m projects.reviews.classify --input=new.csv --predictions=out.csv

A CSV file with a column of labels is scored; one without is labelled. The parts of a long text
are labelled separately, and their probabilities averaged.
"""

import sys

if not __package__:  # started by its path
    command = "python -m projects.reviews.classify"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import csv
from typing import Literal

from configurator import configure

import torch
from tqdm import tqdm

from core import UserError, checkpoint
from core.device import autocast, choose_device, choose_dtype
from core.extras.score import score
from model import GPT
from projects.reviews.labels import label_token, labelled_rows, plain, questions

# ---- settings ------------------------------------------------------------------------------------
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
text = ""  # one text to label
input = ""  # a CSV file of texts, with or without their labels
encoding = "utf-8"  # of a file without a byte order mark, such as gb18030
label_column = "label"  # its column of labels
column = ""  # its column of texts, by default the first other one
predictions = ""  # a CSV file to write, with each text's label and its probability
batch_size = 32  # sequences computed at once
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # matmul dtype
globals().update(configure(__file__))
if bool(text) == bool(input):
    raise UserError("give either --text= or --input=: a text to label, or a CSV file of texts.")

if predictions:
    open(predictions, "a").close()  # if it cannot be written, fail before the work

# ---- the model and the texts ---------------------------------------------------------------------
device = choose_device(device)
amp = autocast(device, choose_dtype(dtype, device))
loaded = checkpoint.load(out_dir)
task = loaded["task"]
if not task or task["kind"] != "labels":
    path = loaded["path"]
    raise UserError(f"{path} has not learned labels: train on what projects.reviews.prepare makes.")
tokenizer, labels = checkpoint.load_tokenizer(loaded), task["labels"]
model = GPT.from_state_dict(loaded["model_args"], loaded["model"]).to(device).eval()

rows = labelled_rows(input, column, label_column, encoding) if input else [(plain(text), None)]
reviews = [review for review, _ in rows]
truth = [label for _, label in rows if label is not None]  # of all texts, or of none
if unknown := sorted(set(truth) - set(labels)):
    raise UserError(f"--input={input} has the label {unknown[0]}; learned were {labels}.")


# ---- the labels ----------------------------------------------------------------------------------
def probabilities(reviews: list[str]) -> list[list[float]]:
    """The probability of each label for each text, the mean over its parts."""
    parts = [questions(tokenizer, review, task) for review in reviews]
    answers = [[tokenizer.special[label_token(label)]] for label in labels]
    pairs = [(part, answer) for own in parts for part in own for answer in answers]
    scores = score(model, pairs, batch_size, amp)
    log_probs = torch.tensor([s.log_probability for s in scores], dtype=torch.float64)
    of_parts = log_probs.view(-1, len(labels)).softmax(-1)  # (parts of all texts, labels)
    return [own.mean(0).tolist() for own in of_parts.split([len(own) for own in parts])]


def print_scores(pairs: list[tuple[str, str]]) -> None:
    """Accuracy, and the figures and confusions of each label, of pairs (true label, guess)."""
    correct = sum(label == guess for label, guess in pairs)
    print(f"accuracy {correct / len(pairs):.4f} of {len(pairs):,} texts")
    width = max(9, *map(len, labels))
    narrow = max(map(len, [*labels, str(len(pairs))]))
    head = " ".join(f"{label:>{narrow}}" for label in labels)
    print(f"{'label':>{width}} precision    recall        F1   labelled as: {head}")
    for label in labels:
        counts = [pairs.count((label, guess)) for guess in labels]
        hits = pairs.count((label, label))
        precision = hits / max(1, sum(guess == label for _, guess in pairs))
        recall = hits / max(1, sum(counts))
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        figures = f"{precision:9.4f} {recall:9.4f} {f1:9.4f}"
        confusions = " ".join(f"{count:>{narrow}}" for count in counts)
        print(f"{label:>{width}} {figures}{'':16}{confusions}")


results = []  # of each text: its label, the label's probability, the text
for first in tqdm(range(0, len(reviews), 64), disable=not input):
    batch = reviews[first : first + 64]
    for review, own in zip(batch, probabilities(batch), strict=True):
        results.append((labels[own.index(max(own))], f"{max(own):.4f}", review))

if text:
    label, probability, _ = results[0]
    print(f"{label} {probability}")
if predictions:
    with open(predictions, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "probability", "text"])
        writer.writerows(results)
    print(f"{predictions}: {len(results):,} texts")
elif input and not truth:
    for result in results:
        print("\t".join(result))
if truth:
    print_scores([(label, guess) for label, (guess, _, _) in zip(truth, results, strict=True)])
