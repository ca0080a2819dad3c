"""Limits on emails to one address, and in total: emails over a limit wait, and none is lost."""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from limits import parse_many
from sqlalchemy import event, select

from harness.processes import wait_until, within
from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.delivery.test_throughput import count_queries
from tests.factories import attempts, change, claim, get, make_signup, travel
from tests.smtp.test_replies import logged
from webapp import operations
from webapp.accounts import account, email_change, notices, password_change, signup
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.users import User
from webapp.db import clock
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import circuit_breaker, relay, tasks, throttle, throughput, worker
from webapp.extensions import huey, mail
from webapp.outbox import kinds
from webapp.outbox.outgoing_email import OutgoingEmail

ADDRESS = "mick@example.com"


@pytest.fixture
def environ(environ: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    """The defaults of a fresh installation, except for request limits: all requests come from one place here."""
    total = request.node.get_closest_marker("total")
    limits = {"RATELIMIT_ENABLED": "true", "RATELIMIT_SIGNUP": "none"}
    return {**environ, **limits, **({"MAIL_LIMIT_TOTAL": total.args[0]} if total else {})}


@pytest.fixture(autouse=True)
def _hang_up() -> Iterator[None]:
    yield
    mail.close()


def sign_up(app: Flask, number: int, address: str = ADDRESS, rank: int = 1) -> uuid.UUID:
    # Each a little later than the one before.
    travel(app, 0.1)
    return make_signup(app, username=f"mick{number}", address=address, rank=rank)


def drain(app: Flask) -> None:
    """Send what is due, like a worker."""
    with app.app_context():
        worker.deliver_due(200)


def statuses(app: Flask) -> list[str]:
    """Return the statuses of all emails, the oldest first."""
    with app.app_context():
        return list(db.session.scalars(select(OutgoingEmail.status).order_by(OutgoingEmail.created_at)))


def test_the_second_mail_to_an_address_waits_out_the_minute(app: Flask, smtp: Server) -> None:
    first, second = sign_up(app, 1), sign_up(app, 2)
    drain(app)
    drain(app)
    assert [mail.message_id for mail in smtp.mails] == [get(app, first).message_id]
    waiting = get(app, second)
    assert (waiting.status, waiting.attempts, waiting.last_error) == ("queued", 0, None)
    assert [(row.outcome, row.reply) for row in attempts(app, second)] == [
        ("held", "its mailbox has reached its limit, 1 per 1 minute")
    ]
    travel(app, 55)
    drain(app)
    assert len(smtp.mails) == 1
    travel(app, 10)
    drain(app)
    assert smtp.mails[-1].message_id == waiting.message_id


def test_of_a_hundred_signups_for_an_address_two_mails_go_and_all_links_serve(
    app: Flask, smtp: Server, visitor: Visitor
) -> None:
    for number in range(100):
        make_signup(app, username=f"mick{number}", address=ADDRESS)
    newest = sign_up(app, 100)
    drain(app)
    assert len(smtp.mails) == 1
    assert statuses(app).count("queued") == 100
    travel(app, 61)
    drain(app)
    # The newest of the waiting ones; its link serves the others, which are then canceled.
    assert [mail.message_id for mail in smtp.mails][1:] == [get(app, newest).message_id]
    assert statuses(app).count("canceled") == 99
    # Its owner signs up separately, and uses the first link.
    visitor.sign_up(username="owner", email=ADDRESS)
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"
    assert "owner" in visitor.text


def test_many_that_wait_for_a_mailbox_cost_others_nothing(app: Flask, smtp: Server) -> None:
    throughput.batch_size.note(1, 0.01)
    for number in range(200):
        make_signup(app, username=f"mick{number}", address=ADDRESS)
    with app.app_context():
        asked = count_queries()
        worker.deliver_due(1000)
    # One query for all of them, not one for each.
    assert len(asked) < 200
    assert len(smtp.mails) == 1
    other = sign_up(app, 1000, "other@example.com")
    assert [email.id for email in claim(app, limit=50)] == [other]


def test_five_in_an_hour_and_ten_in_a_day(app: Flask, smtp: Server) -> None:
    sent = []
    for number in range(26):
        sign_up(app, number)
        drain(app)
        sent.append(len(smtp.mails))
        travel(app, 3600 if number >= 10 else 65)
    assert sent[4:10] == [5] * 6
    assert sent[-10:] == [10] * 10
    travel(app, 86400)
    drain(app)
    assert len(smtp.mails) == 11
    assert statuses(app).count("queued") == 0


def test_other_addresses_do_not_wait(app: Flask, smtp: Server) -> None:
    for number in range(3):
        sign_up(app, number, f"mick{number}@example.com")
    drain(app)
    assert len(smtp.mails) == 3


def test_another_spelling_is_the_same_address(app: Flask, smtp: Server) -> None:
    sign_up(app, 1, "mick@example.com")
    sign_up(app, 2, "MICK@EXAMPLE.COM")
    drain(app)
    assert len(smtp.mails) == 1


def test_an_account_is_told_of_signups_under_the_same_limit(app: Flask, smtp: Server, visitor: Visitor) -> None:
    visitor.sign_up(email=ADDRESS)
    travel(app, 11)
    drain(app)
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    travel(app, 61)
    for number in range(3):
        sign_up(app, number)
    drain(app)
    drain(app)
    assert [mail.message["Subject"] for mail in smtp.mails[1:]] == ["You already have an account with Acme"]
    assert statuses(app).count("queued") == 2


def test_whoever_takes_his_signup_elsewhere_takes_no_mail_from_another(app: Flask, smtp: Server) -> None:
    sign_up(app, 1)
    drain(app)
    owner = sign_up(app, 2)
    attacker = sign_up(app, 3)
    drain(app)
    assert [get(app, email_id).status for email_id in (owner, attacker)] == ["queued", "queued"]
    with app.app_context():
        user = db.session.scalars(select(User).where(User.username == "mick3")).one()
        signup.change_address(user, email_addresses.parse_address("elsewhere@example.com"))
    assert [get(app, email_id).status for email_id in (owner, attacker)] == ["queued", "canceled"]
    travel(app, 66)
    drain(app)
    assert [mail.recipients for mail in smtp.mails].count([ADDRESS]) == 2
    assert get(app, owner).status == "sent"


def test_a_mail_that_nobody_needs_leaves_its_place_to_the_former(app: Flask, smtp: Server) -> None:
    sign_up(app, 1)
    drain(app)
    former, newest = sign_up(app, 2), sign_up(app, 3)
    drain(app)
    with app.app_context():
        db.session.delete(db.session.scalars(select(User).where(User.username == "mick3")).one())
        db.session.commit()
    travel(app, 61)
    drain(app)
    travel(app, 5)
    drain(app)
    assert [get(app, email_id).status for email_id in (former, newest)] == ["sent", "canceled"]


def test_a_mail_that_made_way_for_one_that_was_sent_stays_canceled(app: Flask, smtp: Server) -> None:
    sign_up(app, 1)
    drain(app)
    former, newest = sign_up(app, 2), sign_up(app, 3)
    drain(app)
    travel(app, 61)
    drain(app)
    assert [get(app, email_id).status for email_id in (former, newest)] == ["canceled", "sent"]
    travel(app, 61)
    drain(app)
    assert len(smtp.mails) == 2


@pytest.mark.parametrize("by", ["an operator", "the end of the account"])
def test_a_mail_that_is_canceled_takes_no_other_with_it(app: Flask, smtp: Server, by: str) -> None:
    sign_up(app, 1)
    drain(app)
    former, newest = sign_up(app, 2), sign_up(app, 3)
    drain(app)
    with app.app_context():
        if by == "an operator":
            operations.cancel([newest])
        else:
            account.end(db.session.scalars(select(User).where(User.username == "mick3")).one())
    travel(app, 66)
    drain(app)
    assert get(app, former).status == "sent"


def test_a_mail_that_is_refused_takes_no_other_with_it(app: Flask, smtp: Server) -> None:
    sign_up(app, 1)
    drain(app)
    former, newest = sign_up(app, 2), sign_up(app, 3)
    drain(app)
    travel(app, 61)
    smtp.actions["RCPT"] = "550 5.1.1 no such user"
    drain(app)
    assert get(app, newest).status == "dead"
    smtp.actions.clear()
    travel(app, 5)
    drain(app)
    assert get(app, former).status == "sent"


def test_a_link_of_one_account_ends_no_mail_of_another(app: Flask, smtp: Server) -> None:
    people = {name: member(app, name) for name in ("ann", "mallory")}
    mallorys = ask_for(app, people["mallory"])
    drain(app)
    travel(app, 5)
    anns = ask_for(app, people["ann"])
    drain(app)
    # Asking again and again puts you behind those who already wait.
    for _ in range(3):
        travel(app, 5)
        again = ask_for(app, people["mallory"])
        drain(app)
    travel(app, 61)
    drain(app)
    travel(app, 5)
    drain(app)
    assert [get(app, email_id).status for email_id in (mallorys, anns, again)] == ["sent", "sent", "queued"]
    travel(app, 70)
    drain(app)
    assert get(app, again).status == "sent"
    assert len(smtp.to("new@example.com")) == 3


def member(app: Flask, name: str) -> int:
    make_signup(app, username=name, address=f"{name}@example.com")
    drain(app)
    with app.app_context():
        user = db.session.scalars(select(User).where(User.username == name)).one()
        user.email_verified_at, user.purge_at = clock.now(), None
        db.session.commit()
        return user.id


def ask_for(app: Flask, user_id: int) -> uuid.UUID:
    with app.app_context():
        user = db.session.get_one(User, user_id)
        email_id = email_change.ask(user, email_addresses.parse_address("new@example.com"), f"session of {user_id}")
        assert email_id is not None
        change(app, email_id, next_attempt_at=db_now())
        return email_id


def test_tags_of_one_mailbox_share_its_limit_and_each_keeps_its_own_link(app: Flask, smtp: Server) -> None:
    ids = [sign_up(app, number, f"Victim+{number}@example.com") for number in range(3)]
    plain = sign_up(app, 3, "victim@example.com")
    drain(app)
    assert len(smtp.mails) == 1
    assert "its mailbox has reached its limit, 1 per 1 minute" in [
        row.reply for email_id in ids for row in attempts(app, email_id)
    ]
    for _ in range(6):
        travel(app, 70)
        drain(app)
    assert {get(app, email_id).status for email_id in [*ids, plain]} == {"sent"}


def test_a_new_password_cancels_no_mail_of_another_account_with_the_same_mailbox(app: Flask) -> None:
    member(app, "ann")
    with app.app_context():
        mails = {
            address: password_change.ask(email_addresses.parse_address(address), "en")
            for address in ("Ann@example.com", "ann+tag@example.com")
        }
        user = db.session.scalars(select(User)).one()
        password_change.change_password(user, "another hash")
    assert {address: get(app, email_id).status for address, email_id in mails.items()} == {
        "Ann@example.com": "canceled",
        "ann+tag@example.com": "queued",
    }


@pytest.mark.total("3/hour")
def test_signups_of_strangers_leave_room_for_what_owners_ask_for(app: Flask, smtp: Server) -> None:
    member(app, "owner")
    travel(app, 3601)
    count_again(app)
    for number in range(3):
        sign_up(app, number, f"mick{number}@example.com")
    drain(app)
    count_again(app)
    drain(app)
    assert len(smtp.mails) == 1 + 2
    with app.app_context():
        asked = password_change.ask(email_addresses.parse_address("owner@example.com"), "en")
        # Its own hint, or the relay's if that was lost.
        travel(app, 2)
        assert relay.hint(0) == 1
    while task := huey.dequeue():
        huey.execute(task)
    assert get(app, asked).status == "sent"
    assert statuses(app).count("queued") == 1
    # The whole limit is used up now.
    with app.app_context():
        late = password_change.ask(email_addresses.parse_address("owner@example.com"), "en")
    travel(app, 70)
    count_again(app)
    drain(app)
    assert get(app, late).status == "queued"


@pytest.mark.total("3/hour")
def test_a_notice_of_a_second_factor_goes_in_the_room_that_is_kept_for_owners(app: Flask, smtp: Server) -> None:
    user_id = member(app, "owner")
    travel(app, 3601)
    for number in range(3):
        sign_up(app, number, f"mick{number}@example.com")
    for _ in range(2):
        count_again(app)
        drain(app)
    assert statuses(app).count("queued") == 1
    with app.app_context():
        notice = notices.post(db.session.get_one(User, user_id), kinds.RECOVERY_CODE_USED, left="9")
        db.session.commit()
    count_again(app)
    drain(app)
    assert get(app, notice).status == "sent"
    assert statuses(app).count("queued") == 1


@pytest.mark.parametrize(
    ("limit", "signups"), [("1/hour", 1), ("2/hour", 1), ("3/hour", 2), ("10/hour", 8), ("100/day", 80)]
)
def test_a_fifth_of_each_limit_in_all_is_no_signups(limit: str, signups: int) -> None:
    (item,) = parse_many(limit)
    assert item.amount - throttle.kept(item) == signups


def test_nobodys_thirtieth_mail_goes_before_another_networks_first(app: Flask, smtp: Server) -> None:
    many = [sign_up(app, number, f"many{number}@example.com", rank=number + 1) for number in range(30)]
    first = sign_up(app, 30, "first@example.com")
    throughput.batch_size.note(1, 10)
    with app.app_context():
        # Whichever of them is hinted.
        tasks.deliver_email.call_local(str(many[29]))
    order = [mail.recipients[0] for mail in smtp.mails]
    assert set(order[:2]) == {"many0@example.com", "first@example.com"}
    assert order.index("first@example.com") < 2
    assert get(app, first).status == "sent"


def test_a_mail_that_is_sent_again_goes_no_sooner_than_the_one_before(app: Flask) -> None:
    email_id = sign_up(app, 1, rank=7)
    change(app, email_id, status="sent", sent_at=db_now(), finished_at=db_now())
    with app.app_context():
        again = signup.resend(db.session.scalars(select(User)).one())
    assert again is not None
    assert get(app, again).priority == get(app, email_id).priority == 7


def test_workers_at_the_same_moment_send_one(app: Flask, smtp: Server) -> None:
    for number in range(8):
        make_signup(app, username=f"mick{number}", address=ADDRESS)
    in_parallel(app, 4, lambda: worker.deliver_due(10))
    assert len(smtp.mails) == 1
    # Those older than the sent one were canceled with it.
    assert set(statuses(app)) <= {"sent", "queued", "canceled"}


def test_a_mail_that_is_being_sent_counts(app: Flask, smtp: Server) -> None:
    sign_up(app, 1)
    claim(app)
    sign_up(app, 2)
    drain(app)
    assert smtp.mails == []
    assert statuses(app) == ["sending", "queued"]


def test_a_probe_is_not_spent_on_a_mail_that_may_not_go(app: Flask, smtp: Server) -> None:
    """Otherwise an address with many waiting emails would hold up everyone after an outage."""
    for number in range(4):
        sign_up(app, number)
    drain(app)
    for number in range(4, 8):
        sign_up(app, number)
    other = sign_up(app, 8, "other@example.com")
    with app.app_context():
        circuit_breaker.trip("down")
        db.session.commit()
    travel(app, 16)
    with app.app_context():
        worker.probe()
    assert get(app, other).status == "sent"


def test_the_waiting_page_does_not_tell_that_others_used_up_the_limit(app: Flask, visitor: Visitor) -> None:
    sign_up(app, 1)
    drain(app)
    visitor.sign_up(email=ADDRESS)
    travel(app, 11)
    drain(app)
    visitor.open("/signup/sent")
    assert "Sending in" not in visitor.text
    assert "Sent" in visitor.text


@pytest.mark.total("3/hour")
def test_over_the_limit_in_all_mails_wait_and_the_operator_is_told_once(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(6):
        sign_up(app, number, f"mick{number}@example.com")
    for _ in range(3):
        count_again(app)
        with app.app_context():
            worker.deliver_due(1)
    for _ in range(3):
        count_again(app)
        drain(app)
    # One of the three is reserved for what account owners ask for.
    assert len(smtp.mails) == 2
    assert statuses(app).count("queued") == 4
    assert len(logged(caplog, "mail_limit_reached")) == 1
    travel(app, 3601)
    count_again(app)
    drain(app)
    assert len(smtp.mails) > 2


@pytest.mark.total("1/hour")
def test_the_commands_say_that_mails_wait_for_the_limit(app: Flask) -> None:
    sign_up(app, 1, "one@example.com")
    sign_up(app, 2, "two@example.com")
    with app.app_context():
        worker.deliver_due(1)
    travel(app, 120)
    count_again(app)
    result = app.test_cli_runner().invoke(args=["mail", "stats"])
    assert "1 per 1 hour" in result.output
    result = app.test_cli_runner().invoke(args=["mail", "doctor"])
    assert "overdue" not in result.output


@pytest.mark.total("20/second, 1000/day")
def test_mails_go_evenly_when_a_second_allows_only_so_many(app: Flask, smtp: Server) -> None:
    for number in range(12):
        make_signup(app, username=f"mick{number}", address=f"mick{number}@example.com")
    in_parallel(app, 4, lambda: worker.deliver_due(12))
    assert len(smtp.mails) == 12
    at = sorted(mail.at for mail in smtp.mails)
    # Each 50 ms after the one before: at most twenty in any second, though four workers send.
    assert at[-1] - at[0] > 11 * 0.05 * 0.9
    assert {row.outcome for number in mail_ids(app) for row in attempts(app, number)} == {"sent"}


@pytest.mark.total("1/2 seconds")
def test_whoever_waits_for_a_turn_keeps_the_mail_and_stops_when_told(app: Flask, smtp: Server) -> None:
    email_id = sign_up(app, 1)
    with app.app_context():
        for _ in range(30):
            throttle.take_turn()
        assert throttle.is_full()
    thread = threading.Thread(target=lambda: in_parallel(app, 1, lambda: worker.deliver_due(1)))
    thread.start()
    wait_until(lambda: get(app, email_id).status == "sending", "nobody claimed it")
    first = get(app, email_id).lease_until
    wait_until(lambda: get(app, email_id).lease_until != first, "its lease did not go on")
    assert "overdue" not in app.test_cli_runner().invoke(args=["mail", "doctor"]).output
    try:
        mail.stop()
        thread.join(5)
        assert not thread.is_alive()
    finally:
        mail.stopping = False
    row = get(app, email_id)
    assert (row.status, row.attempts, smtp.mails) == ("queued", 0, [])


@pytest.mark.total("7/day")
def test_many_workers_together_keep_to_a_days_limit_exactly(app: Flask, smtp: Server) -> None:
    for number in range(20):
        make_signup(app, username=f"mick{number}", address=f"mick{number}@example.com")
    in_parallel(app, 6, lambda: worker.deliver_due(20))
    assert len(smtp.mails) == 6
    assert statuses(app).count("queued") == 14
    travel(app, 86401)
    count_again(app)
    drain(app)
    assert len(smtp.mails) == 12


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
@pytest.mark.total("7/day")
def test_an_email_that_is_sent_while_a_worker_counts_is_counted_once(app: Flask) -> None:
    """On SQLite nobody writes while a worker counts."""
    first = sign_up(app, 1, "one@example.com")
    claim(app, limit=1)
    settled: list[uuid.UUID] = []

    def settle(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        counts = "outgoing_emails.status" in statement or "outgoing_emails.sent_at" in statement
        if counts and not settled:
            settled.append(first)
            change(app, first, status="sent", sent_at=db_now(), lease_until=None, lease_token=None)

    with app.app_context():
        # The count of the process itself, which is not the one that must be exact.
        throttle.spent()
        app.extensions["mail_total"].count_at = math.inf
        event.listen(db.engine, "after_cursor_execute", settle)
        # One of the seven, and another is kept for owners.
        assert throttle.allowance().mails == 7 - 1 - 1
    assert settled == [first]


def test_who_counts_and_who_claims_do_not_wait_for_each_other(app: Flask) -> None:
    """Each of two threads has begun to count; one of them began its transaction for something else."""
    begins = threading.Event()

    def count() -> None:
        with app.app_context():
            throttle.spent()

    counting = threading.Thread(target=count)
    with app.app_context():
        circuit_breaker.is_open()
        event.listen(db.engine, "engine_connect", lambda _connection: begins.set())
        counting.start()
        assert begins.wait(20)
        with within(3):
            throttle.allowance()
        db.session.commit()
    counting.join()


def in_parallel(app: Flask, count: int, run: Callable[[], object]) -> None:
    start = threading.Barrier(count)

    def work() -> None:
        with app.app_context():
            start.wait()
            run()
        mail.close()

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def mail_ids(app: Flask) -> list[uuid.UUID]:
    with app.app_context():
        return list(db.session.scalars(select(OutgoingEmail.id)))


def count_again(app: Flask) -> None:
    """End the second during which a process does not count again."""
    if total := app.extensions.get("mail_total"):
        total.count_at = 0.0
