"""Duepost: scheduled email and messages out of PostgreSQL. Importing it gives the client, and no worker code.

import duepost

with connection, connection.cursor() as cursor:
    duepost.schedule_email(cursor, kind="welcome", address="ann@example.com", template="welcome")
"""

from duepost.arguments import Attachment, AttachmentAt, NewEmail, NewMessage
from duepost.client import (
    Status,
    add_to_batch,
    attachment,
    attachment_at,
    clear_scheduled,
    clear_scheduled_email,
    clear_scheduled_emails,
    clear_scheduled_emails_to,
    clear_scheduled_message,
    clear_scheduled_messages,
    edit_message,
    remove_from_batch,
    reschedule_email,
    reschedule_message,
    schedule_email,
    schedule_emails,
    schedule_message,
    schedule_messages,
    statement,
    status,
)

__all__ = [
    "Attachment",
    "AttachmentAt",
    "NewEmail",
    "NewMessage",
    "Status",
    "add_to_batch",
    "attachment",
    "attachment_at",
    "clear_scheduled",
    "clear_scheduled_email",
    "clear_scheduled_emails",
    "clear_scheduled_emails_to",
    "clear_scheduled_message",
    "clear_scheduled_messages",
    "edit_message",
    "remove_from_batch",
    "reschedule_email",
    "reschedule_message",
    "schedule_email",
    "schedule_emails",
    "schedule_message",
    "schedule_messages",
    "statement",
    "status",
]
