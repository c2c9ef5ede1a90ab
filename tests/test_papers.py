"""The Chinese papers say what the English ones say; every file that a paper links is there."""

import re

import pytest
from conftest import ROOT

PAPERS = sorted(path for path in ROOT.rglob("*.md") if ".venv" not in path.parts)
CHINESE = [path for path in PAPERS if path.name.endswith(".zh-CN.md")]
COMMAND = r"(?:python|torchrun|pip|git) [^`\n]+"


def name_of(path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("chinese", CHINESE, ids=name_of)
def test_a_chinese_paper_has_the_english_ones_commands_headings_and_tables(chinese):
    text = chinese.read_text(encoding="utf-8")
    english = chinese.with_name(chinese.name.replace(".zh-CN", "")).read_text(encoding="utf-8")
    for pattern in (
        rf"`({COMMAND})`",  # commands in a sentence or a table
        rf"^    ({COMMAND})$",  # commands of their own
        r"^(#+) ",  # headings
        r"^\|(.)",  # rows of tables
        r"(?<![\w`])(--[a-z_]+)=",  # options
        r"`([\w/.-]+\.(?:py|pt|json|jsonl|bin))`",  # files
    ):
        wanted, found = (re.findall(pattern, paper, re.MULTILINE) for paper in (english, text))
        assert len(found) == len(wanted) and (pattern == r"^\|(.)" or found == wanted), pattern


@pytest.mark.parametrize("path", PAPERS, ids=name_of)
def test_every_file_that_a_paper_links_is_there(path):
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert "://" in link or (path.parent / link).exists(), link
