"""Settings: a script's own names <- config files <- --key=value, later wins.

A script assigns its settings at its top, one per line, each with a comment, and then says
`globals().update(configure(__file__))`. A setting's type is that of its default;
`Literal["a", "b"]` as its annotation lists choices.
"""

import ast
import contextlib
import difflib
import gc
import glob
import inspect
import os
import runpy
import signal
import sys
import tokenize
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

from core import UserError, print_user_error

ROOT = os.path.dirname(os.path.abspath(__file__))
KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "text"}
# What numbers of these names must satisfy, in every script; all others must not be negative.
RANGES = {
    "at least 1": (
        lambda v: v >= 1,
        "batch_size block_size gradient_accumulation_steps n_layer n_head n_embd num_samples "
        "eval_iters log_interval prompt_tokens processes min_freq row_length length symbols",
    ),
    "above 0": (lambda v: v > 0, "learning_rate muon_lr repetition_penalty rotary_base"),
    "from 0 to below 1": (lambda v: 0 <= v < 1, "beta1 beta2 muon_momentum dropout min_p smooth"),
    "above 0 and at most 1": (lambda v: 0 < v <= 1, "top_p warmdown"),
    "at least 0": (lambda v: v >= 0, ""),
}


@dataclass
class Setting:
    """One setting: its default, the comment beside it, and its choices (none: all of its type)."""

    name: str
    default: Any
    comment: str
    choices: tuple = ()

    def __post_init__(self):
        self.is_flag = isinstance(self.default, bool) or True in self.choices
        self.accepted, self.in_range = KINDS[type(self.default)], lambda value: True
        if self.choices:
            self.accepted = "one of " + ", ".join(str(c) for c in self.choices if c != "")
        elif type(self.default) in (int, float):
            named = (words for words, (_, names) in RANGES.items() if self.name in names.split())
            words = next(named, "at least 0")
            self.accepted, self.in_range = f"{self.accepted} {words}", RANGES[words][0]

    def check(self, value, source: str):
        """`value` as the setting's own type, or a UserError that says what is accepted."""
        if type(self.default) is float and type(value) is int:
            value = float(value)
        if self.choices:  # by type as well, since True == 1
            good = any(value == c and type(value) is type(c) for c in self.choices)
        else:
            good = type(value) is type(self.default) and self.in_range(value)
        if not good:
            raise UserError(f"{source}: {self.name}={value!r} is not accepted: {self.accepted}.")
        return value

    def parse(self, text: str):
        """The value that `text` on the command line stands for, or a UserError."""
        value: Any = text
        if self.is_flag or type(self.default) is not str:
            with contextlib.suppress(ValueError, SyntaxError):
                value = ast.literal_eval(text)
        return self.check(value, "command line")


def configure(script: str, *also: str | type, words: list | None = None, argv=None) -> dict:
    """The script's settings, name -> value, after config files and options; UserError if wrong.

    also: where more settings stand: another script of the repository, or a dataclass.
    words: a list that gets what is neither an option nor a .py file, if accepted.
    """
    sys.excepthook = print_user_error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends a script by way of its clean-up
    gc.freeze()  # what was imported stays: without looking at it a script ends 0.3 s sooner
    settings = read_settings(script)
    for source in also:
        path_or_class = os.path.join(ROOT, source) if isinstance(source, str) else source
        for name, setting in read_settings(path_or_class).items():
            settings.setdefault(name, setting)
    values = {name: setting.default for name, setting in settings.items()}
    arguments = sys.argv[1:] if argv is None else list(argv)
    while arguments:
        argument = arguments.pop(0)
        if argument in ("--help", "-h"):
            print_help(script, settings)
            raise SystemExit(0)
        if argument.startswith("--"):
            name, value = read_option(argument, arguments, settings)
            values[name] = value
        elif words is not None and not argument.endswith(".py"):
            words.append(argument)
        else:
            values |= read_config_file(argument, settings, values)
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


def read_settings(source: str | type) -> dict[str, Setting]:
    """The plain values in the body of a dataclass, or at the top of a script before `configure`."""
    path = source if isinstance(source, str) else inspect.getfile(source)
    with tokenize.open(path) as file:
        text = file.read()
    body, lines, found = ast.parse(text).body, text.splitlines(), {}
    if isinstance(source, type):
        body = next(node.body for node in body if getattr(node, "name", "") == source.__name__)
    for statement in body:
        if "configure(" in ast.unparse(statement):
            break
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not statement.value:
            continue
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        comment, choices = lines[statement.lineno - 1].partition("  # ")[2], ()
        with contextlib.suppress(ValueError):  # not a plain value
            default = ast.literal_eval(statement.value)
            if isinstance(getattr(statement, "annotation", None), ast.Subscript):  # Literal["a"]
                choices = ast.literal_eval(statement.annotation.slice)
            if comment:
                found[target.id] = Setting(target.id, default, comment, choices)
    return found


def read_config_file(path: str, settings: dict[str, Setting], values: dict) -> dict:
    """What a Python file changes, run in a namespace of its own that starts with `values`."""
    plain = path.replace("train_", "", 1)  # nanoGPT's name of the same config
    if not os.path.isfile(path) and os.path.isfile(plain):
        path = plain
    if not os.path.isfile(path):
        there = glob.glob(os.path.join(os.path.dirname(path) or "config", "*.py"))
        near = difflib.get_close_matches(path, there, n=1, cutoff=0)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise UserError(f"no config file {path}{hint}. An option is written --key=value.")
    try:
        names = runpy.run_path(path, init_globals=values)
    except Exception as error:
        raise UserError(f"config file {path} fails: {type(error).__name__}: {error}.") from error
    changed = {}
    for name, value in names.items():
        if name.startswith("_") or isinstance(value, ModuleType):
            continue
        if name not in values or value is not values[name]:
            changed[name] = find_setting(name, settings, path).check(value, path)
    return changed


def find_setting(name: str, settings: dict[str, Setting], source: str) -> Setting:
    if name in settings:
        return settings[name]
    near = settings[difflib.get_close_matches(name, settings, n=1, cutoff=0)[0]]
    raise UserError(
        f"{source}: there is no setting {name}; the nearest is {near.name}, which takes "
        f"{near.accepted}. --help lists all."
    )


def print_help(script: str, settings: dict[str, Setting]) -> None:
    with tokenize.open(script) as source:
        description = ast.get_docstring(ast.parse(source.read()), clean=False) or ""
    print(description.strip() + "\n\nSettings, with their defaults:")
    for name, setting in settings.items():
        choices = f"({setting.accepted}) " if setting.choices else ""
        print(f"  --{name}={setting.default!s:<{30 - len(name)}} {choices}{setting.comment}")
