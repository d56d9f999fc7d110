"""Other ways to send scheduled email out of PostgreSQL, each in an environment of its own, at its best settings."""
