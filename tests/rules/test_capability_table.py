"""The table of what rules can do is the registry's, and names every kernel once for each rule that uses it."""

from __future__ import annotations

from docs import capabilities
from tests.rules.conftest import ROW_SPECS, SPECS, TRUST_SPECS
from windlass_proto.rule_specs import RULES
from windlass_rules.registry import RULE_MODULES


def test_the_page_is_what_the_registry_says_today() -> None:
    assert capabilities.PAGE.read_text(encoding="utf-8") == capabilities.table(), "run: python docs/capabilities.py"


def test_every_kernel_that_is_tested_is_in_the_table() -> None:
    listed = {(cls, name) for cls in RULES.values() for name in capabilities.variants(cls)}
    tested = [*SPECS, *ROW_SPECS, *TRUST_SPECS]
    assert {(type(spec), RULE_MODULES[type(spec)].variant(spec).name) for spec in tested} == listed
