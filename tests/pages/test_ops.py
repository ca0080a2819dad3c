"""What operators see and do under /ops."""

from __future__ import annotations

import itertools
import logging
import re
import time
import uuid
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import insert, select, update

from harness.processes import within
from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.cli.test_cli import flask_mail, refused
from tests.conftest import Backend
from tests.factories import change, claim, get, make_signup, work
from tests.test_logs import lines
from tests.test_operations import flask_users
from webapp import audit, create_app, operations
from webapp.audit import AuditEvent
from webapp.db import clock
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import heartbeats
from webapp.delivery.heartbeats import WorkerHeartbeat
from webapp.monitoring.timeseries import Part, quantile
from webapp.outbox import pause
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.pages.ops import actions, lists, plots, workers_and_audit

PAGES = (
    "/ops",
    "/ops/mails",
    "/ops/dead",
    "/ops/users",
    "/ops/users/1",
    "/ops/users/1/lock",
    "/ops/workers",
    "/ops/audit",
    "/ops/pause",
    "/ops/test",
    "/ops/retry",
)


def operator(app: Flask, role: str = "admin") -> Visitor:
    """Someone with this role, signed in."""
    made = flask_users(app, "create", f"{role}@example.com", f"--{role}", input=f"{PASSWORD}\n{PASSWORD}\n")
    assert made.exit_code == 0, made.output
    visitor = Visitor("http://signup.example", app)
    visitor.open("/login")
    visitor.submit("/login", identifier=role, password=PASSWORD)
    return visitor


@pytest.fixture
def admin(app: Flask) -> Visitor:
    return operator(app)


def test_nobody_but_operators_gets_in(visitor: Visitor, app: Flask) -> None:
    for path in PAGES:
        assert visitor.open(path).status_code == 403
    assert flask_users(app, "create", "ann@example.com", input=f"{PASSWORD}\n{PASSWORD}\n").exit_code == 0
    visitor.open("/login")
    visitor.submit("/login", identifier="ann", password=PASSWORD)
    assert "Operations" not in visitor.text
    for path in PAGES:
        assert visitor.open(path).status_code == 403
    # Signing in again would lead nowhere.
    assert 'href="/account">Go to your account' in visitor.page.text
    flask_users(app, "promote", "ann", "--viewer")
    assert visitor.open("/ops").status_code == 200
    flask_users(app, "demote", "ann")
    assert visitor.open("/ops").status_code == 403


def test_a_viewer_sees_everything_and_changes_nothing(app: Flask, smtp: Server) -> None:
    email_id = refused(app, smtp)
    admin, viewer = operator(app), operator(app, "viewer")
    for path in (*PAGES, f"/ops/mails/{email_id}"):
        assert viewer.open(path).status_code == 200
    viewer.open(f"/ops/mails/{email_id}")
    assert "Retry" not in viewer.text
    token = admin.open("/ops/pause")
    for path in (f"/ops/retry?id={email_id}", "/ops/pause", "/ops/resume", "/ops/test"):
        assert viewer.http.post(path, data={"reason": "because"}).status_code == 403
    assert token.status_code == 200
    assert get(app, email_id).status == "dead"
    with app.app_context():
        assert not pause.is_paused()


def test_operators_find_the_way_from_every_page_and_others_see_none(app: Flask, visitor: Visitor) -> None:
    visitor.open("/")
    assert 'href="/ops"' not in visitor.page.text
    for role in ("admin", "viewer"):
        somebody = operator(app, role)
        somebody.open("/")
        assert 'href="/ops"' in somebody.page.text


def test_workers_are_told_with_their_version(environ: dict[str, str], admin: Visitor) -> None:
    app = create_app({**environ, "APP_VERSION": "2.7-rc1"})
    work(app)
    with app.app_context():
        db.session.execute(update(WorkerHeartbeat).values(seen_at=db_now(-60)))
        db.session.commit()
    admin.open("/ops/workers")
    assert "2.7-rc1" in admin.text
    assert "gone without notice" in admin.text
    # Its next beat is kept, whatever else the relay's turn finds nothing to do about.
    work(app)
    admin.open("/ops/workers")
    assert "gone without notice" not in admin.text
    assert "2.7-rc1" in flask_mail(app, "workers").output
    with app.app_context():
        db.engine.dispose()


def test_the_overview_tells_how_the_mail_is(admin: Visitor, app: Flask, smtp: Server) -> None:
    refused(app, smtp)
    change(app, make_signup(app, username="ann", address="ann@example.com"), next_attempt_at=db_now(-5))
    work(app)
    make_signup(app, username="bob", address="bob@example.com", due=False)
    for span in ("hour", "day", "week", "nonsense"):
        page = admin.open(f"/ops?span={span}")
        assert page.status_code == 200
        assert '<rect class="accepted"' in page.text
        assert '<rect class="refused"' in page.text
        # No inline style, which the CSP would refuse.
        assert "style=" not in page.text
    assert "1 alive" in admin.text
    assert "queued 1 sending 0 sent 1 dead 1 canceled 0" in admin.text
    assert "Sent in the last hour 1" in admin.text


def test_a_dead_mail_is_found_understood_and_revived(admin: Visitor, app: Flask, smtp: Server) -> None:
    email_id = refused(app, smtp)
    refused(app, smtp, "ann")
    admin.open("/ops/dead")
    assert "2 Refused 550" in admin.text
    assert "no such user" in admin.text
    admin.open(f"/ops/mails/{email_id}")
    for words in ("Email to mick19@example.com", "failed at recipient 550", "no such user", "Retry"):
        assert words in admin.text
    admin.open(f"/ops/retry?id={email_id}")
    assert "Retry 1 email?" in admin.text
    # Looking is not acting.
    assert get(app, email_id).status == "dead"
    press(admin)
    assert admin.path == f"/ops/mails/{email_id}"
    assert "Resending 1 email." in admin.text
    work(app)
    assert get(app, email_id).status == "sent"
    assert audited(app)[-1] == ("mail_retried", f"mail {email_id}")
    admin.open("/ops/audit")
    assert f"mail_retried user 1 (admin) 127.0.0.1 mail {email_id}" in admin.text


def press(visitor: Visitor, **fields: Any) -> None:
    """Submit the page's form; its URL may have a query."""
    assert 'method="post"' in visitor.page.text
    page = visitor.page.text
    action = page.partition('<form method="post" action="')[2].partition('"')[0].replace("&amp;", "&")
    hidden = {
        name: value
        for name in ("csrf_token", "shown_at", "after", "done", "changed")
        if f'name="{name}"' in page
        for value in [page.partition(f'name="{name}"')[2].partition('value="')[2].partition('"')[0]]
    }
    visitor.page = visitor.http.post(action, data={**hidden, **fields})


def audited(app: Flask) -> list[tuple[str, str | None]]:
    """What operators did here, with details."""
    with app.app_context():
        events = db.session.scalars(
            select(AuditEvent).where(AuditEvent.actor.like("user %")).order_by(AuditEvent.id)
        ).all()
    return [(event.action, event.detail) for event in events]


def test_mails_are_found_by_what_is_known_of_them_and_listed_page_by_page(
    admin: Visitor, app: Flask, smtp: Server
) -> None:
    dead = refused(app, smtp)
    with app.app_context():
        row = db.session.get_one(OutgoingEmail, dead)
        row_of = {column.key: getattr(row, column.key) for column in OutgoingEmail.__table__.columns}
        fakes = []
        for number in range(60):
            fake = uuid.uuid4()
            fakes.append({**row_of, "id": fake, "message_id": f"<{fake}@x>", "to_address": f"fake{number}@example.com"})
        db.session.execute(insert(OutgoingEmail), [{**fake, "status": "canceled"} for fake in fakes])
        db.session.commit()
    today = time.strftime("%Y-%m-%d", time.gmtime())
    for query in ("status=dead", "address=MICK19@example.com", f"status=dead&code=550&since={today}&until={today}"):
        admin.open(f"/ops/mails?{query}")
        assert f"/ops/mails/{dead}" in admin.page.text
        assert "fake1@" not in admin.text
    admin.open("/ops/mails?since=2001-01-01&until=2001-01-02")
    assert "No matching emails" in admin.text
    # No day follows the last one of the calendar.
    for page in ("mails", "audit", "cancel"):
        assert admin.open(f"/ops/{page}?until=9999-12-31").status_code == 200
    admin.open("/ops/mails?status=canceled")
    assert admin.text.count("@example.com") == 50
    assert "50 of 60" in admin.text
    first = listed(admin)
    next_page(admin)
    assert "60 of 60" in admin.text
    second = listed(admin)
    assert (len(first), len(second)) == (50, 10)
    assert not set(first) & set(second)
    assert "Page 2 of 2" in admin.text
    # It continues in the other order as well.
    admin.open("/ops/mails?status=canceled&sort=oldest")
    assert listed(admin) == [*first, *second][:-51:-1]
    next_page(admin)
    assert listed(admin) == [*first, *second][9::-1]


def turn(visitor: Visitor) -> str:
    """Press the head of the column by which the list is sorted; return how it is sorted then."""
    head = visitor.page.text.partition('aria-sort="')[2]
    visitor.open(head.partition('href="')[2].partition('"')[0].replace("&amp;", "&"))
    assert visitor.page.status_code == 200
    return visitor.page.text.partition('aria-sort="')[2].partition('"')[0]


def test_the_audit_is_turned_round_and_stays_so_on_its_pages_and_when_filtered(
    admin: Visitor, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_and_audit, "PAGE", 3)
    with app.app_context():
        for number in range(7):
            audit.record("paused", detail=f"event {number}")
        db.session.commit()

    def events() -> list[str]:
        return re.findall(r"event \d", admin.text)

    admin.open("/ops/audit?action=paused&sort=nonsense")
    assert events() == ["event 6", "event 5", "event 4"]
    assert "Page 1 of 3" in admin.text
    assert turn(admin) == "ascending"
    assert events() == ["event 0", "event 1", "event 2"]
    next_page(admin)
    assert events() == ["event 3", "event 4", "event 5"]
    assert "Page 2 of 3" in admin.text
    next_page(admin)
    assert events() == ["event 6"]
    # Back to the first page, with another filter, and with none.
    assert 'href="/ops/audit?sort=oldest&amp;action=paused">← First page' in admin.page.text
    assert '<input type="hidden" name="sort" value="oldest">' in admin.page.text
    assert 'href="/ops/audit?sort=oldest">All' in admin.page.text
    assert turn(admin) == "descending"
    assert events() == ["event 6", "event 5", "event 4"]
    assert 'name="sort"' not in admin.page.text


def listed(visitor: Visitor) -> list[str]:
    return [part.partition('"')[0] for part in visitor.page.text.split('href="/ops/mails/')[1:]]


def next_page(visitor: Visitor) -> None:
    visitor.open(visitor.page.text.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&"))


def test_a_list_tells_how_long_ago_and_exactly_when(admin: Visitor, app: Flask) -> None:
    email_id = make_signup(app)
    change(app, email_id, created_at=db_now(-3 * 3600))
    created_at = get(app, email_id).created_at
    admin.open("/ops/mails")
    at, exact = created_at.isoformat(timespec="seconds"), f"{created_at:%Y-%m-%d %H:%M:%S} UTC"
    assert f'<time datetime="{at}" title="{exact}">3 hours ago</time>' in admin.page.text
    # A full ID is there to be copied.
    assert f'data-copy="{email_id}"' in admin.page.text


def test_a_long_list_is_not_counted_to_its_end(admin: Visitor, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ann", "bob", "eve"):
        make_signup(app, username=name, address=f"{name}@example.com")
    monkeypatch.setattr(lists, "COUNTED", 2)
    admin.open("/ops/mails")
    assert "3 of more than 3" in admin.text
    monkeypatch.setattr(lists, "COUNTED", 3)
    admin.open("/ops/mails?page=99999999999999999999")
    assert "3 of 3" in admin.text


def test_the_audit_is_filtered_by_what_who_and_when(admin: Visitor, app: Flask) -> None:
    with app.app_context():
        for who, action in ((None, "signed_out"), ("ann_b", "paused"), ("user 7 (Ann)", "resumed")):
            audit.actor.set(who)
            audit.record(action)
        audit.actor.set(None)
        db.session.commit()
    today = time.strftime("%Y-%m-%d", time.gmtime())
    found = {
        "action=paused": {"paused"},
        "actor=ANN": {"paused", "resumed"},
        "actor=ann_": {"paused"},
        f"actor=ann&since={today}&until={today}": {"paused", "resumed"},
        "until=2001-01-01": set(),
        "action=never_heard_of": set(),
    }
    for query, expected in found.items():
        admin.open(f"/ops/audit?{query}")
        # After the form, which names all actions.
        rows = admin.text.rpartition(" Find All ")[2]
        assert {action for action in ("signed_out", "paused", "resumed") if action in rows} == expected, query
        assert expected or "No matching events." in rows
    for query in ("since=yesterday", "actor=%00", "action=%00", "actor=" + "x" * 300):
        assert admin.open(f"/ops/audit?{query}").status_code == 422


@pytest.mark.parametrize(
    "query",
    [
        "status=exploded",
        "code=abc",
        "code=99999999999999",
        "user=0",
        "user=99999999999999",
        "since=yesterday",
        "address=" + "x" * 300,
        "address=%00",
        "template=%3Cscript%3E",
    ],
)
def test_a_filter_that_makes_no_sense_is_shown_again_and_acted_on_by_nobody(
    admin: Visitor, app: Flask, query: str
) -> None:
    make_signup(app)
    page = admin.open(f"/ops/mails?{query}")
    assert page.status_code == 422
    assert "Please fix the following" in admin.text
    assert admin.open(f"/ops/retry?{query}").status_code == 400
    assert admin.open(f"/ops/cancel?{query}").status_code == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/ops/mails/{uuid.UUID(int=1)}", 404),
        ("/ops/mails/nonsense", 404),
        ("/ops/mails?before=nonsense", 200),
        ("/ops/audit?before=99999999999999999999", 200),
        ("/ops/audit?before=-1", 200),
        ("/ops/audit?before=-99999999999999999999", 200),
        ("/ops/retry?id=nonsense", 400),
        ("/ops/explode", 404),
        ("/ops/samples/nonsense", 404),
        ("/ops/retry?" + "&".join(f"id={uuid.UUID(int=n)}" for n in range(201)), 400),
    ],
)
def test_what_is_not_there_is_said_to_be_so(admin: Visitor, path: str, status: int) -> None:
    assert admin.open(path).status_code == status


@pytest.mark.parametrize(
    "name", ["endpoint", "_method", "_anchor", "_external", "_scheme", "action", "email_id", "self"]
)
def test_an_address_says_nothing_but_which_mails_are_meant(admin: Visitor, app: Flask, name: str) -> None:
    make_signup(app)
    for path in ("/ops/retry", "/ops/cancel", "/ops/mails"):
        assert admin.open(f"{path}?status=queued&{name}=nowhere").status_code == 200
    admin.open(f"/ops/cancel?status=queued&{name}=nowhere")
    press(admin)
    assert str(admin.page.url).endswith("/ops/mails?status=queued")


def test_the_chosen_are_canceled_and_nothing_without_a_token(admin: Visitor, app: Flask) -> None:
    ids = [make_signup(app, username=name, address=f"{name}@example.com", due=False) for name in ("ann", "bob", "eve")]
    chosen = f"/ops/cancel?id={ids[0]}&id={ids[1]}"
    assert admin.http.post(chosen).status_code == 400
    assert [get(app, email_id).status for email_id in ids] == ["queued"] * 3
    admin.open(f"/ops/cancel?id={ids[2]}")
    assert "It won't be sent." in admin.text
    admin.open(chosen)
    assert "Cancel 2 emails?" in admin.text
    assert "They won't be sent." in admin.text
    press(admin)
    assert [get(app, email_id).status for email_id in ids] == ["canceled", "canceled", "queued"]
    assert audited(app) == [("mail_canceled", "2 mails")]


def test_an_action_on_many_is_about_those_that_its_page_could_show(admin: Visitor, app: Flask) -> None:
    """In a restored database a user's number may belong to someone else by the time the button is pressed."""
    shown = make_signup(app, due=False)
    with app.app_context():
        user_id = db.session.scalars(select(OutgoingEmail.user_id).where(OutgoingEmail.id == shown)).one()
    admin.open(f"/ops/cancel?user={user_id}")
    assert "Cancel 1 email?" in admin.text
    later = make_signup(app, username="ann", address="ann@example.com", due=False)
    change(app, later, user_id=user_id)
    press(admin)
    assert [get(app, email_id).status for email_id in (shown, later)] == ["canceled", "queued"]


def test_many_mails_are_done_a_part_at_a_time(admin: Visitor, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "CHUNK", 2)
    monkeypatch.setattr(actions, "WORK_SECONDS", 0)
    ids = [make_signup(app, username=f"ann{n}", address=f"ann{n}@example.com", due=False) for n in range(5)]
    admin.open("/ops/retry?status=queued")
    assert "Retry 5 emails?" in admin.text
    press(admin)
    steps = []
    while "Continue" in admin.text:
        steps.append(admin.text.split(" Audit ")[1][:6])
        press(admin)
    assert steps == ["2 of 5", "4 of 5"]
    assert "Resending 5 emails." in admin.text
    with app.app_context():
        due = db.session.scalars(select(OutgoingEmail.id).where(OutgoingEmail.next_attempt_at <= db_now())).all()
    assert set(due) == set(ids)


def test_mail_is_held_back_and_let_go_with_a_reason(admin: Visitor, app: Flask, smtp: Server) -> None:
    admin.open("/ops/pause")
    press(admin, reason="  ")
    assert "Please enter a reason" in admin.text
    press(admin, reason="the provider <moves>")
    assert admin.path == "/ops"
    assert "by user 1 (admin): the provider <moves>" in admin.text
    assert "<moves>" not in admin.page.text
    change(app, make_signup(app), next_attempt_at=db_now(-5))
    work(app)
    assert smtp.mails == []
    admin.open("/ops/resume")
    assert "You can't undo this" in admin.text
    press(admin)
    assert "Email was resumed" in admin.text
    work(app)
    assert len(smtp.mails) == 1
    assert audited(app) == [("paused", "the provider <moves>"), ("resumed", None)]


def test_a_pause_is_undone_beside_what_it_says_and_no_other_pause_is(admin: Visitor, app: Flask) -> None:
    admin.open("/ops/pause")
    assert "You can undo this" in admin.text
    press(admin, reason="a slip")
    assert "All email is paused. Undo" in admin.text
    undo, token = undoing(admin)
    assert admin.http.post(undo, data={}).status_code == 400
    admin.page = admin.http.post(undo, data=token)
    assert "Email was resumed." in admin.text
    assert "Undo" not in admin.text
    # Pressed once more, or after somebody else paused anew, it is not one's own pause any more.
    with app.app_context():
        assert not pause.is_paused()
        assert operations.pause_mail("the provider moves")
    for address in (undo, "/ops/resume?since=nonsense", "/ops/resume?since="):
        admin.page = admin.http.post(address, data=token)
        assert "Nothing was changed. That pause has already ended." in admin.text
        with app.app_context():
            assert pause.is_paused()
    assert audited(app) == [("paused", "a slip"), ("resumed", None)]


def undoing(visitor: Visitor) -> tuple[str, dict[str, str]]:
    """Return where the button beside what was done leads, and what it sends."""
    form = visitor.page.text.partition('class="told"')[2].partition("</form>")[0]
    address, token = form.partition('action="')[2].partition('"')[0], form.partition('value="')[2].partition('"')[0]
    return address.replace("&amp;", "&"), {"csrf_token": token}


def test_a_wrong_filter_says_what_is_right(admin: Visitor) -> None:
    for query, told in {
        "code=x": "Please enter a whole number.",
        "code=1": "Please enter a number from 200 to 599.",
        "since=x": "Please enter a valid date.",
        "status=x": "Please choose from the list.",
    }.items():
        assert admin.open(f"/ops/mails?{query}").status_code == 422
        assert told in admin.text


def test_what_cannot_be_undone_says_so_before(admin: Visitor, app: Flask) -> None:
    email_id = make_signup(app, due=False)
    for action in ("retry", "cancel"):
        admin.open(f"/ops/{action}?id={email_id}")
        assert "You can't undo this." in admin.text
    press(admin)
    assert "1 email was canceled." in admin.text
    assert "Undo" not in admin.text


def test_a_test_mail_is_sent_from_here(admin: Visitor, app: Flask, smtp: Server) -> None:
    admin.open("/ops/test")
    press(admin, email="nonsense")
    assert admin.page.status_code == 422
    press(admin, email="ops@example.com")
    assert "Email to ops@example.com" in admin.text
    work(app)
    assert len(smtp.mails) == 1
    admin.open(admin.path)
    assert "sent at dot 250" in admin.text


def test_no_link_and_no_code_of_a_real_mail_is_shown(admin: Visitor, app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    change(app, email_id, next_attempt_at=db_now(-5))
    work(app)
    (mail,) = smtp.mails
    shown = admin.open(f"/ops/mails/{email_id}").text + admin.open("/ops/samples/verify_email").text
    assert mail.link not in shown
    assert "123 456" in shown
    headers = admin.page.headers
    assert "sandbox" in headers["Content-Security-Policy"]


def test_workers_are_shown_with_what_they_hold(admin: Visitor, app: Flask) -> None:
    admin.open("/ops/workers")
    assert "No worker is alive" in admin.text
    with app.app_context():
        heartbeats.beat(heartbeats.NAME)
        db.session.commit()
    email_id = make_signup(app)
    claim(app, f"{heartbeats.NAME}:Worker-1")
    admin.open("/ops/workers")
    assert "alive" in admin.text
    assert str(email_id)[:8] in admin.text


def test_without_the_queue_the_overview_says_so_and_does_not_hang(admin: Visitor, app: Flask, backend: Backend) -> None:
    backend.break_queue(app)
    with within(3):
        admin.open("/ops")
    assert "isn't responding" in admin.text


def test_plots_fit_their_frame() -> None:
    now = clock.now()
    parts = [Part(now, accepted=n, refused=1, troubled=0, median=5.0, slowest=float("inf")) for n in range(12)]
    for plot in (plots.throughput(parts), plots.latency(parts)):
        assert len(plot.columns) == len(parts)
        for bar in itertools.chain(*plot.columns):
            assert -0.1 <= bar.y <= bar.y + bar.height <= plots.HEIGHT + 0.1
        assert all(0 <= tick.y <= plots.HEIGHT for tick in plot.ticks)
    assert [tick.value for tick in plots.throughput(parts).ticks] == [0, 10, 20]
    assert [tick.value for tick in plots.latency(parts[:1]).ticks] == [0, 10]
    assert quantile({"5": 9, "60": 1}, 0.5) == 5
    assert quantile({"5": 9, "60": 1}, 0.95) == 60
    assert quantile({}, 0.5) is None


def test_nobody_but_operators_keeps_requests_out_of_the_log(
    visitor: Visitor, admin: Visitor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    caplog.set_level(logging.INFO)
    admin.http.get("/ops", headers={"X-Live": "1"})
    assert lines(caplog, "request") == []
    visitor.http.get("/login", headers={"X-Live": "1"})
    admin.http.post("/ops/pause", headers={"X-Live": "1"})
    assert [line["rule"] for line in lines(caplog, "request")] == ["/login", "/ops/pause"]
