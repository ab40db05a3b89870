"""The README and the pages of docs/: their blocks of code, and the comments that say what a test does with them.

A comment stands before a block or a table, where no reader sees it:

    <!-- not run: REASON -->     the block below is not run
    <!-- with: STATEMENTS -->    Python that is run before the block below
    <!-- from FILE -->           the block below stands in FILE
    <!-- lines of FILE -->       the code in the last column of the table below stands in FILE
    <!-- figures of FILE -->     each row of the table below is in a table of FILE
    <!-- defaults of METHOD -->  options and defaults of the table below are those of its configuration
    <!-- recipes -->             so are recipes and what they expect
    <!-- bounds of FILE -->      and lower bounds
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of code."""

    page: Path
    line: int
    language: str
    text: str
    comments: dict[str, str]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class Table(NamedTuple):
    """A table with a comment before it: of rows the cells, without the head."""

    page: Path
    kind: str
    about: str
    rows: list[list[str]]


def blocks(page: Path) -> list[Block]:
    """All blocks of code of a page, in order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2], _comments_before(text, m.start()))
        for m in BLOCK.finditer(text)
    ]


def _comments_before(text: str, place: int) -> dict[str, str]:
    found = {}
    while match := re.search(r"<!-- (not run|with|from):? ?((?:(?!-->).)*?) -->\s*\Z", text[:place], re.DOTALL):
        found[match[1]] = match[2]
        place = match.start()
    return found


def tables(page: Path) -> list[Table]:
    """The tables of a page that a comment says the source of."""
    found = re.finditer(
        r"^<!-- (lines|figures|defaults|bounds|recipes)(?: of ([^>]+?))? -->\n((?:\|.*\n)+)",
        page.read_text(),
        re.MULTILINE,
    )
    return [Table(page, m[1], m[2] or "", rows(m[3])[1:]) for m in found]


def rows(text: str) -> list[list[str]]:
    """The rows of all tables in a text, without the lines below their heads. A bar in code is written \\|."""
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.startswith("|") and not re.match(r"\|[ :-]+\|[-| :]*$", line)
    ]
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines]
    return [[cell.strip().replace("\\|", "|") for cell in line] for line in cells]


def commands(block: Block) -> list[list[str]]:
    """The command lines of a block, in words. Comments and what stands for any further arguments (…) are left
    out, a variable is 1."""
    text = re.sub(r"\$[A-Z_]+", "1", re.sub(r"\\\n\s*", " ", block.text))
    lines = [line for whole in text.splitlines() for line in re.split(r" && ", whole)]
    found = [[word for word in shlex.split(line, comments=True) if word != "…"] for line in lines]
    return [words for words in found if words]


def inline_code(text: str) -> list[str]:
    """What stands between backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
