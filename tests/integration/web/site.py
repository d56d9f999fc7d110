"""A console that serves, and who asks it: as a browser does, or as somebody who is none."""

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlencode, urljoin, urlsplit

from actors.settings import Settings
from duepost.web.server import Address, Server, build_console, listen
from models.database.connections import Database


class Start(Protocol):
    """Starts a console."""

    def __call__(self, *, host: str = "127.0.0.1", mailbox: Path | None = None, **env: str) -> "ConsoleSite": ...


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str
    url: str

    @property
    def location(self) -> str:
        """Where it leads, as a path."""
        return urljoin(self.url, self.headers["location"])

    def form(self, action: str = "") -> dict[str, str]:
        """The hidden fields of the form that goes there."""
        for attributes, inside in re.findall(r"<form ([^>]*)>(.*?)</form>", self.text, re.DOTALL):
            if 'action="' in attributes and action in attributes:
                fields = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', inside)
                return {unescape(name): unescape(value) for name, value in fields}
        raise AssertionError(f"no form for {action!r} in:\n{self.text}")

    @property
    def words(self) -> str:
        """What a person reads."""
        text = re.sub(r"<(script|style).*?</\1>", "", self.text, flags=re.DOTALL)
        return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", text)))


@dataclass
class Browser:
    """Somebody who asks; it keeps cookies, follows nothing."""

    site: "ConsoleSite"
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        """One request; names of headers have an underline for each hyphen; an empty one is left out."""
        sent = {
            "Host": f"127.0.0.1:{self.site.port}",
            **({"Content-Type": "application/x-www-form-urlencoded"} if body is not None else {}),
            **({"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())} if self.cookies else {}),
            **self.headers,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.site.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value:
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body.encode())))
            connection.endheaders(None if body is None else body.encode())
            answer = connection.getresponse()
            for cookie in answer.headers.get_all("set-cookie") or []:
                name, _, value = cookie.partition(";")[0].partition("=")
                self.cookies[name] = value.strip('"')
            text = answer.read().decode("utf-8", "backslashreplace")
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, text, path)
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        """Looks at a page."""
        return self.ask("GET", path, **headers)

    def post(self, path: str, fields: Mapping[str, object] | list[tuple[str, object]] = (), **headers: str) -> Answer:  # type: ignore[assignment]
        """Sends a form of the console's own, as a browser does."""
        own = {"Origin": self.site.origin, "Sec_Fetch_Site": "same-origin", **headers}
        return self.ask("POST", path, urlencode(fields), **own)

    def follow(self, answer: Answer) -> Answer:
        """Goes where an answer leads."""
        assert answer.status in {303, 308}, (answer.status, answer.text)
        parts = urlsplit(answer.location)
        return self.get(parts.path + (f"?{parts.query}" if parts.query else ""))


class ConsoleSite:
    """A console, served in this process; a context manager."""

    def __init__(self, url: str, *, host: str = "127.0.0.1", mailbox: Path | None = None) -> None:
        self._listener = listen(host, 0)
        self.port: int = self._listener.getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.port}"
        self.settings = Settings()
        if self.settings.web_url:
            parts = urlsplit(self.settings.web_url)
            self.origin = f"{parts.scheme}://{parts.netloc}"
        self.database = Database(url, application_name="test")
        try:
            app = build_console(self.settings, Address(host, self.port), url, mailbox)
        except BaseException:
            self._listener.close()
            raise
        self._server = Server(app, self._listener)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        self.database.close()

    def browser(self, **headers: str) -> Browser:
        """Somebody new."""
        return Browser(self, {name.replace("_", "-"): value for name, value in headers.items()})

    def named(self, name: str) -> Browser:
        """Somebody whom the proxy names."""
        return self.browser(X_User=name)

    def query(self, statement: str, **parameters: object) -> list[tuple[object, ...]]:
        """Asks the database."""
        return self.database.execute(statement, parameters)

    def schedule(self, **arguments: object) -> int:
        """Schedules an email, by SQL."""
        given: dict[str, object] = {"kind": "welcome", "subject": "Hello", "body_text": "World", **arguments}
        if "users" not in given:
            given.setdefault("address", "ann@example.com")
        names = ", ".join(f"{name} => %({name})s" for name in given)
        [(item_id,)] = self.query(f"SELECT duepost.schedule_email({names})", **given)
        assert isinstance(item_id, int)
        return item_id
