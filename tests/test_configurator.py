"""Settings: their order, their types, and what a mistake says."""

import os
import signal
import subprocess
import sys

from configurator import configure, pick

import pytest
import torch
from conftest import ROOT

from core import UserError, report_error
from model import GPTConfig

SCRIPT = '''
"""A script."""
from typing import Literal
steps = 10  # how many
batch_size = 4  # sequences
rate = 0.5  # how fast
name = "x"  # what
fast = False  # whether
compile: Literal["auto", True, False] = "auto"  # maybe
kind: Literal["a", "b"] = "a"  # which
'''


@pytest.fixture
def settings(tmp_path):
    """A function that configures the script above with a command line."""
    path = tmp_path / "settings_script.py"
    path.write_text(SCRIPT)
    return lambda *argv: configure(str(path), argv=[str(a) for a in argv])


def test_every_way_to_write_an_option(settings):
    got = settings("--steps=20", "--rate", "2", "--fast", "--batch-size=8", "--name=a=b")
    assert got == {
        "steps": 20, "batch_size": 8, "rate": 2.0, "name": "a=b", "fast": True,
        "compile": "auto", "kind": "a",
    }  # fmt: skip
    assert type(got["rate"]) is float  # an int serves as a float
    assert settings("--fast", "True", "--compile", "False")["compile"] is False
    assert settings("--compile", "auto", "--fast", "False")["fast"] is False
    assert settings("--compile", "--name", "True")["name"] == "True"
    assert settings("--steps=1e3", "--fast=true") == {**settings(), "steps": 1000, "fast": True}
    assert type(settings("--steps=1e3")["steps"]) is int
    assert settings("--compile=false")["compile"] is False


def test_a_tilde_is_the_home_folder_except_in_what_a_model_reads(settings, script, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert settings("--name=~/runs")["name"] == "/home/me/runs"
    assert settings("--name=a~/b")["name"] == "a~/b"
    assert "--start=~/x " in script("sample.py", "--start=~/x", "--help").stdout


def test_help_has_each_command_of_the_docstring_on_its_own_line(script):
    for name in ("sample.py", "train.py", "tools.plot"):
        path = ROOT / (name if name.endswith(".py") else f"{name.replace('.', '/')}.py")
        lines = [line for line in path.read_text().splitlines() if line.startswith("    python ")]
        said = script(name, "--help").stdout.splitlines()
        start = name if name.endswith(".py") else f"-m {name}"
        assert said[0].startswith(f"usage: python {start} [CONFIG.py")
        assert lines and all(line.replace("\\\\", "\\") in said for line in lines), name


def test_later_wins_and_a_config_file_sees_what_is_set(settings, tmp_path):
    config = tmp_path / "c.py"
    config.write_text("import time\nsteps = 7\n_half = steps / 14\nrate = _half + batch_size\n")
    assert settings("--batch_size=8", config)["rate"] == 8.5
    assert settings(config, "--steps=3")["steps"] == 3
    assert settings("--steps=3", config)["steps"] == 7


def test_config_files_leave_no_names_behind(settings, tmp_path):
    config = tmp_path / "c.py"
    config.write_text("steps = 7\n")
    assert settings(config)["steps"] == 7
    assert settings()["steps"] == 10


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--stepps=3", "no setting stepps; the nearest is steps, an integer at least 0;"),
        ("--bs=3", "no setting bs; the nearest is batch_size"),
        ("--lr=3", "no setting lr; --help lists all."),  # this script has no learning_rate
        ("--colour=3", "no setting colour; --help lists all."),
        ("--steps=many", "steps='many' is not accepted: an integer"),
        ("--steps=1.5", "steps=1.5 is not accepted"),
        ("--steps=True", "steps=True is not accepted"),
        ("--rate=fast", "a number"),
        ("--fast=3", "True or False"),
        ("--steps=", "steps='' is not accepted"),
        ("--steps=99999999999999999999", "a number of at most 64 bits"),
        ("--rate=1e999", "rate=inf is not accepted: a number of at most 64 bits"),
        ("--batch_size=0", "batch_size=0 is not accepted: an integer at least 1"),
        ("--compile=maybe", "one of auto, True, False"),
        ("--compile=1", "compile='1' is not accepted"),
        ("--kind=c", "one of a, b"),
        ("--steps", "--steps needs a value: an integer"),
        ("nowhere.py", "no config file nowhere.py"),
    ],
)
def test_a_mistake_is_a_sentence_with_value_and_remedy(settings, argument, sentence):
    with pytest.raises(UserError) as caught:
        settings(argument)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("steps = 'x'", "steps='x' is not accepted"),
        ("stesp = 3", "no setting stesp; the nearest is steps"),
        ("steps = 1 / 0", "ZeroDivisionError"),
        ("steps = ", "SyntaxError"),
    ],
)
def test_a_mistake_in_a_config_file_names_the_file(settings, tmp_path, content, sentence):
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(UserError) as caught:
        settings(tmp_path / "bad.py")
    assert sentence in str(caught.value) and "bad.py" in str(caught.value)


def test_the_beginning_of_a_name_serves_if_only_one_begins_so(settings, script):
    assert settings("--comp=True", "--na", "y")["name"] == "y"
    assert "no setting beta;" in script("train.py", "--beta=0.9", status=2).stderr


def test_a_config_file_may_have_helpers_but_no_setting_that_nobody_reads(settings, tmp_path):
    config = tmp_path / "c.py"
    helpers = "from math import pi, sqrt\nimport os\ndef twice(n): return 2 * n\ngpus = [1, 2, 3]\n"
    config.write_text(f"{helpers}half = 4\nsteps = twice(half) * len(gpus)\n_unread = pi\n")
    assert settings(config) == {**settings(), "steps": 24}
    config.write_text("half = 4\nsteps = 8\n")
    with pytest.raises(UserError, match="no setting half; --help lists all"):
        settings(config)


def test_a_config_is_found_from_any_folder(script):
    for name in ("config/shakespeare_char.py", "shakespeare_char.py", "train_shakespeare_char.py"):
        assert "--dataset=shakespeare_char\n" in script("train.py", name, "--help").stdout
    near = script("train.py", ROOT / "config" / "shakespear_char.py", status=2).stderr
    assert "the nearest is" in near and "config/shakespeare_char.py. An" in near


def test_numbers_must_not_be_negative(settings):
    with pytest.raises(UserError, match="an integer at least 0"):
        settings("--steps=-1")
    with pytest.raises(UserError, match="a number at least 0"):
        settings("--rate", "-0.5")
    assert settings("--steps=0", "--rate=0")["rate"] == 0.0


def test_help_lists_every_setting_with_default_and_comment(script):
    out = script("train.py", "--help").stdout
    for name in ("max_iters=600000", "optimizer=adamw", *(f"{f}=" for f in FIELDS)):
        assert f"--{name}" in out


def test_help_fits_the_screen_in_the_groups_of_the_source_and_shows_a_configs_values(script):
    out = script("train.py", "config/shakespeare_char.py", "--help").stdout
    assert max(map(len, out.splitlines())) <= 80
    assert "batch:\n    --gradient_accumulation_steps=1\n" in out
    assert "    --max_iters=480           integer at least 0; steps in all\n" in out
    assert "GPTConfig in model.py:\n    --block_size=256 " in out
    assert "--optimizer=muon          one of adamw, muon;" in out
    out = script("sample.py", "--help").stdout
    assert max(map(len, out.splitlines())) <= 80
    assert (
        "--start=\\n " in out
        and '--stop="\\n\\n"' in out
        and "Sampling in core/generate.py:" in out
    )


FIELDS = [name for name in GPTConfig.__dataclass_fields__ if name != "vocab_size"]


def test_nanogpts_settings_and_config_files_are_accepted(tmp_path, script):
    nanogpt = tmp_path / "nano.py"
    nanogpt.write_text(
        "import time\nout_dir = 'out-shakespeare'\neval_interval = 5\neval_iters = 40\n"
        "wandb_log = False # feel free to turn on\nwandb_project = 'shakespeare'\n"
        "wandb_run_name = 'ft-' + str(time.time())\ndataset = 'nowhere'\n"
        "always_save_checkpoint = False\nbatch_size = 1\ngradient_accumulation_steps = 32\n"
        "max_iters = 20\nlearning_rate = 3e-5\ndecay_lr = False\nbeta2 = 0.99\ndropout = 0.2\n"
        "lr_decay_iters = 5000\nmin_lr = 1e-4\nwarmup_iters = 100\n"
    )
    backend = ["--backend=gloo", "--dtype=float32", "--compile=False", "--device=cpu"]
    result = script("train.py", nanogpt, *backend, "--eval_only=True", status=2)
    assert "data/nowhere/train.bin" in result.stderr  # all settings passed; only data is missing


def test_bare_train_says_which_data_is_missing_and_three_ways_on(script):
    said = script("train.py", status=2).stderr
    assert "data/openwebtext/train.bin" in said and len(said.splitlines()) == 1
    for way in ("config/shakespeare_char.py", "projects.webtext.prepare", "--shards=1"):
        assert way in said


def test_a_configs_prepare_is_for_its_own_dataset(script):
    config, train = "config/shakespeare_char.py", str(ROOT / "train.py")
    prepare = "prepare_shakespeare.py"
    assert configure(train, GPTConfig, argv=[config])["prepare"] == prepare
    assert configure(train, GPTConfig, argv=[config, "--dataset=mine"])["prepare"] == ""
    own = configure(
        train, GPTConfig, argv=["--prepare=a.py", config, "--dataset=mine", "--prepare=b.py"]
    )
    assert own["prepare"] == "b.py"
    said = script("train.py", config, "--dataset=mine", status=2).stderr
    assert "there is no data/mine/train.bin" in said and "download" not in said


def test_every_shipped_config_is_accepted_and_opens_with_its_command():
    projects = [p for p in ROOT.glob("projects/*/*.py") if "max_iters =" in p.read_text()]
    assert len(projects) > 10
    for path in sorted([*(ROOT / "config").glob("*.py"), *projects]):
        name = path.relative_to(ROOT)
        assert str(name) in "".join(path.read_text().splitlines()[:3]), path
        settings = configure(str(ROOT / "train.py"), GPTConfig, argv=[str(path)])
        GPTConfig(65, **pick(GPTConfig, settings))  # its sizes fit each other


def test_out_of_gpu_memory_names_the_settings_to_lower(capfd):
    with pytest.raises(SystemExit) as left:
        report_error(torch.OutOfMemoryError, torch.OutOfMemoryError("tried 2 GiB"), None)
    assert left.value.code == 2
    said = capfd.readouterr().err
    assert all(name in said for name in ("--batch_size", "--block_size", "tried 2 GiB"))


def test_a_full_disk_and_a_path_that_cannot_be_written_are_one_sentence(capfd):
    for error, sentence in (
        (OSError(28, "No space left on device"), "No space left on device."),
        (PermissionError(13, "Permission denied", "a.png"), "a.png: Permission denied."),
    ):
        with pytest.raises(SystemExit) as left:
            report_error(type(error), error, None)
        assert left.value.code == 2
        assert capfd.readouterr().err.endswith(f": {sentence}\n")


def test_what_an_encoding_lacks_is_a_question_mark_and_no_error(tmp_path):
    path = tmp_path / "echo.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom configurator import configure\n"
        'name = "x"  # any\nprint(input(), configure(__file__)["name"])\n'
    )
    for encoding in ("ascii", "cp1252", "utf-8"):
        result = subprocess.run(
            [sys.executable, path, b"--name=\xff\xe9\xbe\x98"],
            input=b"a\x81\n",
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(b"a") and b"?" in result.stdout


def test_ctrl_c_is_quiet_while_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("print('here', flush=True)\nimport time\ntime.sleep(60)\n")
    for name in ("train.py", "sample.py"):
        started = subprocess.Popen(
            [sys.executable, ROOT / name],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert started.stdout.readline() == "here\n"
        started.send_signal(signal.SIGINT)
        assert started.communicate()[1] == f"{name}: interrupted\n"
        assert started.returncode == 130


def test_a_mistake_that_mentions_gloo_keeps_its_own_sentence(script):
    assert "no config file gloomy.py" in script("train.py", "gloomy.py", status=2).stderr
