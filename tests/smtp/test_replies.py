"""What each answer of the mail server means: for the email, for all emails, and for the operator."""

from __future__ import annotations

import ssl
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from flask import Flask
from sqlalchemy import update

from harness.processes import free_port, wait_until, within
from harness.smtp_server import Action, Server, drip, drop, hang
from tests.factories import attempts, change, claim, deliver, get, make_signup, only_user, travel, work
from webapp.accounts import signup
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import circuit_breaker, failures, heartbeats, relay, worker
from webapp.delivery.failures import DeliveryFailed
from webapp.delivery.reach import Reach
from webapp.extensions import huey, mail
from webapp.monitoring import queries
from webapp.outbox import outcomes

SERVER_WIDE: dict[str, tuple[str, Action]] = {
    "drops before the greeting": ("connect", drop),
    "drops after the greeting": ("EHLO", drop),
    "421 as a greeting": ("greeting", "421 too busy"),
    "554 as a greeting": ("greeting", "554 go away"),
    "refuses the sender": ("MAIL", "550 5.1.8 bad sender"),
    "defers the sender": ("MAIL", "451 try later"),
    "drops at the sender": ("MAIL", drop),
    "421 at the sender": ("MAIL", "421 closing"),
    "421 at the recipient": ("RCPT", "421 closing"),
    "421 at DATA": ("DATA", "421 closing"),
    "421 after the dot": ("dot", "421 closing"),
    "too fast for SES": ("dot", "454 Throttling failure: Maximum sending rate exceeded."),
    "daily limit": ("dot", "550 5.4.5 Daily user sending limit exceeded"),
    "relay denied": ("RCPT", "554 Relay access denied"),
    "relay not permitted": ("RCPT", "550 relay not permitted"),
    "relay refused by policy": ("RCPT", "550 5.7.1 <mick@example.com>: Relay access denied"),
    "our sender is none": ("RCPT", "550 5.1.0 <no-reply@signup.example>: Sender address rejected"),
    "our sender is not verified": ("RCPT", "550 Sender verify failed"),
    "our domain is not found": (
        "RCPT",
        "450 4.1.8 <no-reply@x.test>: Sender address rejected: Domain not found",
    ),
    "our sender is another's": (
        "RCPT",
        "553 5.7.1 <no-reply@x.test>: Sender address rejected: not owned by user",
    ),
    "our sender may not": ("DATA", "550 5.7.60 Client does not have permissions to send as this sender"),
    "a long story": ("MAIL", "550 " + "all of it " * 40),
}


def fail(app: Flask, email_id: uuid.UUID) -> None:
    with pytest.raises(DeliveryFailed):
        deliver(app, email_id)


def is_open(app: Flask) -> bool:
    with app.app_context():
        return circuit_breaker.is_open()


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, object]]:
    return [r.msg for r in caplog.records if isinstance(r.msg, dict) and r.msg["event"] == event]


@pytest.mark.parametrize("trouble", SERVER_WIDE)
def test_trouble_of_the_server_costs_no_mail_an_attempt_is_told_once_and_heals_by_itself(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    step, action = SERVER_WIDE[trouble]
    smtp.actions[step] = action
    ids = [make_signup(app, username=name, address=f"{name}@example.com") for name in ("ann", "ben")]
    fail(app, ids[0])
    assert is_open(app)
    # The other one is not even tried.
    deliver(app, ids[1])
    assert attempts(app, ids[1]) == []
    for _ in range(4):
        travel(app, 20)
        work(app)
    for email_id in ids:
        assert (get(app, email_id).status, get(app, email_id).attempts) == ("queued", 0)
    (told,) = logged(caplog, "mail_server_down")
    assert told["level"] == "error"
    smtp.actions.clear()
    smtp.mails.clear()
    travel(app, 50)
    for _ in range(4):
        work(app)
        travel(app, 2)
    assert not is_open(app)
    assert len(logged(caplog, "mail_server_up")) == 1
    assert [get(app, email_id).status for email_id in ids] == ["sent", "sent"]
    assert sorted(mail.recipients[0] for mail in smtp.mails) == ["ann@example.com", "ben@example.com"]


def test_an_outage_of_three_hours_kills_no_mail(app: Flask, smtp: Server) -> None:
    smtp.stop()
    ids = [make_signup(app, username=f"mick{n}", address=f"mick{n}@example.com") for n in range(7)]
    for _ in range(3 * 6):
        travel(app, 600)
        work(app)
    assert {get(app, email_id).status for email_id in ids} == {"queued"}
    assert {get(app, email_id).attempts for email_id in ids} == {0}
    smtp.start()
    travel(app, 20)
    for _ in range(3):
        work(app)
        travel(app, 2)
    assert {get(app, email_id).status for email_id in ids} == {"sent"}
    assert len(smtp.mails) == 7


@pytest.mark.parametrize("answer", ["450 mailbox busy", "451 4.3.0 try later", "452 4.2.2 mailbox full"])
def test_a_4xx_is_this_mails_own_and_waits_out_its_backoff(app: Flask, smtp: Server, answer: str) -> None:
    smtp.actions["RCPT"] = answer
    email_id = make_signup(app)
    fail(app, email_id)
    assert not is_open(app)
    row = get(app, email_id)
    assert (row.status, row.attempts, row.last_smtp_code) == ("queued", 1, int(answer[:3]))
    smtp.actions.clear()
    travel(app, 31)
    work(app)
    assert get(app, email_id).status == "sent"


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ("RCPT", "550 5.1.1 no such user"),
        ("DATA", "554 no valid recipients"),
        ("dot", "552 5.2.2 mailbox full"),
        ("dot", "554 5.6.0 we dislike it"),
    ],
)
def test_a_5xx_ends_this_mail_at_once_with_its_reason(app: Flask, smtp: Server, step: str, answer: str) -> None:
    smtp.actions[step] = answer
    email_id = make_signup(app)
    fail(app, email_id)
    assert not is_open(app)
    row = get(app, email_id)
    assert (row.status, row.attempts, row.last_smtp_code) == ("dead", 1, int(answer[:3]))
    (attempt,) = attempts(app, email_id)
    assert (attempt.outcome, attempt.code) == ("failed", int(answer[:3]))


@pytest.mark.parametrize("trouble", [hang, drop])
@pytest.mark.parametrize("step", ["RCPT", "DATA"])
def test_no_answer_to_a_mail_is_its_own_trouble_and_an_outage_of_hours_ends_none(
    app: Flask, smtp: Server, step: str, trouble: Action
) -> None:
    mail.timeout = 1
    smtp.actions[step] = trouble
    email_id = make_signup(app)
    fail(app, email_id)
    assert not is_open(app)
    assert (get(app, email_id).status, get(app, email_id).attempts) == ("queued", 1)
    smtp.actions[step] = drop
    for _ in range(30):
        travel(app, 1800)
        with suppress(DeliveryFailed):
            deliver(app, email_id)
    # Nothing was accepted in between, so this email may be no worse than others.
    assert (get(app, email_id).status, get(app, email_id).attempts) == ("queued", 1)
    smtp.actions.clear()
    deliver(app, make_signup(app, username="ann", address="ann@example.com"))
    smtp.actions[step] = drop
    travel(app, 1800)
    fail(app, email_id)
    assert (get(app, email_id).status, get(app, email_id).attempts) == ("queued", 2)


def refuse(answer: str, prefix: str = "bad") -> Action:
    """Give this answer to recipients whose address begins like this."""
    return lambda connection: answer if connection.recipients[-1].startswith(prefix) else None


@pytest.mark.parametrize("step", ["RCPT", "DATA"])
@pytest.mark.parametrize(
    ("answer", "becomes"),
    [
        ("550 5.1.1 no such user", "dead"),
        ("550-5.1.1 The email account that you tried to reach does not exist." + " Please try." * 30, "dead"),
        ("550 5.7.133 Sender not authenticated for group", "dead"),
        ("552 5.2.2 mailbox full, quota exceeded", "dead"),
        ("450 4.2.0 greylisted", "queued"),
        ("451 4.7.1 greylisted, come back later", "queued"),
    ],
)
def test_many_that_are_refused_hold_up_nobody(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture, answer: str, becomes: str, step: str
) -> None:
    smtp.actions[step] = refuse(answer.replace("550-", "550 "))
    bad = [make_signup(app, username=f"bad{n}", address=f"bad{n}@example{n % 7}.com") for n in range(12)]
    good = [make_signup(app, username=f"good{n}", address=f"good{n}@example.com") for n in range(3)]
    with app.app_context():
        worker.deliver_due(100)
    assert {get(app, email_id).status for email_id in good} == {"sent"}
    rows = [get(app, email_id) for email_id in bad]
    assert {row.status for row in rows} == {becomes}
    assert not logged(caplog, "mail_server_down")
    assert len(logged(caplog, "email_dead")) == (12 if becomes == "dead" else 0)


def test_five_dead_addresses_on_a_quiet_site_end_and_open_no_breaker(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    smtp.actions["RCPT"] = refuse("550 5.1.1 no such user")
    ids = [make_signup(app, username=f"bad{n}", address=f"bad{n}@example{n}.com") for n in range(5)]
    for hour in range(12):
        make_signup(app, username=f"good{hour}", address=f"good{hour}@example.com")
        for _ in range(2):
            work(app)
            assert not is_open(app)
            travel(app, 1800)
    assert [(get(app, email_id).status, len(attempts(app, email_id))) for email_id in ids] == [("dead", 1)] * 5
    assert len(smtp.mails) == 12
    assert not logged(caplog, "mail_server_down")


def test_three_hours_in_which_all_are_refused_by_policy_end_no_mail(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    smtp.actions["RCPT"] = "554 5.7.1 we take nothing from you today" + ", nor tomorrow" * 30
    ids = [make_signup(app, username=f"mick{n}", address=f"mick{n}@example{n}.com") for n in range(7)]
    for _ in range(3 * 12):
        work(app)
        travel(app, 300)
    assert {(get(app, email_id).status, get(app, email_id).attempts) for email_id in ids} == {("queued", 0)}
    assert is_open(app)
    (told,) = logged(caplog, "mail_server_down")
    assert "554 5.7.1" in str(told["reason"])
    smtp.actions.clear()
    late = make_signup(app, username="late", address="late@example.com")
    travel(app, 16)
    for _ in range(3):
        work(app)
        travel(app, 2)
    assert {get(app, email_id).status for email_id in [*ids, late]} == {"sent"}


def test_while_a_server_only_refuses_one_that_it_takes_is_found_at_once(app: Flask, smtp: Server) -> None:
    smtp.actions["RCPT"] = refuse("554 5.7.1 not you")
    for n in range(8):
        make_signup(app, username=f"bad{n}", address=f"bad{n}@example{n}.com")
    with app.app_context():
        worker.deliver_due(100)
    assert is_open(app)
    good = make_signup(app, username="good", address="good@example.com")
    work(app)
    assert get(app, good).status == "sent"
    assert not is_open(app)


def test_an_outage_is_two_lines_until_its_reason_changes(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    email_id = make_signup(app)
    smtp.actions["greeting"] = "554 5.3.2 go away"
    fail(app, email_id)
    smtp.actions["greeting"] = "554 5.3.2 still here?"
    for _ in range(4):
        travel(app, 20)
        work(app)
    said = [line["error"] for line in logged(caplog, "email_deferred") if line["level"] == "warning"]
    assert said == ["5.3.2 go away", "5.3.2 still here?"]
    with app.app_context():
        assert "still here?" in str(queries.stats().breaker_reason)
    smtp.actions.clear()
    travel(app, 20)
    work(app)
    (up,) = logged(caplog, "mail_server_up")
    assert float(str(up["seconds"])) >= 80


def test_any_answer_about_a_recipient_says_that_the_server_is_alive(app: Flask, smtp: Server) -> None:
    make_signup(app, username="bad", address="bad@example.com")
    with app.app_context():
        circuit_breaker.trip("connect: refused")
        db.session.commit()
    travel(app, 16)
    smtp.actions["RCPT"] = "550 5.1.1 no such user"
    work(app)
    assert not is_open(app)


def test_after_hours_of_a_broken_relay_one_command_revives_all(app: Flask, smtp: Server) -> None:
    smtp.actions["RCPT"] = "550 5.1.1 no such user"
    ids = [make_signup(app, username=f"mick{n}", address=f"mick{n}@example{n}.com") for n in range(7)]
    with app.app_context():
        worker.deliver_due(100)
    assert {get(app, email_id).status for email_id in ids} == {"dead"}
    smtp.actions.clear()
    result = app.test_cli_runner().invoke(args=["mail", "retry", "--code", "550"])
    assert (result.exit_code, result.output) == (0, "revived 7, made due 0\n")
    work(app)
    assert {get(app, email_id).status for email_id in ids} == {"sent"}


def test_a_mail_that_alone_is_refused_by_policy_ends_when_it_is_again_and_others_were_not(
    app: Flask, smtp: Server
) -> None:
    smtp.actions["RCPT"] = refuse("550 5.7.1 not you", "ann@")
    ann = make_signup(app, username="ann", address="ann@example.com")
    fail(app, ann)
    assert (get(app, ann).status, get(app, ann).attempts) == ("queued", 0)
    travel(app, 31)
    fail(app, ann)
    assert get(app, ann).status == "queued"
    deliver(app, make_signup(app, username="ben", address="ben@example.com"))
    travel(app, 61)
    fail(app, ann)
    assert (get(app, ann).status, get(app, ann).attempts) == ("dead", 1)
    assert not is_open(app)


def test_a_mail_lost_after_the_final_dot_comes_again_with_the_same_id_and_is_in_doubt(app: Flask, smtp: Server) -> None:
    smtp.actions["answer"] = drop
    email_id = make_signup(app)
    fail(app, email_id)
    assert not is_open(app)
    assert get(app, email_id).in_doubt
    smtp.actions.clear()
    travel(app, 31)
    work(app)
    assert (get(app, email_id).status, get(app, email_id).in_doubt) == ("sent", False)
    first, second = smtp.mails
    assert first.message_id == second.message_id
    assert first.link == second.link


@pytest.mark.parametrize("answer", [drop, "354 go on"])
def test_a_mail_that_is_never_confirmed_goes_three_times_ever_rarer_and_ends_as_unconfirmed(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, answer: Action
) -> None:
    monkeypatch.setattr(mail, "answer_timeout", 1)
    smtp.actions["answer"] = answer
    email_id = make_signup(app)
    for _ in range(2 * 12):
        work(app)
        travel(app, 300)
    row = get(app, email_id)
    assert (row.status, row.last_error_class, row.attempts) == ("dead", "Unconfirmed", 3)
    assert len(smtp.mails) == 3
    assert len(logged(caplog, "email_dead")) == 1
    result = app.test_cli_runner().invoke(args=["mail", "doctor"])
    assert "MAIL_ANSWER_TIMEOUT" in result.output
    # An operator who revives it gives it just as many attempts again.
    app.test_cli_runner().invoke(args=["mail", "retry", "--dead"])
    with suppress(DeliveryFailed):
        deliver(app, email_id)
    assert get(app, email_id).status == "queued"


def test_an_error_of_the_machine_amid_a_mail_is_an_attempt_with_its_class(
    app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    email_id = make_signup(app)

    with monkeypatch.context() as patched:
        patched.setattr(mail.pool, "take", unconnected)
        with pytest.raises(DeliveryFailed, match="can't start new thread"):
            deliver(app, email_id)
    row = get(app, email_id)
    assert (row.status, row.attempts, row.last_error_class, row.lease_token) == ("queued", 1, "RuntimeError", None)
    assert not is_open(app)


def unconnected(_deadline: object) -> None:
    """Connect on a machine that has no threads left."""
    raise RuntimeError("can't start new thread")


def test_closing_after_250_changes_nothing(app: Flask, smtp: Server) -> None:
    smtp.actions["QUIT"] = drop
    for name in ("ann", "ben"):
        deliver(app, make_signup(app, username=name, address=f"{name}@example.com"))
        mail.close()
    assert len(smtp.mails) == 2


@pytest.mark.parametrize("step", ["connect", "EHLO", "MAIL", "RCPT", "DATA", "dot"])
@pytest.mark.parametrize("trouble", [hang, drip])
def test_one_deadline_ends_a_mail_wherever_the_server_hangs_or_drips(
    app: Flask, smtp: Server, step: str, trouble: Action
) -> None:
    mail.timeout = mail.answer_timeout = 1
    smtp.actions[step] = trouble
    email_id = make_signup(app)
    begun = time.monotonic()
    with within(3):
        fail(app, email_id)
    assert time.monotonic() - begun > 0.9
    row = get(app, email_id)
    # Whatever it says before the recipient is named concerns all emails.
    assert (row.status, row.attempts) == ("queued", int(step in {"RCPT", "DATA", "dot"}))
    assert row.in_doubt == (step == "dot")


def test_a_connection_that_the_server_closed_meanwhile_costs_no_attempt(app: Flask, smtp: Server) -> None:
    deliver(app, make_signup(app, username="ann", address="ann@example.com"))
    smtp.break_connections()
    email_id = make_signup(app, username="ben", address="ben@example.com")
    deliver(app, email_id)
    assert get(app, email_id).status == "sent"
    assert [attempt.outcome for attempt in attempts(app, email_id)] == ["sent"]
    assert smtp.connections == 2


def test_a_connection_idle_for_long_is_closed_in_good_order(app: Flask, smtp: Server) -> None:
    deliver(app, make_signup(app, username="ann", address="ann@example.com"))
    wait_until(lambda: not smtp.open, "it is kept")
    assert smtp.heard[-1] == "quit"
    deliver(app, make_signup(app, username="ben", address="ben@example.com"))
    assert smtp.connections == 2


def test_a_wrong_mail_password_spends_no_attempts_and_delivery_resumes_when_it_is_right(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(password="open sesame") as strict:
        state = app.extensions["mail"]
        state.port, state.username, state.password = strict.port, "mick", "shut sesame"
        email_id = make_signup(app)
        fail(app, email_id)
        (attempt,) = attempts(app, email_id)
        assert (attempt.phase, attempt.code) == ("login", 535)
        assert (get(app, email_id).status, get(app, email_id).attempts) == ("queued", 0)
        assert "wrong password" in str(logged(caplog, "mail_server_down")[0]["reason"])
        state.password = strict.password
        travel(app, 20)
        work(app)
        assert get(app, email_id).status == "sent"


def server_tls(authority: trustme.CA, host: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    return context


def test_starttls_is_used_with_a_good_certificate_and_only_then(app: Flask, tmp_path: Path) -> None:
    authority = trustme.CA()
    state = app.extensions["mail"]
    state.use_tls, state.server = True, "localhost"
    for host, trusted, is_good in (
        ("localhost", True, True),
        ("elsewhere.example", True, False),
        ("localhost", False, False),
    ):
        with Server(tls=server_tls(authority, host)) as secure:
            state.port = secure.port
            mail.tls = ssl.create_default_context()
            if trusted:
                authority.configure_trust(mail.tls)
            email_id = make_signup(app, username=f"mick{secure.port}", address=f"mick{secure.port}@example.com")
            if is_good:
                deliver(app, email_id)
                assert len(secure.mails) == 1
                mail.close()
            else:
                fail(app, email_id)
                assert "CERTIFICATE_VERIFY_FAILED" in (get(app, email_id).last_error or "")
                assert secure.mails == []
                travel(app, 20)
                with app.app_context():
                    circuit_breaker.reset()
                    db.session.commit()


@pytest.mark.parametrize("offers_it", [True, False])
def test_without_starttls_nothing_is_sent_in_the_clear(app: Flask, offers_it: bool) -> None:  # noqa: FBT001
    state = app.extensions["mail"]
    state.use_tls = True
    with Server(tls=server_tls(trustme.CA(), "localhost") if offers_it else None) as server:
        server.actions["STARTTLS"] = "454 not now"
        state.port = server.port
        email_id = make_signup(app)
        fail(app, email_id)
        assert attempts(app, email_id)[0].phase == "tls"
        assert server.mails == []


def test_a_name_that_does_not_resolve_is_the_servers_trouble(app: Flask) -> None:
    app.extensions["mail"].server = "no-such-host.invalid"
    email_id = make_signup(app)
    fail(app, email_id)
    assert attempts(app, email_id)[0].phase == "connect"
    assert (get(app, email_id).status, get(app, email_id).attempts) == ("queued", 0)


def test_a_port_where_nobody_listens_is_the_servers_trouble(app: Flask) -> None:
    app.extensions["mail"].port = free_port()
    email_id = make_signup(app)
    fail(app, email_id)
    assert (get(app, email_id).status, get(app, email_id).attempts) == ("queued", 0)
    assert is_open(app)


def test_what_was_hinted_in_vain_during_an_outage_leaves_as_soon_as_it_is_over(app: Flask, smtp: Server) -> None:
    ids = [make_signup(app, username=f"mick{n}", address=f"mick{n}@example.com") for n in range(3)]
    travel(app, 5)
    with app.app_context():
        relay.Relay().turn()
        circuit_breaker.trip("connect: refused")
        db.session.commit()
    # Workers take the hints, and may not send.
    while task := huey.dequeue():
        huey.execute(task)
    assert smtp.mails == []
    with app.app_context():
        db.session.execute(update(circuit_breaker.MailBreaker).values(probe_at=db_now()))
        db.session.commit()
    work(app)
    work(app)
    assert {get(app, email_id).status for email_id in ids} == {"sent"}


def test_a_mail_that_was_on_its_way_before_the_outage_does_not_end_it(app: Flask, smtp: Server) -> None:
    def fail_meanwhile(_connection: object) -> None:
        with app.app_context():
            circuit_breaker.trip("connect: refused")
            db.session.commit()

    smtp.actions["dot"] = fail_meanwhile
    email_id = make_signup(app)
    deliver(app, email_id)
    assert get(app, email_id).status == "sent"
    assert is_open(app)
    smtp.actions.clear()
    other = make_signup(app, username="ann", address="ann@example.com")
    travel(app, 20)
    work(app)
    assert get(app, other).status == "sent"
    assert not is_open(app)


def test_a_process_that_alone_does_not_reach_the_server_leaves_it_to_the_others(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """As one with a password of yesterday, or on a machine that no way leads out of."""
    _theirs, ours, later = (make_signup(app, username=name, address=f"{name}@example.com") for name in "abc")
    (claimed,) = claim(app, "elsewhere:1:abcdef:Worker-1")
    with app.app_context():
        outcomes.settle(claimed, "250 taken")
    smtp.actions["greeting"] = "554 not from there"
    fail(app, ours)
    assert not is_open(app)
    assert (get(app, ours).status, get(app, ours).attempts) == ("queued", 0)
    travel(app, failures.CROWDED_DELAY + 0.1)
    # It takes no mail that others could send, and wakes nobody who would not either.
    deliver(app, later)
    with app.app_context():
        relay.sweep()
    assert (attempts(app, later), huey.waiting()) == ([], 0)
    # Others may have the one that failed in a moment. An outage that begins looks the same, so nobody is called yet.
    change(app, ours, priority=0)
    (claimed,) = claim(app, "elsewhere:1:abcdef:Worker-1")
    with app.app_context():
        outcomes.settle(claimed, "250 taken")
    assert logged(caplog, "mail_server_down_for_us") == []
    reach: Reach = app.extensions["mail_reach"]
    for _ in range(2):
        reach.rests_until = time.monotonic()
        reach.failing_since = time.monotonic() - circuit_breaker.PROBE_SECONDS - 1
        fail(app, later)
        travel(app, failures.CROWDED_DELAY + 0.1)
    (told,) = logged(caplog, "mail_server_down_for_us")
    assert (told["level"], is_open(app)) == ("error", False)
    # When nobody reaches the server, it is the server's trouble.
    reach.rests_until = time.monotonic()
    travel(app, circuit_breaker.PROBE_SECONDS + 1)
    fail(app, later)
    assert is_open(app)
    assert len(logged(caplog, "mail_server_down_for_us")) == 1


def test_a_process_that_reaches_the_server_again_sends_as_the_others(app: Flask, smtp: Server) -> None:
    _theirs, ours = (make_signup(app, username=name, address=f"{name}@example.com") for name in "ab")
    (claimed,) = claim(app, "elsewhere:1:abcdef:Worker-1")
    with app.app_context():
        outcomes.settle(claimed, "250 taken")
    smtp.actions["greeting"] = "421 too busy"
    for _ in range(3):
        fail(app, ours)
        travel(app, failures.CROWDED_DELAY + 0.1)
        reach: Reach = app.extensions["mail_reach"]
        reach.rests_until = time.monotonic()
    smtp.actions.clear()
    deliver(app, ours)
    assert get(app, ours).status == "sent"


def test_after_a_process_failed_another_one_tries_first(app: Flask, smtp: Server) -> None:
    """Perhaps only ours does not reach the server."""
    ours, later = (make_signup(app, username=name, address=f"{name}@example.com") for name in "ab")
    with app.app_context():
        heartbeats.beat("elsewhere:1:abcdef")
        db.session.commit()
    smtp.actions["greeting"] = "554 not from there"
    fail(app, ours)
    assert is_open(app)
    for _ in range(3):
        work(app)
    assert attempts(app, later) == []
    with app.app_context():
        # Another one may, at once.
        assert circuit_breaker.take_probe()
        db.session.rollback()
        heartbeats.leave("elsewhere:1:abcdef")
        db.session.commit()
    # None is left, so it is ours to try.
    work(app)
    assert len(attempts(app, later)) == 1


def test_where_nothing_is_due_no_try_of_the_server_is_used_up(app: Flask, smtp: Server) -> None:
    smtp.actions["greeting"] = "554 go away"
    fail(app, make_signup(app))
    with app.app_context():
        db.session.execute(update(circuit_breaker.MailBreaker).values(probe_at=db_now()))
        db.session.commit()
    smtp.actions.clear()
    work(app)
    assert is_open(app)
    late = make_signup(app, username="late", address="late@example.com")
    work(app)
    assert (get(app, late).status, is_open(app)) == ("sent", False)


def test_one_person_who_is_refused_again_and_again_says_nothing_about_the_server(app: Flask, smtp: Server) -> None:
    smtp.actions["RCPT"] = "550 no such user"
    email_id = make_signup(app)
    for _ in range(6):
        fail(app, email_id)
        with app.app_context():
            again = signup.resend(only_user(app))
            assert again
            email_id = again
    assert not is_open(app)
