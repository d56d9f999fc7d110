"""One run: everything real, everything going wrong by plan, and a check at the end."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

from tests.chaos import batches, messages, various
from tests.chaos.batches import BatchBook, BatchClient
from tests.chaos.checker import Evidence, check
from tests.chaos.clients import USERS, Book, Client, address_of
from tests.chaos.locks import AdvisoryLocks
from tests.chaos.messages import MessageBook, MessageClient, Mischief
from tests.chaos.plan import Event, Trouble, plan
from tests.chaos.poison import KIND, schedule_poison, write_templates
from tests.chaos.relay import ChaosRelay
from tests.chaos.various import VariousBook, VariousClient
from tests.http_servers import ScriptedServer
from tests.namespaces import NamespaceNetwork, fresh_namespace, namespaces_are_allowed
from tests.network import Network
from tests.postgres import PostgresServer, ask
from tests.processes import ROOT, Process, Watch, duepost, environment

#: Seconds after which what has not come to an end is stuck.
PATIENCE = 120.0

#: How many times longer a cut lasts that is real: those of a few seconds are got over by TCP itself.
REAL_CUTS_LAST = 5

#: Queued rows without their message: there are none, as both commit together.
TORN = """
SELECT row.id
FROM duepost.scheduled_email AS row
WHERE row.state = 'queued'
  AND NOT EXISTS (SELECT FROM dramatiq.queue AS message WHERE message.message_id = row.message_id)
"""


#: What has not come to an end, of both channels; what waits for a person has.
PENDING = "SELECT count(*) FROM duepost.item WHERE NOT is_held OR id IN (SELECT item_id FROM duepost.in_hand)"


@dataclass
class Report:
    """What a run came to."""

    seed: int
    wrong: list[str]
    troubles: Counter[str]
    outcomes: dict[str, int]
    resends: dict[str, int]
    messages: Mapping[str, int]
    batches: str
    various: str
    emails: int
    copies: int
    held: int
    slowest: float
    cut_by: str
    log: str = ""
    stories: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        troubles = ", ".join(f"{count} × {trouble}" for trouble, count in sorted(self.troubles.items()))
        resends = ", ".join(f"{count} × {reason}" for reason, count in sorted(self.resends.items())) or "none"
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        messages = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.messages.items()))
        return (
            f"seed {self.seed}, network cut by {self.cut_by}: {self.emails} emails ({outcomes};"
            f" {self.held} held as unknown), {self.copies} copies at the relay; messages: {messages};"
            f" batches: {self.batches}; of all sorts: {self.various}; {troubles};"
            f" unknown outcomes: {resends}; slowest call {self.slowest:.2f} s;"
            f" {len(self.wrong) or 'nothing'} wrong" + "".join(f"\n{each}" for each in [*self.wrong, *self.stories])
        )


@dataclass
class Chaos:
    """A server, a relay, workers, watches and clients; all of them may be hit at any time.

    Args:
        seed: of the plan, and of what is asked.
        seconds: how long things go wrong.
        folder: for logs.
        module: what `dramatiq` runs.
        env: more environment for the workers.
        by_proxy: whether a proxy is to cut the network, even where a network namespace may be had.
    """

    seed: int
    seconds: float
    folder: Path
    binaries: Path
    module: str = "actors"
    env: Mapping[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = print
    by_proxy: bool = False

    def run(self) -> Report:
        """Runs it, and checks what has come of it."""
        with ExitStack() as stack:
            is_real = namespaces_are_allowed() and not self.by_proxy
            namespace = stack.enter_context(fresh_namespace()) if is_real else None
            self.server = PostgresServer(self.binaries, namespace=namespace)
            self.server.start()
            stack.callback(self._remove_server)
            # Else each network that is cut leaves sessions that the server believes in for two hours.
            for setting in ("idle = 20", "interval = 5", "count = 2"):
                self.server.execute(f"ALTER SYSTEM SET tcp_keepalives_{setting}")
            self.server.execute("SELECT pg_reload_conf()")
            self.url = stack.enter_context(self.server.fresh_database())
            self.relay = stack.enter_context(ChaosRelay())
            self.network: Network | NamespaceNetwork = (
                NamespaceNetwork(namespace, self.url) if namespace else stack.enter_context(Network(self.url))
            )
            self.cut_by = "a namespace" if namespace else "a proxy"
            self.lasts = {Trouble.CUT_NETWORK: REAL_CUTS_LAST} if namespace else {}
            self.processes: dict[str, Process] = {}
            stack.callback(self._kill_all)
            self.book = Book()
            self.troubles: Counter[str] = Counter()
            self.torn = 0
            self._prepare()
            self.hook = stack.enter_context(ScriptedServer())
            messages.set_up(self.query, self.hook)
            batches.set_up(self.query, self.folder / "templates")
            various.set_up(self.query, self.folder)
            self.messages, self.batches, self.various = MessageBook(), BatchBook(), VariousBook()
            clients: list[Client | MessageClient | BatchClient | VariousClient | Mischief] = [
                *(Client(self.url, self.book, f"{self.seed}-{number}") for number in range(4)),
                *(MessageClient(self.url, self.messages, f"{self.seed}-messages-{number}") for number in range(2)),
                *(BatchClient(self.url, self.batches, f"{self.seed}-batches-{number}") for number in range(2)),
                *(VariousClient(self.url, self.various, f"{self.seed}-various-{number}") for number in range(2)),
                Mischief(self.hook, self.seed),
            ]
            for client in clients:
                client.start()
            self._go_through_the_plan()
            for client in clients:
                client.stopping.set()
            for client in clients:
                client.join(timeout=60)
            self._wait_until_idle()
            return self._report()

    def _prepare(self) -> None:
        self.query("INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('resend', 'resend'), ('hold', 'hold')")
        for user in USERS:
            self.query("INSERT INTO duepost.recipient (user_id, address) VALUES (%s, %s)", user, address_of(user))
        write_templates(self.folder / "templates")
        for name in ("worker-0", "worker-1", "worker-2", "watch-0", "watch-1"):
            self._start(name)

    def _start(self, name: str) -> None:
        # The last worker lives behind a network that is cut now and then.
        url = self.network.url if name == "worker-2" else self.url
        limits = {"DUEPOST_STATEMENT_TIMEOUT": "2", "DUEPOST_SMTP_TIMEOUT": "2", "DUEPOST_SMTP_DOT_TIMEOUT": "3"}
        limits |= {"DUEPOST_TEMPLATES": str(self.folder / "templates"), "DUEPOST_RENDER_TIMEOUT": "1"}
        limits |= {"DUEPOST_STATE_DIR": str(self.folder / "state"), "DUEPOST_DKIM_KEYS": str(self.folder / "keys")}
        env = environment(url, f"{self.relay.url}?pipelining=ahead", **limits, **self.env)
        log = self.folder / f"{name}.log"
        if name.startswith("watch"):
            self.processes[name] = Watch(env, log)
        else:
            arguments = [sys.executable, "-m", "dramatiq", self.module, "--processes", "1", "--threads", "4"]
            self.processes[name] = Process(arguments, env, log)

    def _go_through_the_plan(self) -> None:
        begun = time.monotonic()
        later: list[tuple[float, Callable[[], object]]] = []
        events = plan(self.seed, self.seconds)
        while events or later:
            now = time.monotonic() - begun
            for each in [each for each in later if each[0] <= now]:
                later.remove(each)
                each[1]()
            if events and events[0].at <= now:
                event = events.pop(0)
                self.say(str(event))
                self.troubles[str(event.trouble)] += 1
                undo = self._do(event)
                if undo is not None:
                    seconds = event.seconds * self.lasts.get(event.trouble, 1)
                    later.append((time.monotonic() - begun + seconds, undo))
            self._keep_running()
            self._look()
            time.sleep(0.02)

    def _look(self) -> None:
        """What commits together is never seen apart, whatever happens meanwhile."""
        with suppress(psycopg2.OperationalError):
            connection = psycopg2.connect(self.url, connect_timeout=5)
            try:
                with connection.cursor() as cursor:
                    cursor.execute(TORN)
                    self.torn += cursor.rowcount
            finally:
                connection.close()

    def _do(self, event: Event) -> Callable[[], object] | None:
        workers = [name for name in self.processes if name.startswith("worker")]
        watches = [name for name in self.processes if name.startswith("watch")]
        worker = workers[event.target % len(workers)]
        acts: dict[Trouble, Callable[[], Callable[[], object] | None]] = {
            Trouble.KILL_WORKER: self.processes[worker].kill,
            Trouble.END_WORKER: lambda: self._signal(worker, signal.SIGTERM),
            Trouble.STOP_WORKER: lambda: self._stop(worker),
            Trouble.KILL_WATCH: self.processes[watches[event.target % len(watches)]].kill,
            Trouble.RESTART_FAST: lambda: self.server.restart("fast"),
            Trouble.RESTART_IMMEDIATE: lambda: self.server.restart("immediate"),
            Trouble.TERMINATE: self._terminate,
            Trouble.CUT_NETWORK: self._cut,
            Trouble.PAUSE: self._pause,
            Trouble.MIGRATE: self._migrate,
            Trouble.RELAY: lambda: self.relay.misbehave(event.how, 1 + event.target % 4),
            Trouble.POISON: lambda: schedule_poison(self.query, event.how),
            Trouble.LIMIT: self._limit,
            Trouble.BEHIND_DOT: self._lose_behind_dots,
            Trouble.LOCKS: self._take_locks,
        }
        return acts[event.trouble]()

    def _signal(self, name: str, number: int) -> None:
        process = self.processes[name]
        if process.popen.poll() is None:
            with suppress(ProcessLookupError):
                if number in {signal.SIGSTOP, signal.SIGCONT}:
                    os.killpg(process.popen.pid, number)
                else:
                    process.signal(number)

    def _stop(self, name: str) -> Callable[[], object]:
        self._signal(name, signal.SIGSTOP)
        return lambda: self._signal(name, signal.SIGCONT)

    def _terminate(self) -> None:
        with suppress(psycopg2.OperationalError):
            self.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.5"
            )

    def _cut(self) -> Callable[[], object]:
        self.network.cut()
        return self.network.mend

    def _pause(self) -> Callable[[], object]:
        self.query("UPDATE duepost.control SET paused = true")
        return lambda: self.query("UPDATE duepost.control SET paused = false")

    def _migrate(self) -> None:
        done = duepost("migrate", env=environment(self.url, self.relay.url))
        if done.returncode:
            self.book.errors.append(f"migrate: {done.stderr}")

    def _limit(self) -> Callable[[], object]:
        self.relay.limit = 1
        return lambda: setattr(self.relay, "limit", None)

    def _lose_behind_dots(self) -> Callable[[], object]:
        self.relay.behind = "close"
        # It was learnt before that this relay loses it: forgotten, so that it is found out once more.
        self.query("UPDATE duepost.route SET ahead_off_at = NULL, ahead_off_because = NULL")
        return lambda: setattr(self.relay, "behind", "take")

    def _take_locks(self) -> Callable[[], object]:
        """A client without any right takes each lock that is free, and waits for one that is not."""
        client = AdvisoryLocks(self.url)
        return client.let_go

    def _keep_running(self) -> None:
        for name, process in list(self.processes.items()):
            if process.popen.poll() is not None:
                self._start(name)

    def _wait_until_idle(self) -> None:
        self.network.mend()
        self.relay.forget()
        self.relay.release()
        self.relay.limit, self.relay.behind = None, "take"
        self.hook.forget()
        self.query("DELETE FROM duepost.scheduled_email WHERE kind = %s AND state <> 'sending'", KIND)
        for name in self.processes:
            self._signal(name, signal.SIGCONT)
        self.query("UPDATE duepost.control SET paused = false")
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            self._keep_running()
            # Time is moved: what waits for its next attempt or probe has it now.
            self.query("UPDATE duepost.route SET probe_at = now() WHERE circuit_open")
            self.query(
                "UPDATE duepost.scheduled_email SET due_at = now()"
                " WHERE state = 'scheduled' AND due_at > now() AND scheduled_at <= now()"
            )
            self.query("DELETE FROM duepost.scheduled_email WHERE kind = %s AND state <> 'sending'", KIND)
            self.query(
                "UPDATE duepost.item SET due_at = now() WHERE channel = 'message' AND NOT is_held AND due_at > now()"
                " AND scheduled_at <= now() AND NOT EXISTS (SELECT FROM duepost.in_hand AS h WHERE h.item_id = item.id)"
            )
            if self.query(PENDING) == [(0,)]:
                return
            time.sleep(0.5)

    def _report(self) -> Report:
        plain = [copy for copy in self.relay.taken if not batches.is_gathered(copy) and not various.is_various(copy)]
        evidence = Evidence.of(self.query, plain, [batches.KIND, *various.KINDS])
        wrong = check(self.book.emails, evidence) + self.book.errors
        wrong += messages.check(self.messages, self.query, self.hook)
        wrong += batches.check(self.batches, self.query, self.relay.taken)
        wrong += various.check(self.various, self.query, self.relay.taken, self.folder / "keys")
        if self.torn:
            wrong.append(f"{self.torn} times a queued email was seen without its message")
        [(deadlocks,)] = self.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        if deadlocks:
            wrong.append(f"{deadlocks} deadlocks")
        return Report(
            seed=self.seed,
            wrong=wrong,
            troubles=self.troubles,
            outcomes=self._counts("SELECT outcome, count(*) FROM duepost.delivery WHERE channel = 'email' GROUP BY 1"),
            messages=messages.summary(self.query),
            batches=batches.summary(self.batches, self.query),
            various=various.summary(self.query),
            resends=self._counts(
                "SELECT coalesce(phase, 'its worker was gone'), count(*) FROM duepost.attempt"
                " WHERE verdict = 'unknown' GROUP BY 1"
            ),
            emails=len(self.book.emails),
            copies=len(self.relay.taken),
            held=len(evidence.held),
            slowest=self.book.slowest,
            cut_by=self.cut_by,
            log=self.logs(),
            stories=[
                self._story(int(number)) for number in re.findall(r"^email (\d+)", "\n".join(wrong), re.MULTILINE)
            ],
        )

    def _story(self, email_id: int) -> str:
        """All that is known of an email that came out wrong."""
        asked = self.book.emails.get(email_id)
        parts: list[object] = [asked, *(copy for copy in self.relay.taken if asked and copy.key == asked.key)]
        for table in ("scheduled_email", "scheduled_email_user", "attempt", "delivery"):
            key = "id" if table == "scheduled_email" else "email_id"
            columns = "to_jsonb(row) - 'body_text'"
            parts += self.query(f"SELECT '{table}', {columns} FROM duepost.{table} AS row WHERE {key} = %s", email_id)
        return "\n".join(str(part)[:1000] for part in parts)

    def _counts(self, statement: str) -> dict[str, int]:
        return {str(name): int(str(count)) for name, count in self.query(statement)}

    def query(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Asks the database, as anyone could; waits while it is away."""
        until = time.monotonic() + 60
        while True:
            try:
                return ask(self.url, statement, *parameters, connect_timeout=5)
            except psycopg2.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def logs(self) -> str:
        """All that the processes have said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def _kill_all(self) -> None:
        for process in self.processes.values():
            if process.popen.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.popen.pid, signal.SIGCONT)
                process.kill()

    def _remove_server(self) -> None:
        with suppress(RuntimeError):
            self.server.stop("immediate")
        self.server.remove()


def random_seed() -> int:
    """A seed that is easy to type."""
    return random.SystemRandom().randrange(1, 100_000)


__all__ = ["ROOT", "Chaos", "Report", "random_seed", "subprocess"]
