"""`python -m chaos.demo`: fifty people sign up while everything breaks, with ours and with "commit, then schedule"."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from chaos import checks
from chaos.load import Load
from chaos.world import LOOK_UP_SECONDS, NAIVE, OURS, App, Embedded, World, world
from harness.processes import wait_until

SIGNUPS = 50
RATE = 5.0
LONGEST = 45.0


@dataclass
class Side:
    """One of the two apps, and its progress."""

    world: World
    load: Load

    @property
    def signed_up(self) -> int:
        return self.load.answers["303"]

    @property
    def sent(self) -> int:
        return len({mail.recipients[0] for mail in list(self.world.smtp.mails)})

    @property
    def doubled(self) -> int:
        return len(self.world.smtp.mails) - self.sent

    def __str__(self) -> str:
        doubled = f" · {self.doubled} doubled" if self.doubled else ""
        return f"{self.world.app.name + ':':22} {self.signed_up} signed up · {self.sent} sent{doubled}"


# What goes wrong, in seconds from the first signup.


def kill_workers(parts: World) -> None:
    """Kill while emails are being sent, but none has just been taken.

    A kill between "taken" and recording it may duplicate an email, unavoidably; `make chaos` counts those.
    """
    wait_until(lambda: in_hand(parts) and is_quiet(parts), f"{parts.app.name} sends nothing", 60)
    parts.consumers[0].kill()


def in_hand(parts: World) -> list[float]:
    """Return for how many seconds the mail server has been busy with each email that it has not taken yet."""
    now = time.monotonic()
    return [now - at for at in parts.smtp.looked_up_at if now - at < LOOK_UP_SECONDS]


def is_quiet(parts: World) -> bool:
    """Return whether no email was taken just now or will be in a moment."""
    last_taken = max((mail.at for mail in parts.smtp.mails), default=0.0)
    is_between = max(in_hand(parts), default=0.0) < LOOK_UP_SECONDS / 2
    return is_between and time.monotonic() - last_taken > LOOK_UP_SECONDS / 4 and is_written_down(parts)


def is_written_down(parts: World) -> bool:
    """Return whether the rows show everything that was taken; "commit, then schedule" has no such rows."""
    if parts.app is not OURS:
        return True
    sent = {promise.address for promise in checks.promises(parts) if promise.status == "sent"}
    return all(mail.recipients[0] in sent for mail in list(parts.smtp.mails))


def start_workers(parts: World) -> None:
    parts.consumers[0].start()


def wipe_queue(parts: World) -> None:
    parts.backend.wipe_queue()


def stop_mail_server(parts: World) -> None:
    """Stop it while no email is taken but unconfirmed, since such an email may be duplicated."""
    wait_until(lambda: is_quiet(parts), f"{parts.app.name} sends without a pause", 60)
    parts.smtp.stop()


def start_mail_server(parts: World) -> None:
    parts.smtp.start()


FAULTS: Sequence[tuple[float, str, Callable[[World], None]]] = [
    (4.0, "both workers are killed (SIGKILL)", kill_workers),
    (4.5, "both workers are started again", start_workers),
    (6.0, "both queues are wiped", wipe_queue),
    (8.0, "both mail servers are stopped", stop_mail_server),
    (12.0, "both mail servers are started again", start_mail_server),
]


class Screen:
    """Two status lines, rewritten in place on a terminal."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self.sides = sides
        self.is_terminal = sys.stdout.isatty()
        self.is_begun = False

    def say(self, text: str) -> None:
        self._clear()
        print(text)
        self.is_begun = False
        self.show(always=True)

    def show(self, *, always: bool = False) -> None:
        if not self.is_terminal and not always:
            return
        self._clear()
        for side in self.sides:
            print(side)
        sys.stdout.flush()
        self.is_begun = True

    def _clear(self) -> None:
        if self.is_terminal and self.is_begun:
            # Move up two lines, and clear from there.
            sys.stdout.write("\r\x1b[2A\x1b[J")


def main() -> int:
    """Return 1 if ours lost or duplicated an email."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    print(f"{SIGNUPS} people sign up with each. Both run on SQLite and Huey's SQLite queue, one worker with 4 threads.")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-")))
        sides = [start(app, folder / app.web, stack) for app in (OURS, NAIVE)]
        screen = Screen(sides)
        for side in sides:
            side.load.start()
        break_things(sides, screen)
        wait(sides, screen)
        return result(sides)


def start(app: App, folder: Path, stack: ExitStack) -> Side:
    parts = stack.enter_context(world(app, Embedded.name, folder, consumers=1))
    parts.smtp.look_up()
    return Side(parts, Load(parts.url, rate=RATE, limit=SIGNUPS, threads=2))


def break_things(sides: Sequence[Side], screen: Screen) -> None:
    began = time.monotonic()
    for at, text, change in FAULTS:
        while time.monotonic() < began + at:
            screen.show()
            time.sleep(0.1)
        for side in sides:
            change(side.world)
        screen.say(f"{at:4.1f} s  {text}")


def wait(sides: Sequence[Side], screen: Screen) -> None:
    """Wait until ours has sent everything; the other has as long for its retries."""
    for side in sides:
        side.load.wait()
    screen.say("        nothing breaks any more: what is still to be sent is sent")
    began = time.monotonic()
    while time.monotonic() < began + LONGEST and any(side.sent < side.signed_up for side in sides[:1]):
        screen.show()
        time.sleep(0.1)
    screen.show(always=True)


def result(sides: Sequence[Side]) -> int:
    print(f"\n{'':22} {'sent':>6} {'lost':>6} {'doubled':>8}")
    reckoned = [checks.reckon(side.world, side.load.acknowledged) for side in sides]
    for side, found in zip(sides, reckoned, strict=True):
        print(f"{side.world.app.name:22} {len(found.accepted):6} {len(found.lost):6} {len(found.doubled):8}")
    ours = reckoned[0]
    return int(bool(ours.lost or ours.doubled))


if __name__ == "__main__":
    sys.exit(main())
