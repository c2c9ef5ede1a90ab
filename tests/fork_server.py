"""Runs scripts in forks of a process that has imported torch: a start costs 2 seconds less.

Reads one job per line, {"module": name or "", "argv": [...], "cwd": ..., "env": {...},
"stdin": file, "stdout": file, "stderr": file, "timeout": seconds}, and answers with the exit
status. "ranks": a list of what each of several processes has in its environment too, as torchrun
sets it. It computes nothing itself, so that its forks find no threads missing.
"""

import importlib
import json
import os
import runpy
import signal
import sys

import requests  # noqa: F401
import torch  # noqa: F401

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def become(job: dict) -> None:
    """In a fork: what `python ARGV` or `python -m MODULE` would be."""
    signal.alarm(job["timeout"])
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    os.dup2(os.open(job["stdin"], os.O_RDONLY), 0)
    os.dup2(os.open(job["stdout"], flags), 1)
    os.dup2(os.open(job["stderr"], flags), 2)
    sys.argv = job["argv"]
    if job["module"]:
        sys.path[0] = ROOT
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")


for line in os.fdopen(os.dup(0)):  # a script's own sys.stdin is one that nobody has read
    job, children = json.loads(line), []
    if job["ranks"]:  # FSDP and DDP would import them
        importlib.import_module("torch.distributed.fsdp")
        importlib.import_module("torch._dynamo")
    for environment in job["ranks"] or [{}]:
        child = os.fork()
        if child == 0:
            become({**job, "env": {**job["env"], **environment}})
            sys.exit()
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(max(statuses, key=abs), flush=True)
