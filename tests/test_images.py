"""Images as tokens: palettes, splits, what is given stays, what is a target, what a probe reads."""

import gzip
import io
import json
import math
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

from core import checkpoint, log
from core.dataset import read_meta
from core.tokenizer import from_dict
from model import GPT

Image = pytest.importorskip("PIL.Image")
pixels = pytest.importorskip("projects.images.pixels")
SIZE = 8
RUN = ["--dataset=images", *TINY, "--block_size=64", "--max_iters=6", "--compile=False"]


def some_images(count=60, size=SIZE, seed=0) -> np.ndarray:
    """(count, size, size, 3): noise, bright above in even ones and below in odd ones."""
    images = np.random.default_rng(seed).integers(0, 120, (count, size, size, 3), np.uint8)
    images[::2, : size // 2] += 120
    images[1::2, size // 2 :] += 120
    return images


def write_folder(path, images) -> None:
    """PNG files, those of even number in above/, the others in below/."""
    for i, image in enumerate(images):
        folder = path / ("below" if i % 2 else "above")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:03}.png")


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def rows_of(folder, split: str) -> np.ndarray:
    return np.fromfile(folder / f"{split}.bin", np.uint16).reshape(-1, SIZE * SIZE + 1)


@pytest.fixture
def prepared(script, tmp_path):
    """A function of options that makes data/images of 60 images in 16 colours; its folder."""

    def prepare(*options):
        if not (tmp_path / "in").exists():
            write_folder(tmp_path / "in", some_images())
        options = ["--input=in", f"--size={SIZE}", "--palette=16", "--val_fraction=0.3", *options]
        script("projects.images.prepare", *options)
        return tmp_path / "data" / "images"

    return prepare


# ---- palette -------------------------------------------------------------------------------------
@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("labels", [[], ["a", "b"]])
def test_tokens_to_image_to_tokens_is_the_identity(grey, labels):
    colours = np.random.default_rng(0).integers(0, 256, (300, 3), np.uint8)
    palette = pixels.grey_levels(16) if grey else pixels.fit_palette(colours, 40, seed=0)
    task = {"size": 4, "palette": palette.tolist(), "labels": labels}
    first = pixels.first_colour(task)
    assert pixels.make_tokenizer(task).vocab_size == first + len(palette)
    ids = np.random.default_rng(1).integers(first, first + len(palette), (5, 16))
    images = pixels.to_images(ids, task)
    assert images.shape == (5, 4, 4, 1 if grey else 3)
    assert (pixels.to_ids(images, task) == ids).all()
    assert (images[0, 0, 1] == palette[ids[0, 1] - first]).all()  # row by row


def test_each_pixel_gets_the_nearest_colour():
    rng = np.random.default_rng(0)
    colours, palette = (rng.integers(0, 256, (n, 3), np.uint8) for n in (40_000, 50))
    distances = [(colours.astype(int) - colour.astype(int)) ** 2 for colour in palette]
    nearest = np.stack([d.sum(1) for d in distances], axis=1).argmin(1)
    assert (pixels.quantize(colours, palette) == nearest).all()


def test_k_means_is_the_same_with_any_number_of_threads_and_finds_clusters():
    rng = np.random.default_rng(0)
    centres = np.array([[20, 30, 40], [200, 30, 40], [20, 210, 40], [100, 100, 220]])
    members = rng.integers(4, size=20_000)
    noisy = (centres[members] + rng.integers(-9, 10, (20_000, 3))).astype(np.uint8)
    found, threads = [], torch.get_num_threads()
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        found.append(pixels.fit_palette(noisy, 24, seed=1))
    torch.set_num_threads(threads)
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    assert len(np.unique(found[0], axis=0)) == 24
    few = pixels.fit_palette(np.repeat(centres.astype(np.uint8), 50, axis=0), 24, seed=1)
    assert (few == np.unique(centres, axis=0)).all()  # no more colours than there are
    by_mean, by_fit = (
        np.square(noisy.astype(float) - palette[pixels.quantize(noisy, palette)]).mean()
        for palette in (centres.astype(np.uint8), found[0])
    )
    assert by_fit < by_mean / 2  # more colours than clusters divide them


# ---- prepare -------------------------------------------------------------------------------------
def test_every_image_is_in_one_split_and_equal_ones_in_the_same(script, prepared, tmp_path):
    images = some_images()
    images[40:50:2] = images[0]
    write_folder(tmp_path / "in", images)
    (tmp_path / "in" / "above" / "._000.png").write_bytes(b"not an image, as macOS leaves them")
    folder = prepared()
    train, val = rows_of(folder, "train"), rows_of(folder, "val")
    assert len(train) + len(val) == 60 and 5 < len(val) < 35
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in val}
    assert (train[:, 0] == 0).all() and (train[:, 1:] > 0).all()
    task = read_meta(str(folder))["task"]
    names = json.loads((folder / "labels.json").read_text())
    for split, rows in (("train", train), ("val", val)):
        drawn = pixels.to_images(rows[:, 1:].astype(int), task).astype(float)
        above = drawn[:, : SIZE // 2].mean((1, 2, 3)) > drawn[:, SIZE // 2 :].mean((1, 2, 3))
        assert [("above" if is_above else "below") for is_above in above] == names[split]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    prepared()
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    with tarfile.open(tmp_path / "in.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "in", "in")
    prepared("--input=in.tar.gz")
    assert (rows_of(folder, "val") == val).all()


def test_class_tokens_start_images(prepared):
    folder = prepared("--class_token")
    coder = from_dict(read_meta(str(folder))["tokenizer"])
    assert list(coder.special) == ["<class above>", "<class below>"]
    names = json.loads((folder / "labels.json").read_text())["val"]
    starts = rows_of(folder, "val")[:, 0]
    assert [f"<class {name}>" for name in names] == [coder.pieces[i] for i in starts]


def test_idx_files_are_grey_and_bring_labels(script, tmp_path):
    greys = some_images(40)[..., 0]
    (tmp_path / "i-idx3.gz").write_bytes(gzip.compress(idx(greys)))
    (tmp_path / "l-idx1").write_bytes(idx(np.arange(40, dtype=np.uint8) % 10))
    options = [f"--size={SIZE}", "--palette=256", "--val_fraction=0.3"]
    said = script("projects.images.prepare", "--input=i-idx3.gz", "--labels=l-idx1", *options)
    assert "256 colours, root mean square error 0.0 of 255; 10 labels" in said.stdout
    folder = tmp_path / "data" / "images"
    rows = np.concatenate((rows_of(folder, "train"), rows_of(folder, "val")))
    levels = {row.tobytes() for row in (rows[:, 1:] - 1).astype(np.uint8)}  # a level is its grey
    assert levels == {image.tobytes() for image in greys}


def test_wrong_files_and_sizes_are_one_sentence(script, tmp_path):
    def error(*options):
        return script("projects.images.prepare", *options, status=2).stderr

    write_folder(tmp_path / "in", some_images(20))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no images")
    whole = idx(some_images(5)[..., 0])
    (tmp_path / "short-idx3").write_bytes(whole[:-1])
    (tmp_path / "head-idx3").write_bytes(whole[:9])
    (tmp_path / "cut.gz").write_bytes(gzip.compress(whole)[:-20])
    (tmp_path / "one-idx1").write_bytes(idx(np.zeros(1, np.uint8)))
    (tmp_path / "one.png").write_bytes((tmp_path / "in" / "above" / "000.png").read_bytes())
    buffer = io.BytesIO()
    Image.fromarray(some_images(1, 64)[0]).save(buffer, "JPEG")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "cut.jpg").write_bytes(buffer.getvalue()[:300])
    assert "--input= names the images" in error()
    assert "no.tar: No such file" in error("--input=no.tar")
    assert "empty has no images" in error("--input=empty")
    assert "text.txt is not accepted: a folder, a tar file" in error("--input=text.txt")
    assert "short-idx3 is damaged" in error("--input=short-idx3", "--palette=8")
    assert "head-idx3 is damaged" in error("--input=head-idx3", "--palette=8")
    assert "cut.gz is damaged" in error("--input=cut.gz", "--palette=8")
    assert "cut.jpg is not an image" in error("--input=bad")
    assert "one-idx1 has the shape (1,)" in error("--input=one-idx1", "--palette=8")
    assert "one-idx1 has 1 labels, in has 20" in error("--input=in", "--labels=one-idx1")
    assert "needs a label of every image" in error("--input=one.png", "--class_token")
    assert "1 images leave nothing in" in error("--input=one.png")
    assert "--palette=300: 2 to 256 levels" in error("--input=in", "--palette=300", "--grey")
    assert "--palette=1: 2 to 6400 colours" in error("--input=in", "--palette=1")
    assert "--size=0" in error("--input=in", "--size=0")
    assert not (tmp_path / "data").exists()


def test_a_missing_package_is_one_sentence():
    code = "import sys; sys.modules['PIL'] = None; import configurator, projects.images.pixels"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.endswith("package: pip install pillow\n")
    assert len(result.stderr.splitlines()) == 1


# ---- train ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("class_token", [False, True])
def test_every_pixel_is_a_target_and_the_first_token_is_only_read(
    script, prepared, tmp_path, class_token
):
    folder = prepared(f"--class_token={class_token}")
    assert not list(folder.glob("*.mask.bin"))  # nothing is ignored
    script("train.py", *RUN, "--eval_iters=100", "--out_dir=out/i")
    loaded = checkpoint.load(f"{tmp_path}/out/i/ckpt.pt")
    model = GPT.from_state_dict(loaded["model_args"], loaded["model"]).eval()
    rows = torch.from_numpy(rows_of(folder, "val").astype(np.int64))
    with torch.inference_mode():
        log_probs = model(rows[:, :-1]).log_softmax(-1)  # (N, pixels, V)
        of_pixels = -log_probs.gather(2, rows[:, 1:, None]).double().mean().item()
        other = rows[:, :-1].clone()
        other[:, 0] = 1 - other[:, 0]
        changed = (model(other) - model(rows[:, :-1])).abs().amax((1, 2))
    logged = [r["val_loss"] for r in log.read(f"{tmp_path}/out/i/log.jsonl") if "val_loss" in r]
    assert logged[-1] == pytest.approx(of_pixels, abs=1e-4)
    assert (changed > 1e-3).all()  # the first token is read
    said = script("projects.images.complete", "--out_dir=out/i/ckpt.pt", "--rows=4").stdout
    bits = loaded["best_val_loss"] / math.log(2)
    assert f"validation loss {bits:.4f} bits per pixel" in said


# ---- complete and probe --------------------------------------------------------------------------
@pytest.mark.parametrize("options", [[], ["--grey"], ["--class_token"]])
def test_completions_keep_the_given_rows_exactly(script, prepared, tmp_path, options):
    folder = prepared(*options)
    script("train.py", *RUN, "--out_dir=out/i")
    grid = ["--images=3", "--completions=2", "--zoom=1"]

    def squares(name: str, columns: int) -> np.ndarray:
        """The squares of the picture, (lines, columns, size, size, C)."""
        picture = np.array(Image.open(tmp_path / "out" / "i" / name))
        cells = picture.reshape(3, SIZE + 1, columns, SIZE + 1, -1).transpose(0, 2, 1, 3, 4)
        assert (cells[:, :, -1] == 255).all() and (cells[:, :, :, -1] == 255).all()
        return cells[:, :, :-1, :-1]

    said = script("projects.images.complete", "--out_dir=out/i", "--rows=3", *grid).stdout
    assert "completions.png: 3 images, 2 of each" in said
    task, rows = read_meta(str(folder))["task"], rows_of(folder, "val")
    known = pixels.to_images(rows[np.arange(3) * len(rows) // 3, 1:].astype(int), task)
    drawn = squares("completions.png", 4)
    assert (drawn[:, :, :3] == known[:, None, :3]).all()
    assert (drawn[:, 0, 3:] == 128).all() and (drawn[:, 3] == known).all()
    assert (drawn[:, 1, 3:] != drawn[:, 2, 3:]).any()
    colours = {tuple(colour) for colour in task["palette"]}
    assert {tuple(colour) for colour in drawn[:, 1:].reshape(-1, drawn.shape[-1])} <= colours
    first = (tmp_path / "out" / "i" / "completions.png").read_bytes()
    script("projects.images.complete", "--out_dir=out/i", "--rows=3", *grid)
    assert (tmp_path / "out" / "i" / "completions.png").read_bytes() == first

    shutil.rmtree(folder)  # a checkpoint is all that is needed
    script("projects.images.complete", "--out_dir=out/i", "--rows=0", *grid)
    assert squares("samples.png", 2).std() > 0
    script("projects.images.complete", "--input=in", "--rows=3", *grid)
    squares("completions.png", 4)
    said = script("projects.images.complete", "--rows=3", status=2).stderr
    assert "data/images, which" in said and "is not there" in said
    said = script("projects.images.complete", f"--rows={SIZE}", status=2).stderr
    assert f"images are {SIZE} rows high" in said
    assert "--images=0" in script("projects.images.complete", "--images=0", status=2).stderr


def test_a_probe_reads_labels_off_features_and_pixels(script, prepared, tmp_path):
    folder = prepared()
    script("train.py", *RUN, "--out_dir=out/i")
    said = script("projects.images.probe", "--out_dir=out/i").stdout.splitlines()
    count = len(rows_of(folder, "val"))
    assert said[-2].endswith(f"of {count} held-out images: 32 features of block 2 of 2")
    assert said[-1] == f"accuracy 1.0000 of {count} held-out images: 192 values of their pixels"
    assert float(said[-2].split()[1]) > 0.6  # the mean hides where it is bright, but not all
    assert "2 blocks" in script("projects.images.probe", "--layer=3", status=2).stderr
    names = json.loads((folder / "labels.json").read_text())
    (folder / "labels.json").write_text(json.dumps({**names, "val": names["val"][1:]}))
    assert "not of the same images" in script("projects.images.probe", status=2).stderr
    (folder / "labels.json").write_text(json.dumps({s: [""] * len(names[s]) for s in names}))
    assert "needs a label of every image" in script("projects.images.probe", status=2).stderr
    prepared("--palette=8")
    assert "another palette or size" in script("projects.images.probe", status=2).stderr
    prepared("--class_token")
    script("train.py", *RUN, "--out_dir=out/c")
    said = script("projects.images.probe", "--out_dir=out/c", status=2).stderr
    assert "reads an image's label" in said


def test_a_model_of_text_is_refused(script, toy):
    script("train.py", "--dataset=toy", *TINY, "--max_iters=1", "--compile=False")
    for name in ("complete", "probe"):
        said = script(f"projects.images.{name}", "--out_dir=out/gpt2", status=2).stderr
        assert "has not learned images" in said


@pytest.mark.parametrize(
    "name", ["igpt_s", "igpt_m", "igpt_l", "igpt_xl", "mnist_tiny", "cifar_tiny"]
)
def test_a_config_takes_images_of_its_size(script, name):
    config = ROOT / "projects" / "images" / f"{name}.py"
    said = script("train.py", config, "--help").stdout
    block_size = 28 * 28 if name == "mnist_tiny" else 32 * 32
    assert f"--block_size={block_size}" in said and "--dropout=0.0" in said
