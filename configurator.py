"""Settings: a script's own names <- config files <- --key=value, later wins.

A script assigns its settings at its top, one a line, each with a comment, then calls configure:

    batch_size = 12  # rows a micro-batch
    globals().update(configure(globals()))

after which all of these work, `-` and `_` being the same:

    python train.py config/gpt2.py --batch_size=8 --eval-only --out_dir out/mine
    python train.py --help

The type of a setting is that of its default; `Literal["a", "b"]` as its annotation lists choices.
"""

import contextlib
import difflib
import inspect
import os
import runpy
import sys
import tokenize
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from types import ModuleType
from typing import Any, get_args

from core import UserError

# What a number must satisfy beyond its type. A name means the same in every script.
AT_LEAST_1 = (lambda v: v >= 1, "at least 1")
AT_LEAST_0 = (lambda v: v >= 0, "at least 0")
ABOVE_0 = (lambda v: v > 0, "above 0")
SHARE = (lambda v: 0 <= v < 1, "at least 0 and below 1")
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys("batch_size block_size gradient_accumulation_steps".split(), AT_LEAST_1),
    **dict.fromkeys("n_layer n_head n_embd num_samples".split(), AT_LEAST_1),
    **dict.fromkeys("eval_interval eval_iters log_interval".split(), AT_LEAST_1),
    **dict.fromkeys("max_iters warmup_iters lr_decay_iters max_new_tokens".split(), AT_LEAST_0),
    **dict.fromkeys("min_lr weight_decay grad_clip logit_softcap peak_tflops".split(), AT_LEAST_0),
    **dict.fromkeys("temperature top_k seed".split(), AT_LEAST_0),
    **dict.fromkeys("learning_rate muon_lr repetition_penalty".split(), ABOVE_0),
    **dict.fromkeys("beta1 beta2 dropout min_p".split(), SHARE),
    **dict.fromkeys("top_p warmdown".split(), (lambda v: 0 < v <= 1, "above 0 and at most 1")),
}
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


@dataclass
class Setting:
    """One setting: its default, the comment beside it, and its choices (empty: any of its type)."""

    name: str
    default: bool | int | float | str
    comment: str
    choices: tuple = ()

    @property
    def accepted(self) -> str:
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        limit = LIMITS.get(self.name)
        return KINDS[type(self.default)] + (f" {limit[1]}" if limit else "")

    @property
    def is_flag(self) -> bool:
        return isinstance(self.default, bool) or True in self.choices

    def parse(self, text: str):
        """The value that `text` on the command line stands for, or a UserError."""
        value: Any = text
        if self.choices:
            value = next((c for c in self.choices if str(c).lower() == text.lower()), text)
        elif isinstance(self.default, bool):
            value = {"true": True, "false": False}.get(text.lower(), text)
        else:
            with contextlib.suppress(ValueError):
                value = type(self.default)(text)
        return self.check(value, "command line")

    def check(self, value, source: str):
        """`value` as the setting's own type, or a UserError that says what is accepted."""
        if type(self.default) is float and type(value) is int:
            value = float(value)
        if self.choices:  # by type as well, since True == 1
            good = any(value == c and type(value) is type(c) for c in self.choices)
        else:
            good = type(value) is type(self.default)
            good = good and (self.name not in LIMITS or LIMITS[self.name][0](value))
        if not good:
            raise UserError(f"{source}: {self.name}={value!r} is not accepted: {self.accepted}.")
        return value


def configure(script: dict, *also: type, argv: list[str] | None = None) -> dict:
    """The script's settings, name -> value, after the command line's config files and options.

    script: the script's globals(), in which only the settings are plain values so far.
    also: dataclasses whose fields with a default are settings of the script too.
    argv: the arguments; those of the process if left out.
    Raises UserError for a wrong key, type, value or file. `--help` prints and exits.
    """
    sys.excepthook = say_in_one_sentence
    settings = find_settings(script, also)
    values = {name: setting.default for name, setting in settings.items()}
    arguments = list(sys.argv[1:] if argv is None else argv)
    while arguments:
        argument = arguments.pop(0)
        if argument in ("--help", "-h"):
            print_help(script, settings)
            raise SystemExit(0)
        if not argument.startswith("--"):
            values.update(read_config_file(argument, settings, values))
            continue
        key, equals, text = argument[2:].partition("=")
        setting = known(key.replace("-", "_"), settings, "command line", argument)
        if not equals and setting.is_flag:
            values[setting.name] = take_flag(setting, arguments)
        elif not equals and (not arguments or arguments[0].startswith("--")):
            raise UserError(f"command line: {argument} needs a value: {setting.accepted}.")
        else:
            values[setting.name] = setting.parse(text if equals else arguments.pop(0))
    return values


def take_flag(setting: Setting, arguments: list[str]):
    """The value after `--flag`, where one stands there; else True, and the arguments are kept."""
    try:
        value = setting.parse(arguments[0])
    except (UserError, IndexError):
        return True
    del arguments[0]
    return value


def find_settings(script: dict, also: tuple[type, ...]) -> dict[str, Setting]:
    """Every plain value among the script's names, and each defaulted field of the dataclasses."""
    module = sys.modules[script["__name__"]]
    found = {
        name: (value, inspect.get_annotations(module).get(name))
        for name, value in script.items()
        if not name.startswith("_") and isinstance(value, (bool, int, float, str))
    }
    comments = read_comments(script["__file__"])
    for cls in also:
        found |= {f.name: (f.default, f.type) for f in fields(cls) if f.default is not MISSING}
        comments |= read_comments(inspect.getfile(cls))
    return {
        name: Setting(name, default, comments.get(name, ""), get_args(annotation))
        for name, (default, annotation) in found.items()
    }


def read_comments(path: str) -> dict[str, str]:
    """name -> comment, for each line `name = value  # comment` or `name: type = value  # ...`."""
    comments: dict[str, str] = {}
    with tokenize.open(path) as source:
        for token in tokenize.generate_tokens(source.readline):
            head = token.line.split("=")[0].split(":")[0].strip()
            if token.type == tokenize.COMMENT and head.isidentifier():
                comments.setdefault(head, token.string.lstrip("# "))
    return comments


def read_config_file(path: str, settings: dict[str, Setting], values: dict) -> dict:
    """Run the Python file in a namespace of its own that starts with `values`; return the changes."""
    # nanoGPT's config/train_NAME.py trains what config/NAME.py trains here
    plain = os.path.join(os.path.dirname(path), os.path.basename(path).removeprefix("train_"))
    path = plain if os.path.isfile(plain) and not os.path.isfile(path) else path
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "config"
        there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        near = difflib.get_close_matches(os.path.basename(path), there, n=1, cutoff=0)
        hint = f"; the nearest is {os.path.join(folder, near[0])}" if near else ""
        raise UserError(f"no config file {path}{hint}. An option is written --key=value.")
    try:
        names = runpy.run_path(path, init_globals=values)
    except Exception as error:
        raise UserError(f"config file {path} fails: {type(error).__name__}: {error}.") from error
    changed = {}
    for name, value in names.items():
        if not name.startswith("_") and not isinstance(value, ModuleType):
            changed[name] = known(name, settings, path, f"{name} = {value!r}").check(value, path)
    return changed


def known(name: str, settings: dict[str, Setting], source: str, written: str) -> Setting:
    if name in settings:
        return settings[name]
    near = difflib.get_close_matches(name, settings, n=1, cutoff=0)[0]
    raise UserError(
        f"{source}: {written}: there is no setting {name}; the nearest is {near}, "
        f"which takes {settings[near].accepted}. --help lists all."
    )


def print_help(script: dict, settings: dict[str, Setting]) -> None:
    print((script.get("__doc__") or "").strip(), "\n\nSettings, with their defaults:")
    for name, setting in settings.items():
        choices = f"({', '.join(map(str, setting.choices))}) " if setting.choices else ""
        print(f"  --{name + '=' + str(setting.default):<36} {choices}{setting.comment}".rstrip())


def say_in_one_sentence(kind: type[BaseException], error: BaseException, traceback) -> None:
    """sys.excepthook: what a user can mend is a sentence and a status; a bug keeps its traceback."""
    rank = os.environ.get("RANK", "0")
    name = os.path.basename(sys.argv[0]) + (f" [rank {rank}]" if rank != "0" else "")
    if issubclass(kind, BrokenPipeError):  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141)
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{name}: interrupted", file=sys.stderr)
        raise SystemExit(130)
    if issubclass(kind, UserError):
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2)
    if kind.__name__ == "OutOfMemoryError":
        print(
            f"{name}: out of GPU memory: lower --batch_size (raise --gradient_accumulation_steps "
            f"by as much and nothing else changes), --block_size, --n_layer or --n_embd. {error}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    sys.__excepthook__(kind, error, traceback)
