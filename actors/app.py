"""Builds everything and hands it in. Importing this, or any other module, builds nothing and connects to nothing."""

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import dramatiq
from dramatiq.middleware import Retries

from actors.alerts import alerts, logs
from actors.alerts.redaction import PrivateRetries
from actors.alerts.traces import Traces
from actors.channels.http.channel import HttpChannel
from actors.channels.http.resolver import Resolver
from actors.channels.smtp.channel import SmtpChannel
from actors.content.templates import Templates
from actors.delivery.attempt import Records
from actors.delivery.composer import Composer
from actors.delivery.conclude import Conclusions
from actors.delivery.dispatcher import Dispatcher
from actors.delivery.due_line import DueLine
from actors.delivery.email_work import EmailDispatcher, EmailRates, EmailWork
from actors.delivery.in_flight import InFlightClaims
from actors.delivery.inbox import ItemInbox
from actors.delivery.item_work import Shared
from actors.delivery.journal import Journal
from actors.delivery.keeping import Keeping
from actors.delivery.message_work import MessageConclusions, MessageDispatcher, MessageRates, MessageWork, Unlimited
from actors.delivery.payloads import Payloads
from actors.delivery.permit import SessionPermit
from actors.delivery.rates import Rates
from actors.delivery.rescue import Rescuer
from actors.delivery.route import Registration, SharedRoute, Watch
from actors.delivery.seals import Seals
from actors.liveness.maintenance import Patience
from actors.liveness.time_limit import TimeLimit
from actors.lookout import Lookout, Served
from actors.metrics import MetricsServer, WorkerMetrics
from actors.queue.broker import Life, PostgresBroker
from actors.scheduler import Scheduler, declare_scheduler
from actors.sender import SEND_MESSAGE, actor_of, declare_message_sender, declare_sender, message_for, queue_of
from actors.settings import BadSettings, RelaySettings, Settings, settings
from actors.startup import BAD_SETTINGS, Delivering, Startup, end
from actors.version import RELEASE
from models import control
from models.database.connections import Database, Limits
from models.database.deadlines import Deadlines
from models.emails import PRIORITY
from models.items import ENDPOINT_PREFIX, endpoint_of, is_endpoint, route_of

if TYPE_CHECKING:
    from actors.queue.rabbitmq import Rabbitmq

#: Seconds between two looks at a queue that stays empty. What is due is looked for more often, by the lookout; where
#: there is a line, it has the scheduler's queue looked at too.
LONGEST_POLL: Final = 1.0


class EmailRoute:
    """One route of a process: a relay, and all that is its own, so that its trouble is nobody else's.

    What is shared with the other routes is the application's.

    Args:
        application: what it is a part of.
        relay: the relay.
        label: what the route is called in alerts and log lines; None where there is only one.
    """

    def __init__(self, application: "Application", relay: RelaySettings, label: str | None) -> None:
        settings, broker, name = application.settings, application.broker, relay.name
        self.route = SharedRoute(
            application.database,
            name,
            lambda: broker.worker_session.worker_id,
            lambda: Registration(settings.need_relay(name).target, relay.fallback),
            label=label,
        )
        self.channel = SmtpChannel(
            lambda: settings.need_relay(name),
            settings.timeouts,
            permit=SessionPermit(broker.worker_session),
            route=self.route,
        )
        self.rates: EmailRates = Rates(application.database, name, lambda: broker.worker_session.worker_id)
        self.conclusions = application.conclusions_of(self.route, self.rates.seen)
        line = DueLine()
        self.email_work = EmailWork(
            application.shared,
            application.composer,
            application.seals,
            application.records,
            self.conclusions,
            way=name,
            line=line,
            keeping=application.keeping,
            rates=self.rates,
            tell_failed=lambda email_id, failure: broker.tell_failed(message_for(email_id, name), PRIORITY, failure),
        )
        self.dispatcher: EmailDispatcher = Dispatcher(
            self.email_work,
            ItemInbox(broker, actor_of(name)),
            self.channel,
            relay.connections,
            self.route,
            due=self.email_work,
            rated=self.email_work,
            # Other relays and endpoints need its threads.
            detach=broker.detach,
        )
        self.watch = Watch(self.route, self.dispatcher.tidy, self.rates)
        self.send_email = declare_sender(broker, name, self.dispatcher, relay.connections)
        self.served = Served(name, relay.connections, self.dispatcher.has_line, line)


class Messages:
    """What delivers scheduled messages in a process, through whatever endpoints.

    What is shared with emails is the application's.

    Args:
        application: what it is a part of.
    """

    def __init__(self, application: "Application") -> None:
        settings, broker = application.settings, application.broker
        self.channel = HttpChannel(SessionPermit(broker.worker_session), settings.http_certificates)
        self.rates: MessageRates = Rates(application.database, ENDPOINT_PREFIX, lambda: broker.worker_session.worker_id)
        self.work = MessageWork(
            application.shared, Payloads(Resolver()), application.message_conclusions_of, self.rates
        )
        self.dispatcher: MessageDispatcher = Dispatcher(
            self.work,
            ItemInbox(broker, SEND_MESSAGE),
            self.channel,
            settings.http_connections,
            Unlimited(),
            rated=self.work,
            detach=broker.detach,
        )
        self.work.go_on_with(self.dispatcher.add)
        self.send_message = declare_message_sender(broker, self.dispatcher)
        self.served = Served(ENDPOINT_PREFIX, settings.http_connections, self.dispatcher.has_line)

    def tidy(self) -> None:
        """Closes connections that have waited for their next request for too long. Never blocks."""
        self.dispatcher.tidy()
        self.channel.close_idle()

    def return_places(self) -> None:
        """Tells the database of places that are free since the last message, if any; may wait for it."""
        if self.rates.owes:
            self.rates.ask()

    def close(self) -> None:
        """Closes all connections; nothing may be under way."""
        self.dispatcher.close()
        self.channel.close()


class Application:
    """The email application of one process: its parts, each handed what it needs.

    Building it does no I/O. Sentry is turned on where there is a DSN: it patches Dramatiq's Broker, so it comes first.
    Dramatiq's global broker is left alone.

    Args:
        settings: what was asked for.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        alerts.start(
            settings.sentry_dsn.get_secret_value() if settings.sentry_dsn else None,
            environment=settings.sentry_environment,
            release=RELEASE,
        )
        self.database = Database(
            settings.database_url.get_secret_value() if settings.database_url else "",
            application_name="duepost worker",
            limits=Limits(statement=settings.statement_timeout),
            most=settings.database_connections,
            deadlines=Deadlines(),
        )
        self.broker = PostgresBroker(
            self.database,
            # Of Dramatiq's own no more than our actors have a use for: each is asked about every message. A limit of
            # time would cut dialogues short, as ten minutes after the dot are legal (RFC 5321 section 4.5.3.2.6);
            # Prometheus opens a port.
            [Retries(), PrivateRetries()],
            session_url=settings.session_url,
            patience=Patience(idle=settings.stall_timeout, busy=settings.busy_timeout),
            dead_letters_kept=timedelta(days=settings.dead_letter_days),
            # A queue that is looked at is not taken for one that nobody reads.
            longest_poll=min(LONGEST_POLL, settings.stall_timeout / 4),
        )
        time_limit = TimeLimit()
        #: What prepares HTML for mail clients; None where it stays as it is.
        self.preparer = settings.html_preparer()
        self.templates = Templates(
            settings.templates,
            time_limit,
            settings.render_timeout,
            trim_blocks=settings.trim_blocks,
            preparer=self.preparer,
        )
        self.in_flight = InFlightClaims()
        self.journal = Journal(settings.state_folder, self.database)
        self.seals = Seals(self.database, settings.public_url, settings.bounce_address)
        #: What signs emails; None where nobody does.
        self.signer = settings.signer()
        self.composer = Composer(
            self.templates,
            time_limit,
            self.seals,
            sender=settings.need_sender() if settings.sender is not None else None,
            signer=self.signer,
            is_marked=settings.is_by_postmark,
        )
        self.keeping = Keeping(self.database)
        #: What reads files that emails name by URL; None where none are read.
        self.files = settings.file_reader()
        self.records = Records(
            self.database,
            self.broker,
            files=self.files,
            keep_undeliverable_days=settings.keep_undeliverable_days,
        )
        #: What is counted; None where nobody asks for it.
        self.metrics = None if settings.metrics_port is None else WorkerMetrics()
        self.shared = Shared(
            self.database,
            self.broker,
            self.in_flight,
            self.journal,
            settings.disabled,
            self.metrics,
            Traces(settings.sentry_traces if settings.sentry_dsn else 0.0),
        )
        are_several = len(settings.relays) > 1
        #: By name.
        self.routes = {
            name: EmailRoute(self, relay, name if are_several else None) for name, relay in settings.relays.items()
        }
        self.messages = Messages(self)
        self.scheduler = Scheduler(
            self.database, self.broker, retention_days=settings.retention_days, disabled=settings.disabled
        )
        self.rescuer = Rescuer(
            self.database, self.broker, self.in_flight, self.journal, self.records, self._conclusions_by
        )
        self.lookout = (
            None
            if settings.disabled
            else Lookout(
                self.database,
                self.broker,
                [*(each.served for each in self.routes.values()), self.messages.served],
                self.scheduler,
                self.messages.tidy,
                self.messages.return_places,
            )
        )
        self.enqueue_due_emails = declare_scheduler(self.broker, self.scheduler)
        messenger = _rabbitmq(settings, self.database, self.broker, [*self.routes, ENDPOINT_PREFIX])
        self.broker.carrier = messenger
        self.broker.add_middleware(
            Startup(
                settings,
                self.database,
                self.broker,
                [Delivering(each.route, each.watch, each.dispatcher) for each in self.routes.values()],
                self.messages.close,
                self.rescuer,
                self.lookout,
                self.journal,
                None
                if self.metrics is None or settings.metrics_port is None
                else MetricsServer(self.metrics, settings.metrics_host, settings.metrics_port),
                self.signer,
                self.preparer,
                messenger,
                self.files,
            ),
            before=Life,
        )

    def conclusions_of(self, route: SharedRoute, seen: Callable[[str], float] = lambda _: 0.0) -> Conclusions:
        """What writes down what came of emails that were sent by a route; `seen` says how many go to a domain."""
        return Conclusions(
            self.database,
            self.broker,
            route,
            keep_undeliverable_days=self.settings.keep_undeliverable_days,
            seen=seen,
        )

    def message_conclusions_of(self, endpoint: str) -> MessageConclusions:
        """What writes down what came of an endpoint's messages."""
        return MessageConclusions(
            self.database,
            self.broker,
            self._unregistered(route_of(endpoint), label=endpoint),
            endpoint,
            keep_undeliverable_days=self.settings.keep_undeliverable_days,
        )

    def _unregistered(self, name: str, *, label: str) -> SharedRoute:
        """A route that this process does not register: an endpoint's, or another worker's relay."""
        return SharedRoute(self.database, name, lambda: self.broker.worker_session.worker_id, label=label)

    def _conclusions_by(self, name: str) -> Conclusions:
        """The same by the route's name, whether this process serves it or not."""
        if is_endpoint(name):
            return self.message_conclusions_of(endpoint_of(name))
        if name in self.routes:
            return self.routes[name].conclusions
        return self.conclusions_of(self._unregistered(name, label=name))


def _rabbitmq(
    settings: Settings, database: Database, broker: PostgresBroker, routes: Sequence[str]
) -> "Rabbitmq | None":
    """What carries messages through RabbitMQ, where that is asked for and something is sent.

    Raises:
        BadSettings: its package is not there, or makes nothing of the URL.
    """
    if settings.broker_url is None or settings.disabled:
        return None
    try:
        # An extra: who does without it need not have it.
        from actors.queue.rabbitmq import Rabbitmq  # noqa: PLC0415

        return Rabbitmq(
            settings.broker_url.get_secret_value(),
            broker,
            [queue_of(route) for route in routes],
            partial(control.installation, database),
        )
    except ModuleNotFoundError as error:
        raise BadSettings(
            f"DUEPOST_BROKER_URL: RabbitMQ needs {error.name}, which is not installed: pip install 'duepost[rabbitmq]'"
        ) from error
    except (ValueError, TypeError) as error:
        raise BadSettings("DUEPOST_BROKER_URL: pika makes nothing of what is behind the question mark") from error


def build() -> Application:
    """Builds the application from the environment, and makes its broker Dramatiq's: for a worker's process.

    Ends the process with one line and an exit status where a setting is wrong.
    """
    try:
        logs.start(settings().log)
        application = Application(settings())
    except BadSettings as error:
        end(error, BAD_SETTINGS)
        sys.exit(BAD_SETTINGS)
    dramatiq.set_broker(application.broker)
    return application
