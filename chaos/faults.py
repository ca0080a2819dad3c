"""The faults: what goes wrong, when and for how long. The same seed gives the same faults."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from chaos.world import MAIL_TIMEOUT, World
from harness.smtp_server import Action, Step, drip, drop, hang
from webapp.delivery.circuit_breaker import PROBE_SECONDS
from webapp.outbox.leases import MARGIN as LEASE_MARGIN

LEASE = MAIL_TIMEOUT + LEASE_MARGIN
# How long a consumer that is asked to stop may take.
STOP_SECONDS = 10
# Seconds from the start of one fault to the start of the next.
GAP = (2.0, 5.0)
# The mail server works for this long before it fails again: until a probe has reached it, and emails flow.
MAIL_SERVER_REST = PROBE_SECONDS


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong: `at` seconds into the run, for `seconds`, at one consumer or one SMTP step."""

    kind: str
    at: float
    seconds: float
    consumer: int
    step: Step
    statement: int = 0

    @property
    def end(self) -> float:
        return self.at + self.seconds

    def __str__(self) -> str:
        kind = KINDS[self.kind]
        where = f" {self.consumer + 1}" if kind.target == "consumer" else f" at {self.step}" if kind.steps else ""
        return f"{self.at:6.1f} s  {self.kind}{where}, for {self.seconds:.1f} s"


Change = Callable[[World, Fault], None]


@dataclass(frozen=True)
class Kind:
    """`target`: what it breaks; two faults never break the same target at once.

    `doubles`: what it may duplicate: "thread" is one email for each sending thread, "unanswered" every email
    that was taken but not confirmed.
    """

    target: str
    seconds: tuple[float, float]
    begin: Change
    end: Change
    steps: tuple[Step, ...] = ()
    only_on: str | None = None
    doubles: str = ""
    # Seconds between two of these faults; they are scheduled first. Nothing else is wrong meanwhile, and the other
    # consumers are watched.
    every: tuple[float, float] | None = None
    only_ours: bool = False


# Consumers and web.


def kill_consumer(world: World, fault: Fault) -> None:
    world.consumers[fault.consumer].kill()


def start_consumer(world: World, fault: Fault) -> None:
    world.consumers[fault.consumer].start()


def kill_all_consumers(world: World, _fault: Fault) -> None:
    for consumer in world.consumers:
        consumer.signal(signal.SIGKILL)
    for consumer in world.consumers:
        consumer.kill()


def start_all_consumers(world: World, _fault: Fault) -> None:
    for consumer in world.consumers:
        consumer.start()


def ask_consumer_to_stop(world: World, fault: Fault) -> None:
    world.consumers[fault.consumer].signal(signal.SIGTERM)


def restart_stopped_consumer(world: World, fault: Fault) -> None:
    consumer = world.consumers[fault.consumer]
    if not consumer.has_ended(max(0.1, STOP_SECONDS - fault.seconds)):
        world.stopped_slowly.append(str(fault))
        consumer.kill()
    consumer.start()


def freeze_consumer(world: World, fault: Fault) -> None:
    world.consumers[fault.consumer].signal(signal.SIGSTOP)


def thaw_consumer(world: World, fault: Fault) -> None:
    world.consumers[fault.consumer].signal(signal.SIGCONT)


def freeze_amid_transaction(world: World, fault: Fault) -> None:
    world.freezers[fault.consumer].freeze_at(".", fault.statement)


def thaw_amid_transaction(world: World, fault: Fault) -> None:
    freezer = world.freezers[fault.consumer]
    world.frozen_at.append(" ".join((freezer.frozen_at or "nothing").split()))
    freezer.forget()
    thaw_consumer(world, fault)


def kill_web(world: World, _fault: Fault) -> None:
    world.web.kill()


def start_web(world: World, _fault: Fault) -> None:
    world.web.start()


# Queue and database.


def wipe_queue(world: World, _fault: Fault) -> None:
    world.backend.wipe_queue()


def fail_over(*, keeping: bool) -> Change:
    return lambda world, fault: world.servers.fail_over(keeping=keeping, seconds=fault.seconds / 2)


def nothing(_world: World, _fault: Fault) -> None:
    """End a fault that needs no end."""


def by(change: Callable[[World], object]) -> Change:
    def begin_or_end(world: World, _fault: Fault) -> None:
        change(world)

    return begin_or_end


# The mail server.


def misbehave(answer: Action) -> Change:
    return lambda world, fault: world.smtp.misbehave({fault.step: answer})


def behave(world: World, _fault: Fault) -> None:
    world.smtp.misbehave({})


def mail_server(answer: Action, *steps: Step, doubles: str = "") -> Kind:
    return Kind("mail server", (2, 8), misbehave(answer), behave, steps, doubles=doubles)


FROZEN_AMID = "consumer frozen amid a transaction"
# It freezes after at most this many statements inside transactions.
STATEMENTS = 60

EARLY = ("greeting", "EHLO", "MAIL", "DATA")

KINDS: Mapping[str, Kind] = {
    "consumer killed": Kind("consumer", (0.3, 3), kill_consumer, start_consumer, doubles="thread"),
    "all consumers killed": Kind("consumers", (0.3, 3), kill_all_consumers, start_all_consumers, doubles="thread"),
    "consumer asked to stop": Kind("consumer", (2, 5), ask_consumer_to_stop, restart_stopped_consumer),
    "consumer frozen past its lease": Kind(
        "consumer", (LEASE + 1, LEASE + 4), freeze_consumer, thaw_consumer, doubles="thread"
    ),
    FROZEN_AMID: Kind(
        "consumer",
        (LEASE + 1, LEASE + 4),
        freeze_amid_transaction,
        thaw_amid_transaction,
        only_on="servers",
        only_ours=True,
        doubles="thread",
        every=(45, 75),
    ),
    "web killed": Kind("web", (0.3, 2), kill_web, start_web),
    "queue wiped": Kind("queue", (0, 0), wipe_queue, nothing),
    "Redis killed": Kind(
        "queue",
        (1, 5),
        by(lambda world: world.servers.valkey.kill()),
        by(lambda world: world.servers.valkey.start()),
        only_on="servers",
    ),
    "Redis swallows everything": Kind(
        "queue",
        (2, 8),
        by(lambda world: world.servers.gate.hold()),
        by(lambda world: world.servers.gate.open()),
        only_on="servers",
    ),
    "Redis refuses": Kind(
        "queue",
        (2, 8),
        by(lambda world: world.servers.gate.refuse()),
        by(lambda world: world.servers.gate.open()),
        only_on="servers",
    ),
    "Postgres stopped": Kind(
        "database",
        (1, 5),
        by(lambda world: world.servers.postgres.stop()),
        by(lambda world: world.servers.postgres.start()),
        only_on="servers",
    ),
    "Postgres fails over, one dies": Kind(
        "database",
        (6, 12),
        fail_over(keeping=False),
        by(lambda world: world.servers.wait_for_standby()),
        only_on="servers",
        only_ours=True,
    ),
    "Postgres fails over, one is read-only": Kind(
        "database",
        (6, 12),
        fail_over(keeping=True),
        by(lambda world: world.servers.wait_for_standby()),
        only_on="servers",
        only_ours=True,
    ),
    "queue locked": Kind(
        "queue",
        (2, 8),
        by(lambda world: world.embedded.lock(world.embedded.queue)),
        by(lambda world: world.embedded.unlock(world.embedded.queue)),
        only_on="embedded",
    ),
    "database locked": Kind(
        "database",
        (1, 5),
        by(lambda world: world.embedded.lock(world.embedded.database)),
        by(lambda world: world.embedded.unlock(world.embedded.database)),
        only_on="embedded",
    ),
    "mail server refuses": Kind(
        "mail server",
        (2, 8),
        by(lambda world: world.smtp.stop()),
        by(lambda world: world.smtp.start()),
    ),
    "mail server hangs": mail_server(hang, "connect", *EARLY, "dot"),
    "mail server drips": mail_server(drip, "connect", *EARLY, "dot"),
    "mail server says 421": mail_server("421 4.3.2 closing", *EARLY, "dot"),
    "mail server says 451": mail_server("451 4.3.0 try later", "MAIL", "DATA", "dot"),
    "mail server says 452": mail_server("452 4.3.1 no space", "MAIL", "DATA", "dot"),
    "mail server drops before it takes": mail_server(drop, "content", "dot"),
    "mail server drops after it took": mail_server(drop, "answer", doubles="unanswered"),
}


def schedule(seed: int, seconds: float, consumers: int, backend: str, *, is_ours: bool) -> list[Fault]:
    """Return faults in order of time; each kind comes once before any comes again."""
    rng = random.Random(seed)  # noqa: S311 - no secret

    def fault_of(name: str, at: float) -> Fault:
        kind = KINDS[name]
        lasts, consumer = rng.uniform(*kind.seconds), rng.randrange(consumers)
        return Fault(name, at, lasts, consumer, rng.choice(kind.steps or [""]), rng.randrange(1, STATEMENTS))

    possible = [
        name for name, kind in KINDS.items() if kind.only_on in {None, backend} and (is_ours or not kind.only_ours)
    ]
    faults: list[Fault] = []
    for name in possible:
        if every := KINDS[name].every:
            at = rng.uniform(*every) / 4
            while (fault := fault_of(name, at)).end <= seconds:
                faults.append(fault)
                at = fault.end + rng.uniform(*every)
    kinds = [name for name in possible if not KINDS[name].every]
    deck: list[str] = []
    at = rng.uniform(*GAP)
    while at < seconds:
        if len(deck) < len(kinds):
            deck += rng.sample(kinds, len(kinds))
        for name in deck:
            fault = fault_of(name, at)
            if fault.end <= seconds and not any(clash(fault, other) for other in faults):
                faults.append(fault)
                deck.remove(name)
                break
        at += rng.uniform(*GAP)
    return sorted(faults, key=lambda fault: fault.at)


def clash(one: Fault, other: Fault) -> bool:
    """Return whether both break the same target at the same time."""
    earlier, fault = sorted((one, other), key=lambda either: either.at)
    targets = {KINDS[fault.kind].target, KINDS[earlier.kind].target}
    if KINDS[fault.kind].every or KINDS[earlier.kind].every:
        return fault.at <= earlier.end + (MAIL_SERVER_REST if "mail server" in targets else 1)
    if fault.at > earlier.end + (MAIL_SERVER_REST if targets == {"mail server"} else 0.5):
        return False
    if targets == {"consumer"}:
        return fault.consumer == earlier.consumer
    return len(targets) == 1 or targets == {"consumer", "consumers"}


@dataclass
class Happened:
    """A fault as it really happened, by the wall clock."""

    fault: Fault
    begun: float
    ended: float


def play(world: World, faults: Sequence[Fault], seconds: float, tell: Callable[[str], None]) -> list[Happened]:
    """Make everything go wrong as planned, for `seconds`; return what really happened."""
    began = time.monotonic()
    happened: dict[Fault, Happened] = {}
    moments = sorted(
        [(fault.at, 0, index) for index, fault in enumerate(faults)]
        + [(fault.end, 1, index) for index, fault in enumerate(faults)]
    )
    for moment, is_end, index in moments:
        time.sleep(max(0.0, began + moment - time.monotonic()))
        fault = faults[index]
        kind = KINDS[fault.kind]
        if is_end:
            kind.end(world, fault)
            happened[fault].ended = time.time()
        else:
            tell(str(fault))
            happened[fault] = Happened(fault, time.time(), 0)
            kind.begin(world, fault)
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    return list(happened.values())
