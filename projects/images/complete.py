"""Complete images by a trained model, as one PNG: the given rows, completions, the original.

    python -m projects.images.complete --out_dir=out/mnist_tiny --rows=14
    python -m projects.images.complete --out_dir=out/mnist_tiny --rows=0
    python -m projects.images.complete --input=photo.jpg

The images are held-out ones of the run's dataset, or any of --input, for which no dataset needs to
be there. --rows=0 gives nothing: all images are new ones. A class token is that of the image's
label; new images take the labels in turn.
"""

import sys

if not __package__:  # started by its path
    command = "python -m projects.images.complete"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import os
from typing import Literal

from configurator import configure, pick

import numpy as np
import torch
from tqdm import tqdm

from core import UserError, checkpoint
from core.device import choose_device
from core.files import replacing
from core.generate import Sampling, generate, prepare_for_inference
from model import GPT
from projects.images import pixels

# ---- settings: these, and how to sample, in core/generate.py -------------------------------------
out_dir = ""  # a run's folder or a .pt file; by default the newest run under out/
input = ""  # a folder, a tar file, an IDX file or an image file; by default the run's held-out ones
rows = 14  # of pixels that are given, from the top; 0 = new images
images = 8  # how many, evenly spaced among those that are there
completions = 4  # of each
output = ""  # the PNG; by default completions.png, or samples.png, beside the checkpoint
zoom = 2  # width and height of a pixel
temperature = 1.0  # 0 = always the likeliest token, 1 = as trained, above = more random
top_k = 0  # sample from the k likeliest tokens only, 0 = from all
seed = 1337  # the same seed, the same completions
device = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps
dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of weights
settings = configure(__file__, Sampling)
globals().update(settings)
for setting in ("images", "completions", "zoom"):
    if settings[setting] < 1:
        raise UserError(f"--{setting}=0: at least 1 is needed.")

# ---- the model and what is given -----------------------------------------------------------------
device = choose_device(device)
loaded = checkpoint.load(out_dir)
task = pixels.read_task(loaded)
tokenizer = checkpoint.load_tokenizer(loaded)
size = task["size"]
if rows >= size:
    raise UserError(f"--rows={rows} leaves nothing to complete: images are {size} rows high.")
if not rows:
    turns = task["labels"] or [""]
    starts = pixels.start_ids([turns[i % len(turns)] for i in range(images)], task)
    originals = np.zeros((images, 0), np.int64)
elif input:
    squares, labels = pixels.read_images(input, size, len(task["palette"][0]) == 1)
    originals, starts = pixels.to_ids(squares, task), pixels.start_ids(labels, task)
else:
    read, originals = pixels.read_split(loaded, "val")
    starts = read[:, 0]
images = min(images, len(originals))
chosen = np.arange(images) * len(originals) // images
starts, originals = starts[chosen], originals[chosen]
given = originals[:, : rows * size]

# ---- completions: all at once --------------------------------------------------------------------
model = GPT.from_state_dict(loaded["model_args"], loaded["model"])
model = prepare_for_inference(model, dtype, device)
prompts = np.concatenate((starts[:, None], given), axis=1).repeat(completions, axis=0)
sampling = Sampling(**pick(Sampling, settings), unsampled=tuple(tokenizer.special.values()))
idx, missing = torch.from_numpy(prompts).to(device), size * size - given.shape[1]
tokens = tqdm(generate(model, idx, missing, sampling, seed), total=missing, unit="pixels")
new = torch.stack(list(tokens), dim=1).cpu().numpy()
whole = np.concatenate((prompts[:, 1:], new), axis=1)  # (images * completions, size * size)

# ---- the picture: a line per image ---------------------------------------------------------------
drawn = pixels.to_images(whole, task)
lines = drawn.reshape(images, completions, *drawn.shape[1:])  # (lines, columns, H, W, C)
if rows:
    truth = pixels.to_images(originals, task)[:, None]
    upper = truth.copy()
    upper[:, :, rows:] = 128
    lines = np.concatenate((upper, lines, truth), axis=1)
gap = ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0))
lines = np.pad(lines.repeat(zoom, axis=2).repeat(zoom, axis=3), gap, constant_values=255)
height, width = len(lines) * lines.shape[2], lines.shape[1] * lines.shape[3]
picture = lines.transpose(0, 2, 1, 3, 4).reshape(height, width, -1)
picture = picture[..., 0] if picture.shape[-1] == 1 else picture
name = "completions.png" if rows else "samples.png"
output = output or os.path.join(os.path.dirname(loaded["path"]), name)
with replacing(output) as file:
    pixels.Image.fromarray(picture).save(file, "PNG", optimize=True)
print(f"{output}: {images} images, {completions} of each")
