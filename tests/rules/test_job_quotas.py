"""Quotas of jobs: sizes as they are written, and what a rule keeps beside its weights."""

from __future__ import annotations

import pytest

import windlass_rules
from tests.rules.conftest import SPECS
from windlass_proto import job_quotas, own_rules
from windlass_proto.errors import UsageError
from windlass_proto.job_quotas import Quotas
from windlass_proto.rule_specs import DCASGD, RuleSpec


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
