"""Put the project's own Markdown files (recipes, contributing, changes) on the site, where they stand.

They stay where a reader of the repository looks for them. Here they become pages of the site under the
same paths, their pictures come along, and their links lead to the page that a file is on the site, or
else to the file in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = "docs/pages"
ELSEWHERE = re.compile(r"[a-z]+:|#|/")
LINK = re.compile(r"(!?\[[^\]\n]*\]\()([^)\s]+)(\))")
CODE = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)


def shown() -> list[str]:
    """Paths in the repository of the files outside ``docs`` that are pages, and of their pictures."""
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "recipes").rglob("*.md")]
    pictures = [path for kind in ("png", "svg") for path in (ROOT / "recipes").rglob(f"*.{kind}")]
    return [path.relative_to(ROOT).as_posix() for path in sorted(pages + pictures)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what :func:`shown` lists; a missing entry in the navigation stays a warning."""
    for path in shown():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Let relative links of a page from outside ``docs`` lead to pages of the site, and those of any
    page that leave it to the repository."""
    source = page.file.src_uri
    here = source if page.file.generated_by else f"{PAGES}/{source}"

    def led(match: re.Match[str]) -> str:
        target = match[2]
        if ELSEWHERE.match(target):
            return match[0]
        path, _, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        on_site = place.removeprefix(f"{PAGES}/")
        if on_site in files.src_uris:
            new = posixpath.relpath(on_site, posixpath.dirname(source) or ".")
        elif (ROOT / place).exists():
            new = f"{config.repo_url}/blob/main/{place}"
        else:
            return match[0]  # MkDocs says that it is broken
        return match[1] + new + (f"#{anchor}" if anchor else "") + match[3]

    parts, end = [], 0
    for block in CODE.finditer(markdown):
        parts += [LINK.sub(led, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(led, markdown[end:])])
