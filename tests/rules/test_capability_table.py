"""The table of what rules can do is the registry's, and names every kernel once for each rule that uses it."""

from __future__ import annotations

from docs import capabilities
from tests.rules.conftest import ROW_SPECS, SPECS, TRUST_SPECS, programs
from windlass_proto.rule_specs import LAMB, RULES, SGD, Adam
from windlass_rules.cuda_norms import measure_source
from windlass_rules.cuda_source import update_source
from windlass_rules.registry import DTYPES, RULE_MODULES


def test_the_page_is_what_the_registry_says_today() -> None:
    assert capabilities.PAGE.read_text(encoding="utf-8") == capabilities.table(), "run: python docs/capabilities.py"


def test_every_kernel_that_is_tested_is_in_the_table() -> None:
    listed = {(cls, name) for cls in RULES.values() for name in capabilities.variants(cls)}
    tested = [*SPECS, *ROW_SPECS, *TRUST_SPECS]
    assert {(type(spec), RULE_MODULES[type(spec)].variant(spec).name) for spec in tested} == listed


def test_a_kernel_is_tested_on_a_device_only_as_it_was_when_it_was_tested() -> None:
    adam, sgd = RULE_MODULES[Adam].variant(Adam()), RULE_MODULES[SGD].variant(SGD(lr=0.1))
    digests = {program.entry: program.digest for dtype in DTYPES for program in (update_source(adam, dtype),)}
    older = {"date": "2026-01-02", "model": "Model 1", "programs": digests}
    newer = {"date": "2026-03-04", "model": "Model 2", "programs": digests | {"update_adam_float64": "changed since"}}
    assert capabilities.on_device(adam, [older]) == "tested (2026-01-02, Model 1)"
    assert capabilities.on_device(adam, [older, newer]) == "tested (2026-01-02, Model 1)"
    assert capabilities.on_device(adam, [newer]) == capabilities.on_device(sgd, [older]) == "compiled only"


def test_what_is_not_compiled_for_devices_is_refused_there_and_so_in_the_table() -> None:
    compiled = {program.entry for program in programs()}
    for cls in RULES.values():
        for _, variant in capabilities.variants(cls).values():
            cell = capabilities.on_device(variant, [])
            twins = {update_source(variant, dtype).entry for dtype in DTYPES if not variant.by_row}
            if variant.measure is not None:
                twins |= {measure_source(variant, dtype).entry for dtype in DTYPES}
            assert cell == ("compiled only" if twins else "no")
            assert twins <= compiled


def test_a_rule_that_takes_norms_is_tested_when_what_takes_them_is() -> None:
    lamb = RULE_MODULES[LAMB].variant(LAMB())
    steps = {program.entry: program.digest for dtype in DTYPES for program in (update_source(lamb, dtype),)}
    norms = {program.entry: program.digest for dtype in DTYPES for program in (measure_source(lamb, dtype),)}
    for programs_run, cell in ((steps, "compiled only"), (steps | norms, "tested (2026-01-02, Model 1)")):
        run = {"date": "2026-01-02", "model": "Model 1", "programs": programs_run}
        assert capabilities.on_device(lamb, [run]) == cell
