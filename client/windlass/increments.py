"""Increments: the checkpoint that a new one may build on, whose parts are read beside the new one's.

Each server's parts are a chain of their own, oldest first: a whole part, and those that hold what changed after it. A
server that does not know what has changed since the base (it was restarted, restored, or another save came between)
writes a whole part, with which its chain begins anew.

Invariant: a block or band has the same number and the same server in all parts of a chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from windlass_proto import checkpoint_folders, checkpoint_format
from windlass_proto.checkpoint_format import Manifest, Part


@dataclass(frozen=True, slots=True)
class Base:
    """A checkpoint to build on: the attempt of its own parts, and by server the parts to be read, oldest first."""

    attempt: str
    chains: Mapping[int, tuple[Part, ...]]

    def followed_by(self, part: Part) -> tuple[Part, ...]:
        """What is to be read of a server that has written `part`."""
        return (part,) if part.whole else (*self.chains.get(part.server, ()), part)


def base_of(folder: Path, manifest: Manifest, parts: Mapping[int, Part], full_every: int) -> Base | None:
    """The newest checkpoint beside `folder`, if what `manifest` describes can build on it.

    Args:
        parts: by server, what is going to be written, its length and digest not known yet.
        full_every: of so many checkpoints one has no base.
    """
    found = checkpoint_folders.newest(folder.parent, lambda _: None)
    if found is None:
        return None
    before, was = found
    attempts = {part.attempt for part in was.parts if not part.folder}
    if before == folder or was.step >= manifest.step or len(attempts) != 1:
        return None
    if len({part.folder for part in was.parts}) >= full_every or not checkpoint_format.continues(manifest, was):
        return None
    chains: dict[int, tuple[Part, ...]] = {}
    for part in was.parts:
        now = parts.get(part.server)
        if now is None or not (set(part.blocks) <= set(now.blocks) and set(part.bands) <= set(now.bands)):
            return None
        here = replace(part, folder=part.folder or before.name)
        chains[part.server] = (*chains.get(part.server, ()), here)
    return Base(attempts.pop(), chains)
