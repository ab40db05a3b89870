"""What the site has besides the files of docs/: pages and pictures from elsewhere in the repository, and links to it.

A page says where a file is as the repository has it (`../benchmarks/methods.md`), so that it reads on GitHub too. Here
such a link becomes one to the page that the site made of the file, or else to the file on GitHub. A link that leads
nowhere is a warning, which ends a strict build.
"""

import json
import logging
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ON_GITHUB = "https://github.com/hf-i2v/hf_i2v/blob/main/"
MOUNTED = {  # page of the site: file of the repository
    "adapt_your_own.md": "examples/adapt_your_own.ipynb",
    "changelog.md": "CHANGELOG.md",
    "comparison.md": "benchmarks/compare/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "measured/archives.md": "benchmarks/archives.md",
    "measured/methods.md": "benchmarks/methods.md",
    "measured/scaling.md": "benchmarks/scaling.md",
    "measured/speed.md": "benchmarks/speed.md",
    "measured/streaming.md": "benchmarks/streaming.md",
    "measured/training_cost.md": "benchmarks/training_cost.md",
}
TITLES = {  # of files that are a table without a heading
    "benchmarks/methods.md": "Parameters and MACs of every method",
    "benchmarks/scaling.md": "What many GPUs would give, computed",
    "benchmarks/streaming.md": "A step of a stream",
    "benchmarks/training_cost.md": "What a training step costs",
}
PICTURES = ("benchmarks/compare/results", "benchmarks/scaling.png")
CODE_OR_LINK = re.compile(r"^```.*?^```$|`[^`\n]*`|\]\(([^()\s]+)\)", re.DOTALL | re.MULTILINE)  # no link in code

log = logging.getLogger("mkdocs.hooks")


def source_of(page: str) -> str:
    """The file of the repository that a page of the site is made of."""
    return MOUNTED.get(page, f"docs/{page}")


def text_of(source: str) -> str:
    """A file of the repository as markdown; a notebook as its texts and its code."""
    text = (ROOT / source).read_text()
    if source.endswith(".ipynb"):
        return "\n\n".join(_cell(cell) for cell in json.loads(text)["cells"])
    return f"# {TITLES[source]}\n\n{text}" if source in TITLES else text


def _cell(cell: dict) -> str:
    text = "".join(cell["source"])
    return f"```python\n{text}\n```" if cell["cell_type"] == "code" else text


def target_of(link: str, page: str) -> str:
    """A link of a page as the site has it.

    Raises:
        FileNotFoundError: the repository has no such file.
    """
    path, hash_sign, anchor = link.partition("#")
    if re.match(r"[a-z]+:", link) or not path:
        return link
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source_of(page)), path))
    if wanted.startswith("..") or not (ROOT / wanted).exists():
        raise FileNotFoundError(f"{source_of(page)} links to {link}, but there is no {wanted}")
    mounted = {source: name for name, source in MOUNTED.items()}
    if wanted in mounted:
        there = mounted[wanted]
    elif wanted.startswith(PICTURES):
        there = wanted
    elif wanted.startswith("docs/") and not wanted.endswith(".py"):
        there = wanted.removeprefix("docs/")
    else:
        return ON_GITHUB + wanted + hash_sign + anchor
    return posixpath.relpath(there, posixpath.dirname(page) or ".") + hash_sign + anchor


def links(markdown: str) -> list[str]:
    """The links of a page, without those in code."""
    return [match[1] for match in CODE_OR_LINK.finditer(markdown) if match[1]]


def on_files(files, config):
    from mkdocs.structure.files import File

    for page, source in MOUNTED.items():
        files.append(File.generated(config, page, content=text_of(source)))
    for folder in PICTURES:
        for path in sorted((ROOT / folder).rglob("*.png")) if (ROOT / folder).is_dir() else [ROOT / folder]:
            files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    def moved(match):
        try:
            return f"]({target_of(match[1], page.file.src_uri)})" if match[1] else match[0]
        except FileNotFoundError as error:
            log.warning(str(error))
            return match[0]

    return CODE_OR_LINK.sub(moved, markdown)
