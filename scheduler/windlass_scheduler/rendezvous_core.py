"""Where the workers of a job meet: barriers and broadcasts.

A barrier is passed when every live worker of the job waits at it and the job is complete (as many have joined
as it declares). A worker that ends is no longer waited for. A broadcast is kept from its root's call until
enough later ones push it out; the others wait for it.

Invariant (`validate`): nobody waits for what is there. A pass is stored before anybody is let through, with
each caller's own count of passes, so a worker whose answer was lost in a restart asks again with the same
count and goes through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias, cast

from windlass_proto.errors import UnavailableError, UsageError
from windlass_scheduler import limits
from windlass_scheduler.effects import Answer, Effect, Persist, Record, Refuse


@dataclass(frozen=True, slots=True)
class Barrier:
    """`live` are the sessions of the job's live workers; `complete` if nobody is still expected to join."""

    waiter: int
    session: bytes
    job: str
    name: str
    call: int
    live: frozenset[bytes]
    complete: bool


@dataclass(frozen=True, slots=True)
class Broadcast:
    waiter: int
    session: bytes
    rank: int
    job: str
    call: int
    root: int
    is_root: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class WorkersChanged:
    """Somebody of the job joined or ended."""

    job: str
    live: frozenset[bytes]
    complete: bool


@dataclass(frozen=True, slots=True)
class Abandoned:
    waiter: int


Event: TypeAlias = Barrier | Broadcast | WorkersChanged | Abandoned


@dataclass(slots=True)
class _Gate:
    generation: int = 0
    passed: dict[bytes, int] = field(default_factory=dict)
    waiting: dict[bytes, Barrier] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Value:
    root: int
    value: bytes


@dataclass(slots=True)
class _Job:
    gates: dict[str, _Gate] = field(default_factory=dict)
    values: dict[int, _Value] = field(default_factory=dict)
    listening: dict[int, Broadcast] = field(default_factory=dict)


_BARRIER: Final = "barrier/"
_BROADCAST: Final = "broadcast/"


class Rendezvous:
    """`step(event) -> effects`; a refused request raises and changes nothing."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}

    def waiting(self, job: str) -> dict[str, frozenset[bytes]]:
        """Sessions that wait, by the name of their barrier."""
        found = self._jobs.get(job)
        return {name: frozenset(gate.waiting) for name, gate in found.gates.items() if gate.waiting} if found else {}

    def step(self, event: Event) -> list[Effect]:
        match event:
            case Barrier():
                return self._barrier(event)
            case Broadcast():
                return self._broadcast(event)
            case WorkersChanged():
                return self._workers_changed(event)
            case Abandoned():
                for job in self._jobs.values():
                    for gate in job.gates.values():
                        gate.waiting = {s: b for s, b in gate.waiting.items() if b.waiter != event.waiter}
                    job.listening.pop(event.waiter, None)
                return []

    def _barrier(self, event: Barrier) -> list[Effect]:
        job = self._jobs.setdefault(event.job, _Job())
        gate = job.gates.get(event.name)
        if gate is None:
            if len(job.gates) >= limits.BARRIERS_PER_JOB_MAX or len(event.name.encode()) > limits.NAME_BYTES_MAX:
                raise UsageError(
                    "a job uses too many barriers, or too long a name",
                    barriers_max=limits.BARRIERS_PER_JOB_MAX,
                    name_bytes_max=limits.NAME_BYTES_MAX,
                    next_move="Pass one barrier many times: its name need not change.",
                )
            gate = job.gates[event.name] = _Gate()
        if event.call and event.call <= gate.passed.get(event.session, 0):
            return [Answer(event.waiter, gate.generation)]
        before = gate.waiting.get(event.session)
        gate.waiting[event.session] = event
        refused = [] if before is None else [Refuse(before.waiter, _superseded(event.name))]
        return [*refused, *self._pass(event.job, event.name, gate, event.live, event.complete)]

    def _pass(self, job: str, name: str, gate: _Gate, live: frozenset[bytes], complete: bool) -> list[Effect]:
        if not gate.waiting or not complete or not live <= gate.waiting.keys():
            return []
        gate.generation += 1
        waiting, gate.waiting = gate.waiting, {}
        gate.passed = {session: barrier.call for session, barrier in waiting.items()}
        record: Record = {
            "job": job,
            "name": name,
            "generation": gate.generation,
            "passed": {session.hex(): call for session, call in gate.passed.items()},
        }
        answers = [Answer(barrier.waiter, gate.generation) for barrier in waiting.values()]
        return [Persist(f"{_BARRIER}{job}/{name}", record), *answers]

    def _broadcast(self, event: Broadcast) -> list[Effect]:
        if event.is_root != (event.rank == event.root):
            raise UsageError("a broadcast's root is another worker", root=event.root, rank=event.rank)
        if len(event.value) > limits.BROADCAST_BYTES_MAX:
            raise UsageError(
                "a broadcast value is too long",
                bytes=len(event.value),
                bytes_max=limits.BROADCAST_BYTES_MAX,
                next_move="Broadcast a path or a seed instead; arrays belong into a store.",
            )
        job = self._jobs.setdefault(event.job, _Job())
        known = job.values.get(event.call)
        if known is not None:
            if known.root != event.root or (event.is_root and known.value != event.value):
                raise UsageError(
                    f"workers make broadcast {event.call} differently",
                    root_before=known.root,
                    root_now=event.root,
                    next_move="Make the same broadcasts in the same order on every worker.",
                )
            return [Answer(event.waiter, known.value)]
        if job.values and event.call < min(job.values):
            raise UsageError(
                "a broadcast is no longer kept",
                broadcast=event.call,
                oldest=min(job.values),
                next_move="A worker that joins late cannot take part in earlier broadcasts.",
            )
        if not event.is_root:
            job.listening[event.waiter] = event
            return []
        return self._publish(job, event)

    def _publish(self, job: _Job, event: Broadcast) -> list[Effect]:
        job.values[event.call] = _Value(event.root, event.value)
        record: Record = {
            "job": event.job,
            "call": event.call,
            "root": event.root,
            "value": event.value.hex(),
        }
        effects: list[Effect] = [Persist(f"{_BROADCAST}{event.job}/{event.call}", record)]
        while len(job.values) > limits.BROADCASTS_KEPT_MAX:
            oldest = min(job.values)
            del job.values[oldest]
            effects.append(Persist(f"{_BROADCAST}{event.job}/{oldest}", None))
        heard = [listener for listener in job.listening.values() if listener.call == event.call]
        for listener in heard:
            del job.listening[listener.waiter]
            effects.append(
                Answer(listener.waiter, event.value)
                if listener.root == event.root
                else Refuse(listener.waiter, _other_root(event, listener))
            )
        return [*effects, Answer(event.waiter, event.value)]

    def _workers_changed(self, event: WorkersChanged) -> list[Effect]:
        job = self._jobs.get(event.job)
        if job is None:
            return []
        effects: list[Effect] = []
        for name, gate in job.gates.items():
            gate.waiting = {s: barrier for s, barrier in gate.waiting.items() if s in event.live}
            effects += self._pass(event.job, name, gate, event.live, event.complete)
        job.listening = {w: b for w, b in job.listening.items() if b.session in event.live}
        if not event.live:
            effects += [Persist(f"{_BROADCAST}{event.job}/{call}", None) for call in job.values]
            job.values.clear()
        return effects

    def forget_job(self, job: str) -> list[Effect]:
        """The job is over; its broadcast values went with its last worker."""
        found = self._jobs.pop(job, _Job())
        return [Persist(f"{_BARRIER}{job}/{name}", None) for name in found.gates]

    def restore(self, records: Mapping[str, Record]) -> None:
        for key, record in records.items():
            job = self._jobs.setdefault(cast("str", record["job"]), _Job())
            if key.startswith(_BARRIER):
                passed = cast("dict[str, int]", record["passed"])
                job.gates[cast("str", record["name"])] = _Gate(
                    generation=cast("int", record["generation"]),
                    passed={bytes.fromhex(session): call for session, call in passed.items()},
                )
            else:
                value = bytes.fromhex(cast("str", record["value"]))
                job.values[cast("int", record["call"])] = _Value(cast("int", record["root"]), value)

    def validate(self) -> None:
        for job in self._jobs.values():
            assert len(job.values) <= limits.BROADCASTS_KEPT_MAX
            assert not {listener.call for listener in job.listening.values()} & job.values.keys()
            for gate in job.gates.values():
                for session, barrier in gate.waiting.items():
                    assert barrier.session == session
                    assert not barrier.call or barrier.call > gate.passed.get(session, 0)


def _superseded(name: str) -> UnavailableError:
    return UnavailableError("the same session came to a barrier twice", barrier=name)


def _other_root(event: Broadcast, listener: Broadcast) -> UsageError:
    return UsageError(
        f"workers make broadcast {event.call} differently",
        **{f"rank_{event.rank}_root": event.root, f"rank_{listener.rank}_root": listener.root},
        next_move="Make the same broadcasts in the same order on every worker.",
    )
