"""sample.py as a user runs it, on a model that has learned one sentence by heart."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY

from core import checkpoint
from core.dataset import Writer
from core.tokenizer import CharTokenizer

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 100
GREEDY = ["--temperature=0", "--num_samples=1", "--device=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with out/fox in it, trained for a few seconds."""
    folder = tmp_path_factory.mktemp("sample")
    tokenizer = CharTokenizer(sorted(set(TEXT)))
    with Writer(str(folder / "data" / "fox"), tokenizer, {"name": "fox"}) as writer:
        writer.append("train", tokenizer.encode(TEXT))
        writer.append("val", tokenizer.encode(TEXT[:500]))
    options = [*TINY, "--dataset=fox", "--out_dir=out/fox", "--max_iters=300", "--optimizer=muon"]
    command = [sys.executable, ROOT / "train.py", *options, "--log_interval=100", "--rotary"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def sample(run, script, tmp_path):
    """A function that runs sample.py where out/fox is."""
    (tmp_path / "out").symlink_to(run / "out")
    return lambda *arguments, **more: script("sample.py", *arguments, **more)


def test_it_says_what_it_learned_and_which_run_it_took(sample):
    result = sample("--start=the quick", "--max_new_tokens=60", *GREEDY)
    assert result.stdout.startswith("the quick brown fox jumps over the lazy dog.\nthe quick")
    assert result.stdout.endswith("\n---------------\n")
    assert "out/fox/best.pt" in result.stderr
    assert sample("--out_dir=out/fox", "--start=the quick", "--max_new_tokens=60", *GREEDY).stdout


def test_prompts_of_every_kind(sample, tmp_path):
    from_file = tmp_path / "prompt.txt"
    from_file.write_text("over the ", encoding="utf-8-sig")  # its mark is no character
    assert sample(f"--start=FILE:{from_file}", "--max_new_tokens=9", *GREEDY).stdout == (
        "over the lazy dog.\n---------------\n"
    )
    assert sample("--start=", "--max_new_tokens=4", *GREEDY).stdout == "the \n---------------\n"
    prompt = TEXT[:200]  # more than the model can read
    assert sample(f"--start={prompt}", "--max_new_tokens=25", *GREEDY).stdout[200:225] in TEXT


def test_samples_differ_repeat_with_the_seed_and_come_in_a_batch_too(sample):
    options = ["--num_samples=3", "--max_new_tokens=40", "--temperature=2", "--start=the"]
    first, again = (sample(*options).stdout for _ in range(2))
    parts = first.split("\n---------------\n")
    assert first == again and len(parts) == 4 and len(set(parts[:3])) == 3
    other = sample(*options, "--seed=2").stdout.split("\n---------------\n")
    assert not set(parts[:3]) & set(other[:3])
    batch = sample(*options, "--stream=False").stdout.split("\n---------------\n")
    assert len(batch) == 4 and len(set(batch[:3])) == 3
    greedy = ["--start=the quick", "--max_new_tokens=60", *GREEDY]
    assert sample(*greedy).stdout == sample(*greedy, "--stream=False").stdout


def test_stop_ends_the_sample_before_the_text(sample):
    for stream in (True, False):
        options = ["--start=the quick", "--stop=over", f"--stream={stream}", *GREEDY]
        assert sample(*options).stdout == "the quick brown fox jumps \n---------------\n"
    at_line_break = sample(r"--start=dog.\nthe", r"--stop=\n", *GREEDY).stdout  # a \ and an n
    assert at_line_break == f"dog.\n{TEXT[:44]}\n---------------\n"


def test_int8_weights_write_the_same_as_exact_ones(sample):
    options = ["--temperature=0", "--num_samples=1", "--max_new_tokens=30"]
    assert sample(*options, "--dtype=int8").stdout == sample(*options).stdout
    compiled = sample(*options, "--dtype=int8", "--compile")
    assert compiled.stdout == sample(*options).stdout


def test_the_options_that_keep_only_the_likeliest_agree_with_greedy(sample):
    greedy = sample("--start=the", "--max_new_tokens=30", *GREEDY).stdout
    rest = ["--start=the", "--max_new_tokens=30", "--num_samples=1", "--temperature=1"]
    for option in ("--top_k=1", "--top_p=0.001", "--min_p=0.999"):
        assert sample(*rest, option).stdout == greedy
    open_options = ["--top_k=0", "--top_p=1", "--min_p=0"]
    assert sample("--start=the", "--max_new_tokens=30", *GREEDY, *open_options).stdout == greedy
    penalized = sample("--start=the", "--max_new_tokens=30", *GREEDY, "--repetition_penalty=100")
    assert penalized.stdout != greedy


def test_mistakes_are_one_sentence(sample, tmp_path):
    assert "'Q', 'é'" in sample("--start=éQ", status=2).stderr
    assert "'='" in sample("--start=a=b", status=2).stderr  # the prompt is all after the first =
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    for stray in ("--start=a\udcff", "--start=FILE:latin1.txt"):
        assert "vocabulary: '\ufffd'" in sample(stray, status=2).stderr
    assert "nowhere.txt: No such file" in sample("--start=FILE:nowhere.txt", status=2).stderr
    assert "no checkpoint" in sample("--out_dir=nowhere", status=2).stderr
    assert "temperature=-1" in sample("--temperature=-1", status=2).stderr
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04 not much of a file")
    assert "damaged" in sample("--out_dir=bad.pt", status=2).stderr


def test_without_any_run_it_says_so(script):
    assert "no checkpoint under out/" in script("sample.py", status=2).stderr


def test_a_nanogpt_checkpoint_without_a_vocabulary(run, script, tmp_path):
    loaded = checkpoint.load(str(run / "out" / "fox" / "ckpt.pt"))
    torch.manual_seed(0)
    from model import GPT, GPTConfig

    args = dict(vocab_size=loaded["model_args"]["vocab_size"], block_size=16, n_layer=1, n_head=2,
                n_embd=32, bias=True, dropout=0.0)  # fmt: skip
    state = {"model": GPT(GPTConfig(**args)).state_dict(), "model_args": args, "iter_num": 7}
    torch.save(state, tmp_path / "ckpt.pt")
    (tmp_path / "data").symlink_to(run / "data")
    assert "--dataset=" in script("sample.py", "--out_dir=.", status=2).stderr
    result = script("sample.py", "--out_dir=.", "--dataset=fox", "--start=the", *GREEDY)
    assert result.stdout.startswith("the")


def test_a_reader_that_leaves_early_is_no_error(run):
    command = f"{sys.executable} {ROOT / 'sample.py'} --device=cpu | head -c 5"
    result = subprocess.run(command, shell=True, cwd=run, capture_output=True, text=True)
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


def test_compiled_samples_are_the_same(sample):
    options = ["--num_samples=2", "--max_new_tokens=80", "--start=the quick"]  # past block_size
    compiled, eager = sample(*options, "--compile"), sample(*options, "--compile=False")
    assert compiled.stdout == eager.stdout
    assert len(compiled.stderr.splitlines()) == 1  # no warning of PyTorch
