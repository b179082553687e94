"""The session filter: which operations of a session a share has admitted, and the fate of the rest.

Invariants:
- Seqs of a session are admitted one after the other, each once. A session that has ended is admitted
  nothing more, so what it sends once more cannot be taken for new.
- A mark says that its session has nothing more for a step. It counts only once everything the share sent
  away (`gap`, `retry`) has come again: a mark that overtook a refused entry would close the step over it.
- Bounded: one integer per live session, the last refusals, the last ended sessions.

The share core owns it. Prior art: the request numbers of viewstamped replication (Liskov & Cowling, 2012,
section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from windlass_proto import limits
from windlass_proto.errors import InvariantError, UnavailableError, WindlassError
from windlass_proto.frames import Status

# A fate is about 200 B; a client resends what one broken link left unanswered, little of it refused.
_FATES_MAX: Final = 256
# As many as can connect; about 100 B each. The server turns ended sessions away before that.
_ENDED_MAX: Final = limits.CONNECTIONS_MAX


class Verdict(Enum):
    """What a seq is to the filter."""

    NEXT = auto()
    BEFORE = auto()
    GAP = auto()
    ENDED = auto()


@dataclass(slots=True)
class _Refused:
    """Entries sent away, to come again: highest seq, lowest clock, and the mark that waits for them."""

    seq: int
    clock: int
    closed: int = 0


class SessionFilter:
    """What one share remembers of sessions. Keys of fates are (session, seq)."""

    def __init__(self) -> None:
        self.admitted: dict[bytes, int] = {}
        self._fates: dict[tuple[bytes, int], tuple[Status, WindlassError | None]] = {}
        self._refused: dict[bytes, _Refused] = {}
        self._ended: dict[bytes, None] = {}

    def judge(self, session: bytes, seq: int) -> Verdict:
        """What `seq` is; changes nothing."""
        if session in self._ended:
            return Verdict.ENDED
        admitted = self.admitted.get(session, 0)
        if seq == admitted + 1:
            return Verdict.NEXT
        return Verdict.GAP if seq > admitted else Verdict.BEFORE

    def admit(self, session: bytes, seq: int) -> None:
        """`seq` is the next one and is consumed."""
        self.admitted[session] = seq

    def expected(self, session: bytes) -> int:
        return self.admitted.get(session, 0) + 1

    def has_ended(self, session: bytes) -> bool:
        return session in self._ended

    def note_fate(self, session: bytes, seq: int, status: Status, error: WindlassError | None = None) -> None:
        """The operation was consumed but not applied: whoever asks again is told the same."""
        self._fates[session, seq] = (status, error)
        if len(self._fates) > _FATES_MAX:
            del self._fates[next(iter(self._fates))]

    def fate(self, session: bytes, seq: int) -> tuple[Status, WindlassError | None]:
        """How an operation admitted before is answered."""
        return self._fates.get((session, seq), (Status.DUPLICATE, None))

    def note_refused(self, session: bytes, seq: int, clock: int) -> None:
        """An operation of step `clock` was sent away, unconsumed."""
        refused = self._refused.get(session)
        if refused is None:
            self._refused[session] = _Refused(seq, clock)
        else:
            refused.seq = max(refused.seq, seq)
            refused.clock = min(refused.clock, clock)

    def closed_by(self, session: bytes, closed: int) -> int:
        """How many steps a mark that says `closed` closes by now; the rest waits for what was sent away."""
        refused = self._refused.get(session)
        if refused is None:
            return closed
        refused.closed = max(refused.closed, closed)
        return min(closed, refused.clock)

    def settle(self, session: bytes) -> int:
        """Steps closed by the mark that waited, if all that was sent away has come again, else 0."""
        refused = self._refused.get(session)
        if refused is None or self.admitted.get(session, 0) < refused.seq:
            return 0
        del self._refused[session]
        return refused.closed

    def end(self, session: bytes) -> None:
        """The session has ended: its integers go."""
        self.admitted.pop(session, None)
        self._refused.pop(session, None)
        self._fates = {key: fate for key, fate in self._fates.items() if key[0] != session}
        self._ended[session] = None
        if len(self._ended) > _ENDED_MAX:
            del self._ended[next(iter(self._ended))]

    def validate(self) -> None:
        """Check the module's invariants.

        Raises:
            InvariantError: if one does not hold.
        """
        if len(self._fates) > _FATES_MAX or len(self._ended) > _ENDED_MAX:
            raise InvariantError("what is remembered of sessions has outgrown its bound", fates=len(self._fates))
        if self._ended.keys() & self.admitted.keys():
            raise InvariantError("an ended session was admitted something")
        for (session, seq), (status, _) in self._fates.items():
            if self.admitted.get(session, 0) < seq:
                raise InvariantError("what was not admitted has a fate", seq=seq, status=status.name)


def ended_error() -> UnavailableError:
    """What an ended session is told."""
    return UnavailableError(
        "this session has ended", next_move="Connect again: what was not acknowledged was not applied."
    )
