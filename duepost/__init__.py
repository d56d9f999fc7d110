"""Scheduled email out of PostgreSQL."""
