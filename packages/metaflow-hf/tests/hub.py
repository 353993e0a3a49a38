"""A Hugging Face Hub for tests, on loopback: repos with commits, branches and tags, LFS files behind a redirect,
private and gated repos, a log of all requests, and faults on demand.

In a test: `with Hub() as hub: repo = hub.repo("org/name"); repo.commit({"config.json": b"{}"})`, then HF_ENDPOINT is
`hub.endpoint`. By hand: `python hub.py DIRECTORY [PORT]` serves each `models/<org>/<name>` and `datasets/<org>/<name>`
below DIRECTORY as a repo of one commit, and prints the endpoint, then a line for each request.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from hub_repo import Blob, Repo

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
_API = re.compile(r"/api/(models|datasets|spaces)/(.+?)(?:/(revision|tree|xet-read-token|auth-check)(?:/([^/]+))?)?")
_RESOLVE = re.compile(r"/(?:(datasets|spaces)/)?(.+?)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Request:
    """A request as it was answered. `what` is info, tree, file, cdn, auth, xet or other."""

    method: str
    path: str
    what: str
    repo: str
    file: str
    range: str | None
    authorization: str | None
    status: int


@dataclass
class Fault:
    """What to do, `times` times, instead of answering a request of the kind `what` about a file like `file`.

    Before that, `after` of these requests are answered.
    """

    what: str
    file: str
    times: int
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    stall: float = 0.0
    body: Callable[[bytes], bytes] | None = None
    answer: bytes | None = None
    hold: threading.Event | None = None
    after: int = 0

    def takes(self, request: Request) -> bool:
        """Whether this fault is for `request`; it then counts as used."""
        if self.times < 1 or self.what != request.what or not re.fullmatch(self.file, request.file):
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class Hub:
    """The server, in a separate thread."""

    def __init__(self, port: int = 0, page: int = 1000, echo: bool = False) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.renamed: dict[str, str] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.page = page
        self.echo = echo
        self.ranges = True
        """Whether a part of a file can be asked for."""
        self.own_ids = False
        """Whether files that are not kept with LFS have ids by their path, as simple servers of this kind give."""
        self.folder = ""
        """The path below which the Hub is, such as `/hub`."""
        self.next_at = ""
        """Where the next page of a file list is said to be; by default here."""
        self.cas = ""
        """Where hf_xet finds the content of files that have a `xet_hash`."""
        self._port = port
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._held: socket.socket | None = None

    def __enter__(self) -> Hub:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        if self._held is not None:
            self._held.close()

    def up(self) -> None:
        """Begin to serve; after `down`, at the same port."""
        if self._held is None:
            # While this is open and nobody listens, no other process gets the port, nor any connection.
            self._held = socket.socket()
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.bind(("127.0.0.1", self._port))
            self._port = self._held.getsockname()[1]
        self._server = _Server(("127.0.0.1", self._port), self)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        """Stop: connections are refused from now on, and the open ones are cut."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._port}{self.folder}"

    @property
    def cdn(self) -> str:
        """Where LFS files are redirected to: another host, as far as a client can tell."""
        return f"http://localhost:{self._port}"

    def repo(
        self,
        name: str,
        kind: str = "model",
        *,
        private: bool = False,
        gated: bool = False,
        token: str | None = None,
        files: Mapping[str, bytes | Blob] | None = None,
    ) -> Repo:
        """A new repo, with a first commit where `files` are given."""
        repo = self.repos[kind, name] = Repo(name, kind, private, gated, token)
        if files is not None:
            repo.commit(files)
        return repo

    def rename(self, old: str, new: str) -> None:
        """Redirect a repo's old name to its new one."""
        self.renamed[old] = new

    def fault(self, what: str, file: str = ".*", times: int = 1, **kwargs: Any) -> Fault:
        """Answer the next `times` requests of a kind wrongly; keywords are those of Fault."""
        fault = Fault(what, file, times, **kwargs)
        self.faults.append(fault)
        return fault

    def wait_until_unused(self) -> None:
        """Wait until all connections are closed, at both ends: no request of a client that has ended comes any more."""
        while self._server is not None and self._server.open:
            time.sleep(0.01)

    def clear(self) -> None:
        """Forget requests and faults."""
        with self._lock:
            self.requests.clear()
            self.faults.clear()

    def count(self, *what: str) -> int:
        """How many requests there were, of these kinds or at all."""
        with self._lock:
            return sum(not what or request.what in what for request in self.requests)

    def fetched(self) -> Counter[str]:
        """How often each file was asked for."""
        with self._lock:
            return Counter(request.file for request in self.requests if request.what == "file")

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Count the requests made inside, by kind."""
        with self._lock:
            start = len(self.requests)
        counter: Counter[str] = Counter()
        yield counter
        with self._lock:
            counter.update(request.what for request in self.requests[start:])

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)
        if self.echo:
            print(f"{request.status} {request.method} {request.path} range={request.range}", flush=True)

    def take_fault(self, request: Request) -> Fault | None:
        with self._lock:
            return next((fault for fault in self.faults if fault.takes(request)), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # `Hub` holds the port, also where this does not listen.
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], hub: Hub) -> None:
        super().__init__(address, _Handler)
        self.hub = hub
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that was killed, or whose connection a fault cut.
        pass

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.open):
            _close(connection)


def _close(connection: socket.socket) -> None:
    # The other end may have been faster.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Error(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code} if code else {}
        if message:
            self.headers["X-Error-Message"] = message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes: the second must not wait for the first one's acknowledgement.
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub = self.server.hub
        self.what, self.repo_name, self.file = "other", "", ""
        fault: Fault | None = None
        try:
            route = self._route()
            fault = self.hub.take_fault(self._request(0))
            if fault is not None:
                if fault.hold is not None:
                    fault.hold.wait()
                time.sleep(fault.stall)
                if fault.status is not None or fault.answer is not None:
                    return self._send(fault.status or 200, fault.answer or b"{}", fault.headers)
            return route(fault)
        except _Error as error:
            body = json.dumps({"error": str(error)}).encode()
            return self._send(error.status, body, {"Content-Type": "application/json", **error.headers})

    def _request(self, status: int) -> Request:
        return Request(
            self.command,
            self.path,
            self.what,
            self.repo_name,
            self.file,
            self.headers.get("Range"),
            self.headers.get("Authorization"),
            status,
        )

    def _route(self) -> Callable[[Fault | None], None]:
        # A client that takes this server for a proxy names the host too.
        path = urlsplit(self.path).path
        if not path.startswith(f"{self.hub.folder}/") and not path.startswith("/cdn/"):
            raise _Error(404)
        path = path.removeprefix(self.hub.folder)
        if path.startswith("/cdn/"):
            self.what, self.file = "cdn", unquote(path.rpartition("/")[2])
            return self._cdn
        api = _API.fullmatch(path)
        if api is not None:
            self.repo_name = unquote(api[2])
            self.what = {"tree": "tree", "auth-check": "auth", "xet-read-token": "xet"}.get(api[3] or "", "info")
            kind, revision = KINDS[api[1]], unquote(api[4]) if api[4] else None
            return {
                "info": lambda _: self._info(kind, revision),
                "tree": lambda _: self._tree(kind, revision),
                "auth": lambda _: self._auth(kind),
                "xet": lambda _: self._xet(kind),
            }[self.what]
        resolve = _RESOLVE.fullmatch(path)
        if resolve is not None:
            self.what, self.repo_name, self.file = "file", unquote(resolve[2]), unquote(resolve[4])
            kind, revision = KINDS[resolve[1] or "models"], unquote(resolve[3])
            return lambda fault: self._file(kind, revision, fault)
        raise _Error(404)

    def _repo(self, kind: str, content: bool = False) -> Repo:
        repo = self.hub.repos.get((kind, self.repo_name))
        allowed = repo is not None and self.headers.get("Authorization") == f"Bearer {repo.token}"
        if repo is None or (repo.private and not allowed):
            # The Hub does not tell a stranger whether a repo exists.
            raise _Error(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "Repository not found")
        if repo.gated and content and not allowed:
            raise _Error(403, "GatedRepo", f"Access to {repo.name} is restricted: ask for access on its page.")
        return repo

    def _renamed(self) -> bool:
        new = self.hub.renamed.get(self.repo_name)
        if new is None:
            return False
        self._send(307, b"", {"Location": self.path.replace(self.repo_name, new, 1)})
        return True

    def _commit(self, repo: Repo, revision: str | None) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise _Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _info(self, kind: str, revision: str | None) -> None:
        if self._renamed():
            return None
        repo = self._repo(kind)
        sha = self._commit(repo, revision)
        if kind == "space" and "expand=gated" in self.path:
            raise _Error(400, message="gated is no property of a space")
        info: dict[str, Any] = {
            "_id": "0",
            "id": repo.name,
            "sha": sha,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
        }
        if "expand=" not in self.path:
            info["modelId"] = repo.name
            info.update(tags=[], downloads=0, likes=0, disabled=False, lastModified="2024-01-01T00:00:00.000Z")
            info["siblings"] = [{"rfilename": path} for path in repo.commits[sha]]
        return self._json(info)

    def _auth(self, kind: str) -> None:
        self._repo(kind, content=True)
        self._json({})

    def _tree(self, kind: str, revision: str | None) -> None:
        if self._renamed():
            return None
        repo = self._repo(kind)
        files = repo.commits[self._commit(repo, revision)]
        folders = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
        rows: list[dict[str, Any]] = [
            {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
            for path in folders
        ]
        for path, blob in files.items():
            oid = hashlib.sha1(path.encode()).hexdigest() if self.hub.own_ids else blob.oid
            row = {"type": "file", "path": path, "size": len(blob.data), "oid": oid}
            if blob.lfs:
                row["oid"] = hashlib.sha1(blob.oid.encode()).hexdigest()
                row["lfs"] = {"oid": blob.oid, "size": len(blob.data), "pointerSize": 134}
            if blob.xet_hash is not None:
                row["xetHash"] = blob.xet_hash
            rows.append(row)
        rows.sort(key=lambda row: row["path"])
        cursor = re.search(r"cursor=(\d+)", self.path)
        start = int(cursor[1]) if cursor else 0
        end = start + self.hub.page
        headers = {}
        if end < len(rows):
            here = urlsplit(self.path).path.removeprefix(self.hub.folder)
            headers["Link"] = f'<{self.hub.next_at or self.hub.endpoint}{here}?recursive=true&cursor={end}>; rel="next"'
        return self._json(rows[start:end], headers)

    def _xet(self, kind: str) -> None:
        self._repo(kind, content=True)
        expires = int(time.time()) + 3600
        self._json(
            {"accessToken": "xet", "exp": expires, "casUrl": self.hub.cas},
            {
                "X-Xet-Cas-Url": self.hub.cas,
                "X-Xet-Access-Token": "xet",
                "X-Xet-Token-Expiration": str(expires),
            },
        )

    def _file(self, kind: str, revision: str, fault: Fault | None) -> None:
        if self._renamed():
            return None
        repo = self._repo(kind, content=True)
        sha = self._commit(repo, revision)
        blob = repo.commits[sha].get(self.file)
        if blob is None:
            raise _Error(404, "EntryNotFound", "Entry not found")
        etag = hashlib.sha256(blob.data).hexdigest() if self.hub.own_ids else blob.oid
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if not blob.lfs:
            return self._content(blob.data, headers, fault)
        headers["X-Linked-Etag"] = headers["ETag"]
        headers["X-Linked-Size"] = str(len(blob.data))
        if blob.xet_hash is not None:
            headers["X-Xet-Hash"] = blob.xet_hash
            headers["X-Xet-Refresh-Route"] = f"{self.hub.endpoint}/api/{kind}s/{repo.name}/xet-read-token/{sha}"
        location = f"{self.hub.cdn}/cdn/{blob.oid}/{quote(self.file, safe='')}?signature=secret"
        return self._send(302, b"", {**headers, "Location": location})

    def _cdn(self, fault: Fault | None) -> None:
        oid = self.path.split("/")[2]
        blobs = (b for repo in self.hub.repos.values() for files in repo.commits.values() for b in files.values())
        blob = next((blob for blob in blobs if blob.oid == oid), None)
        if blob is None:
            raise _Error(404)
        self._content(blob.data, {"ETag": '"of-the-cdn"', "Accept-Ranges": "bytes"}, fault)

    def _content(self, data: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        if fault is not None and fault.body is not None:
            data = fault.body(data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status = 200
        if wanted is not None and self.hub.ranges:
            start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        return self._send(status, data, headers, fault.cut if fault is not None else None)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None) -> None:
        self.hub.record(self._request(status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            _close(self.connection)


def serve_directory(directory: Path, port: int = 0) -> Hub:
    """A hub with the repos in a directory; files of 1 MB and more are LFS files."""
    hub = Hub(port, echo=True)
    for kind in KINDS:
        for path in sorted((directory / kind).glob("*/*")):
            contents = {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}
            files = {name: Blob(data, len(data) >= 1_000_000) for name, data in contents.items()}
            hub.repo(f"{path.parent.name}/{path.name}", KINDS[kind], files=files)
    hub.up()
    return hub


if __name__ == "__main__":
    served = serve_directory(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(served.endpoint, flush=True)
    threading.Event().wait()
