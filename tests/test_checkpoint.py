"""Checkpoints: whole at any moment, safe to load, readable from nanoGPT."""

import itertools
import math
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from core import UserError, checkpoint
from core.dataset import Writer
from core.extras.moments import restore_optimizers
from core.run_folder import backup_previous_run
from core.tokenizer import CharTokenizer
from model import GPT, GPTConfig

ARGS = dict(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32)


def save_forever(path, started):
    for step in itertools.count():
        weights = {"w": torch.full((400_000,), float(step))}
        state = {"model": weights, "model_args": ARGS, "tokenizer": None, "step": step}
        checkpoint.save(state, path)
        started.set()


def test_kill_9_while_saving_leaves_a_readable_checkpoint(tmp_path):
    path, chance, steps = str(tmp_path / "ckpt.pt"), random.Random(0), []
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["torch"])  # imported once, not twenty times
    for _ in range(20):
        started = processes.Event()
        saver = processes.Process(target=save_forever, args=(path, started))
        saver.start()
        assert started.wait(60)
        time.sleep(chance.uniform(0, 0.05))
        saver.kill()
        saver.join()
        assert saver.exitcode == -signal.SIGKILL
        state = checkpoint.load(path)
        assert state["model"]["w"].eq(state["step"]).all()
        steps.append(state["step"])
    assert max(steps) > 0, "no saver got as far as overwriting a checkpoint"


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = str(tmp_path / "ckpt.pt")
    checkpoint.save({"model": {}, "model_args": ARGS, "tokenizer": None, "step": 1}, path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save({"step": 2}, path)
    monkeypatch.undo()
    assert checkpoint.load(path)["step"] == 1 and os.listdir(tmp_path) == ["ckpt.pt"]


def test_the_best_and_the_latest_are_one_file_without_links_two(tmp_path, monkeypatch):
    names = ("ckpt.pt", "best.pt", "ckpt.prev.pt")
    paths = [str(tmp_path / name) for name in names]
    latest, best = paths[:2]

    def steps() -> list[int]:
        return [checkpoint.load(path)["step"] for path in paths]

    def no_links(*_):
        raise OSError(95, "Operation not supported")

    state = {"model": {}, "model_args": ARGS, "tokenizer": None}
    checkpoint.save({**state, "step": 1}, latest, also=best)
    assert os.path.samefile(latest, best)
    checkpoint.save({**state, "step": 2}, latest)
    assert steps() == [2, 1, 1]
    monkeypatch.setattr(os, "link", no_links)
    checkpoint.save({**state, "step": 3}, latest, also=best)
    assert steps() == [3, 3, 2] and not os.path.samefile(latest, best)
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_the_latest_checkpoint_is_there_at_any_moment_of_a_save(tmp_path, monkeypatch):
    latest, best = str(tmp_path / "ckpt.pt"), str(tmp_path / "best.pt")
    state = {"model": {}, "model_args": ARGS, "tokenizer": None}
    checkpoint.save({**state, "step": 0}, latest, also=best)
    calls = []

    def watched(function):
        def call(*arguments, **options):
            for path in (latest, best):
                assert checkpoint.load(path)["step"] in (0, 1)
            calls.append(function)
            return function(*arguments, **options)

        return call

    for name in ("link", "replace", "unlink"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    checkpoint.save({**state, "step": 1}, latest, also=best)
    assert len(calls) >= 5


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


def test_damaged_and_foreign_files_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(
        {"model": {"w": torch.zeros(1000)}, "model_args": ARGS, "tokenizer": None}, "a.pt"
    )
    whole = open("a.pt", "rb").read()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        open("b.pt", "wb").write(whole[:size])
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load("b.pt")
    torch.save([1, 2], "c.pt")
    with pytest.raises(UserError, match="not a checkpoint of"):
        checkpoint.load("c.pt")
    torch.save({"model": Evil(), "model_args": {}}, "d.pt")
    with pytest.raises(UserError, match="it holds more than tensors, numbers and text"):
        checkpoint.load("d.pt")
    torch.save({"model": {"w": 3}, "model_args": ARGS, "tokenizer": None}, "i.pt")
    with pytest.raises(UserError, match="not a checkpoint of"):
        checkpoint.load("i.pt")
    torch.save({"model": {}, "model_args": {}}, "e.pt")
    with pytest.raises(UserError, match="not a checkpoint of"):
        checkpoint.load("e.pt")
    torch.save({"model": {}, "model_args": ARGS}, "g.pt")
    with pytest.raises(UserError, match="not a whole checkpoint of nanoGPT"):
        checkpoint.load("g.pt")
    state = {"model": {}, "model_args": {"vocab_size": 65, "colour": 3}, "tokenizer": None}
    torch.save(state, "h.pt")
    with pytest.raises(UserError, match=r"do not fit.*colour"):
        GPT.from_pretrained("h.pt")
    assert not os.path.exists("evil")  # nothing in a checkpoint is run
    with pytest.raises(UserError, match=r"no checkpoint nowhere\.pt"):
        checkpoint.load("nowhere.pt")


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    path, chance = str(tmp_path / "a.pt"), random.Random(0)
    weights = {"w": torch.randn(1000)}
    checkpoint.save({"model": weights, "model_args": ARGS, "tokenizer": None, "step": 5}, path)
    whole, refused = open(path, "rb").read(), 0
    for at in chance.sample(range(len(whole)), 200):
        flipped = whole[at] ^ 1 << chance.randrange(8)
        open(path, "wb").write(whole[:at] + bytes([flipped]) + whole[at + 1 :])
        try:
            loaded = checkpoint.load(path)
            assert torch.equal(loaded["model"]["w"], weights["w"]) and loaded["step"] == 5
        except UserError:
            refused += 1
    assert refused > 100  # all but those in the file's padding


def test_the_newest_whole_checkpoint_of_a_run_is_loaded(tmp_path, capsys):
    folder, state = str(tmp_path), {"model_args": ARGS, "tokenizer": None}
    state["model"] = {"w": torch.ones(1000)}
    latest, previous, best = (f"{folder}/{n}.pt" for n in ("ckpt", "ckpt.prev", "best"))
    for step in (10, 20, 30):
        checkpoint.save({**state, "step": step}, latest)
        assert checkpoint.load_newest(folder)["step"] == step
    checkpoint.save({**state, "step": 15}, best)
    assert checkpoint.load(previous)["step"] == 20 and capsys.readouterr().out == ""
    for gone, step in ((latest, 20), (previous, 15)):
        with open(gone, "r+b") as file:
            file.seek(1000)
            file.write(b"damage")
        assert checkpoint.load_newest(folder)["step"] == step
        said = " ".join(capsys.readouterr().out.split())
        assert f"of step {step}, takes the place" in said and f"{gone} is damaged" in said
    assert not os.path.exists(latest) and os.path.exists(f"{latest}.damaged")
    assert checkpoint.load_newest(folder)["step"] == 15
    open(best, "w").close()
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_newest(folder)


def test_weights_do_not_depend_on_the_file_that_they_came_from(tmp_path):
    path = str(tmp_path / "a.pt")
    weights = {"w": torch.randn(100_000)}
    checkpoint.save({"model": weights, "model_args": ARGS, "tokenizer": None}, path)
    loaded = checkpoint.load(path)["model"]["w"]
    os.truncate(path, 0)  # a map of it would end the process here
    assert torch.equal(loaded, weights["w"])


def test_absurd_sizes_are_refused_before_memory_is_taken():
    model = GPT(GPTConfig(**ARGS, rotary=True))
    absurd = [("n_layer", 10**9), ("block_size", 10**12), ("n_embd", 10**6), ("n_head", 10**9)]
    for name, value in [*absurd, ("vocab_size", 10**9), ("n_layer", -1), ("dropout", "much")]:
        with pytest.raises(UserError, match=f"{name}|do not fit|divisible"):
            GPT.from_state_dict({**vars(model.config), name: value}, model.state_dict())


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    os.symlink(tmp_path / "precious", tmp_path / "ckpt.pt.tmp")
    checkpoint.save({"model": {}, "model_args": ARGS}, str(tmp_path / "ckpt.pt"))
    assert (tmp_path / "precious").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["ckpt.pt", "precious"]


def nanogpt_state(model: GPT, rows: int) -> dict:
    """What nanoGPT saves of this model: its own keys, unpadded rows, torch.compile's prefix."""
    weights = {f"_orig_mod.{name}": p.clone() for name, p in model.state_dict().items()}
    for name in ("_orig_mod.transformer.wte.weight", "_orig_mod.lm_head.weight"):
        weights[name] = weights[name][:rows]
    weights["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    moments = {"exp_avg": torch.ones(rows, 32), "exp_avg_sq": torch.ones(rows, 32)}
    return {
        "model": weights,
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), **moments}},
            "param_groups": [{"params": [0]}],
        },
        "model_args": {**ARGS, "bias": True, "dropout": 0.0},
        "iter_num": 3,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char"},
    }


def test_nanogpts_checkpoint_is_the_same_model(tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**ARGS, activation="gelu")).eval()
    path = str(tmp_path / "ckpt.pt")
    torch.save(nanogpt_state(model, 65), path)
    loaded = checkpoint.load(path)
    assert loaded["step"] == 3 and loaded["best_val_loss"] == 1.5 and loaded["tokenizer"] is None
    again = GPT.from_state_dict(loaded["model_args"], loaded["model"]).eval()
    idx = torch.randint(65, (2, 16))
    torch.testing.assert_close(again(idx), model(idx))
    assert loaded["optimizers"]["adamw"]["state"][0]["exp_avg"].shape == again.lm_head.weight.shape


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_nanogpts_untied_head_is_kept_whatever_the_prefix(tmp_path, prefix):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**ARGS, activation="gelu", untied_head=True)).eval()
    state = nanogpt_state(model, 65)
    state["model"] = {n.replace("_orig_mod.", prefix): p for n, p in state["model"].items()}
    moments = {"exp_avg": torch.ones(65, 32), "exp_avg_sq": torch.ones(65, 32)}
    state["optimizer"]["state"][10] = moments
    state["optimizer"]["param_groups"] = [{"params": list(range(11))}]
    torch.save(state, tmp_path / "ckpt.pt")
    loaded = checkpoint.load(str(tmp_path / "ckpt.pt"))
    again = GPT.from_state_dict(loaded["model_args"], loaded["model"]).eval()
    idx = torch.randint(65, (2, 16))
    torch.testing.assert_close(again(idx), model(idx))
    assert loaded["optimizers"]["adamw"]["state"][10]["exp_avg"].shape == (128, 32)


def test_nanogpts_rounded_vocabulary_is_gpt2s(tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(50257, 16, 1, 2, 32, activation="gelu"))
    state = nanogpt_state(model, 50304)
    state["model_args"] = {**ARGS, "n_layer": 1, "vocab_size": 50304}
    torch.save(state, tmp_path / "ckpt.pt")
    loaded = checkpoint.load(str(tmp_path / "ckpt.pt"))
    assert loaded["model_args"]["vocab_size"] == 50257 and loaded["tokenizer"] == {"kind": "gpt2"}
    GPT.from_state_dict(loaded["model_args"], loaded["model"])


@pytest.mark.parametrize("name", ["out", "out/", "./out", "."])
def test_an_earlier_run_is_kept_and_nothing_else_moves(tmp_path, monkeypatch, name):
    folder = tmp_path / "here" / "out" if "out" in name else tmp_path / "here"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert backup_previous_run(name) is None
    (folder / "other_run").mkdir()
    (folder / "other_run" / "ckpt.pt").write_text("of another run")
    (folder / "notes.txt").write_text("mine")
    for n in (1, 2):
        (folder / "ckpt.pt").write_text("old")
        (folder / "log.jsonl").write_text(str(n))
        backup = backup_previous_run(name)
        assert os.path.samefile(backup, f"{folder}-{n}")
        assert sorted(os.listdir(backup)) == ["ckpt.pt", "log.jsonl"]
    assert [open(f"{folder}-{n}/log.jsonl").read() for n in (1, 2)] == ["1", "2"]
    assert {"other_run", "notes.txt"} <= set(os.listdir(folder))
    assert not {"ckpt.pt", "log.jsonl"} & set(os.listdir(folder))


def test_the_newest_run_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no checkpoint under out/"):
        checkpoint.resolve_checkpoint("")
    for i, name in enumerate(("old", "new", "older")):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "ckpt.pt").write_text("")
        os.utime(tmp_path / "out" / name / "ckpt.pt", (0, 100 - abs(i - 1)))
    assert checkpoint.resolve_checkpoint("") == os.path.join("out", "new", "ckpt.pt")


def test_a_runs_folder_gives_its_own_logits(tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**ARGS)).eval()
    state = {"model": model.state_dict(), "model_args": ARGS, "tokenizer": None}
    checkpoint.save(state, str(tmp_path / "ckpt.pt"))
    idx = torch.randint(65, (2, 16))
    assert torch.equal(GPT.from_pretrained(str(tmp_path)).eval()(idx), model(idx))
    best = GPT(GPTConfig(**ARGS)).eval()
    checkpoint.save({**state, "model": best.state_dict()}, str(tmp_path / "best.pt"))
    assert torch.equal(GPT.from_pretrained(str(tmp_path)).eval()(idx), best(idx))


def test_a_tied_model_starts_an_untied_one_with_a_copy_of_its_head(tmp_path):
    tokenizer = CharTokenizer(map(chr, range(65)))
    model, path = GPT(GPTConfig(**ARGS)), str(tmp_path / "ckpt.pt")
    state = {"model": model.state_dict(), "model_args": ARGS, "tokenizer": tokenizer.to_dict()}
    checkpoint.save(state, path)
    wanted = GPTConfig(**ARGS, untied_head=True, dropout=0.1)
    make, resumed = checkpoint.start_from(path, GPT, wanted, "", tokenizer)
    started = make()
    assert resumed is None and started.config.dropout == 0.1
    head, wte = started.lm_head.weight, started.transformer.wte.weight
    assert torch.equal(head, wte) and head.data_ptr() != wte.data_ptr()


def test_weights_in_fp16_whose_sum_overflows_are_no_nan(tmp_path):
    state = {"model": {"w": torch.full((1000, 1000), 0.5, dtype=torch.float16)}}
    checkpoint.save({**state, "model_args": ARGS, "tokenizer": None}, str(tmp_path / "a.pt"))
    assert checkpoint.load(str(tmp_path / "a.pt"))["model"]["w"].sum().isinf()


def test_nan_weights_are_one_sentence(script, tmp_path):
    tokenizer, path = CharTokenizer(map(chr, range(65))), tmp_path / "a.pt"
    saved_model(path, tokenizer.to_dict())
    state = torch.load(path)
    state["model"]["transformer.h.1.mlp.c_fc.weight"][3, 4] = math.nan
    torch.save(state, path)
    run = f"--out_dir={path}"
    for command in (
        ("sample.py", run),
        ("tools.export", run, "--to=hf"),
        ("tools.evaluate", run, "--task=lambada", "--input=x.jsonl"),
        ("projects.chat.talk", run),
    ):
        said = script(*command, status=2).stderr
        assert "NaN or infinite weights, in transformer.h.1.mlp.c_fc" in said, command
    assert not (tmp_path / "hf").exists()


def saved_model(path, tokenizer, **more) -> str:
    args = {**ARGS, **more}
    model = GPT(GPTConfig(**args))
    state = {"model": model.state_dict(), "model_args": args, "tokenizer": tokenizer}
    checkpoint.save(state, str(path))
    return str(path)


def test_fields_that_a_checkpoint_does_not_state_have_their_defaults(tmp_path, capsys):
    tokenizer = CharTokenizer(map(chr, range(65)))
    path = saved_model(tmp_path / "a.pt", tokenizer.to_dict())
    leaks = dict(qk_norm=True, smear=1, logit_softcap=15.0, window=8)
    make, _ = checkpoint.start_from(path, GPT, GPTConfig(**ARGS, **leaks), "", tokenizer)
    assert make().config == GPTConfig(**ARGS)
    said = capsys.readouterr().out
    for name, value in leaks.items():
        assert f"{name}={getattr(GPTConfig, name)} as in the checkpoint, not {value}" in said


def test_a_tokenizer_and_a_model_that_do_not_fit_are_one_sentence(tmp_path, capsys):
    def start(path, chars, resume=False):
        init_from = "resume" if resume else path
        tokenizer, folder = CharTokenizer(map(chr, range(chars))), str(tmp_path)
        return checkpoint.start_from(init_from, GPT, GPTConfig(**ARGS), folder, tokenizer)[0]()

    unknown = saved_model(tmp_path / "unknown.pt", None)
    assert start(unknown, 65).config.vocab_size == 65
    assert "names no tokenizer" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"char, 64 tokens.*unknown, 65 tokens"):
        start(unknown, 64)
    gpt2 = saved_model(tmp_path / "gpt2.pt", {"kind": "gpt2"}, vocab_size=50257)
    with pytest.raises(UserError, match=r"char, 65 tokens.*gpt2, 50257 tokens"):
        start(gpt2, 65)
    char = saved_model(tmp_path / "ckpt.pt", CharTokenizer(map(chr, range(65))).to_dict())
    assert start(char, 70).config.vocab_size == 70  # resized token by token
    with pytest.raises(UserError, match="another vocabulary"):
        start(char, 70, resume=True)


def test_a_checkpoint_without_a_tokenizer_has_that_of_its_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = {"tokenizer": None, "path": "x.pt", "config": {"dataset": "toy"}, "model_args": ARGS}
    with pytest.raises(UserError, match="names no tokenizer"):
        checkpoint.load_tokenizer(loaded)
    with pytest.raises(UserError, match="there is no dataset data/typo"):
        checkpoint.load_tokenizer(loaded, "typo")
    for name, size in (("toy", 65), ("other", 64)):
        with Writer(f"data/{name}", CharTokenizer(map(chr, range(size))), {"name": "x"}) as writer:
            writer.append("train", [1])
    assert checkpoint.load_tokenizer(loaded).vocab_size == 65
    with pytest.raises(UserError, match=r"data/other has another vocabulary than x\.pt"):
        checkpoint.load_tokenizer(loaded, "other")


def test_a_resumed_run_keeps_its_context_and_a_new_one_may_have_a_shorter_one(tmp_path, capsys):
    tokenizer = CharTokenizer(map(chr, range(65)))
    path = saved_model(tmp_path / "ckpt.pt", tokenizer.to_dict())
    shorter = GPTConfig(**{**ARGS, "block_size": 8})
    make, _ = checkpoint.start_from(path, GPT, shorter, "", tokenizer)
    assert make().config.block_size == 8
    make, _ = checkpoint.start_from("resume", GPT, shorter, str(tmp_path), tokenizer)
    assert make().config.block_size == 16
    assert "block_size=16 as in the checkpoint, not 8" in capsys.readouterr().out


def test_resuming_compares_the_optimizers_kind_and_parameters():
    def adamw(*names) -> torch.optim.Optimizer:
        params = [torch.nn.Parameter(torch.ones(3)) for _ in names]
        return torch.optim.AdamW([{"params": params, "names": list(names)}])

    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loaded = {"path": "x", "optimizers": {"adamw": adamw("a", "b").state_dict()}, "scaler": {}}
    restore_optimizers(loaded, {"adamw": adamw("a", "b")}, scaler)
    with pytest.raises(UserError, match="trained with adamw"):
        restore_optimizers(loaded, {"muon": adamw("a", "b")}, scaler)
    with pytest.raises(UserError, match="no optimizer state to resume with"):
        empty = {**loaded, "optimizers": {}}
        restore_optimizers(empty, {"adamw": adamw("a", "b")}, scaler)
    for names in (("a",), ("b", "a"), ("a", "b", "c")):  # moments must not go to other parameters
        with pytest.raises(UserError, match="trained other parameters"):
            restore_optimizers(loaded, {"adamw": adamw(*names)}, scaler)
