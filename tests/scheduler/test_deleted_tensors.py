"""Deleted tensors: their names are free, their group keeps its layout, and a restart knows."""

from __future__ import annotations

import pytest

from windlass_proto import rule_specs
from windlass_proto.errors import UsageError
from windlass_proto.layout import TensorSpec
from windlass_scheduler import declaration_core as core
from windlass_scheduler.counters import Counters
from windlass_scheduler.declared import Tensor
from windlass_scheduler.effects import Answer, Persist, Record


class Declared:
    """A core and what it has stored."""

    def __init__(self) -> None:
        self.core = core.Declarations(Counters())
        self.stored: dict[str, Record] = {}
        self.step(core.OpenStore(1, "job", "model", "bsp", 0))

    def step(self, event: core.Event) -> object:
        reply = None
        for effect in self.core.step(event):
            if isinstance(effect, Persist):
                if effect.record is None:
                    self.stored.pop(effect.key, None)
                else:
                    self.stored[effect.key] = effect.record
            elif isinstance(effect, Answer):
                reply = effect.reply
        self.core.validate()
        return reply

    def declare(self, *names: str, shape: int = 4, session: bytes = b"a") -> core.Declared:
        tensors = tuple(Tensor(TensorSpec(name, (shape,)), "float32") for name in names)
        rule = rule_specs.to_bytes(rule_specs.SGD(lr=1.0))
        reply = self.step(core.Declare(2, session, 0, "job", 1, 0, tensors, rule, "SGD", "mean", 0, False))
        assert isinstance(reply, core.Declared)
        return reply

    def restarted(self) -> core.Declarations:
        again = core.Declarations(Counters())
        again.restore(self.stored)
        again.validate()
        return again


def test_a_deleted_name_may_be_declared_anew_and_gets_a_table_of_its_own() -> None:
    cluster = Declared()
    first = cluster.declare("w", "gone")
    cluster.step(core.Forget(1, frozenset({"gone"})))
    again = cluster.declare("gone", shape=9)
    assert {group.table_id for group in again.groups}.isdisjoint(group.table_id for group in first.groups)


def test_a_group_keeps_its_layout_and_says_what_is_deleted_also_after_a_restart() -> None:
    cluster = Declared()
    table = cluster.declare("w", "gone").groups[0].table_id
    cluster.step(core.Forget(1, frozenset({"gone", "never declared"})))
    for known in (cluster.core, cluster.restarted()):
        (group,) = known.groups(1)
        assert [spec.name for spec in group.tensors] == ["w", "gone"]
        assert known.deleted(table) == {"gone"}


def test_nothing_is_kept_of_a_declaration_whose_tensors_are_all_deleted() -> None:
    cluster = Declared()
    cluster.declare("w", "v")
    cluster.step(core.Forget(1, frozenset({"w"})))
    cluster.step(core.Forget(1, frozenset({"v"})))
    assert cluster.core.groups(1) == []
    assert cluster.restarted().groups(1) == []


def test_what_is_left_of_a_declaration_is_compared_as_before() -> None:
    cluster = Declared()
    cluster.declare("w", "gone")
    cluster.step(core.Forget(1, frozenset({"gone"})))
    with pytest.raises(UsageError, match="another shape"):
        cluster.declare("w", shape=5)
