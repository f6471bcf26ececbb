"""A stand-in for W&B's server on 127.0.0.1: as much of its protocol as the pinned client needs to track a run, upload a
checkpoint and download it again. It keeps what it is sent; it knows nothing of ours.

What the client really asks is GraphQL by operation name (`wandb_answers`), a stream of a run's lines, and PUT and GET
of files.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import socket
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

from tests.tracking.wandb_answers import Answers

KEY = "k" * 40


class WandbServer(Answers):
    """`with WandbServer() as server:` — `server.url` is what W&B calls its base URL."""

    def __init__(self) -> None:
        self.accepts = True
        """False: every login is answered with 401, as an expired one is."""
        self.drops = False
        """True: no answer at all, the connection is closed."""
        self.runs: dict[str, dict[str, Any]] = {}
        self.streams: dict[str, dict[str, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
        self.exit_codes: dict[str, int] = {}
        self.blobs: dict[str, bytes] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.operations: list[str] = []
        self.unknown: list[str] = []
        """Questions that had no answer here: empty in a test that shows something."""
        self._port = 0
        self._lock = threading.RLock()
        self._server: ThreadingHTTPServer | None = None
        self.start()

    def __enter__(self) -> WandbServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        handler = type("Handler", (_Handler,), {"state": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from here on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    # What a test looks at

    def history(self, run: str) -> list[dict[str, Any]]:
        """The logged lines of a run, in order."""
        lines = self.streams[run]["wandb-history.jsonl"]
        return [json.loads(lines[offset]) for offset in sorted(lines)]

    def summary(self, run: str) -> dict[str, Any]:
        return json.loads(self.streams[run]["wandb-summary.json"].get(0, "{}"))

    def config(self, run: str) -> dict[str, Any]:
        return {key: entry["value"] for key, entry in json.loads(self.runs[run]["config"]).items() if key != "_wandb"}

    def files(self, run: str) -> dict[str, bytes]:
        """Files of a run by name: media, summary, …"""
        start = f"/storage/run/{run}/"
        return {path.removeprefix(start): data for path, data in self.blobs.items() if path.startswith(start)}

    def versions(self, collection: str) -> list[dict[str, Any]]:
        """The committed artifacts of a collection, oldest first."""
        found = [a for a in self.artifacts.values() if a["collection"] == collection and a["state"] == "COMMITTED"]
        return sorted(found, key=lambda artifact: artifact["version"])

    # GraphQL, by operation name: variables to data

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        with self._lock:
            self.operations.append(operation)
            method = getattr(self, f"on_{operation}", None)
            if method is None:
                self.unknown.append(operation)
                return None
            return method(variables)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: WandbServer

    def log_message(self, *words: Any) -> None: ...

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        path = unquote(urlparse(self.path).path)
        if self.state.drops:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if path.startswith("/storage/"):
            return self._storage(path, body)
        key = base64.b64decode(self.headers.get("authorization", "").removeprefix("Basic ")).decode().partition(":")[2]
        if not self.state.accepts or (key != KEY and not path.startswith("/sdk/")):
            return self._reply(401, {"errors": [{"message": "user is not logged in"}]})
        if path == "/graphql":
            asked = json.loads(body)
            operation = asked.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]  # type: ignore[index]
            data = self.state.answer(operation, asked.get("variables") or {})
            errors = {} if data is not None else {"errors": [{"message": f"no answer to {operation}"}]}
            return self._reply(200, {"data": data, **errors})
        if path.endswith("/file_stream"):
            self._stream(path.split("/")[-2], json.loads(body))
            return self._reply(200, {})
        self._reply(404, {})

    do_GET = do_POST = do_PUT = do_HEAD = _do

    def _stream(self, run: str, sent: dict[str, Any]) -> None:
        with self.state._lock:
            for name, part in (sent.get("files") or {}).items():
                for number, line in enumerate(part["content"]):
                    self.state.streams[run][name][part["offset"] + number] = line
            if sent.get("complete"):
                self.state.exit_codes[run] = sent.get("exitcode", 0)

    def _storage(self, path: str, body: bytes) -> None:
        if self.command == "PUT":
            self.state.blobs[path] = body
            return self._reply(200, b"", etag=hashlib.md5(body).hexdigest())
        data = self.state.blobs.get(path)
        return self._reply(404, b"") if data is None else self._reply(200, data)

    def _reply(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header(
            "content-type", "application/octet-stream" if isinstance(content, bytes) else "application/json"
        )
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
