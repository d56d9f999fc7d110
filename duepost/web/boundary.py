"""What of a request is looked at before anything else: prefix, host, origin. And the headers of each answer."""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: What each page may load: what this server gives, and nothing else. No script and no style in the page itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

#: What an email's own HTML may load: nothing but what it holds itself. It may run nothing, send nothing, lead nowhere.
CONTENT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'"
)

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    # Not no-referrer: with it browsers send `Origin: null` with forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

#: What this machine calls itself.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})

#: Asked by whatever watches over this server, by any name; tells nothing.
HEALTH = "/health"

#: Shown to whoever has a token, by whatever name it is asked: no browser of a stranger's has one.
METRICS = "/metrics"

#: What a proxy adds: then the request is not from this machine.
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")

SAFE = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where browsers find the console.

    Attributes:
        origin: `https://ops.example.com`; None: at this machine itself.
        prefix: `/duepost`; empty where it is at the root.
        hosts: the names, without ports, that it may be asked by.
    """

    origin: str | None
    prefix: str
    hosts: frozenset[str]

    @classmethod
    def at(cls, url: str | None, *, is_loopback: bool) -> "Place":
        """The place that DUEPOST_WEB_URL says."""
        here = LOOPBACK if is_loopback else frozenset()
        if url is None:
            return cls(None, "", here)
        parts = urlsplit(url)
        name = parts.netloc.lower()
        return cls(f"{parts.scheme}://{name}", parts.path.rstrip("/"), here | {without_port(name)})

    @property
    def is_secure(self) -> bool:
        """Whether browsers come by TLS."""
        return self.origin is not None and self.origin.startswith("https://")


def without_port(host: str) -> str:
    """The name in a Host header, in lower case."""
    name = host.strip().lower()
    return name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]


class Boundary:
    """Lets through what may come in, and gives each answer its headers.

    Args:
        app: what is behind.
        place: where browsers find it.
        is_open: nobody has to log in: nothing is let through that comes by a proxy.
    """

    def __init__(self, app: ASGIApp, place: Place, *, is_open: bool) -> None:
        self._app = app
        self._place = place
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        scope = self._without_prefix(scope)
        request = Request(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(request)
        if refusal is not None:
            answer = PlainTextResponse(f"{refusal}\n", 403)
            await answer(scope, receive, send_with_headers)
        elif scope["path"] == "":
            # A page's links are relative: they need the slash.
            last = self._place.prefix.rpartition("/")[2]
            await RedirectResponse(f"{last}/", 308)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _without_prefix(self, scope: Scope) -> Scope:
        """The proxy in front may have taken the prefix away, or not."""
        prefix, path = self._place.prefix, scope["path"]
        if prefix and (path == prefix or path.startswith(f"{prefix}/")):
            return {**scope, "path": path[len(prefix) :]}
        return scope

    def _refusal(self, request: Request) -> str | None:
        """Why a request is not let through; None where it is."""
        if request.url.path == HEALTH and request.method in SAFE:
            return None
        headers = request.headers
        if request.url.path == METRICS and request.method in SAFE and "authorization" in headers:
            return None
        if len(headers.getlist("host")) != 1 or without_port(headers["host"]) not in self._place.hosts:
            return "This is not one of the names that the console may be asked by: see DUEPOST_WEB_URL."
        if self._is_open and any(name in headers for name in FORWARDED):
            return "This came by a proxy, and nobody has to log in here: set DUEPOST_WEB_USERS and DUEPOST_WEB_URL."
        if request.method not in SAFE and not self._is_own(headers):
            return "A form of another site, or of another address of the console: see DUEPOST_WEB_URL."
        return None

    def _is_own(self, headers: Headers) -> bool:
        """Whether a form is one of ours: a browser says where it stood."""
        site, origins = headers.get("sec-fetch-site"), headers.getlist("origin")
        if site not in {None, "same-origin"} or len(origins) > 1:
            return False
        if not origins:
            return site == "same-origin"
        # At this machine itself, by whatever of its names and ports the browser came.
        expected = self._place.origin or f"http://{headers['host'].strip().lower()}"
        return without_default_port(origins[0].lower()) == without_default_port(expected)


def without_default_port(origin: str) -> str:
    """An origin as browsers write it."""
    for scheme, port in (("http://", ":80"), ("https://", ":443")):
        if origin.startswith(scheme):
            return origin.removesuffix(port)
    return origin


def header_values(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by their name in lower case; one that comes twice counts for nothing: who knows whose it is?"""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for name, value in headers:
        twice |= {name.lower()} & found.keys()
        found[name.lower()] = value
    return {name: value for name, value in found.items() if name not in twice}
