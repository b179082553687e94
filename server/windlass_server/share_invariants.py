"""The invariants of a share core that span its parts: open steps, steps that are reduced, and answers that wait.

Owner: none; it reads what the core hands in. Tests and the simulator ask after every event.
"""

from __future__ import annotations

from collections.abc import Mapping

from windlass_proto.errors import InvariantError
from windlass_server import gate_runs
from windlass_server.gate_runs import BlockState
from windlass_server.open_answers import OpenAnswers
from windlass_server.roster_clocks import RosterClocks
from windlass_server.session_filter import SessionFilter
from windlass_server.share_events import LEFT


def check(
    blocks: Mapping[int, BlockState],
    gated: Mapping[int, BlockState],
    answers: OpenAnswers,
    clocks: RosterClocks,
    sessions: SessionFilter,
) -> None:
    """Compare what the parts say of each other.

    Raises:
        InvariantError: if they contradict.
    """
    live: dict[int, int] = {}
    for state in blocks.values():
        index, reducing = state.shape.index, state.reducing
        reduced = [r.run for r in reducing.runs] if reducing is not None else []
        gate_runs.validate(state.gates, state.applied, reduced)
        if reducing is not None:
            reducing.validate(state.applied)
        if (index in gated) != bool(state.gates) or (index in answers.parking) != bool(state.parked):
            raise InvariantError("a block's open gates or parked answers are not listed", block=index)
        behind = min(state.gates, default=LEFT) < clocks.closed_min
        if behind and clocks.roster.started and not reduced:
            raise InvariantError("a step that all have closed is open", block=index, closed=clocks.closed_min)
        for run in [*(run for runs in state.gates.values() for run in runs), *reduced]:
            for waiting in run.waiting:
                live[id(waiting)] = live.get(id(waiting), 0) + run.seg_end - run.seg_begin
        live |= {id(waiting): 0 for waiting in state.parked}
    for key, waiting in answers.by_seq.items():
        if key != (waiting.session, waiting.seq) or sessions.expected(waiting.session) <= waiting.seq:
            raise InvariantError("an answer waits for what was not admitted", seq=waiting.seq)
        if live.get(id(waiting)) != waiting.remaining or waiting.forgotten:
            raise InvariantError("an answer waits for nothing", seq=waiting.seq, segments=waiting.remaining)
    sessions.validate()
