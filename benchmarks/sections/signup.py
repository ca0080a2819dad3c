"""What a signup costs on top of its hash, how long people wait in a crowd, and how much memory the crowd takes."""

from __future__ import annotations

import os
import threading
import time
import uuid
from contextlib import ExitStack

import psycopg
from flask import Flask

from benchmarks.client import WEAK, Browser, in_parallel
from benchmarks.measure import median, percentile, spending
from benchmarks.report import Report
from benchmarks.stage import Stage, app_of, forget
from harness.processes import Process
from harness.usage import resident
from webapp.accounts import passwords
from webapp.delivery import tasks

ROUNDS = 3
TIMES = 60
PAGES = 300
CLIENTS = 8
CROWD = 200

MEBIBYTE = 2**20


def run(stage: Stage, report: Report) -> None:
    with stage.servers() as settings:
        cost(stage, report, settings)
        wait(stage, report, settings)
        memory(stage, report, settings)


def cost(stage: Stage, report: Report, settings: dict[str, str]) -> None:
    """Measure CPU per signup and per page; the rounds alternate, since the machine's speed varies over time."""
    names = ["bare hash, three inserts, the hint", "without limits and password check", "as it is"]
    spent: dict[str, list[float]] = {name: [] for name in [*names, "GET /livez", "GET /", "GET /signup"]}
    with ExitStack() as stack:
        bare = Bare(settings)
        stack.callback(bare.close)
        unlimited = {**settings, "RATELIMIT_ENABLED": "false"}
        webs = {
            names[1]: stack.enter_context(stage.web(unlimited, "benchmarks.unguarded:app")),
            names[2]: stack.enter_context(stage.web(settings)),
        }
        browsers = {name: ready(port) for name, (_, port) in webs.items()}
        bare.sign_up()
        for _ in range(ROUNDS):
            before = time.process_time()
            for _ in range(TIMES):
                bare.sign_up()
            spent[names[0]].append(1000 * (time.process_time() - before) / TIMES)
            for name, (web, _) in webs.items():
                with spending(web.popen.pid) as one:
                    for _ in range(TIMES):
                        browsers[name].sign_up()
                spent[name].append(1000 * one.cpu / TIMES)
            for path in ("/livez", "/", "/signup"):
                web, port = webs[names[2]]
                browser = Browser(port)
                with spending(web.popen.pid) as one:
                    for _ in range(PAGES):
                        browser.open(path)
                spent[f"GET {path}"].append(1000 * one.cpu / PAGES)
    costs = {name: median(values) for name, values in spent.items()}
    hashed, plain = costs[names[0]], costs["GET /livez"]
    report.say(f"Web CPU, median of {ROUNDS} rounds of {TIMES} signups and of {PAGES} pages.", "")
    report.table(
        ["signup", "CPU ms", "of the bare loop's"], [[name, costs[name], costs[name] / hashed] for name in names]
    )
    report.table(
        ["page", "CPU ms", "of a plain route's"],
        [[name, costs[name], costs[name] / plain] for name in ("GET /livez", "GET /", "GET /signup")],
    )
    report.target("CPU without limits and check, of the bare loop's", costs[names[1]] / hashed, "at most", 1 / 0.87)
    report.target("CPU with limits and check, of the bare loop's", costs[names[2]] / hashed, "at most", 1 / 0.75)
    report.target("GET /signup, of a plain route's CPU", costs["GET /signup"] / plain, "at most", 2.5)


def wait(stage: Stage, report: Report, settings: dict[str, str]) -> None:
    with stage.web(settings) as (_, port):
        browsers = [ready(port) for _ in range(CLIENTS)]
        took = in_parallel(browsers, 50, Browser.sign_up).values
    slowest = percentile(took, 0.99)
    report.say("", f"{CLIENTS} clients that sign people up at once, {len(took)} signups:", "")
    report.table(
        ["median ms", "p99 ms", "p99 of the median"], [[f"{median(took):.0f}", slowest, slowest / median(took)]]
    )
    report.target("p99 of the median", slowest / median(took), "at most", 2)


def memory(stage: Stage, report: Report, settings: dict[str, str]) -> None:
    """Let a crowd sign up with one web process and with two, and measure their memory."""
    cores = os.cpu_count() or 1
    grown: dict[str, tuple[float, float]] = {}
    # With one process, also measured after its very first signup, which loads what all others use.
    for name, processes, signups in (("1", 1, 0), ("1 that served a signup", 1, 1), ("2", 2, 0)):
        with stage.web({**settings, "WEB_CONCURRENCY": str(processes)}) as (web, port):
            browsers = [Browser(port) for _ in range(CROWD)]
            for browser in browsers:
                browser.open("/signup")
                # The word lists for the password check are read only once.
                browser.sign_up(password=WEAK, expected=422)
            for browser in browsers[:signups]:
                browser.sign_up()
            before = resident(web.popen.pid)
            peak = Peak(web)
            in_parallel(browsers, 1, Browser.sign_up)
            grown[name] = (before / MEBIBYTE, (peak.stop() - before) / MEBIBYTE)
    hash_memory = cores * int(settings.get("PASSWORD_HASH_MEMORY", 19))
    report.say("", f"{CROWD} signups at once; {cores} cores × 19 MiB a hash are {hash_memory} MiB:", "")
    report.table(["web processes", "MiB before", "MiB more at the peak"], [[name, *mib] for name, mib in grown.items()])
    for name, (_, growth) in grown.items():
        report.target(f"growth, web processes: {name}; of cores × hash", growth / hash_memory, "at most", 1.1)


class Peak:
    """The peak memory of a process and its children since this was created."""

    def __init__(self, process: Process) -> None:
        self.pid = process.popen.pid
        self.most = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.005):
            self.most = max(self.most, resident(self.pid))

    def stop(self) -> int:
        self.over.set()
        self.thread.join()
        return self.most


class Bare:
    """The minimum that a signup takes: the hash, three rows in one commit, and the hint."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.app: Flask = app_of(settings)
        self.connection = psycopg.connect(settings["DATABASE_URL"])
        with self.app.app_context():
            self.hasher = passwords.hasher()

    def sign_up(self) -> None:
        name, proof_id, email_id = uuid.uuid4().hex, uuid.uuid4(), uuid.uuid4()
        address = f"{name}@example.com"
        password_hash = self.hasher.hash("correct horse battery")
        (user_id,) = self.connection.execute(
            "INSERT INTO users (username, username_key, full_name, email, email_key, password_hash)"
            " VALUES (%s, %s, '', %s, %s, %s) RETURNING id",
            [name, name, address, address, password_hash],
        ).fetchone() or (0,)
        self.connection.execute(
            "INSERT INTO verify_emails (id, user_id, email_key, purpose, key_id, created_at)"
            " VALUES (%s, %s, %s, 'signup', '', clock_timestamp())",
            [proof_id, user_id, address],
        )
        self.connection.execute(
            "INSERT INTO outgoing_emails (id, message_id, dedupe_key, user_id, verify_email_id, to_address,"
            " max_attempts, next_attempt_at, created_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, 10, clock_timestamp(), clock_timestamp())",
            [email_id, f"<{email_id}@signup.example>", f"verify:{proof_id}", user_id, proof_id, address],
        )
        self.connection.commit()
        with self.app.app_context():
            tasks.deliver_later(email_id, delay=10)

    def close(self) -> None:
        self.connection.close()
        forget(self.app)


def ready(port: int) -> Browser:
    """Return a browser with the form open, after one signup to warm up the server."""
    browser = Browser(port)
    browser.open("/signup")
    browser.sign_up()
    return browser
