"""What differs between docs/ as files and as a site: mkdocs calls this for each page."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """The README in the place of index.md; links to files that are no pages as their paths."""
    if page.file.src_uri == "index.md":
        markdown = (ROOT / "README.md").read_text().replace("](docs/", "](")
    markdown = markdown.replace("](../README.md", "](index.md")
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)?(benchmarks/[^)]+)\)", r"\1 (`\2`)", markdown)
