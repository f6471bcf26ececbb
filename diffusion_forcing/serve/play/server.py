"""The server of the page: files of the package, one WebSocket a view, one upload. Nothing else of the machine can be asked for.

| path | |
|---|---|
| `/`, `/static/NAME` | the page: the files of this package's folder `static`, by a list made at the start |
| `/ws/VIEW` | a view's WebSocket: messages of `messages.py`; from pages of this server only, one player a view |
| `/series` (POST) | a table of series for the forecast view whose token it carries, at most `MOST_BYTES` |

A request must name this machine by its address or as localhost, so that no other site's name can lead here (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import mimetypes
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect

from diffusion_forcing.datasets.generate import worker_count
from diffusion_forcing.errors import UserError, check_range, require
from diffusion_forcing.serve.play import messages
from diffusion_forcing.serve.play.session import Player, Session, Stage, packed

STATIC = Path(__file__).parent / "static"
MOST_BYTES = 5_000_000
"""Of an uploaded table."""
RATE, BURST = 120.0, 240.0
"""Messages a second that a page may send, and at once."""
PATIENT = 2_000
"""Messages above the rate after which the connection is closed."""
TAKEN = 4009
"""Closes a socket whose view is somebody else's."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self' {sockets}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
mimetypes.add_type("text/javascript", ".js")


@dataclass(frozen=True, kw_only=True)
class PlayOptions:
    """`diffusion-forcing play`. host: 127.0.0.1 is this machine alone; port: 0 is any free one; browser: open it; threads: of each model."""

    host: str = "127.0.0.1"
    port: int = 8000
    browser: bool = True
    threads: int = max(min(2, worker_count(0)), min(4, worker_count(0) // 2))

    def __post_init__(self) -> None:
        check_range("--port", self.port, 0, 65535)
        check_range("--threads", self.threads, 1, 64)
        require(bool(self.host), "--host is empty; give 127.0.0.1 for this machine alone, or an address of it")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the page."""
        return self.host == "localhost" or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)


def create_app(builders: dict[str, Callable[[], Player]]) -> FastAPI:
    """The application; builders: of each view's player, called in that view's thread when its first page comes."""
    stages = {view: Stage(view, build) for view, build in builders.items()}
    files = {file.name: file for file in STATIC.iterdir() if file.is_file()}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield
        await asyncio.gather(*(asyncio.to_thread(stage.close) for stage in stages.values()))

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.stages = stages

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
        host = request.headers.get("host", "")
        if not is_own_name(host):
            return Response("this page answers to localhost and to addresses of this machine only\n", status_code=403)
        response: Response = await call_next(request)
        response.headers.update({**HEADERS, "Content-Security-Policy": POLICY.format(sockets=f"ws://{host}")})
        return response

    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        charset = "; charset=utf-8" if kind.startswith("text/") else ""
        return Response(files[name].read_bytes(), media_type=kind + charset)

    @app.get("/")
    def page() -> Response:
        return file("index.html")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        return file(name)

    @app.post("/series")
    async def series(request: Request) -> dict[str, Any]:
        stage = stages.get("forecast")
        session = None if stage is None else stage.session
        token, name = (request.headers.get(key, "") for key in ("x-session", "x-name"))
        mine = session is not None and secrets.compare_digest(token.encode(), session.token.encode())
        if session is None or not mine or not same_origin(request.headers):
            raise HTTPException(403, "open the forecast view first")
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > MOST_BYTES:
                raise HTTPException(413, f"a table has at most {MOST_BYTES:,} bytes")
        try:
            session.put({"do": "table", "name": name[:200] or "table.csv", "content": bytes(content)})
        except UserError as busy:
            raise HTTPException(503, str(busy)) from busy
        return {"bytes": len(content)}

    @app.websocket("/ws/{view}")
    async def talk(websocket: WebSocket, view: str) -> None:
        stage = stages.get(view)
        if stage is None or not is_own_name(websocket.headers.get("host", "")) or not same_origin(websocket.headers):
            await websocket.close(1008)
            return
        await websocket.accept()
        while stage.session is not None and stage.session.closed:  # the page before, such as this one before a reload
            await asyncio.sleep(0.02)
        if stage.session is not None:
            await websocket.send_text(str(packed("taken")))
            await websocket.close(TAKEN)
            return
        session = stage.session = Session(websocket, asyncio.get_running_loop())
        performance = asyncio.wrap_future(stage.perform(session))
        listening = asyncio.ensure_future(_listen(websocket, view, session))
        # Until the page leaves or the player fails. A shutdown cancels what waits here; the player leaves by itself.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({performance, listening}, return_when=asyncio.FIRST_COMPLETED)
        session.close()
        listening.cancel()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, asyncio.CancelledError):
            await listening
        if performance.done():  # it has failed: the connection ends, so that the next page may come
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await websocket.close()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(performance)
        stage.session = None

    return app


async def _listen(websocket: WebSocket, view: str, session: Session) -> None:
    """Read messages until the page leaves. One that is malformed or too many is answered with an error, and changes nothing."""
    allowance, then, ignored, warned = BURST, time.monotonic(), 0, 0.0
    while True:
        received = await websocket.receive()
        if received["type"] == "websocket.disconnect":
            return
        now = time.monotonic()
        allowance, then = min(BURST, allowance + (now - then) * RATE), now
        if allowance < 1:
            ignored += 1
            if ignored > PATIENT:
                await websocket.close(1008)
                return
            if now - warned > 1:
                warned = now
                await websocket.send_text(
                    str(packed("error", text=f"more than {RATE:.0f} messages a second; some are ignored"))
                )
            continue
        allowance -= 1
        text = received.get("text")
        try:
            if text is None:
                raise UserError("a message is text (JSON); bytes are not read here")
            session.put(messages.read(view, text))
        except UserError as mistake:
            await websocket.send_text(str(packed("error", text=str(mistake))))


def is_own_name(host: str) -> bool:
    """Whether a Host header names this machine: localhost, its own name, or any address (which no other site can claim)."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return name.lower() in ("localhost", socket.gethostname().lower()) or _is_address(name.strip("[]"))


def same_origin(headers: Any) -> bool:
    """Whether a request comes from a page of this server."""
    origin, host = headers.get("origin", ""), headers.get("host", "")
    return bool(host) and origin in (f"http://{host}", f"https://{host}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def serve(app: FastAPI, options: PlayOptions, *, started: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. started(address): once pages can be asked for."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(64)
    except OSError as failure:
        listener.close()
        raise UserError(
            f"cannot listen at {options.host}:{options.port}: {failure.strerror or failure}; choose another with --port, 0 for any free one"
        ) from failure
    port = listener.getsockname()[1]
    name = f"[{options.host}]" if family == socket.AF_INET6 else options.host
    config = uvicorn.Config(
        app, log_level="critical", ws_max_size=2 * messages.LONGEST, timeout_graceful_shutdown=1,
        lifespan="on", server_header=False, ws_per_message_deflate=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    started(f"http://{'localhost' if name in ('0.0.0.0', '[::]') else name}:{port}")
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        listener.close()
