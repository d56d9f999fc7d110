"""Tests of an application that schedules with Duepost: what it has scheduled, what would be sent, what workers do.

`Kit` looks into a transaction of the test's own, committed or not. A pytest plugin gives fresh databases and a kit
(`duepost.testing.plugin`), and `Workers` runs real ones against a relay that refuses by a script.
"""

from duepost.catching import Refusal
from duepost.testing.items import Item
from duepost.testing.kit import Kit
from duepost.testing.workers import Workers

__all__ = ["Item", "Kit", "Refusal", "Workers"]
