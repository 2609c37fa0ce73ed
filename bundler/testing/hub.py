"""A server that speaks like the Hugging Face Hub, keeps a log, and misbehaves on demand.

::

    with TestHub() as hub:
        hub.add_repository("owner/name", {"config.json": b"{}", "model.safetensors": weights})
        hub.inject("*/model.safetensors", Fault.reset(after_bytes=1 << 20))
        world = World(store, environment={"HF_ENDPOINT": hub.url})
        …
        assert hub.bytes_sent("*/model.safetensors") < …

It has two origins, as the real one: the hub itself (`url`) and a content network (`cdn_url`) to
which it redirects for large files. Plain files for the `http` source lie under `/files/`. It
listens on 127.0.0.1 only and needs nothing but the standard library.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from bundler.testing.hub_content import Bytes, Content, LocalFile, SparseFile, content_of, git_blob
from bundler.testing.hub_faults import Fault
from bundler.testing.hub_server import Answer, Redirect, Request, Served, Server

_LFS_ENDINGS = (".safetensors", ".gguf", ".bin", ".pt", ".onnx", ".h5")
TEST_TOKEN = "hf_test"  # noqa: S105 - opens nothing but the test hub
_LFS_BYTES = 10 << 20  # The Hub wants larger files in LFS.


@dataclass
class Repository:
    """One repository as the hub has it; tests may change it while the hub runs."""

    name: str
    commit: str
    files: dict[str, Content]
    revisions: set[str]
    card: dict[str, Any]
    gated: bool = False
    private: bool = False
    lfs: frozenset[str] | None = None
    siblings: list[dict[str, Any]] | None = None

    def is_lfs(self, path: str) -> bool:
        """Tell whether a file is stored by content, and its SHA-256 therefore listed."""
        if self.lfs is not None:
            return path in self.lfs
        return path.endswith(_LFS_ENDINGS) or self.files[path].size > _LFS_BYTES

    def listing(self, with_blobs: bool) -> list[dict[str, Any]]:
        """Return `siblings` as the API has them."""
        if self.siblings is not None:
            return self.siblings
        return [self._sibling(path, with_blobs) for path in sorted(self.files)]

    def _sibling(self, path: str, with_blobs: bool) -> dict[str, Any]:
        if not with_blobs:
            return {"rfilename": path}
        content = self.files[path]
        if not self.is_lfs(path):
            return {"rfilename": path, "size": content.size, "blobId": git_blob(content)}
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{content.sha256}\n"
            f"size {content.size}\n"
        ).encode()
        return {
            "rfilename": path,
            "size": content.size,
            "blobId": git_blob(Bytes(pointer)),
            "lfs": {
                "sha256": content.sha256,
                "size": content.size,
                "pointerSize": len(pointer),
            },
        }


@dataclass
class _Script:
    pattern: str
    faults: list[Fault]
    always: bool
    method: str
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> Fault | None:
        with self.lock:
            if not self.faults:
                return None
            return self.faults[0] if self.always and len(self.faults) == 1 else self.faults.pop(0)


class TestHub:
    """The server. Use it as a context manager; everything may be changed while it runs."""

    __test__ = False  # Not a test, whatever pytest thinks of its name.

    def __init__(self, *, token: str = TEST_TOKEN, redirects: bool = True) -> None:
        self.token = token
        """The token that is let into gated and private repositories."""
        self.log: list[Request] = []
        """Every request to both origins, in order of arrival."""
        self._redirects = redirects
        self._repositories: dict[str, Repository] = {}
        self._plain: dict[str, Served] = {}
        self._moved: dict[str, str] = {}
        self._scripts: list[_Script] = []
        self._hub = Server(self._answer_hub, self._fault, self.log)
        self._cdn = Server(self._answer_cdn, self._fault, self.log)
        self.url = self._hub.url
        """The hub's own origin: what HF_ENDPOINT is set to."""
        self.cdn_url = self._cdn.url
        """The origin that large files are redirected to."""

    def __enter__(self) -> TestHub:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(check=kind is None)

    def close(self, *, check: bool = True) -> None:
        """Stop; with `check`, raise AssertionError if the hub itself failed at a request."""
        self._hub.close()
        self._cdn.close()
        if check and (failures := self._hub.failures + self._cdn.failures):
            raise AssertionError(f"the test hub failed: {failures}")

    @property
    def connections(self) -> int:
        """How many TCP connections were accepted, on both origins."""
        return self._hub.connections + self._cdn.connections

    # -- what is there ---------------------------------------------------------------------------

    def add_repository(
        self,
        name: str,
        files: Mapping[str, bytes | str | Path | Content],
        *,
        commit: str = "0123456789abcdef0123456789abcdef01234567",
        revisions: Sequence[str] = ("main",),
        licence: str = "apache-2.0",
        card: Mapping[str, Any] | None = None,
        gated: bool = False,
        private: bool = False,
        lfs: Sequence[str] | None = None,
        siblings: list[dict[str, Any]] | None = None,
    ) -> Repository:
        """Put a model repository up.

        Args:
            name: `owner/name`.
            files: path → bytes, text, a local file, a `SparseFile`.
            commit: the one commit it has; `revisions` are the branches and tags that mean it.
            licence: `license` of the model card; `card` gives further fields.
            gated: files are given only to who sends the token; the listing is public.
            private: to others than who sends the token it does not exist.
            lfs: files stored by content; those with weights or over 10 MiB when left out.
            siblings: a listing to serve instead of the true one, for hostile ones.
        """
        repository = Repository(
            name=name,
            commit=commit,
            files={path: content_of(given) for path, given in files.items()},
            revisions=set(revisions),
            card={"license": licence, **(card or {})},
            gated=gated,
            private=private,
            lfs=None if lfs is None else frozenset(lfs),
            siblings=siblings,
        )
        self._repositories[name] = repository
        return repository

    def add_file(
        self,
        path: str,
        given: bytes | str | Path | Content,
        *,
        sha256_beside: bool = False,
        metalink: bool = False,
        mirrors: Sequence[str] = (),
        etag: str | None = None,
    ) -> str:
        """Put a plain file up at `/files/<path>` and return its URL.

        `sha256_beside` puts `<path>.sha256` beside it, `metalink` a `<path>.meta4` with `mirrors`.
        """
        content = content_of(given)
        self._plain[path] = Served(
            content, etag if etag is not None else f'"{content.sha256[:32]}"'
        )
        name = path.rpartition("/")[2]
        if sha256_beside:
            self.add_file(f"{path}.sha256", f"{content.sha256}  {name}\n")
        if metalink:
            self.add_file(f"{path}.meta4", _metalink(name, content, mirrors))
        return f"{self.url}/files/{quote(path)}"

    def add_redirect(self, path: str, target: str) -> None:
        """Redirect from a path of the hub to a URL; with `/*` at its end, from all paths below,
        whose rest is then put behind the URL.
        """
        self._moved[path] = target

    def inject(self, pattern: str, *faults: Fault, always: bool = False, method: str = "*") -> None:
        """Let things go wrong at paths that match a pattern (`*` also stands for `/`).

        The first matching request meets the first fault, the next one the second…; with `always`
        the last one stays. Large files are served at `/cdn/<owner>/<name>/<path>`, the redirect to
        it at `/<owner>/<name>/resolve/<commit>/<path>`, the listing under `/api/models/`.
        """
        self._scripts.append(_Script(pattern, list(faults), always, method))

    # -- what happened ---------------------------------------------------------------------------

    def requests(self, pattern: str, method: str = "*") -> list[Request]:
        """Return the requests whose path matches, in order of arrival."""
        return [
            r for r in self.log if fnmatchcase(r.path, pattern) and fnmatchcase(r.method, method)
        ]

    def bytes_sent(self, pattern: str) -> int:
        """Return how many bytes of bodies were sent for matching paths."""
        return sum(request.bytes_sent for request in self.requests(pattern))

    # -- answers ---------------------------------------------------------------------------------

    def _fault(self, method: str, path: str) -> Fault:
        for script in self._scripts:
            if fnmatchcase(path, script.pattern) and fnmatchcase(method, script.method):
                fault = script.next()
                if fault is not None:
                    return fault
        return Fault.none()

    def _answer_cdn(self, request: Request) -> Answer:
        asked = request.path.removeprefix("/cdn/")
        kind = "datasets/" * asked.startswith("datasets/")
        owner, _, rest = asked.removeprefix(kind).partition("/")
        name, _, path = rest.partition("/")
        repository = self._repositories.get(f"{kind}{owner}/{name}")
        if (
            not request.path.startswith("/cdn/")
            or repository is None
            or path not in repository.files
        ):
            return _error(404, "", "Not found")
        content = repository.files[path]
        return Served(content, f'"cdn-{content.sha256[:24]}"')

    def _answer_hub(self, request: Request) -> Answer:
        for path, target in self._moved.items():
            if request.path == path:
                return Redirect(target)
            if path.endswith("/*") and request.path.startswith(path[:-1]):
                return Redirect(target + quote(request.path[len(path) - 1 :]))
        if request.path.startswith("/files/"):
            return self._plain.get(request.path[7:]) or _error(404, "", "Not found")
        if request.path.startswith("/api/models/"):
            return self._api(request, request.path.removeprefix("/api/models/"))
        if request.path.startswith("/api/datasets/"):
            return self._api(request, request.path.removeprefix("/api/"))
        name, found, rest = request.path[1:].partition("/resolve/")
        return self._resolve(request, name, rest) if found else _error(404, "", "Not found")

    def _find(self, request: Request, name: str) -> Repository | Answer:
        repository = self._repositories.get(name)
        if repository is None or (repository.private and not self._knows(request)):
            # The real hub says 401 to strangers, so that they learn nothing of private ones.
            return _error(
                404 if request.authorized else 401, "RepoNotFound", "Repository not found"
            )
        return repository

    def _knows(self, request: Request) -> bool:
        return request.token_is(self.token)

    def _api(self, request: Request, rest: str) -> Answer:
        name, _, revision = rest.partition("/revision/")
        repository = self._find(request, name)
        if not isinstance(repository, Repository):
            return repository
        if revision and revision not in repository.revisions | {repository.commit}:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        record = {
            "id": name,
            "modelId": name,
            "sha": repository.commit,
            "private": repository.private,
            "gated": "auto" if repository.gated else False,
            "disabled": False,
            "tags": [f"license:{repository.card['license']}"],
            "cardData": repository.card,
            "siblings": repository.listing("blobs=true" in request.query.lower()),
        }
        return Served(Bytes(json.dumps(record).encode()), "", content_type="application/json")

    def _resolve(self, request: Request, name: str, rest: str) -> Answer:
        repository = self._find(request, name)
        if not isinstance(repository, Repository):
            return repository
        revision, _, path = rest.partition("/")
        if repository.gated and not self._knows(request):
            status = 403 if request.authorized else 401
            return _error(status, "GatedRepo", f"Access to model {name} is restricted.")
        if revision not in repository.revisions | {repository.commit}:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if path not in repository.files:
            return _error(404, "EntryNotFound", "Entry not found")
        content = repository.files[path]
        headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if not repository.is_lfs(path):
            return Served(content, f'"{git_blob(content)}"', headers)
        headers |= {"X-Linked-Size": str(content.size), "X-Linked-Etag": f'"{content.sha256}"'}
        if not self._redirects:
            return Served(content, f'"{content.sha256}"', headers)
        return Redirect(f"{self.cdn_url}/cdn/{name}/{quote(path)}", headers)


def _error(status: int, code: str, message: str) -> Answer:
    headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
    body = Bytes(json.dumps({"error": message}).encode())
    return Served(body, "", headers, status=status, content_type="application/json")


def _metalink(name: str, content: Content, mirrors: Sequence[str]) -> str:
    urls = "".join(
        f'<url priority="{number}">{escape(url)}</url>' for number, url in enumerate(mirrors, 1)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<metalink xmlns="urn:ietf:params:xml:ns:metalink">'
        f"<file name={quoteattr(name)}><size>{content.size}</size>"
        f'<hash type="md5">{"0" * 32}</hash><hash type="sha-256">{content.sha256}</hash>'
        f"{urls}</file></metalink>\n"
    )


__all__ = [
    "Content", "Fault", "LocalFile", "Repository", "Request", "SparseFile", "TestHub",
]  # fmt: skip
