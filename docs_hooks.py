"""Adapt the Markdown of `docs/` to the site that `make docs` builds."""

import re
from posixpath import dirname, normpath
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:
    """Replace each link that leaves `docs/` with the path of its target in the repository."""

    def replace(link: re.Match[str]) -> str:
        path = normpath(f"docs/{dirname(page.file.src_uri)}/{link[2]}")
        if path.startswith("docs/"):
            return link[0]
        return link[1] if link[1].strip("`/") == path else f"{link[1]} (`{path}`)"

    return LINK.sub(replace, markdown)
