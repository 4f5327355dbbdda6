"""What the site needs so that its pages also work as they are in the repository.

Pages link to files of the repository that are no pages: examples, sources, the changelog. Here each of
them becomes a page of the site, under `repository/`, and the links lead there. The pages themselves are
also published as Markdown, where `llms.txt` looks for them.
"""

from __future__ import annotations

import html
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

LINK = re.compile(r"(?<=\]\()((?:\.\./)*[\w./-]+\.(?:py|json|md))(?=[)#])")
BAR_IN_CODE = re.compile(r"`([^`\n]*\\\|[^`\n]*)`")
LANGUAGES = {".py": "python", ".json": "json"}


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to."""
    root = Path(config.config_file_path).parent
    wanted = {"CHANGELOG.md"}
    for page in files.documentation_pages():
        wanted |= {path for _, path in foreign_links(page.content_string, page.src_uri, root)}
    for path in sorted(wanted):
        files.append(File.generated(config, uri_of(path), content=page_of(root / path, path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Let links to such files lead to their pages."""
    here = page.file.src_uri
    for link, path in foreign_links(markdown, here, Path(config.config_file_path).parent):
        there = posixpath.relpath(uri_of(path), posixpath.dirname(here))
        markdown = re.sub(rf"(?<=\]\(){re.escape(link)}(?=[)#])", there, markdown)
    return BAR_IN_CODE.sub(lambda code: as_html(code.group(1)), markdown)


def on_post_build(config: Any) -> None:
    """Put the Markdown beside the pages that are made of it."""
    docs = Path(config.docs_dir)
    for page in docs.rglob("*.md"):
        shutil.copyfile(page, Path(config.site_dir) / page.relative_to(docs))


def as_html(code: str) -> str:
    """Code of a table that holds a bar: GitHub wants a backslash in front of it, and MkDocs shows that."""
    return f"<code>{html.escape(code).replace(chr(92) + '|', '&#124;')}</code>"


def foreign_links(markdown: str, page: str, root: Path) -> set[tuple[str, str]]:
    """Links of a page to files of the repository that are no pages of `docs/`, and those files."""
    found: set[tuple[str, str]] = set()
    for link in LINK.findall(markdown):
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
        is_page = path.startswith("docs/") and path.endswith(".md")
        if not is_page and (root / path).is_file():
            found.add((link, path))
    return found


def from_repository(link: str, path: str) -> str:
    """Where a link of a file of the repository leads on the site."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    is_page = target.startswith("docs/") and target.endswith(".md")
    there = target.removeprefix("docs/") if is_page else uri_of(target)
    return posixpath.relpath(there, posixpath.dirname(uri_of(path)))


def uri_of(path: str) -> str:
    """Where the page of a file stands."""
    return f"repository/{path.removesuffix('.md')}.md"


def page_of(file: Path, path: str) -> str:
    """A page that shows a file."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return LINK.sub(lambda link: from_repository(link.group(), path), text)
    return f"# `{path}`\n\n```{LANGUAGES[file.suffix]}\n{text}```\n"
