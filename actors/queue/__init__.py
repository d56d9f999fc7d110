"""The broker, generic: Dramatiq's messages in PostgreSQL. Nothing in this folder knows of deliveries.

May import `liveness`. A consumer runs in Dramatiq's thread for its queue; acknowledgements come from any thread.
"""
