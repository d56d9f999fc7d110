"""What comes back after a relay had taken an email: bounces and complaints, out of a mailbox.

It may import actors and models; commands import it. Nothing here runs in a worker. What is parsed is only facts
(`reports.py`); what they mean is decided by the table of verdicts (`meaning.py`), and what they are about by a token.
"""
