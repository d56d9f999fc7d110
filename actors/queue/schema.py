"""The tables of dramatiq-pg, which the broker keeps its messages in."""

from dramatiq_pg.schema import generate_init_sql


def queue_schema() -> str:
    """The SQL that makes them where they are missing."""
    return str(generate_init_sql())
