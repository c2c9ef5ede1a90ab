"""Settings: a script's own names <- config files <- --key=value, later wins.

A script assigns its settings at its top, one a line, each with a comment, and then says

    globals().update(configure(__file__))

after which all of these work, `-` and `_` being the same:

    python train.py config/gpt2.py --batch_size=8 --eval-only --out_dir out/mine
    python train.py --help

A setting's type is that of its default; `Literal["a", "b"]` as its annotation lists choices.
"""

import ast
import contextlib
import difflib
import gc
import inspect
import os
import runpy
import sys
import tokenize
from dataclasses import MISSING, dataclass, fields
from types import ModuleType
from typing import Any, Literal, get_args

from core import UserError

KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
# What a number must satisfy beyond its type. A name means the same in every script.
RANGES = {
    "at least 1": (
        lambda v: v >= 1,
        "batch_size block_size gradient_accumulation_steps n_layer n_head n_embd num_samples "
        "eval_iters log_interval prompt_tokens min_freq row_length length symbols held_out "
        "problems",
    ),
    "at least 0": (
        lambda v: v >= 0,
        "max_iters eval_interval warmup_iters warmup_tokens lr_decay_iters ramp_iters min_lr "
        "max_new_tokens weight_decay grad_clip logit_softcap peak_tflops temperature top_k seed "
        "smear window loss_chunk updates new_tokens shards limit val_share",
    ),
    "above 0": (lambda v: v > 0, "learning_rate muon_lr repetition_penalty rotary_base"),
    "at least 0 and below 1": (
        lambda v: 0 <= v < 1,
        "beta1 beta2 muon_momentum dropout min_p smooth",
    ),
    "above 0 and at most 1": (lambda v: 0 < v <= 1, "top_p warmdown"),
}


@dataclass
class Setting:
    """One setting: its default, the comment beside it, and its choices (none: all of its type)."""

    name: str
    default: Any
    comment: str
    choices: tuple = ()

    def __post_init__(self):
        in_words = (words for words, (_, names) in RANGES.items() if self.name in names.split())
        self.range = next(in_words, "")
        self.is_flag = isinstance(self.default, bool) or True in self.choices
        self.accepted = f"{KINDS[type(self.default)]} {self.range}".strip()
        if self.choices:
            self.restrict(self.choices)

    def restrict(self, choices: tuple) -> None:
        self.choices = choices
        self.accepted = f"one of {', '.join(str(c) for c in choices if c != '')}"

    def check(self, value, source: str):
        """`value` as the setting's own type, or a UserError that says what is accepted."""
        if type(self.default) is float and type(value) is int:
            value = float(value)
        if self.choices:  # by type as well, since True == 1
            good = any(value == c and type(value) is type(c) for c in self.choices)
        else:
            good = type(value) is type(self.default)
            good = good and (not self.range or RANGES[self.range][0](value))
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


def configure(
    script: str,
    *also: str | type,
    presets: dict[str, dict[str, dict]] | None = None,
    words: list[str] | None = None,
    argv: list[str] | None = None,
) -> dict:
    """The script's settings, name -> value, after the command line's config files and options.

    script: the path of the script, whose settings are the plain values that it assigns before it
        calls this function.
    also: where more settings stand: another script beside this one, or a dataclass, of which they
        are the fields with a default. What the script sets itself goes first.
    presets: setting -> value -> the settings that it stands for, {"model": {"gpt2-xl": {...}}}.
    words: a list to which what is neither an option nor a .py file is added, if it is to be taken.
    argv: the arguments, by default the process's. `--help` prints all settings and exits.
    Raises UserError for a wrong key, type, value or file.
    """
    sys.excepthook = say_in_one_sentence
    gc.freeze()  # imports stay: not looked at again, they let a script end 0.3 s sooner or more
    folder = os.path.dirname(os.path.abspath(script))
    settings: dict[str, Setting] = {}
    for source in (script, *also):
        is_script = isinstance(source, str)
        found = of_script(os.path.join(folder, source)) if is_script else of_class(source)
        settings |= {name: setting for name, setting in found.items() if name not in settings}
    values = {name: setting.default for name, setting in settings.items()}
    presets = presets or {}
    for name, known_values in presets.items():
        settings[name].restrict(("", *known_values))

    def take(name: str, value) -> None:
        values.update({name: value, **presets.get(name, {}).get(value, {})})

    arguments = list(sys.argv[1:] if argv is None else argv)
    while arguments:
        argument = arguments.pop(0)
        if argument in ("--help", "-h"):
            print_help(script, settings)
            raise SystemExit(0)
        if argument.startswith("--"):
            take(*read_option(argument, arguments, settings))
        elif words is not None and not argument.endswith(".py"):
            words.append(argument)
        else:
            read = read_config_file(argument, settings, values)
            for name in sorted(read, key=lambda name: name not in presets):
                take(name, read[name])  # what a preset stands for may be set beside it
    return values


def read_option(argument: str, following: list[str], settings: dict[str, Setting]) -> tuple:
    """The setting's name and value of --key=value, --flag or --key; the value of the last, which
    the flag may have too, is taken from the arguments that follow."""
    key, equals, text = argument[2:].partition("=")
    setting = known(key.replace("-", "_"), settings, "command line", argument)
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


def of_script(path: str) -> dict[str, Setting]:
    """Every plain value assigned at the top of a script before it calls `configure`."""
    with tokenize.open(path) as source:
        statements = ast.parse(source.read()).body
    comments, found = read_comments(path), {}
    for statement in statements:
        if "configure(" in ast.unparse(statement):
            break
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not statement.value:
            continue
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        choices = ()
        with contextlib.suppress(NameError):  # of what is not a plain value
            value = evaluate(statement.value, path)
            if isinstance(statement, ast.AnnAssign):
                choices = get_args(evaluate(statement.annotation, path))
            if isinstance(target, ast.Name) and type(value) in KINDS and target.id[0] != "_":
                found[target.id] = Setting(target.id, value, comments.get(target.id, ""), choices)
    return found


def evaluate(expression: ast.expr, path: str):
    """A value or annotation in a script of this repository; arithmetic such as 5 * 8 may be in it.

    No name is known but Literal: whatever uses another is no plain value and raises NameError.
    """
    code = compile(ast.Expression(expression), path, "eval")
    return eval(code, {"__builtins__": {}, "Literal": Literal})


def of_class(cls: type) -> dict[str, Setting]:
    """Each field of a dataclass that has a default."""
    comments = read_comments(inspect.getfile(cls))
    return {
        f.name: Setting(f.name, f.default, comments.get(f.name, ""), get_args(f.type))
        for f in fields(cls)
        if f.default is not MISSING
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
    """What a Python file assigns, run in a namespace of its own that starts with `values`."""
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
        with tokenize.open(path) as source:
            nodes = list(ast.walk(ast.parse(source.read())))
        assigned = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    except Exception as error:
        raise UserError(f"config file {path} fails: {type(error).__name__}: {error}.") from error
    return {
        name: known(name, settings, path, f"{name} = {value!r}").check(value, path)
        for name, value in names.items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and (name in assigned or name not in values or value != values[name])
    }


def known(name: str, settings: dict[str, Setting], source: str, written: str) -> Setting:
    if name in settings:
        return settings[name]
    near = settings[difflib.get_close_matches(name, settings, n=1, cutoff=0)[0]]
    raise UserError(
        f"{source}: {written}: there is no setting {name}; the nearest is {near.name}, "
        f"which takes {near.accepted}. --help lists all."
    )


def print_help(script: str, settings: dict[str, Setting]) -> None:
    with tokenize.open(script) as source:
        description = ast.get_docstring(ast.parse(source.read()), clean=False) or ""
    print(description.strip() + "\n\nSettings, with their defaults:")
    for name, setting in settings.items():
        choices = f"({setting.accepted}) " if setting.choices else ""
        print(f"  --{name}={setting.default!s:<{30 - len(name)}} {choices}{setting.comment}")


def say_in_one_sentence(kind: type[BaseException], error: BaseException, traceback) -> None:
    """sys.excepthook: a user's mistake is a sentence and a status, a bug keeps its traceback."""
    if issubclass(kind, BrokenPipeError):  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141)
    if issubclass(kind, KeyboardInterrupt):
        sentence, status = "interrupted", 130
    elif issubclass(kind, UserError):
        sentence, status = str(error), 2
    elif kind.__name__ == "OutOfMemoryError":
        sentence, status = f"out of GPU memory: lower --batch_size or --block_size. {error}", 2
    else:
        sys.__excepthook__(kind, error, traceback)
        return
    rank = os.environ.get("RANK", "0")
    who = os.path.basename(sys.argv[0]) + (f" [rank {rank}]" if rank != "0" else "")
    # torch.distributed's own hook, around this one, would swallow what goes to sys.stderr
    print(f"{who}: {sentence}", file=sys.__stderr__)
    raise SystemExit(status)
