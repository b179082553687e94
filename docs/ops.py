"""Write `docs/ops.md`: every op by name, read from the op table.

    python docs/ops.py          # from the root, with the packages importable

A test compares the file with `page()`, so a new op is in it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from windlass_graph.op import FAMILIES, REQUIRED, Flat, Missing, Op, table

PAGE = Path(__file__).with_suffix(".md")

HEAD = """\
# Ops

Made by `python docs/ops.py` from the op table in `worker/windlass_graph/ops`; edit that.

Each op is a function of `wl.nd` (arrays) and of `wl.sym` (symbols), and takes its inputs by position and its attributes
by keyword. Images are `(batch, channels, height, width)`, weights `(out, in, height, width)`, labels class indices.
*Gradient*: `yes`; `none` where the value is constant almost everywhere or discrete, so that no gradient flows; else why
it is refused. *Notes*: `fused`: elementwise, joined with others into one kernel; `view`: no copy; `random`: draws
numbers; `updates`: training moves its auxiliary inputs. How graphs of ops are run: [engine.md](engine.md).

Functions of several ops, on both fronts: `stack`, `split`, `logsumexp`, `variance`, `std`, `norm`, `topk`.
"""


def families() -> Mapping[str, list[Op]]:
    """Ops by the module that has their code: modules in the order of their families, whichever was imported first."""
    found: dict[str, list[Op]] = {}
    for op in table().values():
        found.setdefault(op.forward.__module__, []).append(op)
    return {module: found[module] for module in sorted(found, key=FAMILIES.index)}


def gradient(op: Op) -> str:
    """The cell that says whether gradients flow."""
    rule = op.gradient
    if isinstance(rule, Flat):
        return "none"
    if isinstance(rule, Missing):
        return f"refused: {rule.why}"
    if not isinstance(rule, Sequence):
        return "yes"
    flat = [name for name, each in zip(_inputs(op), rule, strict=False) if isinstance(each, Flat)]
    return f"yes, not by {', '.join(flat)}" if flat else "yes"


def _inputs(op: Op) -> tuple[str, ...]:
    """Their names, with every optional one."""
    return op.inputs(dict.fromkeys(op.attrs, True)) if callable(op.inputs) else op.inputs


def _attrs(op: Op) -> str:
    return ", ".join(name if default is REQUIRED else f"{name}={default!r}" for name, default in op.attrs.items())


def _notes(op: Op) -> str:
    notes = (("fused", bool(op.scalar)), ("view", op.view), ("random", op.random), ("updates", op.updates is not None))
    return ", ".join(name for name, holds in notes if holds)


def _rows(ops: list[Op]) -> str:
    rows = [("op", "inputs", "attributes", "what it gives", "gradient", "notes"), ("---",) * 6]
    rows += [
        (f"`{op.name}`", ", ".join(_inputs(op)), _attrs(op), op.doc or op.name, gradient(op), _notes(op)) for op in ops
    ]
    lines = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join(" ".join(line.split()) for line in lines) + "\n"


def page() -> str:
    """The page."""
    parts = [HEAD]
    for module, ops in families().items():
        doc = importlib.import_module(module).__doc__
        assert doc is not None, "a module says what it is"
        parts.append(f"\n## {doc.splitlines()[0].rstrip('.')}\n\n{_rows(ops)}")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
