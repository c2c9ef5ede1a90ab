"""The rules of the house: who may import whom, how long things may be, how modules are started."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

TOP = sorted(ROOT.glob("*.py"))
CORE = sorted((ROOT / "core").rglob("*.py"))
SCRIPTS = ("model", "train", "sample", "prepare_shakespeare", "configurator")
ROOMS = sorted([*(ROOT / "projects").rglob("*.py"), *(ROOT / "tools").glob("*.py")])


def imports(path, at_top_only: bool = False) -> set[str]:
    """The modules of this repository that a file imports, wherever in it, or at its top."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {node.module, *(name for name in names if file_of(name).exists())}
    ours = {"core", "projects", "tools", "tests", *(path.stem for path in TOP)}
    return {name for name in found if name.split(".")[0] in ours}


def file_of(module: str):
    return ROOT / f"{module.replace('.', '/')}.py"


def test_core_is_the_reading_path_and_it_is_short():
    modules, found = set(), set(SCRIPTS)
    while found:
        modules |= found
        files = [file_of(name) for name in found if file_of(name).exists()]
        found = set().union(*(imports(file, at_top_only=True) for file in files)) - modules
    files = {ROOT / "core/__init__.py", *(file_of(name) for name in modules - {"core"})}
    assert files == {*(file_of(name) for name in SCRIPTS), *(ROOT / "core").glob("*.py")}
    assert sum(len(file.read_text().splitlines()) for file in files) <= 3000


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_imports_nothing_above_it(path):
    assert all(name.split(".")[0] == "core" for name in imports(path))


@pytest.mark.parametrize("path", TOP, ids=lambda path: path.name)
def test_the_top_level_knows_no_projects_and_tools(path):
    assert {name.split(".")[0] for name in imports(path)} <= {"core", "model", "configurator"}


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_projects_and_tools_import_only_downwards(path):
    own = ".".join(path.relative_to(ROOT).parent.parts)
    for name in imports(path):
        assert name.split(".")[0] in ("core", "model", "configurator") or name.startswith(own)


@pytest.mark.parametrize(
    "path", [*TOP, *CORE, *ROOMS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_and_functions_stay_short(path):
    limits = {"model.py": 260, "train.py": 250, "configurator.py": 200}
    text = path.read_text()
    assert len(text.splitlines()) <= limits.get(path.name, 300)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, node.name


def is_script(path) -> bool:
    return "configure(__file__" in path.read_text()


@pytest.mark.parametrize(
    "path", list(filter(is_script, ROOMS)), ids=lambda path: str(path.relative_to(ROOT))
)
def test_started_by_its_path_a_module_says_how_it_is_started(path, tmp_path):
    result = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True)
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert result.returncode == 2 and f"python -m {module}" in result.stderr
    assert len(result.stderr.splitlines()) == 1
