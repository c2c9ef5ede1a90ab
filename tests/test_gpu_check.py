"""tools/gpu_check.sh, as far as a machine without a GPU can run it."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from tools.gpu_check import record

# the interpreter, but for one stage
BREAKS = """#!/bin/sh
case "$*" in *gpt3_125m.py*--window=0*) echo "that went wrong"; exit 3;; esac
exec {python} "$@"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it takes bash and GNU's timeout")
def test_a_dry_run_goes_through_all_stages_although_one_fails(tmp_path):
    (tmp_path / "tinyshakespeare.txt").write_text(
        "To be, or not to be, that is the question.\n" * 90
    )
    python = tmp_path / "python"
    python.write_text(BREAKS.format(python=sys.executable))
    python.chmod(0o755)
    result = subprocess.run(
        ["bash", ROOT / "tools" / "gpu_check.sh", "check"],
        cwd=tmp_path,
        env={**os.environ, "DRY": "1", "FOLIO_DATA": str(tmp_path), "PYTHON": str(python)},
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    found = {line.pop("stage"): line for line in lines}
    assert (tmp_path / "check" / "stages.jsonl").read_text() == result.stdout
    status = {stage: line["status"] for stage, line in found.items()}
    assert result.returncode == 1 and status.pop("gpt3_125m_no_window") == "failed", result.stderr
    assert found["gpt3_125m_no_window"]["reason"] == "that went wrong"
    assert status.pop("nanogpt_12") == status.pop("nanogpt_48") == "skipped"
    assert set(status.values()) == {"ok"} and list(status)[-1] == "nccl", found
    assert found["attention"]["training"] and found["nccl"]["grad_norm"] > 0
    assert found["shakespeare_char_to_1.4697"]["val_loss"] < 4
    for stage in ("gpt2_12", "gpt2_48", "modern", "gpt3_125m"):
        assert found[stage]["update"] > 0 and found[stage]["parameters"] > 0
    for stage in ("decode_eager", "decode_compiled", "decode_compiled_64"):
        assert found[stage]["generation"] > 0


def test_a_line_has_what_nanogpts_bench_and_the_compiler_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = "compile  done in 41 s\ntime per iteration: 51.2500ms, MFU: 90.00%\n\n"
    (tmp_path / "it.txt").write_text(printed)
    (tmp_path / "it.json").write_text('{"training": 1.5, "command": ["x"]}\n{"training": 2.5}\n')
    line = {"stage": "it", "status": "ok", "seconds": 9}
    figures = {"training": 2.5, "compilation": 41.0, "update": 51.25}
    assert record("it", "ok", "9", "") == line | figures
    assert record("none", "timed out", "80", "")["reason"] == "it printed nothing"
