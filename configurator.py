"""Settings: a script's own names <- config files <- --key=value, later wins.

A script assigns its settings at its top, one per line, each with a comment, and then says
`globals().update(configure(__file__))`. A setting's type is that of its default;
`Literal["a", "b"]` as its annotation lists choices.
"""

import ast
import contextlib
import gc
import os
import runpy
import sys
import tokenize
from dataclasses import fields

from core import UserError, set_up_script
from core.settings import KINDS, Setting, read_settings

set_up_script()  # now, since a script's other imports take a second
ROOT = os.path.dirname(os.path.abspath(__file__))


def configure(script: str, *also: str | type, words: list | None = None, argv=None) -> dict:
    """The script's settings, name -> value, after config files and options; UserError if wrong.

    also: where more settings stand: another script of the repository, or a dataclass.
    words: a list that gets what is neither an option nor a .py file, if accepted.
    """
    gc.freeze()  # what was imported stays: without looking at it a script ends 0.3 s sooner
    sources = [os.path.join(ROOT, s) if isinstance(s, str) else s for s in (script, *also)]
    settings: dict[str, Setting] = {}
    for source in sources:
        for name, setting in read_settings(source).items():
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
    if "dataset" in given and "prepare" in values.keys() - given:
        values["prepare"] = ""  # a config file's makes the dataset that the file names
    if values.get("model_type"):
        from core.extras.gpt2 import set_size

        set_size(values)
    if asked_for_help:
        from core.extras.help import print_help

        print_help(sources, settings, values)
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
    from core.extras.help import no_setting

    raise no_setting(name, settings, source)


def read_config_file(path: str, settings: dict[str, Setting], values: dict) -> dict:
    """The settings after a Python file, run in a namespace of its own that starts with `values`.

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
    found = {}
    for name, value in names.items():
        if name in settings:
            found[name] = settings[name].check(value, path)
        elif type(value) in KINDS and name not in read and not name.startswith("_"):
            find_setting(name, settings, path)  # raises the UserError
    return found


def find_config_file(path: str) -> str:
    """Where a config file is: here, beside this file, or in config/ there; or by nanoGPT's name."""
    for folder in ("", ROOT, os.path.join(ROOT, "config")):
        for name in (path, path.replace("train_", "", 1)):
            found = os.path.join(folder, name)
            if os.path.isfile(found):
                return found
    from core.extras.help import no_config_file

    raise no_config_file(path, os.path.join(ROOT, "config"))
