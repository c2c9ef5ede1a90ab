"""tools/plot.py draws what the logs of runs hold."""

import pytest
from conftest import TINY

pytest.importorskip("matplotlib")


def test_it_draws_runs_over_every_axis(script, toy, tmp_path):
    run = [*TINY, "--dataset=toy", "--compile=False", "--eval_interval=4"]
    script("train.py", *run, "--max_iters=8", "--out_dir=out/one")
    script("train.py", *run, "--max_iters=12", "--out_dir=out/two")
    for x in ("step", "tokens", "time"):
        script("tools.plot", "out/one", "out/two", f"--x={x}", f"--png={x}.png")
        assert (tmp_path / f"{x}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "step.png").read_bytes() != (tmp_path / "tokens.png").read_bytes()


def test_mistakes_are_one_sentence(script):
    assert "name the folders" in script("tools.plot", status=2).stderr
    assert "nothing to draw" in script("tools.plot", "out/nowhere", status=2).stderr
    assert "below 1" in script("tools.plot", "out/nowhere", "--smooth=1.5", status=2).stderr
