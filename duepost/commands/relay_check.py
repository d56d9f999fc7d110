"""The doctor's line about the relay: would it take an email of ours?"""

from actors.channels.smtp.rehearsal import Inspection, inspect
from actors.channels.smtp.relay import Relay, Security, Timeouts
from actors.ruling import Phase, Ruling, Scope, Topic
from duepost.commands.health import Health
from models.words import Verdict

#: Seconds that each step with the relay may take.
PATIENCE = 10.0

#: A mailbox that no relay of ours has. It is named to the relay, and nothing is sent to it.
ELSEWHERE = "postmaster@example.org"

#: What to do when the relay refuses for this.
ADVICE = {
    Topic.LOGIN: "Give a login in {variable}, or let the relay take mail from this host",
    Topic.ACCESS: "Give a login in {variable}, or let the relay take mail from this host",
    Topic.SENDER: "Set DUEPOST_FROM to an address that the relay lets this login use",
    Topic.HELO: "Set DUEPOST_SMTP_HELO to a name that the relay takes",
    Topic.REPUTATION: "The relay does not want this host: ask who runs it, or send through another one",
    Topic.QUOTA: "Wait, or ask who runs the relay for more",
    Topic.RATE: "Lower DUEPOST_SMTP_CONNECTIONS, or ask who runs the relay for more",
}


def examine(relay: Relay, sender: str | None, variable: str = "DUEPOST_SMTP_URL") -> tuple[Health, str]:
    """Goes through an email with a relay as far as nothing is sent: login, sender, recipients.

    Args:
        relay: it.
        sender: of emails that name none; where there is none, no more than the login is tried.
        variable: where its URL is set.
    """
    # The sender's own mailbox is the one that a relay may know; the other is far away: does it relay for us?
    recipients = () if sender is None else (sender, ELSEWHERE)
    found = inspect(relay, Timeouts(*[PATIENCE] * 4), sender, recipients)
    if found.refusal is not None:
        return Health.FAILED, f"{relay.host}:{relay.port}: {_said(found.refusal)}{_advice(found.refusal, variable)}"
    detail = f"{relay.host}:{relay.port} takes mail{_protection(found, variable)}"
    refusals = [ruling for ruling in found.answers if ruling is not None]
    for ruling in refusals:
        if ruling.scope is Scope.RELAY:
            return Health.WARNING, f"{detail}; but not to everybody: {_said(ruling)}{_advice(ruling, variable)}"
    if refusals and all(ruling.verdict is Verdict.RETRY for ruling in refusals) and None not in found.answers:
        return Health.WARNING, f"{detail}; but it puts off what is tried: {_said(refusals[0])}"
    return Health.OK, detail if found.answers else f"{detail}; without DUEPOST_FROM no more than the login was tried"


def _said(ruling: Ruling) -> str:
    code = None if ruling.phase is Phase.AUTH else ruling.code
    return f"{ruling.phase}: " + " ".join(str(part) for part in (code, ruling.reply) if part)


def _advice(ruling: Ruling, variable: str) -> str:
    """What to do about a refusal, where that is known."""
    if ruling.code == 530 and "STARTTLS" in ruling.reply.upper():
        return f". It wants TLS: smtp+starttls:// in {variable}"
    about = ruling.about
    if about is None and (ruling.phase, ruling.scope) == (Phase.MAIL, Scope.RELAY):
        about = Topic.SENDER
    advice = ADVICE.get(about) if about else None
    return f". {advice.format(variable=variable)}" if advice else ""


def _protection(found: Inspection, variable: str) -> str:
    if found.encryption is None:
        return " in plain text: nothing is encrypted or checked"
    if not found.is_checked:
        return (
            f" over {found.encryption}, whose certificate is not checked: "
            f"{Security.REQUIRED}:// in {variable} has it checked"
        )
    return f" over {found.encryption}"
