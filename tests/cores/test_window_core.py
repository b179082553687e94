"""The window: order on the wire, what is sent again, marks after their entries, credit, and routing that changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.window_core import Finished, OutFrame, Request, WindowCore
from windlass_proto.errors import ProtocolError
from windlass_proto.frames import Entry, Flag, Op, Status

SHARE = (1, 0)


class Desk:
    """A window over servers of two vshards each, and what its frames say."""

    def __init__(self, **limits: int) -> None:
        self.window = WindowCore(lambda vshard: vshard // 2, **limits)
        self.window.link_up(0)

    def ask(
        self,
        name: str,
        op: Op = Op.PUSH,
        *,
        share: tuple[int, int] = SHARE,
        store: int = 1,
        segments: tuple[int, int] = (0, 1),
        last: bool = False,
        **how: Any,
    ) -> Request:
        request = Request(op, store, share, 0, *segments, owner=name, last=last, **how)
        self.window.submit(request)
        return request

    def frame(self, server: int = 0) -> OutFrame:
        frame = self.window.next_frame(server)
        self.window.validate()
        assert frame is not None
        return frame

    def frames(self, server: int = 0) -> list[OutFrame]:
        found = []
        while self.window.wants(server):
            found.append(self.frame(server))
        assert self.window.next_frame(server) is None
        return found

    def sent(self, server: int = 0) -> list[tuple[str, int]]:
        """Names and seqs in the order of the wire, and marks as ("mark", clock)."""
        told: list[tuple[str, int]] = []
        for frame in self.frames(server):
            told += [(request.owner, request.seq) for request in frame.requests]
            if frame.flags & Flag.MARK:
                told.append(("leave" if frame.flags & Flag.LEAVE else "mark", frame.clock))
        return told

    def answer(self, request: Request, status: Status = Status.OK, *, aux: int = 0, server: int = 0) -> Finished | None:
        return self.answer_tag(request.tag, status, aux=aux, server=server)

    def answer_tag(self, tag: int, status: Status, *, aux: int = 0, server: int = 0) -> Finished | None:
        finished = self.window.on_answer(server, _entry(tag, status, aux))
        self.window.validate()
        return finished


def _entry(tag: int, status: Status, aux: int) -> Entry:
    return Entry(Op.PUSH, status, 0, 1, 0, tag, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1.0, 0, 0, aux)


def test_priorities_reorder_what_waits_and_seqs_follow_the_wire() -> None:
    desk = Desk()
    desk.ask("low")
    desk.ask("high", priority=5)
    assert desk.sent() == [("high", 1), ("low", 2)]
    desk.ask("higher", priority=9)
    desk.window.link_down(0)
    desk.window.link_up(0)
    assert desk.sent() == [("high", 1), ("low", 2), ("higher", 3)], "what was sent is not overtaken"


def test_the_last_push_of_a_step_overtakes_nothing_that_its_segments_step_would_be_complete_without() -> None:
    desk = Desk()
    desk.ask("pull of the step before", Op.PULL, segments=(0, 4), priority=-2)
    desk.ask("other segment", segments=(2, 4))
    desk.ask("first part", segments=(0, 2))
    desk.ask("whatever is there", Op.PULL, segments=(0, 1), nowait=True)
    desk.ask("last part", Op.PUSH_PULL, segments=(1, 2), last=True, priority=5)
    desk.ask("later part elsewhere", segments=(0, 1), priority=4)
    names = [name for name, _ in desk.sent()]
    assert names == [
        "pull of the step before",
        "first part",
        "last part",
        "later part elsewhere",
        "other segment",
        "whatever is there",
    ]


def test_a_last_push_does_not_hurry_other_blocks_or_stores() -> None:
    desk = Desk()
    desk.window.submit(Request(Op.PUSH, 1, SHARE, 1, 0, 1, owner="other block of the share", last=False))
    desk.ask("other table", share=(2, 0))
    desk.ask("last", last=True, priority=1)
    assert next(name for name, _ in desk.sent()) == "last"


def test_pulls_take_no_seq() -> None:
    desk = Desk()
    desk.ask("pull", Op.PULL)
    desk.ask("push")
    assert desk.sent() == [("pull", 0), ("push", 1)]


def test_a_mark_goes_with_the_last_entry_of_its_step_and_not_before() -> None:
    desk = Desk(frame_bytes=100)
    for name in ("x", "y"):
        desk.ask(name, clock=0, nbytes=80)
    desk.window.close_step(1, 0, [0])
    desk.ask("next", clock=1, nbytes=80, priority=-1)
    frames = desk.frames()
    assert [(f.requests[0].owner, bool(f.flags & Flag.MARK)) for f in frames] == [
        ("x", False),
        ("y", True),
        ("next", False),
    ]


def test_the_newest_mark_says_what_older_ones_would() -> None:
    desk = Desk()
    for clock in range(3):
        desk.window.close_step(1, clock, [0])
    assert desk.sent() == [("mark", 2)]


def test_marks_of_steps_that_send_nothing_do_not_pile_up_while_a_link_is_down() -> None:
    desk = Desk()
    desk.window.link_down(0)
    for clock in range(1000):
        desk.window.close_step(1, clock, [0])
        desk.window.link_down(0)
    assert len(desk.window.lanes[0].marks) <= 2
    desk.window.link_up(0)
    assert desk.sent() == [("mark", 999)]


def test_stores_have_marks_of_their_own() -> None:
    desk = Desk()
    desk.ask("waits", store=2, clock=0)
    desk.window.close_step(1, 3, [0])
    desk.window.close_step(2, 0, [0])
    frames = desk.frames()
    assert [(f.store, f.clock, len(f.requests)) for f in frames] == [(2, 0, 1), (1, 3, 0)]


def test_a_reconnect_sends_what_was_unanswered_in_its_first_order_and_then_the_mark() -> None:
    desk = Desk()
    requests = [desk.ask(name) for name in "abc"]
    desk.window.close_step(1, 0, [0])
    desk.sent()
    desk.answer(requests[0])
    desk.window.link_down(0)
    assert not desk.window.wants(0)
    desk.window.link_up(0)
    assert desk.sent() == [("b", 2), ("c", 3), ("mark", 0)]


def test_a_leaver_says_so_with_its_last_clock() -> None:
    desk = Desk()
    desk.window.close_step(1, 4, [0])
    desk.sent()
    desk.window.close_step(1, 4, [0], leaves=True)
    assert desk.sent() == [("leave", 4)]
    desk.window.link_down(0)
    desk.window.link_up(0)
    assert desk.sent() == [("leave", 4)]


def test_a_request_finishes_once_and_a_repeated_answer_says_nothing() -> None:
    desk = Desk()
    request = desk.ask("a")
    desk.sent()
    finished = desk.answer(request)
    assert finished is not None
    assert finished.request is request
    assert desk.answer(request) is None
    assert desk.window.open_requests() == 0


def test_an_answer_to_what_was_never_asked_is_nonsense() -> None:
    desk = Desk()
    desk.ask("a")
    desk.sent()
    with pytest.raises(ProtocolError, match="never asked"):
        desk.answer_tag(77, Status.OK)


def test_entries_sent_away_go_again_in_order_once_all_after_the_first_are_back() -> None:
    desk = Desk()
    a, b, c = (desk.ask(name) for name in "abc")
    desk.sent()
    assert desk.answer(a, Status.RETRY) is None
    assert desk.answer(b, Status.GAP, aux=1) is None
    assert desk.sent() == []
    desk.answer(c, Status.GAP, aux=1)
    assert desk.sent() == [("a", 1), ("b", 2), ("c", 3)]


def test_entries_sent_away_do_not_wait_for_an_answer_that_waits_for_them() -> None:
    """Under BSP the answer of what was admitted comes with the step, which needs the entry that came back."""
    desk = Desk()
    desk.ask("admitted")
    refused = desk.ask("refused")
    desk.sent()
    desk.answer(refused, Status.RETRY)
    assert desk.sent() == [("refused", 2)]


def test_a_link_that_breaks_resends_what_had_come_back_as_well() -> None:
    desk = Desk()
    desk.ask("a")
    b, c = desk.ask("b"), desk.ask("c")
    desk.sent()
    desk.answer(b, Status.RETRY)
    desk.window.link_down(0)
    desk.window.link_up(0)
    assert desk.sent() == [("a", 1), ("b", 2), ("c", 3)]
    assert desk.answer(c) is not None


def test_a_gap_that_nothing_can_fill_ends_the_request() -> None:
    desk = Desk()
    first, second = desk.ask("first"), desk.ask("second")
    desk.sent()
    desk.answer(first)
    finished = desk.answer(second, Status.GAP, aux=1)  # the server has lost what it acknowledged
    assert finished is not None
    assert finished.status is Status.GAP
    assert desk.window.open_requests() == 0


def test_bytes_on_their_way_stay_within_the_credit() -> None:
    desk = Desk(credit_bytes=250)
    requests = [desk.ask(str(clock), nbytes=100, clock=clock) for clock in range(4)]
    assert [name for name, _ in desk.sent()] == ["0", "1"]
    assert not desk.window.wants(0)
    desk.answer(requests[0])
    assert [name for name, _ in desk.sent()] == ["2"]


def test_one_frame_may_always_be_under_way() -> None:
    desk = Desk(credit_bytes=10)
    desk.ask("large", nbytes=1000)
    assert [name for name, _ in desk.sent()] == ["large"]


def test_the_step_under_way_is_completed_whatever_the_credit() -> None:
    """Its answers may wait for all of it, and for its mark: two workers would wait for each other's second half."""
    desk = Desk(credit_bytes=100)
    desk.ask("begun", nbytes=100, clock=3)
    assert desk.sent() == [("begun", 1)]
    desk.ask("rest", nbytes=100, clock=3, priority=-5)
    desk.ask("ahead", nbytes=100, clock=4, priority=5)
    desk.window.close_step(1, 3, [0])
    assert desk.sent() == [("rest", 2), ("mark", 3)]


def test_frames_hold_one_store_and_about_so_many_bytes() -> None:
    desk = Desk(frame_bytes=250)
    for name, store in (("a", 1), ("b", 1), ("c", 1), ("d", 2)):
        desk.ask(name, store=store, nbytes=100)
    assert [[r.owner for r in frame.requests] for frame in desk.frames()] == [["a", "b"], ["c"], ["d"]]


def test_fenced_entries_go_to_the_new_owner_as_they_are() -> None:
    desk = Desk()
    a, b = desk.ask("a"), desk.ask("b")
    desk.window.close_step(1, 0, [0])
    desk.sent()
    desk.answer(a, Status.FENCED)
    desk.answer(b, Status.FENCED)
    desk.window.link_up(1)
    desk.window.set_routing({0: 1}.__getitem__, 1)
    assert desk.sent(1) == [("a", 1), ("b", 2), ("mark", 0)]
    assert desk.answer(a, server=1) is not None


def test_an_entry_fenced_after_its_new_routing_came_is_sent_on_at_once() -> None:
    desk = Desk()
    request = desk.ask("a")
    desk.sent()
    desk.window.set_routing({0: 1}.__getitem__, 1)
    desk.window.link_up(1)
    desk.answer(request, Status.FENCED)
    assert desk.sent(1) == [("a", 1)]


def test_new_owners_get_the_newest_mark_even_if_it_was_still_waiting() -> None:
    desk = Desk()
    desk.window.close_step(1, 0, [0])
    desk.sent()
    desk.ask("waits", clock=1)
    desk.window.close_step(1, 1, [0])
    desk.window.link_up(1)
    desk.window.set_routing({0: 1}.__getitem__, 1)
    assert desk.sent(1) == [("waits", 1), ("mark", 1)]


def test_what_was_abandoned_is_forgotten_and_hinders_nothing_later() -> None:
    desk = Desk()
    a, b = desk.ask("a"), desk.ask("b")
    kept = desk.ask("kept", store=2, share=(2, 0))
    desk.sent()
    desk.ask("unsent")
    desk.answer(b, Status.RETRY)
    gone = desk.window.abandon(1)
    desk.window.validate()
    assert sorted(request.owner for request in gone) == ["a", "b", "unsent"]
    assert desk.answer(a) is None
    assert desk.answer(kept) is not None
    later = desk.ask("later")
    desk.sent()
    finished = desk.answer(later, Status.GAP, aux=2)  # b never came again
    assert finished is not None
    assert desk.window.open_requests() == 0


@given(st.data())
def test_any_weather_finishes_every_request_once_and_keeps_the_order_of_the_wire(data: st.DataObject) -> None:
    """Links break, entries are sent away; the server admits seqs of each share one after the other, each once."""
    desk = Desk(credit_bytes=300, frame_bytes=150)
    admitted = {SHARE: 0, (1, 1): 0}
    left = {
        desk.ask(str(i), share=data.draw(st.sampled_from(sorted(admitted))), nbytes=60, clock=i // 3).order
        for i in range(9)
    }
    wire: list[Request] = []
    trouble = 12
    for _ in range(400):
        if not left:
            break
        while desk.window.wants(0):
            wire += desk.frame().requests
        if trouble and data.draw(st.booleans()):
            trouble -= 1
            desk.window.link_down(0)
            desk.window.link_up(0)
            wire = []
            continue
        request = wire.pop(0)
        status = Status.OK
        if request.seq > admitted[request.share] + 1:
            status = Status.GAP
        elif request.seq <= admitted[request.share]:
            status = Status.DUPLICATE
        elif trouble and data.draw(st.booleans()):
            trouble -= 1
            status = Status.RETRY
        else:
            admitted[request.share] = request.seq
        finished = desk.answer(request, status, aux=admitted[request.share] + 1)
        if finished is not None:
            left.remove(finished.request.order)
    assert not left
    assert sum(admitted.values()) == 9
