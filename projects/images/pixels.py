"""Images as tokens: files read, a palette fitted, pixels to ids and back.

A grey image of 2 x 2 pixels in 8 levels, row by row after the token that every image starts with:

      0 255      becomes   <image> 0 7 3 4
    100 160
"""

import math
import os
import tarfile
import zlib
from collections.abc import Iterator
from glob import glob

import numpy as np
import torch

from core import UserError
from core.dataset import Split, read_meta
from core.extras.textfile import unpacked
from core.tokenizer import CharTokenizer

try:
    from PIL import Image, ImageOps
except ModuleNotFoundError:  # its package has another name
    raise UserError("images are read and written by a package: pip install pillow") from None

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
IDX_BYTES = b"\0\0\x08"  # starts an IDX file of bytes; the number of dimensions follows
PRIVATE = 0xE000  # the characters from here on stand for colours: no text has them
LARGEST = 6400  # palette: there are no more of these characters
SAMPLE = 100_000  # pixels that a palette is fitted to


# ---- files -> images -----------------------------------------------------------------------------
def read_images(path: str, size: int, grey: bool) -> tuple[np.ndarray, list[str]]:
    """Every image of a folder, a tar, an IDX or an image file, in the order of their names.

    (N, size, size, 1 if grey else 3) uint8, the centre of each; and the name of the folder that
    each is in, "" if there is none. UserError if there are no images, or one is damaged.
    """
    images, folders = [], []
    try:
        for name, image in open_images(path):
            image = image.convert("L" if grey else "RGB")
            square = ImageOps.fit(image, (size, size), Image.Resampling.BOX)  # the mean of an area
            images.append(np.asarray(square).reshape(size, size, -1))
            folders.append(os.path.basename(os.path.dirname(name)))
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    if not images:
        raise UserError(f"{path} has no images: {', '.join(SUFFIXES)} are read.")
    return np.stack(images), folders


def open_images(path: str) -> Iterator[tuple[str, Image.Image]]:
    """Name, below `path`, and image of each file; hidden files are left out."""
    if os.path.isdir(path):
        for name in sorted(glob("**/*", root_dir=path, recursive=True)):
            if is_image(name):
                with open(os.path.join(path, name), "rb") as file:
                    yield name, decode(file, os.path.join(path, name))
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            members = {m.name: m for m in tar if m.isfile() and is_image(m.name)}
            for name, member in sorted(members.items()):
                yield name, decode(tar.extractfile(member), f"{path}: {name}")
    elif is_image(path):
        with open(path, "rb") as file:
            yield os.path.basename(path), decode(file, path)
    else:
        array = read_idx(path)
        if array.ndim != 3:
            raise UserError(f"{path} has the shape {array.shape}: images are (N, height, width).")
        yield from (("", Image.fromarray(image)) for image in array)


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not os.path.basename(name).startswith(".")


def decode(file, name: str) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(Image.open(file))  # as the camera was held
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is not an image that can be read: {error}.") from None
    return image


def is_idx(path: str) -> bool:
    """Whether a path is a file of bytes in MNIST's format."""
    if not os.path.isfile(path):
        return False
    with unpacked(path) as file:
        return file.read(len(IDX_BYTES)) == IDX_BYTES


def read_idx(path: str) -> np.ndarray:
    """The array of bytes in a file of MNIST's format, which may end in .gz."""
    if os.path.exists(path) and not is_idx(path):
        raise UserError(
            f"{path} is not accepted: a folder, a tar file, an image file or MNIST's IDX is."
        )
    with unpacked(path) as file:
        content = file.read()
    start = 4 + 4 * content[3] if len(content) > 3 else len(content)
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if len(content) - start != math.prod(shape):
        raise UserError(f"{path} is damaged: {len(content):,} bytes are not those of {shape}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# ---- palette -------------------------------------------------------------------------------------
def grey_levels(count: int) -> np.ndarray:
    """Evenly spaced from black to white, (count, 1) uint8."""
    return np.rint(np.linspace(0, 255, count)).astype(np.uint8)[:, None]


def fit_palette(pixels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` distinct colours (K, C) uint8 near pixels (M, C) uint8, by k-means.

    The centres are rounded at every step. All sums are then of integers, and exact: any machine
    with any number of threads fits the same palette.
    """
    rng = np.random.default_rng(seed)
    sample = pixels if len(pixels) <= SAMPLE else pixels[rng.integers(len(pixels), size=SAMPLE)]
    colours = np.unique(sample, axis=0)
    if len(colours) <= count:
        return colours
    centres = colours[rng.choice(len(colours), count, replace=False)]
    for _ in range(100):
        nearest = quantize(sample, centres)
        sizes = np.bincount(nearest, minlength=count)[:, None]
        sums = np.stack([np.bincount(nearest, c, minlength=count) for c in sample.T], axis=1)
        means = np.rint(sums / np.maximum(sizes, 1)).astype(np.uint8)
        moved = np.where(sizes > 0, means, centres)
        if (moved == centres).all():
            break
        centres = moved
    return np.unique(centres, axis=0)


def quantize(pixels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The index of the colour nearest to each of pixels (M, C) uint8; of equally near, the first.

    Distances are integers that fp32 holds exactly.
    """
    colours = torch.from_numpy(palette).float()  # (K, C)
    squares = colours.square().sum(1)
    parts = torch.from_numpy(pixels).split(1 << 14)
    nearest = [torch.addmm(squares, p.float(), colours.T, alpha=-2).argmin(1) for p in parts]
    return torch.cat(nearest).numpy()


# ---- images <-> tokens ---------------------------------------------------------------------------
# task: {"kind": "pixels", "size": of the square, "palette": its colours, "labels": the labels that
# have a class token, which then starts an image instead of <image>}
def make_tokenizer(task: dict) -> CharTokenizer:
    """The ids: what an image starts with, then the palette's colours, each a private character."""
    starts = [f"<class {label}>" for label in task["labels"]] or ["<image>"]
    return CharTokenizer((chr(PRIVATE + i) for i in range(len(task["palette"]))), starts)


def first_colour(task: dict) -> int:
    """The id of the palette's first colour."""
    return len(task["labels"]) or 1


def to_ids(images: np.ndarray, task: dict) -> np.ndarray:
    """images (N, size, size, C) uint8 -> ids of their pixels (N, size * size), row by row."""
    palette = np.array(task["palette"], np.uint8)
    nearest = quantize(images.reshape(-1, images.shape[-1]), palette)
    return nearest.reshape(len(images), -1) + first_colour(task)


def to_images(ids: np.ndarray, task: dict) -> np.ndarray:
    """ids of pixels (N, size * size) -> images (N, size, size, C) uint8."""
    palette, size = np.array(task["palette"], np.uint8), task["size"]
    return palette[ids - first_colour(task)].reshape(len(ids), size, size, -1)


def start_ids(labels: list[str], task: dict) -> np.ndarray:
    """The id that each image starts with, (N,); UserError for a label without a class token."""
    if not task["labels"]:
        return np.zeros(len(labels), np.int64)
    if unknown := sorted(set(labels) - set(task["labels"])):
        known = ", ".join(task["labels"])
        raise UserError(f"the label {unknown[0]!r} has no class token; there are those of {known}.")
    return np.array([task["labels"].index(label) for label in labels])


# ---- what a checkpoint has learned from ----------------------------------------------------------
def read_task(loaded: dict) -> dict:
    """The task of a checkpoint of images; prints its loss in bits. UserError for another one."""
    task, path = loaded["task"], loaded["path"]
    if not task or task["kind"] != "pixels":
        raise UserError(
            f"{path} has not learned images: train on what projects.images.prepare makes."
        )
    bits = loaded["best_val_loss"] / np.log(2)
    print(f"{path}: {loaded['step']} steps, validation loss {bits:.4f} bits per pixel")
    return task


def read_split(loaded: dict, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of the run's own dataset: what the model reads, and the pixels, (N, T) ids both.

    UserError if the dataset is not there, or is another one than the run's.
    """
    folder = os.path.join("data", loaded["config"].get("dataset", ""))
    if not os.path.exists(os.path.join(folder, "meta.json")):
        raise UserError(f"{folder}, which {loaded['path']} was trained on, is not there.")
    meta = read_meta(folder)
    if meta["task"] != loaded["task"]:
        raise UserError(f"{folder} has another palette or size than {loaded['path']}.")
    data = Split(folder, split, meta, loaded["model_args"]["vocab_size"])
    starts = np.arange(0, data.length, meta["row_length"])
    return data.sequences(starts, meta["row_length"] - 1)
