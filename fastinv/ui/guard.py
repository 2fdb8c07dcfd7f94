"""What a page on 127.0.0.1 has to refuse: requests that other pages of the same browser send to it.

A name that an attacker makes point to 127.0.0.1 (DNS rebinding) is told by the Host header; a form or script of another
page (cross-site request forgery) by the Origin header, which browsers send with everything that may change something,
and by Sec-Fetch-Site. Uploads are cut off at a size. Answers carry a Content-Security-Policy under which the page can
load nothing from anywhere else, and no other page can frame it. Addresses that Gradio would fetch are refused.
"""

import re
from urllib.parse import urlsplit

HOSTS = ("127.0.0.1", "localhost", "::1")
UPLOAD_LIMIT = 20 * 2**20  # bytes of a picture file
BODY_LIMIT = UPLOAD_LIMIT + 2**16  # with what a form puts around it
READING = ("GET", "HEAD")
HEADERS = {
    # Gradio's page has scripts and styles within it, and makes functions from text.
    "content-security-policy": (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; form-action 'self'; "
        "frame-ancestors 'none'; object-src 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware, outermost: passes on what comes from this page itself.

    Args:
        app: the ASGI application.
        body_limit: bytes of a request's body.
    """

    def __init__(self, app, body_limit: int = BODY_LIMIT):
        self.app, self.body_limit = app, body_limit

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = _headers(scope)
        reason = refusal(scope.get("method"), headers) or elsewhere(scope["path"])
        if scope["type"] == "websocket":
            if reason is None:
                return await self.app(scope, receive, send)
            await receive()
            return await send({"type": "websocket.close", "code": 1008, "reason": reason})
        if reason is not None:
            return await _answer(send, 403, reason)
        length = headers.get(b"content-length", [b"0"])[0]
        if not length.isdigit() or int(length) > self.body_limit:
            return await _answer(send, 413, self._too_large())
        await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope, receive, send) -> None:
        """Call the application, with a body that ends at the limit (one in chunks does not say its length before)."""
        read, started, over = 0, False, False

        async def counted():
            nonlocal read, over
            message = await receive()
            read += len(message.get("body", b""))
            over = over or read > self.body_limit
            return {"type": "http.disconnect"} if over else message

        async def headed(message):
            nonlocal started
            if over and not started:  # what it says of the broken body does not matter
                return
            if message["type"] == "http.response.start":
                started = True
                own = [
                    (name, value) for name, value in message.get("headers", []) if name.decode().lower() not in HEADERS
                ]
                message = {**message, "headers": own + _encoded(HEADERS)}
            await send(message)

        try:
            await self.app(scope, counted, headed)
        except Exception:
            if not over:
                raise
        if over and not started:
            await _answer(send, 413, self._too_large())

    def _too_large(self) -> str:
        return f"larger than {self.body_limit // 2**20} MB; scale the picture down first"


def refusal(method: str | None, headers: dict[bytes, list[bytes]]) -> str | None:
    """Why a request is refused; None for one that is welcome.

    Args:
        method: of HTTP; None is a websocket.
        headers: lower-case name -> values.
    """
    hosts = headers.get(b"host", [])
    if len(hosts) != 1 or not local(hosts[0]):
        return "the Host must be 127.0.0.1 or localhost"
    origins = headers.get(b"origin", [])
    if origins and origins != [b"http://" + hosts[0]]:
        return "requests of other pages are refused"
    if method not in READING and not origins:
        return "requests that do not say which page they come from (Origin) are refused"
    # Reading carries no Origin, but the kind of page; links to this one are all right.
    site = headers.get(b"sec-fetch-site", [b"same-origin"])[0]
    if site not in (b"same-origin", b"none") and headers.get(b"sec-fetch-mode") != [b"navigate"]:
        return "requests of other pages are refused"
    return None


def elsewhere(path: str) -> str | None:
    """Why a path is refused; None for one that is welcome.

    Gradio fetches what file=URL and proxy=URL name, and passes it on as if it were its own; its own files are named by
    their absolute paths.
    """
    return "other hosts are not asked" if re.match(r"/gradio_api/(proxy|file[=/](?!/))", path) else None


def local(host: bytes) -> bool:
    """Whether a Host header names this machine, with any port, as it may be that of a tunnel, and nothing else."""
    try:
        name = host.decode("ascii")
        parts = urlsplit("//" + name)
        return parts.netloc == name and parts.username is None and parts.hostname in HOSTS and parts.port != 0
    except ValueError:  # not ASCII, or no number for the port
        return False


def _headers(scope) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


async def _answer(send, status: int, text: str) -> None:
    body = f"fastinv: {text}\n".encode()
    headers = HEADERS | {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body))}
    headers["connection"] = "close"  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})
