"""What Dramatiq is told about the actors."""

import dramatiq

import actors


def test_nothing_cuts_a_dialogue_short() -> None:
    assert not {"time_limit", "notify_shutdown", "max_age"} & actors.broker.actor_options


def test_what_fails_is_retried_without_limit() -> None:
    assert actors.send_email.options["max_retries"] is None
    assert actors.enqueue_due_emails.options["max_retries"] is None


def test_dramatiq_actors_finds_the_broker() -> None:
    assert dramatiq.get_broker() is actors.broker
    assert actors.broker.get_declared_actors() == {"enqueue_due_emails", "send_email"}


def test_no_port_is_opened() -> None:
    assert [each for each in actors.broker.middleware if each.forks] == []
