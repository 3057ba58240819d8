"""The page's scripts and styles, at addresses that carry a hash of their content.

Nodes of two versions may stand behind one proxy, as they do while they are upgraded one by one. So
an address names the version that it belongs to, and a node of another version answers 404.
"""

import hashlib
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

PREFIX: Final = "dashboard"

# Only files of these kinds are served.
_ASSET_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HASH_CHARACTERS: Final = 16
_YEAR_SECONDS: Final = 365 * 24 * 60 * 60


class Assets:
    """The files of a folder and its subfolders, as they are when this object is made.

    They are kept in memory (less than 100 KB): an upgrade that replaces the files on disk does not
    change the files that a running server sends.
    """

    def __init__(self, folder: Traversable) -> None:
        self._files: Final = dict(sorted(_read(folder)))
        self.version: Final = _hash(self._files)

    @property
    def base(self) -> str:
        """The address of the files, relative to the page's, without a slash at the end."""
        return f"{PREFIX}/{self.version}"

    @property
    def addresses(self) -> list[str]:
        """The addresses of all files, relative to the page's."""
        return [f"{self.base}/{name}" for name in self._files]

    def text(self, name: str) -> str:
        """Return the text of a file. Raises KeyError when there is no such file."""
        return self._files[name].decode()

    async def answer(self, request: Request) -> Response:
        """Answer a GET or HEAD of the route `/dashboard/{path:path}`.

        An address with this version's hash may be cached for ever. An address without a hash
        (`/dashboard/client/routecast.js`, for pages of other sites) is this node's file; the
        browser asks each time whether it has changed. Raises HTTPException, 404, for all others.
        """
        path: str = request.path_params["path"]
        version, _, name = path.partition("/")
        if version == self.version:
            caching = f"public, max-age={_YEAR_SECONDS}, immutable"
        else:
            name, caching = path, "no-cache"
        if name not in self._files:
            detail = "this node has no such file; a node of another version may have it"
            raise HTTPException(404, detail, {"Cache-Control": "no-store"})
        headers = {
            "Cache-Control": caching,
            "ETag": f'"{self.version}"',
            "X-Content-Type-Options": "nosniff",
        }
        if self._is_known(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        kind = _ASSET_TYPES[PurePosixPath(name).suffix]
        return Response(self._files[name], headers=headers, media_type=kind)

    def _is_known(self, tags: str) -> bool:
        known = (tag.strip().removeprefix("W/") for tag in tags.split(","))
        return f'"{self.version}"' in known


def _read(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield the relative path and the content of each file to serve."""
    for entry in folder.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            yield from _read(entry, f"{name}/")
        elif PurePosixPath(name).suffix in _ASSET_TYPES:
            yield name, entry.read_bytes()


def _hash(files: Mapping[str, bytes]) -> str:
    """Return a short hash of names and contents."""
    digest = hashlib.sha256()
    for name, content in files.items():
        for part in (name.encode(), content):
            digest.update(len(part).to_bytes(8))
            digest.update(part)
    return digest.hexdigest()[:_HASH_CHARACTERS]
