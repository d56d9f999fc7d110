"""Duepost: scheduled email out of PostgreSQL. Importing it gives the client, and no worker code.

import duepost

with connection, connection.cursor() as cursor:
    duepost.schedule_email(cursor, kind="welcome", address="ann@example.com", template="welcome")
"""

from duepost.arguments import NewEmail
from duepost.client import (
    clear_scheduled_email,
    clear_scheduled_emails,
    clear_scheduled_emails_to,
    reschedule_email,
    schedule_email,
    schedule_emails,
)

__all__ = [
    "NewEmail",
    "clear_scheduled_email",
    "clear_scheduled_emails",
    "clear_scheduled_emails_to",
    "reschedule_email",
    "schedule_email",
    "schedule_emails",
]
