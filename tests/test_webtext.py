"""projects/webtext/prepare.py against a hub on this machine: whole, resumed, refused."""

import itertools
import os
import signal
import subprocess
import sys
import time

from configurator import configure

import numpy as np
import pytest
from conftest import ROOT
from test_texts import read, texts_of

from core.dataset import read_meta
from core.extras import gpt2
from model import GPTConfig

pytest.importorskip("huggingface_hub")
pyarrow = pytest.importorskip("pyarrow")
DATASET = "/datasets/some/text/resolve"
OPTIONS = ("--hub_dataset=some/text", "--name=web", "--val_fraction=0.1")


@pytest.fixture
def prepare(script, folio_data, tmp_path, monkeypatch):
    """A function that runs the script against the hub at a url."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folio_data("tiktoken-cache")))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))

    def run(url: str, *options: str, status=0, **environment: str):
        environment["HF_ENDPOINT"] = url
        options = (*OPTIONS, *options)
        return script("projects.webtext.prepare", *options, status=status, **environment)

    return run


def parquet_files(names: list[str]) -> tuple[dict[str, bytes], list[list[str]]]:
    """Parquet files by their path on the hub, and the 50 documents of each."""
    from pyarrow import parquet

    files, documents = {}, []
    for name in names:
        texts = [f"{name}, document {i}: it's text.\n" * (i % 5 + 1) for i in range(50)]
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.table({"text": texts}), sink)
        files[f"{DATASET}/{name}"] = sink.getvalue().to_pybytes()
        documents.append(texts)
    return files, documents


def four_shards() -> tuple[dict[str, bytes], list[str], list[str]]:
    """The files of the hub, their paths, and all their documents, sorted."""
    files, documents = parquet_files([f"main/data/train-{n}.parquet" for n in range(4)])
    return files, list(files), sorted(itertools.chain(*documents))


def all_texts(folder) -> list[str]:
    found = texts_of(folder)
    assert found["train"] and found["val"]
    return sorted(found["train"] + found["val"])


def same_bytes(first, second) -> bool:
    return all(np.array_equal(read(first, s), read(second, s)) for s in ("train", "val"))


def test_it_comes_whole_from_a_hub_that_stumbles(prepare, hub, tmp_path):
    files, paths, documents = four_shards()
    url = hub(files, {paths[0]: [("cut", 700)], paths[2]: [("cut", 100), ("cut", 50)]})
    prepare(url, HF_TOKEN="secret")
    folder = tmp_path / "data" / "web"
    assert all_texts(folder) == documents
    assert 8 < len(texts_of(folder)["val"]) < 40
    assert sorted(p.name for p in folder.iterdir()) == ["meta.json", "train.bin", "val.bin"]
    meta, found = read_meta(str(folder)), texts_of(folder)
    for split in ("train", "val"):
        assert meta[f"{split}_bytes"] == sum(len(text.encode()) for text in found[split])
    assert {authorization for *_, authorization in hub.asked} == {"Bearer secret"}


def test_only_so_many_shards_as_are_asked_for(prepare, hub, tmp_path):
    files, _, documents = four_shards()
    prepare(hub(files), "--shards=1")
    assert all_texts(tmp_path / "data" / "web") == documents[:50]


def test_it_resumes_at_the_shard_where_it_stopped(prepare, hub, tmp_path):
    files, paths, documents = four_shards()
    url = hub(files, {paths[2]: [404]})
    result = prepare(url, status=None)
    assert result.returncode == 2 and "404" in result.stderr.splitlines()[-1]
    folder = tmp_path / "data" / "web"
    assert not (folder / "train.bin").exists()
    assert [p.parent.name for p in folder.glob("shards/*/train.bin")] == ["00000", "00001"]
    assert "resuming after 2 of 4 shards" in prepare(url).stdout
    asked = [path for path, *_ in hub.asked]
    assert [asked.count(path) for path in paths] == [1, 1, 2, 1]  # none comes twice
    assert all_texts(folder) == documents
    prepare(url, "--name=at_once")
    assert same_bytes(folder, tmp_path / "data" / "at_once")
    assert not (folder / "shards").exists()


def test_other_settings_start_over(prepare, hub, tmp_path):
    files, paths, _ = four_shards()
    url = hub(files, {paths[2]: [404]})
    assert prepare(url, status=None).returncode == 2
    assert "resuming" not in prepare(url, "--seed=2").stdout
    prepare(url, "--seed=2", "--name=at_once")
    assert same_bytes(tmp_path / "data" / "web", tmp_path / "data" / "at_once")


def test_stopped_by_a_signal_it_resumes_to_the_same_bytes(prepare, hub, tmp_path):
    files, _, _ = four_shards()
    url = hub(files)
    prepare(url, "--name=at_once")
    process = subprocess.Popen(
        [sys.executable, "-m", "projects.webtext.prepare", *OPTIONS],
        cwd=tmp_path,
        env={**os.environ, "HF_ENDPOINT": url, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (tmp_path / "data/web/shards/00001").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, 143)
    prepare(url)
    assert same_bytes(tmp_path / "data" / "web", tmp_path / "data" / "at_once")


def test_the_files_of_a_folder_or_else_those_that_the_hub_converted(prepare, hub, tmp_path):
    names = ["main/sample/10BT/0.parquet", "main/sample/10BT/1.parquet", "main/all/0.parquet"]
    files, documents = parquet_files(names)
    files[f"{DATASET}/main/sample/10BT/README.md"] = b"no parquet"
    prepare(hub(files), "--hub_folder=sample/10BT")
    assert all_texts(tmp_path / "data" / "web") == sorted(documents[0] + documents[1])
    converted = "refs%2Fconvert%2Fparquet/default"
    names = [f"{converted}/test/0.parquet", f"{converted}/train/0.parquet"]
    files, documents = parquet_files(names)
    files[f"{DATASET}/main/openwebtext.tar"] = b"no parquet"
    prepare(hub(files), "--name=converted")
    assert all_texts(tmp_path / "data" / "converted") == sorted(documents[1])


def test_a_dataset_that_cannot_be_had_is_one_sentence(prepare, hub):
    files, _, _ = four_shards()
    assert "RepositoryNotFoundError: 404" in prepare(hub({}), status=2).stderr
    listing = "/api/datasets/some/text/tree/main"
    assert "401" in prepare(hub(files, {listing: [401]}), status=2).stderr
    said = prepare(hub(files), "--hub_folder=elsewhere", status=2).stderr
    assert "no parquet files in hub_folder=elsewhere" in said
    assert "OfflineMode" in prepare(hub(files), HF_HUB_OFFLINE="1", status=2).stderr


def test_a_network_that_is_away_is_one_sentence(prepare, tmp_path):
    code = "import runpy, time; time.sleep = lambda seconds: None; "
    code += "runpy.run_module('projects.webtext.prepare', run_name='__main__', alter_sys=True)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "ConnectError" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("projects.webtext.prepare", "huggingface_hub"),
        ("tools.export", "safetensors"),
        ("tools.export", "tokenizers"),
    ],
)
def test_a_missing_package_is_one_sentence(tmp_path, module, package):
    code = f"import runpy, sys; sys.modules['{package}'] = None; sys.argv = ['x']; "
    code += f"runpy.run_module('{module}', run_name='__main__', alter_sys=True)"
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and f"pip install {package}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


SIZES = {"gpt2_medium": 355e6, "gpt2_large": 774e6, "gpt2_xl": 1558e6}
SIZES |= {"gpt3_125m": 125e6, "gpt3_350m": 356e6, "gpt3_760m": 760e6, "gpt3_1300m": 1316e6}
SIZES |= {"gpt3_2700m": 2650e6, "gpt3_6700m": 6657e6}


@pytest.mark.parametrize("name", SIZES)
def test_a_config_is_accepted_and_has_the_size_of_its_name(name):
    config = ROOT / "projects" / "webtext" / f"{name}.py"
    settings = configure(str(ROOT / "train.py"), GPTConfig, argv=[str(config)])
    n_layer, n_embd = settings["n_layer"], settings["n_embd"]
    if settings["model_type"]:
        n_layer, _, n_embd = gpt2.SIZES[settings["model_type"]]
    parameters = 12 * n_layer * n_embd**2 + (50257 + settings["block_size"]) * n_embd
    assert parameters == pytest.approx(SIZES[name], 0.01)
    assert settings["prepare"] == ""  # it is 18 GB
    assert settings["out_dir"] == f"out/{name}"
    assert settings["gradient_accumulation_steps"] % 8 == 0
    assert f"train.py projects/webtext/{name}.py" in config.read_text().splitlines()[0]
