"""Transcripts: what a share core does to a story told event by event, reviewed as text.

A file of `transcripts/` is read and written alike: lines without indentation are events, indented ones what the core
did. A change of the core's behaviour shows as a difference of these files; `WINDLASS_WRITE_TRANSCRIPTS=1` writes them
anew, to be read before they are committed.

    share bsp members=A,B segments=2        the first event: mode, roster, segments of the one block
          [phases=7:0:2/3:0:1]              and, of each phase, scope:first segment:end of what other blocks share
    push NAME SESSION SEQ CLOCK [value=1.0] [segs=0:2] [weight=1.0] [last=no] [finite=no] [op=push]
    pull NAME CLOCK [segs=0:2]
    mark SESSION CLOCK [leaves=yes]
    roster A,B VERSION [join=B:4] [settled=0]
    prepare CLOCK PROPOSAL
    end SESSION
    total SCOPE CLOCK PHASE VALUE           of all blocks; the gradient is multiplied by it
    drop BEGIN:END                          these tensors are deleted
    unlink LINK                             the connection that events come by (via=LINK, "link" if not said) closes
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cores.bench import Bench, Buffer
from windlass_server.reducing import Phases, Span
from windlass_server.share_core import Answer, Apply, Effect, Release, Write
from windlass_server.share_events import Measure, Settled

FOLDER = Path(__file__).parent / "transcripts"
SESSIONS = {name: name.lower().encode() * 16 for name in "ABCD"}


class Narrator(Bench):
    """A bench that writes down what its core does."""

    def __init__(self, mode: str, members: str, segments: int, phases: Phases) -> None:
        self.lines: list[str] = []
        super().__init__(mode, segments, members=[SESSIONS[name] for name in members.split(",")], phases=phases)

    def carry_out(self, effects: list[Effect]) -> None:
        self.lines += [f"    {self._in_words(effect)}" for effect in effects]
        super().carry_out(effects)

    def tell(self, event: str) -> None:
        """One event; `lines` then hold it and what came of it."""
        self.lines.append(event)
        kind, *words = event.split()
        plain = [word for word in words if "=" not in word]
        given = dict(word.split("=", 1) for word in words if "=" in word)
        held = self.held()
        getattr(self, f"_tell_{kind}")(*plain, **given)
        if self.held() != held:
            self.lines.append(f"    weights are {' '.join(format(value, 'g') for value in self.held())}")

    def _tell_push(self, name: str, session: str, seq: str, clock: str, **given: str) -> None:
        self.push(
            name, SESSIONS[session], int(seq), int(clock), float(given.get("value", "1")), _segments(given),
            connection=given.get("via", "link"), op=given.get("op", "push"), weight=float(given.get("weight", "1")),
            last=given.get("last") != "no", finite=given.get("finite") != "no",
        )  # fmt: skip

    def _tell_pull(self, name: str, clock: str, **given: str) -> None:
        self.pull(name, int(clock), _segments(given), connection=given.get("via", "link"))

    def _tell_mark(self, session: str, clock: str, leaves: str = "no") -> None:
        self.mark(SESSIONS[session], clock=int(clock), leaves=leaves == "yes")

    def _tell_roster(self, members: str, version: str, join: str = "", settled: str = "0") -> None:
        joins = {SESSIONS[name]: int(at) for name, at in (pair.split(":") for pair in join.split(",") if pair)}
        counted = [SESSIONS[name] for name in members.split(",")]
        self.roster(*counted, version=int(version), join=joins, settled=int(settled))

    def _tell_prepare(self, clock: str, proposal: str) -> None:
        granted = self.core.clocks.prepare(int(clock), int(proposal))
        self.lines.append(f"    {'holds' if granted else 'refuses'}")

    def _tell_end(self, session: str) -> None:
        self.end(SESSIONS[session])

    def _tell_total(self, scope: str, clock: str, phase: str, value: str) -> None:
        self.total(int(scope), int(clock), int(phase), float(value))

    def _tell_drop(self, segs: str) -> None:
        begin, _, end = segs.partition(":")
        self.carry_out(self.core.drop(0, int(begin), int(end)))

    def _tell_unlink(self, link: str) -> None:
        self.core.drop_origin(link)

    def _in_words(self, effect: Effect) -> str:
        if isinstance(effect, Apply):
            sources = " + ".join(f"{source.weight:g} {_name(source.buffer)}" for source in effect.sources)
            extent = f"{effect.seg_begin}:{effect.seg_end}"
            given = "".join(f", total {sums[0]:g}" for sums in effect.totals if sums is not None)
            told = f", answer {effect.answer.origin[1]} in the same pass" if effect.answer is not None else ""
            return f"apply ({sources}) / {effect.divisor:g} to {extent} as update {effect.update}{given}{told}"
        if isinstance(effect, Answer):
            status = effect.status.name + (" with values" if effect.values else "")
            expected = f", expected {effect.aux}" if effect.status.name == "GAP" else ""
            reason = f": {effect.error.args[0].split(' (')[0]}" if effect.error is not None else ""
            return f"answer {effect.origin[1]} by {effect.origin[0]}: {status}{expected}{reason}"
        if isinstance(effect, Write):
            return f"write {_name(effect.buffer)} to {effect.seg_begin}:{effect.seg_end}"
        if isinstance(effect, Measure):
            parts = " ".join(f"{part.seg_begin}:{part.seg_end}" for part in effect.parts)
            return f"measure {parts} of scope {effect.scope} in step {effect.clock}, phase {effect.phase}"
        if isinstance(effect, Settled):
            return f"settled below step {effect.clock} in scope {effect.scope}"
        assert isinstance(effect, Release)
        return f"release {_name(effect.buffer)}"


def _name(buffer: Buffer) -> str:
    return buffer.name


def _segments(given: dict[str, str]) -> tuple[int, int] | None:
    begin, _, end = given.get("segs", "").partition(":")
    return (int(begin), int(end)) if end else None


def _phases(given: dict[str, str]) -> Phases:
    phases = [phase.split(",") for phase in given["phases"].split("/")] if "phases" in given else []
    return tuple(tuple(Span(*map(int, span.split(":"))) for span in spans) for spans in phases)


def told(script: str) -> str:
    """`script`'s events with what the core does to them now."""
    lines: list[str] = []
    narrator: Narrator | None = None
    for line in script.splitlines():
        if line.startswith("    "):
            continue
        if not line or line.startswith("#"):
            event = line
        elif narrator is None:
            _, mode, *options = line.split()
            given = dict(option.split("=", 1) for option in options)
            narrator = Narrator(mode, given["members"], int(given.get("segments", "1")), _phases(given))
            event = line
        else:
            narrator.lines.clear()
            narrator.tell(line)
            lines += narrator.lines
            continue
        lines.append(event)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_the_core_does_what_the_transcript_says(path: Path) -> None:
    script = path.read_text(encoding="utf-8")
    if os.environ.get("WINDLASS_WRITE_TRANSCRIPTS"):
        path.write_text(told(script), encoding="utf-8")
    assert told(script) == path.read_text(encoding="utf-8")


def test_there_are_transcripts() -> None:
    assert len(list(FOLDER.glob("*.txt"))) >= 6
