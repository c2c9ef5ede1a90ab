"""Write data/NAME/ from images: a token per pixel, row by row, each the nearest of a palette.

    python -m projects.images.prepare --input=photos/ --size=32 --palette=512
    python -m projects.images.prepare --input=cifar10.tar --name=cifar10
    python -m projects.images.prepare --input=t10k-images-idx3-ubyte.gz \\
        --labels=t10k-labels-idx1-ubyte.gz --size=28 --palette=16 --name=mnist

An image is <image>, or with --class_token the token of its label, and then its pixels. The first
token is only read: every target is a pixel. The palette is fitted to the training images by
k-means; grey levels are evenly spaced. Equal images are in the same split.
"""

import sys

if not __package__:  # started by its path
    command = "python -m projects.images.prepare"
    print(f"start it as a module from the repository's root: {command}", file=sys.stderr)
    sys.exit(2)

import json
import math
import os
from typing import Literal

from configurator import configure

import numpy as np

from core import UserError
from core.dataset import Writer, folder_for
from core.extras.splits import check_fraction, validates
from core.files import replacing
from projects.images import pixels

# ---- settings ------------------------------------------------------------------------------------
input = ""  # a folder or a tar file of images, or an IDX file such as MNIST's
labels = ""  # an IDX file of labels; by default the name of the folder that an image is in
name = "images"  # the folder under data/ to write
size = 32  # width and height: the centre of each image is scaled to it
palette = 512  # colours, or levels of grey
grey: Literal["auto", True, False] = "auto"  # forget colours; auto = of an IDX file, which has none
class_token = False  # start an image by its label
val_fraction = 0.1  # of the images
seed = 1337  # of the split and the palette
globals().update(configure(__file__))

if not input:
    raise UserError("--input= names the images: a folder, a tar file, or an IDX file.")
check_fraction(val_fraction)
if grey == "auto":
    grey = pixels.is_idx(input)
most = 256 if grey else pixels.LARGEST
if not 2 <= palette <= most:
    kind = "levels of grey" if grey else "colours"
    raise UserError(f"--palette={palette}: 2 to {most} {kind} are accepted, such as 16.")
if not 1 <= size <= 256:
    raise UserError(f"--size={size}: 1 to 256 pixels are accepted, such as 32.")

# ---- the images and their labels -----------------------------------------------------------------
images, own_labels = pixels.read_images(input, size, grey)
if labels:
    own_labels = [str(label) for label in pixels.read_idx(labels).ravel()]
if len(own_labels) != len(images):
    raise UserError(f"{labels} has {len(own_labels)} labels, {input} has {len(images)} images.")
if class_token and "" in own_labels:
    raise UserError(f"--class_token needs a label of every image of {input}: --labels names them.")

# the text of an image for its hash: a character per byte
texts = (image.tobytes().decode("latin-1") for image in images)
in_val = np.array([validates([text], val_fraction, seed) for text in texts])
if in_val.all() or not in_val.any():
    split = "train" if in_val.all() else "val"
    raise UserError(
        f"{len(images)} images leave nothing in {split}: give more, or another --val_fraction."
    )
chosen = {"train": np.flatnonzero(~in_val), "val": np.flatnonzero(in_val)}

# ---- the palette and the tokens, a thousand images at a time -------------------------------------
train_pixels = images[chosen["train"]].reshape(-1, images.shape[-1])
fitted = pixels.grey_levels(palette) if grey else pixels.fit_palette(train_pixels, palette, seed)
task = {"kind": "pixels", "size": size, "palette": fitted.tolist()}
task["labels"] = sorted(set(own_labels)) if class_token else []
coder = pixels.make_tokenizer(task)
folder = folder_for(name)
source = {"name": os.path.basename(os.path.normpath(input)), "images": len(images)}
use = f"python -m projects.images.complete --out_dir={{out_dir}} --rows={size // 2}"
counts, squares = {split: np.zeros(coder.vocab_size, np.int64) for split in chosen}, 0.0
with Writer(folder, coder, source, size * size + 1, task, use) as writer:
    for split, indices in chosen.items():
        for some in np.array_split(indices, math.ceil(len(indices) / 1000)):
            ids = pixels.to_ids(images[some], task)
            starts = pixels.start_ids([own_labels[i] for i in some], task)
            writer.append(split, np.concatenate((starts[:, None], ids), axis=1).ravel())
            counts[split] += np.bincount(ids.ravel(), minlength=coder.vocab_size)
            errors = pixels.to_images(ids, task) - images[some].astype(np.float64)
            squares += np.square(errors).sum()
with replacing(os.path.join(folder, "labels.json"), "w", encoding="utf-8") as file:
    json.dump({split: [own_labels[i] for i in indices] for split, indices in chosen.items()}, file)

# ---- what to compare with ------------------------------------------------------------------------
smoothed = counts["train"] + 1
bits = -np.log2(smoothed / smoothed.sum()) @ counts["val"] / counts["val"].sum()
for split, indices in chosen.items():
    count = f"{len(indices):,} images of {size * size:,} pixels"
    print(f"{os.path.join(folder, split)}.bin: {count}")
kinds, error = len(set(own_labels) - {""}), math.sqrt(squares / images.size)
print(f"{len(fitted)} colours, root mean square error {error:.1f} of 255; {kinds} labels")
print(f"by how frequent each colour is alone: {bits:.4f} bits per pixel")
