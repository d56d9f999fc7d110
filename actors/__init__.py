"""What runs: `dramatiq actors` imports this, and finds every actor and the broker here."""

import sys

import dramatiq

from actors.settings import BadSettings

try:
    from actors import runtime
except BadSettings as error:
    print(f"duepost: {error}", file=sys.stderr, flush=True)
    sys.exit(2)

from actors.broker import Life
from actors.scheduler import enqueue_due_emails
from actors.sender import send_email
from actors.startup import Startup

broker = runtime.broker
broker.add_middleware(Startup(), before=Life)
dramatiq.set_broker(broker)

__all__ = ["broker", "enqueue_due_emails", "send_email"]
