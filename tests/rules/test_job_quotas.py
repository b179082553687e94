"""Quotas of jobs: sizes as they are written, and what a rule keeps beside its weights."""

from __future__ import annotations

import pytest

import windlass_rules
from tests.rules.conftest import SPECS
from windlass_proto import job_quotas, own_rules, rule_specs, transfer_specs
from windlass_proto.codec_specs import Float16, Int8
from windlass_proto.errors import UsageError
from windlass_proto.gen import control_pb2
from windlass_proto.job_quotas import Quotas
from windlass_proto.rule_specs import DCASGD, Adam, RuleSpec
from windlass_scheduler import wire
from windlass_scheduler.members import Job


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_a_rule_is_said_to_keep_is_what_its_kernels_keep(spec: RuleSpec) -> None:
    assert job_quotas.vectors(spec) == len(windlass_rules.build(spec, "float32").slots)


def test_delay_compensation_counts_a_copy_for_each_worker() -> None:
    assert job_quotas.vectors(DCASGD(), workers=8) == 8
    assert job_quotas.vectors(DCASGD(adaptive=True), workers=8) == 9
    assert job_quotas.vectors(own_rules.own("ball", "", {})) == 1


def test_sizes_are_for_every_job_or_for_one() -> None:
    quotas = job_quotas.parse(["8GiB", "big=1TiB", "tiny=100", "free=0"])
    assert quotas == Quotas(8 << 30, {"big": 1 << 40, "tiny": 100, "free": 0})
    assert [quotas.of(job) for job in ("any", "big", "tiny", "free")] == [8 << 30, 1 << 40, 100, 0]
    assert job_quotas.parse([]).of("any") == 0


@pytest.mark.parametrize("texts", [["8GB"], ["8 GiB"], ["-1"], ["=8GiB"], ["a=8GiB", "a=9GiB"], ["1GiB", "2GiB"], [""]])
def test_what_is_no_size_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="not SIZE or JOB=SIZE"):
        job_quotas.parse(texts)


def test_what_workers_were_shown_counts_where_weights_come_down_as_deltas() -> None:
    job = Job("train", 2, complete=True)
    for down, more in ((None, 0), (Float16(), 0), (Int8(), 1)):
        transfer = transfer_specs.to_bytes(transfer_specs.Transfer(down=down))
        request = control_pb2.DeclareRequest(rule=rule_specs.to_bytes(Adam()), transfer=transfer)
        assert wire.vectors_untrusted(request, job) == 2 + more
