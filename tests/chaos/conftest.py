"""Scheduler and sender in turn, as the integration tests have them."""

from tests.integration.conftest import postroom, relay

__all__ = ["postroom", "relay"]
