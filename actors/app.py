"""Builds everything and hands it in. Importing this, or any other module, builds nothing and connects to nothing."""

import sys
from datetime import timedelta
from typing import Final

import dramatiq
from dramatiq.middleware import Retries

from actors.alerts import alerts
from actors.alerts.redaction import PrivateRetries
from actors.channels.smtp.channel import SmtpChannel
from actors.content.templates import Templates
from actors.delivery.attempt import Records
from actors.delivery.composer import Composer
from actors.delivery.conclude import Conclusions
from actors.delivery.dispatcher import Dispatcher
from actors.delivery.email_work import EmailDispatcher, EmailInbox, EmailWork
from actors.delivery.in_flight import InFlightClaims
from actors.delivery.journal import Journal
from actors.delivery.permit import SessionPermit
from actors.delivery.rescue import Rescuer
from actors.delivery.route import SharedRoute, Watch
from actors.liveness.maintenance import Patience
from actors.lookout import Lookout
from actors.queue.broker import Life, PostgresBroker
from actors.scheduler import Scheduler, declare_scheduler
from actors.sender import SEND_EMAIL, declare_sender
from actors.settings import BadSettings, Settings, settings
from actors.startup import BAD_SETTINGS, Startup, end
from actors.version import RELEASE
from models.database.connections import Database, Limits

#: Seconds between two looks at a queue that stays empty. What is due is looked for more often, by the lookout; where
#: there is a line, it has the scheduler's queue looked at too.
LONGEST_POLL: Final = 1.0


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
        self.templates = Templates(settings.templates, settings.render_timeout)
        self.in_flight = InFlightClaims()
        self.journal = Journal(settings.state_folder, self.database)
        self.route = SharedRoute(
            self.database, lambda: settings.need_relay().route, lambda: self.broker.worker_session.worker_id
        )
        self.channel = SmtpChannel(
            settings.need_relay,
            settings.timeouts,
            permit=SessionPermit(self.broker.worker_session),
            route=self.route,
        )
        self.composer = Composer(self.templates, sender=settings.need_sender() if settings.sender is not None else None)
        self.records = Records(self.database, self.broker, keep_undeliverable_days=settings.keep_undeliverable_days)
        self.conclusions = Conclusions(
            self.database, self.broker, self.route, keep_undeliverable_days=settings.keep_undeliverable_days
        )
        self.email_work = EmailWork(
            self.database,
            self.broker,
            self.in_flight,
            self.journal,
            self.composer,
            self.records,
            self.conclusions,
            disabled=settings.disabled,
        )
        self.dispatcher: EmailDispatcher = Dispatcher(
            self.email_work,
            EmailInbox(self.broker, SEND_EMAIL),
            self.channel,
            settings.smtp_connections,
            self.route,
        )
        self.scheduler = Scheduler(
            self.database, self.broker, retention_days=settings.retention_days, disabled=settings.disabled
        )
        self.rescuer = Rescuer(self.database, self.broker, self.in_flight, self.journal, self.records, self.conclusions)
        self.watch = Watch(self.route, self.dispatcher.tidy)
        self.lookout = (
            None
            if settings.disabled
            else Lookout(self.database, self.broker, settings.smtp_connections, self.scheduler.enqueue_due_emails)
        )
        self.send_email = declare_sender(self.broker, self.dispatcher, settings.smtp_connections)
        self.enqueue_due_emails = declare_scheduler(self.broker, self.scheduler)
        self.broker.add_middleware(
            Startup(
                settings,
                self.database,
                self.broker,
                self.dispatcher,
                self.rescuer,
                self.watch,
                self.lookout,
                self.journal,
            ),
            before=Life,
        )


def build() -> Application:
    """Builds the application from the environment, and makes its broker Dramatiq's: for a worker's process.

    Ends the process with one line and an exit status where a setting is wrong.
    """
    try:
        application = Application(settings())
    except BadSettings as error:
        end(error, BAD_SETTINGS)
        sys.exit(BAD_SETTINGS)
    dramatiq.set_broker(application.broker)
    return application
