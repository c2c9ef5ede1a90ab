"""Settings: a script's own names <- config files <- --key=value, later wins.

A script assigns its settings at its top, one per line, each with a comment, and then says
`globals().update(configure(__file__))`. A setting's type is that of its default;
`Literal["a", "b"]` as its annotation lists choices.
"""

import argparse
import ast
import contextlib
import difflib
import gc
import glob
import os
import runpy
import sys
import textwrap
import tokenize
from dataclasses import fields

from core import UserError, name_of_script, set_up_script
from core.settings import KINDS, Setting, read_settings

set_up_script()  # now, since a script's other imports take a second
ROOT = os.path.dirname(os.path.abspath(__file__))
ALIASES = {"lr": "learning_rate", "wd": "weight_decay", "epochs": "max_iters", "steps": "max_iters"}
ALIASES |= {"layers": "n_layer", "heads": "n_head", "dim": "n_embd", "context": "block_size"}
ALIASES |= {"bs": "batch_size", "prompt": "start", "tokens": "max_new_tokens"}
# the second, in a config file, is about its own value of the first, not about one given later
BELONGS = {"dataset": "prepare"}


def configure(script: str, *also: str | type, words: list | None = None, argv=None) -> dict:
    """The script's settings, name -> value, after config files and options; UserError if wrong.

    also: where more settings stand: another script of the repository, or a dataclass.
    words: a list that gets what is neither an option nor a .py file, if accepted.
    """
    gc.freeze()  # what was imported stays: without looking at it a script ends 0.3 s sooner
    settings = read_settings(script)
    for source in also:
        path_or_class = os.path.join(ROOT, source) if isinstance(source, str) else source
        for name, setting in read_settings(path_or_class).items():
            settings.setdefault(name, setting)
    values = {name: setting.default for name, setting in settings.items()}
    arguments = sys.argv[1:] if argv is None else list(argv)
    asked_for_help, given = False, set()
    while arguments:
        argument = arguments.pop(0)
        if argument in ("--help", "-h"):
            asked_for_help = True
        elif argument.startswith("--"):
            name, value = read_option(argument, arguments, settings)
            values[name] = value
            given.add(name)
        elif words is not None and not argument.endswith(".py"):
            words.append(argument)
        else:
            values |= read_config_file(argument, settings, values)
    for owner, owned in BELONGS.items():
        if owner in given and owned in values and owned not in given:
            values[owned] = settings[owned].default
    if asked_for_help:
        print_help(script, settings, values)
        raise SystemExit(0)
    return values


def pick(cls: type, settings: dict) -> dict:
    """The fields of a dataclass that are among the settings, name -> value."""
    return {f.name: settings[f.name] for f in fields(cls) if f.name in settings}


def read_option(argument: str, following: list[str], settings: dict[str, Setting]) -> tuple:
    """Name and value of --key=value, --flag or --key VALUE; `following` loses a VALUE taken."""
    key, equals, text = argument[2:].partition("=")
    key = key.replace("-", "_")
    longer = [name for name in settings if name.startswith(key)]
    setting = find_setting(longer[0] if len(longer) == 1 else key, settings, "command line")
    if equals:
        return setting.name, setting.parse(text)
    if setting.is_flag:
        with contextlib.suppress(UserError, IndexError):
            value = setting.parse(following[0])
            del following[0]
            return setting.name, value
        return setting.name, True
    if following and not following[0].startswith("--"):
        return setting.name, setting.parse(following.pop(0))
    raise UserError(f"command line: {argument} needs a value: {setting.accepted}.")


def find_setting(name: str, settings: dict[str, Setting], source: str) -> Setting:
    if name in settings:
        return settings[name]
    near = [ALIASES[name]] if ALIASES.get(name) in settings else []
    near = near or difflib.get_close_matches(name, settings, n=1)
    hint = f" the nearest is {near[0]}, {settings[near[0]].accepted};" if near else ""
    raise UserError(f"{source}: there is no setting {name};{hint} --help lists all.")


def read_config_file(path: str, settings: dict[str, Setting], values: dict) -> dict:
    """What a Python file changes, run in a namespace of its own that starts with `values`.

    A plain value is a setting, unless the file itself reads it or its name begins with _.
    """
    path = find_config_file(path)
    try:
        with tokenize.open(path) as file:
            nodes = list(ast.walk(ast.parse(file.read())))
        names = runpy.run_path(path, init_globals=values)
    except (Exception, SystemExit) as error:
        raise UserError(f"config file {path} fails: {type(error).__name__}: {error}.") from error
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    changed = {}
    for name, value in names.items():
        if name in settings:
            if value is not values[name]:
                changed[name] = settings[name].check(value, path)
        elif type(value) in KINDS and name not in read and not name.startswith("_"):
            find_setting(name, settings, path)  # raises the UserError
    return changed


def find_config_file(path: str) -> str:
    """Where a config file is: here, beside this file, or in config/ there; or by nanoGPT's name."""
    named = os.path.expanduser(path)
    for folder in ("", ROOT, os.path.join(ROOT, "config")):
        for name in (named, named.replace("train_", "", 1)):
            if os.path.isfile(os.path.join(folder, name)):
                return os.path.join(folder, name)
    there = [os.path.relpath(config) for config in glob.glob(f"{glob.escape(ROOT)}/config/*.py")]
    near = difflib.get_close_matches(path, there, n=1)
    hint = f"; the nearest is {near[0]}" if near else ""
    raise UserError(f"no config file {path}{hint}. An option is written --key=value.")


def print_help(script: str, settings: dict[str, Setting], values: dict) -> None:
    with tokenize.open(script) as source:
        paragraphs = ast.get_docstring(ast.parse(source.read())).split("\n\n")
    started = name_of_script()
    command = started if started.endswith(".py") else f"-m {started}"
    parser = argparse.ArgumentParser(
        description="\n\n".join(p if p[0] == " " else textwrap.fill(p, 78) for p in paragraphs),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 4, 30),
        usage=f"python {command} [CONFIG.py ...] [--key=value ...]",
        add_help=False,
    )
    groups = {s.group: parser.add_argument_group(s.group) for s in settings.values()}
    for name, setting in settings.items():
        option = f"--{name}={values[name]}".replace("\n", "\\n")
        kind = setting.accepted.removeprefix("an ").removeprefix("a ")
        text = f"{kind}; {setting.comment}".replace("%", "%%")
        groups[setting.group].add_argument(option, action="store_true", help=text)
    parser.print_help()
