"""The environment: the one module that reads it. Each setting is checked when the settings are read."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import psycopg2
from psycopg2 import extensions
from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from actors.alerts.logs import LogFormat
from actors.channels.smtp.greeting import is_hello_name
from actors.channels.smtp.relay import Relay, Timeouts
from actors.channels.tls import trouble_with
from actors.content.addresses import Mailbox, parse_sender
from actors.content.dkim import SIGNED, UNSIGNED
from models.errors import DuepostError

#: What DUEPOST_STATE_DIR says where no state is to be kept.
NO_STATE = "off"

#: The relay of DUEPOST_SMTP_URL, which no other may be called.
DEFAULT_RELAY = "default"

#: What a relay may be called, in lower case: it is a part of the names of a queue and of an actor.
RELAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

#: The path that the console may be found below.
_WEB_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?")


#: Names of this machine: nobody is in between.
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})

#: Characters of DUEPOST_PUBLIC_URL: with a token behind it, it has to fit a line of a header.
LONGEST_PUBLIC_URL = 100


#: Characters before the @ of DUEPOST_BOUNCE_ADDRESS: behind them come `+` and a token, of 64 in all.
LONGEST_BOUNCE_NAME = 27

#: A path; or an IMAP server by TLS, or on this machine.
_MAILBOX_PLACE = re.compile(
    r"(?!\w+(?:\+\w+)?://)[^\x00-\x1f]+"
    r"|(?:imaps://|imap\+starttls://)[^\s@/]+@[^\s@/]+(?:/\S*)?"
    r"|imap://[^\s@/]+@(?:localhost|127\.0\.0\.1)(?::\d+)?(?:/\S*)?"
)

#: A topic of Amazon SNS.
_TOPIC = re.compile(r"arn:aws:sns:[a-z0-9-]{1,40}:[0-9]{12}:[A-Za-z0-9_-]{1,256}(?:\.fifo)?")

#: A folder, or what names of objects begin with, as a URL.
_ROOT = re.compile(
    r"(?:file:///[^/?#\x00-\x20\x7f][^?#\x00-\x20\x7f]*"
    r"|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[^?#\x00-\x20\x7f]*)?)"
)
_ODD_SEGMENT = re.compile(
    r"://[^/]*(?:/[^/]+)*/(?:(?:\.|%2[Ee]){1,2}(?:/|\Z)|/)|%(?![0-9A-Fa-f]{2})|%2[Ff]|%[01]|%7[Ff]"
)

if TYPE_CHECKING:
    from actors.content.dkim_keys import Signer
    from actors.content.files import FileReader
    from actors.content.html import HtmlPreparer


class BadSettings(DuepostError):
    """A setting is missing or wrong; the message names the variable and what would be right."""


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """One relay.

    Attributes:
        name: `default`, or what follows DUEPOST_SMTP_URL_ in lower case.
        url: the relay's URL; None where it is not set.
        connections: of a worker process, at the most.
        fallback: the relay that takes over while this one's circuit is open; None: its emails wait.
    """

    name: str
    url: SecretStr | None
    connections: int
    fallback: str | None

    @property
    def variable(self) -> str:
        """Where its URL is set."""
        return variable_of(self.name)


def variable_of(name: str) -> str:
    """The variable that the URL of a relay of this name is set in."""
    return _named("DUEPOST_SMTP_URL", name)


def _switch(value: object) -> bool:
    text = str(value).strip().lower()
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError("must be 0 or 1")


def _blank_is_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _database_url(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None and not _is_readable(str(value)):
        raise ValueError(
            "must be a libpq URL such as postgresql://user:password@host:5432/database "
            "(in a password, percent-encode % / ? # @ and [)"
        )
    return value


def _is_readable(url: str) -> bool:
    """Whether libpq finds its way through a URL: where it does not, its own error may quote the password."""
    try:
        found = extensions.parse_dsn(url)
    except psycopg2.ProgrammingError:
        return False
    ports = str(found.get("port", "")).split(",")
    return "@" not in str(found.get("host", "")) and all(not port or port.isdigit() for port in ports)


def _broker_url(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None and not _is_amqp(str(value).strip()):
        raise ValueError(
            "must be a URL such as amqp://user:password@host:5672/vhost, or amqps:// for TLS "
            "(in a password, percent-encode % / ? # @ and [)"
        )
    return value


def _is_amqp(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_complete = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    is_one_name = "/" not in parts.path[1:] and ";" not in url and parts.netloc.count("@") <= 1
    return parts.scheme in {"amqp", "amqps"} and is_complete and is_one_name and not parts.fragment


def _relay_url(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None:
        Relay.from_url(str(value))
    return value


def _hello(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None and not is_hello_name(str(value)):
        raise ValueError(
            "must be a domain such as mail.example.com, or an address such as [192.0.2.1] or [IPv6:2001:db8::1]"
        )
    return value


def _certificates(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None and (trouble := trouble_with(Path(str(value)))):
        raise ValueError(f"{value} {trouble}; must be a file of certificates in PEM")
    return value


def _web_url(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None:
        parts = urlsplit(str(value).strip())
        is_plain = parts.username is None and not parts.query and not parts.fragment
        if (
            parts.scheme not in {"http", "https"}
            or not parts.hostname
            or not is_plain
            or not _WEB_PATH.fullmatch(parts.path)
        ):
            raise ValueError("must be where browsers find the console, such as https://ops.example.com/duepost")
    return value


def _public_url(value: object) -> object:
    value = _blank_is_none(value)
    if value is None:
        return None
    text = str(value).strip().rstrip("/")
    parts = urlsplit(text)
    is_reached = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _THIS_MACHINE)
    if (
        not is_reached
        or not parts.hostname
        or parts.username is not None
        or not re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", parts.netloc)
        or not _WEB_PATH.fullmatch(parts.path)
        or text != f"{parts.scheme}://{parts.netloc}{parts.path}"
        or len(text) > LONGEST_PUBLIC_URL
    ):
        raise ValueError(
            "must be where recipients reach the links in emails, by TLS, such as https://mail.example.com "
            f"(at most {LONGEST_PUBLIC_URL} characters)"
        )
    return text


def _bounce_address(value: object) -> object:
    value = _blank_is_none(value)
    if value is None:
        return None
    try:
        found = parse_sender(str(value).strip())
    except ValueError:
        found = None
    if found is None or found.name or len(found.address.rpartition("@")[0]) > LONGEST_BOUNCE_NAME:
        raise ValueError(
            f"must be a bare address such as bounces@example.com, at most {LONGEST_BOUNCE_NAME} characters before the @"
        )
    return found.address


def _bounce_mailbox(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None and not _MAILBOX_PLACE.fullmatch(str(value)):
        raise ValueError(
            "must be the path of a Maildir, or imaps://user:password@host/folder, or imap+starttls:// in place of that"
        )
    return value


def _topics(value: object) -> object:
    """ARNs of topics, with commas between them."""
    if not isinstance(value, str):
        return value
    topics = tuple(each.strip() for each in value.split(",") if each.strip())
    if not all(_TOPIC.fullmatch(each) for each in topics):
        raise ValueError("must be topics' ARNs, with commas, such as arn:aws:sns:eu-west-1:123456789012:bounces")
    return topics


def _keys(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None and not all(re.fullmatch(r"[!-~]{8,200}", each) for each in str(value).split()):
        raise ValueError(
            "must be the HTTP webhook signing key; the old and the new one, with a space, while it changes"
        )
    return value


def _public_keys(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None and not all(
        re.fullmatch(r"[A-Za-z0-9+/]{40,1000}={0,2}", each) for each in str(value).split()
    ):
        raise ValueError("must be the webhook's verification key, in base64, as SendGrid shows it")
    return value


def _logins(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None and not all(
        re.fullmatch(r"[!-9;-~]{1,100}:[!-~]{16,200}", each) for each in str(value).split()
    ):
        raise ValueError("must be user:password as in the webhook's URL, the password of 16 characters or more")
    return value


def _proxies(value: object) -> object:
    """Addresses and networks, with commas between them."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(ip_network(each.strip()) for each in value.split(",") if each.strip())
    except ValueError:
        raise ValueError("must be addresses or networks such as 127.0.0.1, 10.0.0.0/8") from None


def _header(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None and not re.fullmatch(r"[A-Za-z0-9-]+", str(value)):
        raise ValueError("must be a header's name such as X-Forwarded-User")
    return value


def _log(value: object) -> object:
    text = str(value).strip().lower()
    if text not in {each.value for each in LogFormat}:
        raise ValueError("must be text or json")
    return text


def _ip(value: object) -> object:
    try:
        return str(ip_address(str(value).strip()))
    except ValueError:
        raise ValueError("must be an IP address of this machine such as 127.0.0.1 or 0.0.0.0") from None


def _token(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None and not re.fullmatch(r"[A-Za-z0-9._~+/=-]{16,200}", str(value)):
        raise ValueError("must be 16 to 200 letters and digits, as of `openssl rand -hex 32`")
    return value


def _dsn(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None:
        from sentry_sdk.utils import BadDsn, Dsn  # noqa: PLC0415 - see `alerts.start`

        try:
            Dsn(str(value))
        except BadDsn as error:
            raise ValueError("must be a Sentry DSN such as https://key@host/1") from error
    return value


def _mailbox(value: object) -> object:
    value = _blank_is_none(value)
    if value is not None:
        parse_sender(str(value))
    return value


def _signed_headers(value: object) -> object:
    """Names of headers with commas between them."""
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    known = [name.lower() for name in names]
    is_right = all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in names) and len(set(known)) == len(known)
    if not is_right or "from" not in known or not UNSIGNED.isdisjoint(known):
        raise ValueError("must be names of headers with commas, each once, From among them: From, To, Subject")
    return names


def _roots(value: object) -> object:
    """URLs of folders, with spaces or commas between them."""
    if not isinstance(value, str):
        return value
    roots = tuple(value.replace(",", " ").split())
    if not all(_ROOT.fullmatch(each) and not _ODD_SEGMENT.search(each) for each in roots):
        raise ValueError(
            "must be URLs of folders, with spaces, such as file:///srv/invoices/ s3://bucket/invoices/ "
            "(percent-encode what is no plain character)"
        )
    return roots


class Settings(BaseSettings):
    """Every setting, from the environment. Secrets are never shown."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    database_url: Annotated[SecretStr | None, BeforeValidator(_database_url)] = Field(
        default=None, validation_alias="DUEPOST_DATABASE_URL"
    )
    broker_url: Annotated[SecretStr | None, BeforeValidator(_broker_url)] = Field(
        default=None, validation_alias="DUEPOST_BROKER_URL"
    )
    smtp_url: Annotated[SecretStr | None, BeforeValidator(_relay_url)] = Field(
        default=None, validation_alias="DUEPOST_SMTP_URL"
    )
    smtp_hello: Annotated[str | None, BeforeValidator(_hello)] = Field(
        default=None, validation_alias="DUEPOST_SMTP_HELO"
    )
    http_certificates: Annotated[Path | None, BeforeValidator(_certificates)] = Field(
        default=None, validation_alias="DUEPOST_HTTP_CA"
    )
    smtp_certificates: Annotated[Path | None, BeforeValidator(_certificates)] = Field(
        default=None, validation_alias="DUEPOST_SMTP_CA"
    )
    sender: Annotated[str | None, BeforeValidator(_mailbox)] = Field(default=None, validation_alias="DUEPOST_FROM")
    templates: Path = Field(default=Path("templates"), validation_alias="DUEPOST_TEMPLATES")
    trim_blocks: Annotated[bool, BeforeValidator(_switch)] = Field(
        default=False, validation_alias="DUEPOST_TRIM_BLOCKS"
    )
    prepare_html: Annotated[bool, BeforeValidator(_switch)] = Field(
        default=False, validation_alias="DUEPOST_PREPARE_HTML"
    )
    attachment_roots: Annotated[
        tuple[str, ...] | None, NoDecode, BeforeValidator(_roots), BeforeValidator(_blank_is_none)
    ] = Field(default=None, validation_alias="DUEPOST_ATTACHMENT_ROOTS")
    attachment_timeout: float = Field(default=10.0, gt=0, le=600, validation_alias="DUEPOST_ATTACHMENT_TIMEOUT")
    state_dir: Annotated[Path | None, BeforeValidator(_blank_is_none)] = Field(
        default=None, validation_alias="DUEPOST_STATE_DIR"
    )
    disabled: Annotated[bool, BeforeValidator(_switch)] = Field(default=False, validation_alias="DUEPOST_DISABLED")
    session_database_url: Annotated[SecretStr | None, BeforeValidator(_database_url)] = Field(
        default=None, validation_alias="DUEPOST_SESSION_DATABASE_URL"
    )
    database_connections: int = Field(default=10, ge=1, validation_alias="DUEPOST_DATABASE_CONNECTIONS")
    statement_timeout: float = Field(default=30.0, ge=1, validation_alias="DUEPOST_STATEMENT_TIMEOUT")
    stall_timeout: float = Field(default=60.0, ge=1, validation_alias="DUEPOST_STALL_TIMEOUT")
    busy_timeout: float = Field(default=3600.0, ge=1, validation_alias="DUEPOST_BUSY_TIMEOUT")
    dead_letter_days: int = Field(default=7, ge=1, validation_alias="DUEPOST_DEAD_LETTER_DAYS")
    http_connections: int = Field(default=128, ge=1, le=1000, validation_alias="DUEPOST_HTTP_CONNECTIONS")
    smtp_connections: int = Field(default=8, ge=1, validation_alias="DUEPOST_SMTP_CONNECTIONS")
    smtp_connect_timeout: float = Field(default=30.0, gt=0, validation_alias="DUEPOST_SMTP_CONNECT_TIMEOUT")
    smtp_timeout: float = Field(default=300.0, gt=0, validation_alias="DUEPOST_SMTP_TIMEOUT")
    smtp_dot_timeout: float = Field(default=600.0, gt=0, validation_alias="DUEPOST_SMTP_DOT_TIMEOUT")
    render_timeout: float = Field(default=10.0, gt=0, validation_alias="DUEPOST_RENDER_TIMEOUT")
    memory_limit: int = Field(default=1024, ge=0, validation_alias="DUEPOST_MEMORY_LIMIT")
    retention_days: Annotated[int | None, BeforeValidator(_blank_is_none)] = Field(
        default=None, ge=1, validation_alias="DUEPOST_RETENTION_DAYS"
    )
    keep_undeliverable_days: int = Field(default=7, ge=0, le=3650, validation_alias="DUEPOST_KEEP_UNDELIVERABLE_DAYS")
    smtp_fallback: Annotated[str | None, BeforeValidator(_blank_is_none)] = Field(
        default=None, validation_alias="DUEPOST_SMTP_FALLBACK"
    )
    web_url: Annotated[str | None, BeforeValidator(_web_url)] = Field(default=None, validation_alias="DUEPOST_WEB_URL")
    public_url: Annotated[str | None, BeforeValidator(_public_url)] = Field(
        default=None, validation_alias="DUEPOST_PUBLIC_URL"
    )
    bounce_address: Annotated[str | None, BeforeValidator(_bounce_address)] = Field(
        default=None, validation_alias="DUEPOST_BOUNCE_ADDRESS"
    )
    bounce_mailbox: Annotated[SecretStr | None, BeforeValidator(_bounce_mailbox)] = Field(
        default=None, validation_alias="DUEPOST_BOUNCE_MAILBOX"
    )
    ses_topics: Annotated[
        tuple[str, ...] | None, NoDecode, BeforeValidator(_topics), BeforeValidator(_blank_is_none)
    ] = Field(default=None, validation_alias="DUEPOST_SES_TOPICS")
    mailgun_signing_key: Annotated[SecretStr | None, BeforeValidator(_keys)] = Field(
        default=None, validation_alias="DUEPOST_MAILGUN_SIGNING_KEY"
    )
    sendgrid_public_key: Annotated[str | None, BeforeValidator(_public_keys)] = Field(
        default=None, validation_alias="DUEPOST_SENDGRID_PUBLIC_KEY"
    )
    postmark_login: Annotated[SecretStr | None, BeforeValidator(_logins)] = Field(
        default=None, validation_alias="DUEPOST_POSTMARK_LOGIN"
    )
    web_users: Annotated[Path | None, BeforeValidator(_blank_is_none)] = Field(
        default=None, validation_alias="DUEPOST_WEB_USERS"
    )
    web_user_header: Annotated[str | None, BeforeValidator(_header)] = Field(
        default=None, validation_alias="DUEPOST_WEB_USER_HEADER"
    )
    web_proxies: Annotated[
        tuple[IPv4Network | IPv6Network, ...] | None,
        NoDecode,
        BeforeValidator(_blank_is_none),
        BeforeValidator(_proxies),
    ] = Field(default=None, validation_alias="DUEPOST_WEB_PROXIES")
    web_viewer_database_url: Annotated[SecretStr | None, BeforeValidator(_database_url)] = Field(
        default=None, validation_alias="DUEPOST_WEB_VIEWER_DATABASE_URL"
    )
    dkim_keys: Annotated[Path | None, BeforeValidator(_blank_is_none)] = Field(
        default=None, validation_alias="DUEPOST_DKIM_KEYS"
    )
    dkim_headers: Annotated[
        tuple[str, ...] | None, NoDecode, BeforeValidator(_signed_headers), BeforeValidator(_blank_is_none)
    ] = Field(default=None, validation_alias="DUEPOST_DKIM_HEADERS")
    dkim_required: Annotated[bool, BeforeValidator(_switch)] = Field(
        default=False, validation_alias="DUEPOST_DKIM_REQUIRED"
    )
    log: Annotated[LogFormat, BeforeValidator(_log)] = Field(default=LogFormat.TEXT, validation_alias="DUEPOST_LOG")
    web_metrics_token: Annotated[SecretStr | None, BeforeValidator(_token)] = Field(
        default=None, validation_alias="DUEPOST_WEB_METRICS_TOKEN"
    )
    metrics_port: Annotated[int | None, BeforeValidator(_blank_is_none)] = Field(
        default=None, ge=1, le=65_535, validation_alias="DUEPOST_METRICS_PORT"
    )
    metrics_host: Annotated[str, BeforeValidator(_ip)] = Field(
        default="127.0.0.1", validation_alias="DUEPOST_METRICS_HOST"
    )
    sentry_dsn: Annotated[SecretStr | None, BeforeValidator(_dsn)] = Field(default=None, validation_alias="SENTRY_DSN")
    sentry_environment: str = Field(default="production", validation_alias="SENTRY_ENVIRONMENT")
    sentry_traces: float = Field(default=0.0, ge=0, le=1, validation_alias="DUEPOST_SENTRY_TRACES")

    _relays: Mapping[str, RelaySettings] = PrivateAttr(default_factory=dict)

    def model_post_init(self, _context: object, /) -> None:
        """Reads the variables that have a relay's name in theirs.

        Raises:
            BadSettings: one of them is wrong.
        """
        self._relays = _relays(self)

    @property
    def relays(self) -> Mapping[str, RelaySettings]:
        """The relays by name, the default one first."""
        return self._relays

    @property
    def is_by_postmark(self) -> bool:
        """Whether emails may leave by Postmark, which replaces Message-IDs."""
        urls = [relay.url.get_secret_value() for relay in self._relays.values() if relay.url is not None]
        hosts = [Relay.from_url(url).host.lower() for url in urls]
        return self.postmark_login is not None or any(host.endswith(".postmarkapp.com") for host in hosts)

    def need_database_url(self) -> str:
        """The database's URL.

        Raises:
            BadSettings: it is not set.
        """
        if self.database_url is None:
            raise BadSettings("DUEPOST_DATABASE_URL: not set; give a libpq URL such as postgresql://user@host/database")
        return self.database_url.get_secret_value()

    @property
    def session_url(self) -> str | None:
        """The URL without a pooler in between, for sessions that last."""
        return self.session_database_url.get_secret_value() if self.session_database_url else None

    def need_relay(self, name: str = DEFAULT_RELAY) -> Relay:
        """A relay.

        Raises:
            BadSettings: it is not set.
        """
        url = self._relays[name].url
        if url is None:
            raise BadSettings("DUEPOST_SMTP_URL: not set; give a relay such as smtp+starttls://user:password@host:587")
        return self.with_its_settings(Relay.from_url(url.get_secret_value()))

    def with_its_settings(self, relay: Relay) -> Relay:
        """A relay with what is set for all: our name and the certificates that are trusted."""
        return replace(relay, hello=self.smtp_hello, certificates=self.smtp_certificates)

    def need_sender(self) -> Mailbox:
        """The sender of emails that name none.

        Raises:
            BadSettings: it is not set.
        """
        if self.sender is None:
            raise BadSettings("DUEPOST_FROM: not set; give a sender such as Duepost <noreply@example.com>")
        return parse_sender(self.sender)

    def signer(self) -> "Signer | None":
        """What signs emails; None where there are to be no signatures. Reads no file yet.

        Raises:
            BadSettings: signatures are required, and there are no keys.
        """
        if self.dkim_keys is None:
            if self.dkim_required:
                raise BadSettings("DUEPOST_DKIM_REQUIRED: set, but DUEPOST_DKIM_KEYS is not; give the folder of keys")
            return None
        # A tick and a command read the settings too, and need nothing of what makes an email.
        from actors.content.dkim_keys import DkimKeys, Signer  # noqa: PLC0415

        return Signer(DkimKeys(self.dkim_keys), self.dkim_headers or SIGNED, is_required=self.dkim_required)

    def html_preparer(self) -> "HtmlPreparer | None":
        """What prepares the HTML of templates for mail clients; None where it stays as it is. Starts nothing yet.

        Raises:
            BadSettings: what it needs is not installed.
        """
        if not self.prepare_html:
            return None
        from actors.content.html import HtmlPreparer, check_libraries  # noqa: PLC0415
        from actors.content.libraries import MissingLibrary  # noqa: PLC0415
        from actors.content.templates import LONGEST_BODY  # noqa: PLC0415

        try:
            check_libraries()
        except MissingLibrary as error:
            raise BadSettings(str(error)) from None
        return HtmlPreparer(self.render_timeout, LONGEST_BODY)

    def file_reader(self) -> "FileReader | None":
        """What reads files that emails name by URL; None where none are read. Starts nothing yet.

        Raises:
            BadSettings: what it needs is not installed.
        """
        if not self.attachment_roots:
            return None
        from actors.content.files import FileReader, check_libraries  # noqa: PLC0415
        from actors.content.libraries import MissingLibrary  # noqa: PLC0415

        try:
            check_libraries(self.attachment_roots)
        except MissingLibrary as error:
            raise BadSettings(str(error)) from None
        return FileReader(self.attachment_roots, self.attachment_timeout)

    @property
    def state_folder(self) -> Path | None:
        """Where a worker keeps what is to survive its process; None where nothing is to, or there is no place."""
        if self.state_dir is not None:
            return None if str(self.state_dir) == NO_STATE else self.state_dir
        if given := os.environ.get("STATE_DIRECTORY", "").partition(":")[0]:
            # systemd's, for the service's own.
            return Path(given)
        if given := os.environ.get("XDG_STATE_HOME", ""):
            return Path(given) / "duepost"
        try:
            return Path.home() / ".local" / "state" / "duepost"
        except RuntimeError:
            return None

    @property
    def timeouts(self) -> Timeouts:
        """The limits of an SMTP dialogue, in seconds."""
        return Timeouts(
            connect=self.smtp_connect_timeout,
            command=self.smtp_timeout,
            block=min(self.smtp_timeout, Timeouts().block),
            dot=self.smtp_dot_timeout,
        )


@cache
def settings() -> Settings:
    """The settings of this process, read once.

    Raises:
        BadSettings: a variable is wrong; the first one is named.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        variable = str(first["loc"][0])
        raise BadSettings(f"{variable}: {_in_our_words(first['msg'])}{_quotation_marks(variable)}") from None


def _relays(found: Settings) -> Mapping[str, RelaySettings]:
    urls = _by_relay("DUEPOST_SMTP_URL")
    names = [DEFAULT_RELAY, *sorted(urls)]
    connections, fallbacks = _by_relay("DUEPOST_SMTP_CONNECTIONS"), _by_relay("DUEPOST_SMTP_FALLBACK")
    for variable, given in (("DUEPOST_SMTP_CONNECTIONS", connections), ("DUEPOST_SMTP_FALLBACK", fallbacks)):
        for name in sorted(given.keys() - set(names)):
            raise BadSettings(f"{_named(variable, name)}: there is no such relay: {variable_of(name)} is not set")
    if found.smtp_fallback is not None:
        fallbacks[DEFAULT_RELAY] = found.smtp_fallback
    return {
        name: RelaySettings(
            name,
            found.smtp_url if name == DEFAULT_RELAY else _named_url(name, urls[name]),
            _named_connections(name, connections[name]) if name in connections else found.smtp_connections,
            _named_fallback(name, fallbacks[name], names) if name in fallbacks else None,
        )
        for name in names
    }


def _by_relay(variable: str) -> dict[str, str]:
    """What is set in the variables that have a relay's name behind this one's, by that name in lower case."""
    found: dict[str, str] = {}
    for key, value in os.environ.items():
        if not key.upper().startswith(f"{variable}_") or not value.strip():
            continue
        name = key[len(variable) + 1 :].lower()
        if name == DEFAULT_RELAY:
            raise BadSettings(f"{key}: the name default is taken by the relay of DUEPOST_SMTP_URL; give another one")
        if not RELAY_NAME.fullmatch(name):
            raise BadSettings(
                f"{key}: what follows {variable}_ must be a relay's name: a letter, then at most 39 letters, digits, _"
            )
        found[name] = value.strip()
    return found


def _named(variable: str, name: str) -> str:
    return variable if name == DEFAULT_RELAY else f"{variable}_{name.upper()}"


def _named_url(name: str, value: str) -> SecretStr:
    try:
        Relay.from_url(value)
    except ValueError as error:
        raise BadSettings(f"{variable_of(name)}: {error}{_quotation_marks(variable_of(name))}") from None
    return SecretStr(value)


def _named_connections(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) >= 1):
        raise BadSettings(f"{_named('DUEPOST_SMTP_CONNECTIONS', name)}: must be a whole number, 1 or more")
    return int(value)


def _named_fallback(name: str, value: str, names: list[str]) -> str:
    variable, fallback = _named("DUEPOST_SMTP_FALLBACK", name), value.strip().lower()
    if fallback == name:
        raise BadSettings(f"{variable}: must be another relay than {name} itself")
    if fallback not in names:
        raise BadSettings(f"{variable}: there is no such relay; known are {', '.join(names)}")
    return fallback


def _in_our_words(message: str) -> str:
    """What would be right, without the words of the library that has found out."""
    reason = message.removeprefix("Value error, ").replace("Input should be", "must be").partition(", unable to")[0]
    return reason[:1].lower() + reason[1:]


def _quotation_marks(variable: str) -> str:
    """A word on a value that has kept its quotation marks, as where an env file is read by no shell."""
    value = os.environ.get(variable, "").strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return "; the value has quotation marks around it: leave them out"
    return ""
