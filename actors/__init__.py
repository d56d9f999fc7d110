"""What runs. `dramatiq actors` imports this, and finds the broker with every actor.

Only in a process of Dramatiq's command line does importing this build the application: anywhere else it builds nothing,
connects to nothing, and leaves Dramatiq's global broker and Sentry alone. `actors.app` builds it when asked to.
"""

import sys

if "dramatiq.cli" in sys.modules:
    from actors.app import build

    application = build()
    broker = application.broker
