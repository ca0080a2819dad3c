"""What the relay costs: at idle, and with a large backlog. Run it with `python -m benchmarks.relay`."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from flask import Flask
from redis import Redis
from sqlalchemy import event, text

from tests.conftest import migrate, settings
from tests.processes import consumer
from tests.servers import Postgres, Valkey
from webapp import create_app, tasks
from webapp.extensions import db

BACKLOG = text("""
    INSERT INTO outgoing_emails (id, message_id, dedupe_key, to_address, priority, max_attempts,
                                 next_attempt_at, created_at)
    SELECT gen_random_uuid(), '<' || n || '@example.com>', 'k' || n, 'n' || n || '@example.com', 0, 10,
           clock_timestamp() - interval '1 hour', clock_timestamp()
    FROM generate_series(1, :rows) AS n
""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=20, help="how long the idle consumer is watched")
    parser.add_argument("--rows", type=int, default=100_000, help="due mails in the backlog")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Valkey(Path(folder) / "valkey") as valkey:
        postgres = Postgres(Path(folder) / "postgres")
        environ = {**settings(mail_port=1), "DATABASE_URL": postgres.create(), "REDIS_URL": valkey.url}
        migrate({"DATABASE_URL": environ["DATABASE_URL"]})
        app = create_app({**environ, "LOG_LEVEL": "error"})
        idle(app, environ, options.seconds)
        backlog(app, valkey, options.rows)
        with app.app_context():
            db.engine.dispose()
        postgres.server.cleanup()


def idle(app: Flask, environ: dict[str, str], seconds: int) -> None:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with consumer({**inherited, **environ, "TZ": "UTC"}) as worker:
        process = psutil.Process(worker.popen.pid)
        time.sleep(3)
        cpu, committed = cpu_seconds(process), transactions(app)
        time.sleep(seconds)
        cpu, committed = cpu_seconds(process) - cpu, transactions(app) - committed
        memory = process.memory_info().rss / 2**20
        worker.stop()
    statements = statements_a_turn(app)
    print(f"idle consumer, 4 workers and the relay, over {seconds} s (Postgres, Redis):")
    print(f"  CPU                     {100 * cpu / seconds:6.2f} % of a core")
    print(f"  transactions            {committed / seconds:6.2f} a second")
    print(f"  statements a turn       {statements:6d}")
    print(f"  resident memory         {memory:6.0f} MB")


def backlog(app: Flask, valkey: Valkey, rows: int) -> None:
    with app.app_context(), Redis.from_url(valkey.url) as redis:
        db.session.execute(BACKLOG, {"rows": rows})
        db.session.commit()
        db.session.execute(text("ANALYZE outgoing_emails"))
        db.session.commit()
        relay = tasks.Relay()
        times = []
        for _ in range(30):
            begun = time.perf_counter()
            relay.turn()
            times.append(1000 * (time.perf_counter() - begun))
        waiting = redis.zcard("huey.redis.signup")
        used = redis.info("memory")["used_memory_human"]
    hinting, full = times[:5], times[10:]
    print(f"the relay with {rows} due mails and no worker:")
    print(f"  a turn that hints 100   {statistics.median(hinting):6.1f} ms (median)")
    print(f"  a turn, queue full      {statistics.median(full):6.1f} ms (median), {max(full):.1f} ms (slowest)")
    print(f"  hints in the queue      {waiting:6d}, Redis holds {used}")


def statements_a_turn(app: Flask) -> int:
    seen = 0

    def count(*_: Any) -> None:
        nonlocal seen
        seen += 1

    with app.app_context():
        relay = tasks.Relay()
        relay.turn()
        event.listen(db.engine, "before_cursor_execute", count)
        relay.turn()
        event.remove(db.engine, "before_cursor_execute", count)
    return seen


def transactions(app: Flask) -> int:
    with app.app_context():
        query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        found = db.session.scalar(text(query))
        db.session.commit()
        return int(found or 0)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
