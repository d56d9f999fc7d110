"""PostgreSQL as such: connections, the pool, durable transactions, deadlines, statements, migrations' runner.

Knows nothing of emails or messages. Imports nothing of ours but `models.errors`. A connection belongs to one thread or
asyncio task at a time; the deadlines have a thread of their own, which all databases of a process share.
"""
