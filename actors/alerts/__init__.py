"""What an operator should hear of: a log line for each failure, and an event for Sentry, in ids, kinds and codes.

Imports nothing of `actors` but the core's words. Any thread may call it; nothing in it waits or fails.
"""
