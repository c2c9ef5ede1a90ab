"""plot.py draws what the logs say, over every axis."""

import struct

import pytest
from conftest import TINY

from core import log

pytest.importorskip("matplotlib")
RUN = [*TINY, "--eval_interval=2", "--max_iters=6", "--compile=False"]


@pytest.fixture
def runs(script, toy, numbers):
    """Three runs of a few steps; the examples of out/examples have answers."""
    script("train.py", *RUN, "--dataset=toy", "--out_dir=out/one")
    script("train.py", *RUN, "--dataset=toy", "--out_dir=out/two", "--log_interval=5")
    numbers(row_length=10, mask=lambda i: i % 10 > 7)
    script("train.py", *RUN, "--dataset=numbers", "--out_dir=out/examples")


def height(path) -> int:
    """Of a PNG, in pixels."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return struct.unpack(">I", content[20:24])[0]


@pytest.mark.parametrize("x", ["step", "tokens", "time"])
def test_runs_are_drawn_over_every_axis(script, runs, tmp_path, x):
    script("tools.plot", "out/one", "out/two", f"--x={x}", "--png=loss.png")
    assert height(tmp_path / "loss.png") > 100


def test_accuracy_has_a_panel_of_its_own_where_a_run_has_it(script, runs, tmp_path):
    script("tools.plot", "out/one", "--png=one.png")
    script("tools.plot", "out/one", "out/examples", "--png=both.png")
    assert height(tmp_path / "both.png") > 1.2 * height(tmp_path / "one.png")


def test_the_legend_gives_the_lowest_validation_loss(script, runs, tmp_path):
    script("tools.plot", "out/one", "out/two", "--png=loss.svg")  # its comments hold the text
    drawn = (tmp_path / "loss.svg").read_text(encoding="utf-8")
    for name in ("one", "two"):
        records = log.read(f"{tmp_path}/out/{name}/log.jsonl")
        lowest = min(r["val_loss"] for r in records if "val_loss" in r)
        assert f"<!-- out/{name}: {lowest:.4f} -->" in drawn


def test_mistakes_are_one_sentence(script):
    assert "name the folders" in script("tools.plot", status=2).stderr
    assert "nothing to draw" in script("tools.plot", "out/nowhere", status=2).stderr
    assert "smooth=1.0" in script("tools.plot", "out/one", "--smooth=1", status=2).stderr


def test_what_is_no_figure_in_a_log_is_left_out(script, tmp_path):
    losses = [{"step": s, "loss": 3.0, "ms": 1.0, "tokens": s} for s in (1, 2)]
    evaluations = [{"step": 2, "val_loss": 2.5}, {"step": 3, "val_loss": None}]
    evaluations.append({"step": 4, "val_loss": 2.0, "val_accuracy": None})  # json has no NaN
    for record in [*losses, {"step": 3, "loss": None}, {"step": 4, "loss": 9.0}, *evaluations]:
        log.append(f"{tmp_path}/out/odd/log.jsonl", record)
    script("tools.plot", "out/odd", "--png=odd.svg")
    assert "<!-- out/odd: 2.0000 -->" in (tmp_path / "odd.svg").read_text(encoding="utf-8")
