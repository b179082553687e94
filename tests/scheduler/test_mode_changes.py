"""A store changes its mode in two phases: from the next step that no server has begun, once, or not at all."""

from __future__ import annotations

import pytest

from tests.scheduler.test_roster_core import STORE, Driven, answers, prepared
from windlass_proto.errors import UnavailableError, UsageError
from windlass_scheduler.counters import Counters
from windlass_scheduler.effects import Refuse
from windlass_scheduler.roster import ModeWish, StepMode
from windlass_scheduler.roster_core import (
    ChangeMode,
    ClockSeen,
    ModeAccepted,
    ModeChanged,
    ModeDecided,
    RosterChanged,
    Rosters,
    SessionGone,
    Tick,
)


class Changed(Driven):
    """Driven, by somebody who sets modes."""

    def __init__(self) -> None:
        super().__init__()
        self.start()

    def wish(self, mode: str, action_id: int = 1, waiter: int = 50, session: bytes = b"s0") -> list[object]:
        wish = ModeWish(waiter, session, 0, action_id, mode, b"")
        return self.step(ChangeMode(self.now_s, STORE, wish))

    def accept(self, proposal: int) -> list[object]:
        """Both servers accept, and what the driver decides then."""
        self.vote(101, proposal)
        (accepted,) = [e for e in self.vote(102, proposal) if isinstance(e, ModeAccepted)]
        return self.step(ModeDecided(self.now_s, accepted, b"record"))


def test_it_holds_from_the_next_step_on_once_all_servers_accept() -> None:
    driven = Changed()
    driven.step(ClockSeen(STORE, 20))
    sent = prepared(driven.wish("asp"))
    assert (sent.clock, sent.mode) == (21, True)
    effects = driven.accept(sent.proposal)
    roster = driven.core.roster(STORE)
    assert roster.modes == (StepMode(21, "asp", b"record", 1),)
    assert roster.proposal_settled == sent.proposal
    assert answers(effects) == {50: ModeChanged(21, roster)}
    assert [e.roster for e in effects if isinstance(e, RosterChanged)] == [roster]


def test_a_server_that_has_begun_the_step_moves_it_on() -> None:
    driven = Changed()
    first = prepared(driven.wish("asp"))
    again = prepared(driven.vote(101, first.proposal, accepted=False, highest=40))
    assert again.clock == 42
    assert answers(driven.accept(again.proposal))[50] == ModeChanged(42, driven.core.roster(STORE))


def test_a_repeated_call_finds_what_its_action_did() -> None:
    driven = Changed()
    driven.accept(prepared(driven.wish("asp")).proposal)
    assert answers(driven.wish("asp", waiter=51)) == {51: ModeChanged(1, driven.core.roster(STORE))}
    open_one = prepared(driven.wish("bsp", action_id=2, waiter=52))
    (refused,) = [e for e in driven.wish("bsp", action_id=2, waiter=53) if isinstance(e, Refuse)]
    assert refused.waiter == 52
    assert 53 in answers(driven.accept(open_one.proposal))


def test_modes_and_newcomers_take_turns() -> None:
    driven = Changed()
    mode = prepared(driven.wish("asp"))
    assert answers(driven.enter(2)) == {}
    entering = prepared(driven.accept(mode.proposal))
    assert not entering.mode
    assert entering.clock == mode.clock + 8, "above the step from which the mode holds"


def test_votes_that_do_not_come_fail_the_change_and_settle_it() -> None:
    driven = Changed()
    sent = prepared(driven.wish("asp"))
    effects = driven.step(Tick(3.0))
    (refused,) = [e for e in effects if isinstance(e, Refuse)]
    assert isinstance(refused.error, UnavailableError)
    assert "a change of mode" in str(refused.error)
    assert driven.core.roster(STORE).proposal_settled == sent.proposal
    assert driven.core.roster(STORE).modes == ()


def test_hyper_parameters_that_cannot_be_leave_the_mode_as_it_is() -> None:
    driven = Changed()
    sent = prepared(driven.wish("asp"))
    driven.vote(101, sent.proposal)
    (accepted,) = [e for e in driven.vote(102, sent.proposal) if isinstance(e, ModeAccepted)]
    effects = driven.step(ModeDecided(0.0, accepted, b"", UsageError("too long")))
    assert [e.waiter for e in effects if isinstance(e, Refuse)] == [50]
    assert driven.core.roster(STORE).modes == ()
    assert driven.core.roster(STORE).proposal_settled == sent.proposal


def test_a_change_whose_caller_is_gone_is_settled() -> None:
    driven = Changed()
    sent = prepared(driven.wish("asp"))
    driven.step(SessionGone(0.0, b"s0"))
    assert driven.core.roster(STORE).proposal_settled == sent.proposal
    assert driven.core.proposal(STORE) is None


def test_before_steps_begin_there_is_no_mode_to_change() -> None:
    driven = Driven()
    with pytest.raises(UsageError, match="before its steps began"):
        driven.step(ChangeMode(0.0, STORE, ModeWish(1, b"s0", 0, 1, "asp", b"")))


def test_a_restart_keeps_the_modes() -> None:
    driven = Changed()
    driven.accept(prepared(driven.wish("ssp:3")).proposal)
    again = Rosters(Counters())
    again.restore({key: record for key, record in driven.records.items() if record is not None})
    assert again.roster(STORE).modes == driven.core.roster(STORE).modes


def test_only_the_last_few_modes_are_kept() -> None:
    driven = Changed()
    for number in range(12):
        driven.accept(prepared(driven.wish("asp" if number % 2 else "bsp", action_id=number)).proposal)
    clocks = [mode.clock for mode in driven.core.roster(STORE).modes]
    assert clocks == list(range(5, 13))
