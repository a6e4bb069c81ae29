"""What differs between docs/ as files and as a site: mkdocs calls this for each page."""

import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """The README in the place of index.md; links to files that are no pages as their paths."""
    if page.file.src_uri == "index.md":
        markdown = (ROOT / "README.md").read_text().replace("](docs/", "](")
    markdown = markdown.replace("](../README.md", "](index.md")
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)?(benchmarks/[^)]+|[A-Z]+\.md)\)", r"\1 (`\2`)", markdown)


class Arguments(griffe.Extension):
    """What a docstring says of arguments, a line or more of each, as a list."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = as_list(obj.docstring.value)


def as_list(text: str) -> str:
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        parts = re.split(r"(?:^|\n| (?<=[.;] ))(?=[a-z_][\w, ]{0,60}: )", paragraph.strip())
        if not re.match(r"[a-z_][\w, ]*: ", paragraph.strip()):
            paragraphs.append(paragraph)
            continue
        named = [part.partition(": ") for part in parts if part.strip()]
        lines = [f"* `{names}`: {' '.join(rest.split())}" for names, _, rest in named]
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)
