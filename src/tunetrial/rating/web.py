"""The rating page: one local web page, its few questions to the server, and who may ask them.

It listens on this machine's loopback alone. Every question needs the token, which is drawn anew at each start and
stands in the address behind the #, so that browsers send it to no server and keep it out of logs; the page hands it
back in a header, which no other site can set here. Requests for another host's name are refused, against names that
are bound to this address later (DNS rebinding). The page loads nothing from elsewhere, and its policy forbids it to;
texts travel as JSON and are set as text, never as markup.
"""

import hmac
import json
import secrets
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tunetrial.core.errors import ConfigError, StoreError, TunetrialError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PAGE = Path(__file__).parent / "page"
FILES = {"/": "rate.html", "/rate.js": "rate.js", "/rate.css": "rate.css"}
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
HOST = "127.0.0.1"
LONGEST_BODY = 4096
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Desk(Protocol):
    """What the page asks: see `trial.desk.Desk`."""

    def held(self) -> AbstractContextManager[None]: ...
    def begin(self, rater: str, kind: str) -> dict: ...
    def show(self, rater: str, kind: str, number: int) -> dict: ...
    def answer(self, rater: str, kind: str, number: int, said: int) -> None: ...
    def end(self, rater: str, kind: str) -> dict: ...


ASKED = {
    "begin": ("rater", "kind"),
    "show": ("rater", "kind", "number"),
    "answer": ("rater", "kind", "number", "said"),
    "end": ("rater", "kind"),
}


def serve(desk: Desk, *, port: int, tell: Callable[[str], None]) -> None:
    """Show the page until it is interrupted (Ctrl-C); `tell` is given its address once it answers.

    Args:
        port: 0 takes one that is free.
    Raises:
        ConfigError: The port is not free, or the libraries of the extra `rate` are not installed.
        StoreError: Another process shows the page of this study.
    """
    try:
        import uvicorn
    except ImportError:
        raise ConfigError(
            "rate: the page needs uvicorn and starlette, got none; pip install 'tunetrial[rate]'"
        ) from None

    token = secrets.token_urlsafe(32)
    with desk.held(), socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen()
        except OSError as error:
            raise ConfigError(f"--port: cannot be used, got {port}: {error.strerror}; name another, or 0") from None
        settings = {"log_config": None, "access_log": False, "server_header": False, "date_header": False}
        server = uvicorn.Server(uvicorn.Config(app(desk, token), lifespan="off", **settings))
        tell(f"http://{HOST}:{listening.getsockname()[1]}/#{token}")
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            pass


def app(desk: Desk, token: str) -> "Starlette":
    """The page as an application: three files that hold nothing, and the questions, which need the token."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route

    only_here = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    files = [Route(path, _file(name), methods=["GET"]) for path, name in FILES.items()]
    questions = [Route(f"/ask/{name}", _asking(desk, name, token), methods=["POST"]) for name in ASKED]
    return Starlette(routes=[*files, *questions], middleware=[only_here])


def _file(name: str) -> Callable:
    content, kind = (PAGE / name).read_bytes(), TYPES[Path(name).suffix]

    async def give(_: "Request") -> "Response":
        from starlette.responses import Response

        return Response(content, media_type=kind, headers=HEADERS)

    return give


def _asking(desk: Desk, name: str, token: str) -> Callable:
    """One question of the page. What is written is on the disk before it is answered; one is answered at a time."""

    async def ask(request: "Request") -> "Response":
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return _said({"error": "rate: not allowed; open the address that tunetrial printed"}, 401)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LONGEST_BODY:
                return _said({"error": f"rate: more than {LONGEST_BODY} bytes; ask less"}, 413)
        try:
            asked = json.loads(body)
            told = getattr(desk, name)(*(asked[field] for field in ASKED[name]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return _said({"error": f"rate: not a question, got {body[:40]!r}; send {', '.join(ASKED[name])}"}, 400)
        except StoreError as error:
            return _said({"error": str(error)}, 507)
        except TunetrialError as error:
            return _said({"error": str(error)}, 400)
        return _said(told or {}, 200)

    return ask


def _said(content: dict, status: int) -> "Response":
    from starlette.responses import Response

    text = json.dumps(content)  # in ASCII: a lone surrogate in a completion has no UTF-8
    return Response(text, status_code=status, media_type="application/json", headers=HEADERS)
