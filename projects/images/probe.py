"""How well labels can be read off a model's features by a linear map, beside the pixels' own.

    python -m projects.images.probe --out_dir=out/mnist_tiny

The features of an image are the mean over its pixels of what a block's attention reads, as in
https://openai.com/index/image-gpt; the model itself is not trained. Logistic regression is fitted
to the images that trained the model, and measured on those that validate.
"""

import sys

if not __package__:  # started by its path
    command = "python -m projects.images.probe"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import json
import os

from configurator import configure

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from core import UserError, checkpoint
from core.device import choose_device
from model import GPT
from projects.images import pixels

# ---- settings ------------------------------------------------------------------------------------
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
layer = 0  # the block whose input is taken, from 1; 0 = the middle one
batch_size = 32  # images computed at once
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
globals().update(configure(__file__))
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of squared weights: the best on a tenth of the training set

# ---- the model, the images, their labels ---------------------------------------------------------
device = choose_device(device)
loaded = checkpoint.load(out_dir)
task = pixels.read_task(loaded)
if task["labels"]:
    raise UserError(
        f"{loaded['path']} reads an image's label as its class token, which is what a probe "
        "predicts: train on a dataset without --class_token."
    )
model = GPT.from_state_dict(loaded["model_args"], loaded["model"]).to(device).eval()
depth = len(model.transformer.h)
layer = layer or depth // 2 + 1
if layer > depth:
    raise UserError(f"--layer={layer}: the model has {depth} blocks.")
model.transformer.h = model.transformer.h[:layer]  # later ones are not needed
splits = {split: pixels.read_split(loaded, split) for split in ("train", "val")}
labels_path = os.path.join("data", loaded["config"]["dataset"], "labels.json")
with open(labels_path, encoding="utf-8") as file:
    names = json.load(file)
known = sorted(set(names["train"]))
if [len(names[split]) for split in splits] != [len(x) for x, _ in splits.values()]:
    raise UserError(f"{labels_path} is not of the same images: run its prepare script again.")
if len(known) < 2 or "" in known or set(names["val"]) - set(known):
    raise UserError(f"{labels_path} needs a label of every image, each also of one that trains.")
truth = {split: torch.tensor([known.index(n) for n in names[split]]) for split in splits}


# ---- features and their linear map ---------------------------------------------------------------
@torch.inference_mode()
def features_of(x: np.ndarray) -> Tensor:
    """(N, C), the mean over positions of what the attention of `layer` reads."""
    parts = []
    norm = model.transformer.h[-1].ln_1
    hook = norm.register_forward_hook(lambda *call: parts.append(call[-1].float().mean(1).cpu()))
    for first in tqdm(range(0, len(x), batch_size), unit="batches"):
        model.hidden(torch.from_numpy(x[first : first + batch_size]).to(device))
    hook.remove()
    return torch.cat(parts)


def fit(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Weights and bias (C + 1, classes) of the logistic regression of y (N,) on x (N, C)."""
    x = F.pad(x, (0, 1), value=1.0)
    weight = torch.zeros(x.size(1), len(known), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight, y) + penalty * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def accuracy(weight: Tensor, x: Tensor, y: Tensor) -> float:
    return ((x @ weight[:-1] + weight[-1]).argmax(1) == y).double().mean().item()


def probe(x: dict[str, Tensor]) -> float:
    """Accuracy on held-out images of a map that never saw them, nor did the choice of penalty."""
    mean, std = x["train"].mean(0), x["train"].std(0)
    x = {split: (own - mean) / (std + 1e-3 * std.max()) for split, own in x.items()}
    tenth = torch.arange(len(x["train"])) % 10 == 0
    tries = {}
    for penalty in PENALTIES:
        weight = fit(x["train"][~tenth], truth["train"][~tenth], penalty)
        tries[penalty] = accuracy(weight, x["train"][tenth], truth["train"][tenth])
    weight = fit(x["train"], truth["train"], max(tries, key=tries.get))
    return accuracy(weight, x["val"], truth["val"])


of_model = {split: features_of(x) for split, (x, _) in splits.items()}
of_pixels = {}
for split, (_, y) in splits.items():
    of_pixels[split] = torch.from_numpy(pixels.to_images(y, task)).flatten(1).float() / 255
count = f"of {len(truth['val']):,} held-out images"
width = of_model["val"].size(1)
print(f"accuracy {probe(of_model):.4f} {count}: {width} features of block {layer} of {depth}")
print(f"accuracy {probe(of_pixels):.4f} {count}: {of_pixels['val'].size(1)} values of their pixels")
