"""Settings as a script or a dataclass writes them: name, default, choices, accepted values.

steps = 10  # how many
kind: Literal["a", "b"] = "a"  # which
"""

import ast
import contextlib
import inspect
import os
import sys
import tokenize
from dataclasses import dataclass
from typing import Any

from core import UserError

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
PROMPTS = ("start", "stop", "text")  # what a model reads or writes; other text may be a path
LARGEST = {int: 2**63 - 1, float: sys.float_info.max}  # of 64 bits


@dataclass
class Setting:
    name: str
    default: Any
    choices: tuple = ()  # the values it may have, none for all of its type

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
        kind, accepted = type(self.default), self.accepted
        is_number = kind in LARGEST and type(value) in LARGEST
        if is_number and not abs(value) <= LARGEST[kind]:  # too large, or not a number
            good, accepted = False, "a number of at most 64 bits"
        elif self.choices:  # by type as well, since True == 1
            good = any(type(value) is type(c) and value == c for c in self.choices)
        else:
            if is_number and value == kind(value):
                value = kind(value)  # 2 is 2.0, and 1e3 is 1000
            good = type(value) is kind and self.in_range(value)
        if not good:
            shown = "a number of thousands of digits"
            with contextlib.suppress(ValueError):  # Python does not print such a one
                shown = repr(value)
            raise UserError(f"{source}: {self.name}={shown} is not accepted: {accepted}.")
        is_path = isinstance(value, str) and value[:2] == "~/" and self.name not in PROMPTS
        return os.path.expanduser(value) if is_path else value

    def parse(self, text: str):
        """The value that `text` on the command line stands for, or a UserError."""
        value: Any = text
        if self.name in PROMPTS:
            raw = text.encode("utf-8", "surrogateescape")  # it may hold bytes that are not UTF-8
            value = raw.decode("utf-8", "replace").replace("\\n", "\n")
        elif self.is_flag and text.lower() in ("true", "false"):
            value = text.lower() == "true"
        elif type(self.default) is not str:
            # the last two come of nested brackets
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = ast.literal_eval(text)
        return self.check(value, "command line")


def read_settings(source: str | type) -> dict[str, Setting]:
    """The plain values in the body of a dataclass, or at the top of a script before `configure`."""
    if isinstance(source, type):
        body = ast.parse(inspect.getsource(source)).body[0].body
    else:
        with tokenize.open(source) as file:
            body = ast.parse(file.read()).body
    found = {}
    for statement in body:
        if "configure(" in ast.unparse(statement):
            break
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not statement.value:
            continue
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        choices = ()
        with contextlib.suppress(ValueError):  # not a plain value
            default = ast.literal_eval(statement.value)
            if isinstance(getattr(statement, "annotation", None), ast.Subscript):  # Literal["a"]
                choices = ast.literal_eval(statement.annotation.slice)
            if type(default) in KINDS:
                found[target.id] = Setting(target.id, default, choices)
    return found
