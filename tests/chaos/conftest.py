"""Scheduler and sender in turn, as the integration tests have them."""

from tests.integration.conftest import harness, relay

__all__ = ["harness", "relay"]
