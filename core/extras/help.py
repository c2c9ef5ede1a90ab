"""What helps a user: --help, the name that a misspelled one was meant to be, ways to data."""

import argparse
import ast
import difflib
import inspect
import os
import re
import textwrap
import tokenize
from collections.abc import Iterator

from core import UserError, name_of_script
from core.settings import Setting

ALIASES = {"lr": "learning_rate", "wd": "weight_decay", "epochs": "max_iters", "steps": "max_iters"}
ALIASES |= {"layers": "n_layer", "heads": "n_head", "dim": "n_embd", "context": "block_size"}
ALIASES |= {"bs": "batch_size", "prompt": "start", "tokens": "max_new_tokens"}


def print_help(sources: list[str | type], settings: dict[str, Setting], values: dict) -> None:
    """A script's docstring, and each setting with its value and the comment beside it.

    sources: the script, and where else its settings stand, as in core.settings.read_settings.
    """
    paragraphs = ast.get_docstring(ast.parse(text_of(sources[0]))).split("\n\n")
    started = name_of_script()
    command = started if started.endswith(".py") else f"-m {started}"
    parser = argparse.ArgumentParser(
        description="\n\n".join(p if p[0] == " " else textwrap.fill(p, 78) for p in paragraphs),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 4, 30),
        usage=f"python {command} [CONFIG.py ...] [--key=value ...]",
        add_help=False,
    )
    comments, groups = {}, {}
    for source in sources:
        for name, heading, comment in comments_in(source):
            comments.setdefault(name, (heading, comment))
    for name, setting in settings.items():
        heading, comment = comments[name]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        option = f"--{name}={values[name]}".replace("\n", "\\n")
        kind = setting.accepted.removeprefix("an ").removeprefix("a ")
        text = f"{kind}; {comment}".replace("%", "%%")
        groups[heading].add_argument(option, action="store_true", help=text)
    parser.print_help()


def comments_in(source: str | type) -> Iterator[tuple[str, str, str]]:
    """Of each assignment with a comment beside it: its name, the heading above it, the comment."""
    heading = "settings"
    if isinstance(source, type):
        heading = f"{source.__name__} in {source.__module__.replace('.', '/')}.py"
    for line in text_of(source).splitlines():
        if line.startswith("# "):
            heading = line.strip("# -")
        elif found := re.match(r" *(\w+)(?:: [^=]+)? = .*  # (.*)", line):
            yield found[1], heading, found[2]


def text_of(source: str | type) -> str:
    if isinstance(source, type):
        return inspect.getsource(source)
    with tokenize.open(source) as file:
        return file.read()


def no_setting(name: str, settings: dict[str, Setting], source: str) -> UserError:
    near = [ALIASES[name]] if ALIASES.get(name) in settings else []
    near = near or difflib.get_close_matches(name, settings, n=1)
    hint = f" the nearest is {near[0]}, {settings[near[0]].accepted};" if near else ""
    return UserError(f"{source}: there is no setting {name};{hint} --help lists all.")


def no_config_file(path: str, folder: str) -> UserError:
    """folder: where the others are."""
    there = [os.path.relpath(os.path.join(folder, name)) for name in os.listdir(folder)]
    near = difflib.get_close_matches(path, there, n=1)
    hint = f"; the nearest is {near[0]}" if near else ""
    return UserError(f"no config file {path}{hint}. An option is written --key=value.")


def no_dataset(folder: str, command: str) -> UserError:
    """command: the one that has failed to prepare it; "" if there is none."""
    if command:
        python = "python" if command.split()[0].endswith(".py") else "python -m"
        return UserError(
            f"--prepare={command!r} did not make {folder}/train.bin, for the reason above. "
            f"To give it more options, run it first: {python} {command} ..."
        )
    return UserError(
        f"there is no {folder}/train.bin. Start with python train.py config/shakespeare_char.py, "
        "whose data is made; prepare your own text by python prepare_text.py --input=FILE; or "
        "prepare OpenWebText by python -m projects.webtext.prepare (18 GB, hours), with --shards=1 "
        "a small part of it."
    )
