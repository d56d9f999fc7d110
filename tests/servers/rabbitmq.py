"""RabbitMQ, Debian's."""

from collections.abc import Sequence
from typing import ClassVar, Self
from urllib.parse import quote

import pika

from tests.servers.server import Server


class RabbitmqServer(Server):
    """A node of its own, with its own port mapper; other nodes of the machine are not seen."""

    name = "rabbitmq"
    etc = "/etc/rabbitmq"
    accounts = ("rabbitmq",)
    folders: ClassVar = {"/var/lib/rabbitmq": "rabbitmq", "/var/log/rabbitmq": "rabbitmq", "/run/rabbitmq": "rabbitmq"}

    #: A start is many seconds of work.
    patience = 300

    #: Of each of the logins.
    password = "pass/word"

    def configure(self) -> None:
        super().configure()
        self.machine.write(
            f"{self.etc}/rabbitmq-env.conf",
            self.filled(
                "NODENAME=duepost@localhost\nDIST_PORT=@DISTRIBUTION@\nMNESIA_BASE=/var/lib/rabbitmq\n"
                "LOG_BASE=/var/log/rabbitmq\nENABLED_PLUGINS_FILE=/var/lib/rabbitmq/enabled_plugins\n"
                # One core, and none kept busy by waiting: the tests have few.
                'SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none"\n'
            ),
        )

    def command(self) -> tuple[str, ...]:
        settings = (
            "HOME=/var/lib/rabbitmq",
            f"ERL_EPMD_PORT={self._value('PORT_MAPPER')}",
            "ERL_EPMD_ADDRESS=127.0.0.1",
        )
        account = ("setpriv", "--reuid=rabbitmq", "--regid=rabbitmq", "--clear-groups")
        return ("env", *settings, *account, "/usr/lib/rabbitmq/bin/rabbitmq-server")

    def call(self, call: str) -> str:
        """Has the running node call a function of its own; `rabbitmqctl` would start an Erlang of its own first."""
        cookie = self.machine.path("/var/lib/rabbitmq/.erlang.cookie").read_text()
        port = f"ERL_EPMD_PORT={self._value('PORT_MAPPER')}"
        return self.machine.run("env", port, "erl_call", "-sname", "duepost@localhost", "-c", cookie, "-a", call)

    def __enter__(self) -> Self:
        """Configures it. Whoever needs it starts it: some begin while it is away."""
        self.configure()
        return self

    def stop(self) -> None:
        """Kill -9: nothing is written in order."""
        self.machine.kill()

    def amqp(
        self, *, user: str = "app", password: str = password, port: int | None = None, virtual_host: str = ""
    ) -> str:
        """Its URL, as a user sets it."""
        login = f"{user}:{quote(password, safe='')}"
        return f"amqp://{login}@127.0.0.1:{port or self.ports['AMQP']}/{virtual_host}"

    def waiting(self, name: str) -> int:
        """How many messages wait in a queue; 0 where there is no such queue."""
        with self._connection() as connection:
            try:
                return int(connection.channel().queue_declare(name, passive=True).method.message_count)
            except pika.exceptions.ChannelClosedByBroker:
                return 0

    def purge(self, name: str) -> int:
        """Throws away what waits in a queue; gives how many messages."""
        with self._connection() as connection:
            return int(connection.channel().queue_purge(name).method.message_count)

    def delete(self, name: str) -> None:
        """Deletes a queue."""
        with self._connection() as connection:
            connection.channel().queue_delete(name)

    def declare(self, name: str) -> None:
        """Makes a queue as it comes, unlike Dramatiq's."""
        with self._connection() as connection:
            connection.channel().queue_declare(name, durable=True)

    def publish(self, name: str, bodies: Sequence[bytes]) -> None:
        """Puts anything into a queue."""
        with self._connection() as connection:
            channel = connection.channel()
            for body in bodies:
                channel.basic_publish("", name, body)

    def _connection(self) -> pika.BlockingConnection:
        return pika.BlockingConnection(pika.URLParameters(self.amqp()))
