"""A stand-in for the Hugging Face Hub on 127.0.0.1: as much of its protocol as the client needs to make a repository of a
model, commit small files to it, and download them again. It keeps what it is sent; it knows nothing of ours."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN = "hf_" + "t" * 34


class HubServer:
    """`with HubServer() as server:` — `server.url` is the client's HF_ENDPOINT."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        """Files by path, by revision (a branch, or a commit's 40 digits), by `user/repo`."""
        self.cards: list[str] = []
        """The cards whose front matter was sent to be checked."""
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.asked: list[str] = []
        """The files that were downloaded."""
        self.sizes: dict[str, int] = {}
        """Sizes that are told instead of the real ones, by path."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """A commit that adds `files` to a branch. Returns its 40 digits."""
        branches = self.repositories.setdefault(repo, {})
        after = {**branches.get(revision, {}), **files}
        commit = hashlib.sha1(repr(sorted(after.items())).encode()).hexdigest()
        branches[revision] = branches[commit] = after
        return commit


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_HEAD(self) -> None:
        self._file(with_body=False)

    def do_GET(self) -> None:
        self._file(with_body=True)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlparse(self.path).path
        if path == "/api/validate-yaml":
            self.hub.cards.append(json.loads(content)["content"])
            return self._answer(200, {"errors": [], "warnings": []})
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            is_new = name not in self.hub.repositories
            self.hub.repositories.setdefault(name, {"main": {}})
            self.hub.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
            return self._answer(200 if is_new else 409, {"url": f"{self.hub.url}/{name}"})
        found = re.fullmatch(r"/api/models/(\S+/\S+)/(preupload|commit)/([^/]+)", path)
        assert found is not None, path
        repo, action, revision = found[1], found[2], unquote(found[3])
        if action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(content)["files"]
            ]
            return self._answer(200, {"files": files})
        added = {}
        for line in content.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                added[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = self.hub.put(repo, added, revision)
        self._answer(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit, "success": True})

    def _file(self, *, with_body: bool) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", urlparse(self.path).path)
        if found is None:
            return self._answer(404, {"error": "no such page"})
        repo, revision, path = (unquote(part) for part in found.groups())
        is_ours = self.headers["Authorization"] == f"Bearer {TOKEN}"
        if repo not in self.hub.repositories or (repo in self.hub.private and not is_ours):
            return self._answer(401, {"error": "Repository not found"}, code="RepoNotFound")
        if repo in self.hub.gated:
            return self._answer(403, {"error": "Access to this model is restricted"}, code="GatedRepo")
        if revision not in self.hub.repositories[repo]:
            return self._answer(404, {"error": "Invalid rev id"}, code="RevisionNotFound")
        files = self.hub.repositories[repo][revision]
        if path not in files:
            return self._answer(404, {"error": "Entry not found"}, code="EntryNotFound")
        content = files[path]
        commit = next(name for name, entry in self.hub.repositories[repo].items() if len(name) == 40 and entry == files)
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(self.hub.sizes.get(path, len(content))))
        self.end_headers()
        if with_body:
            self.hub.asked.append(path)
            self.wfile.write(content)

    def _answer(self, status: int, content: Any, *, code: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *words: object) -> None: ...
