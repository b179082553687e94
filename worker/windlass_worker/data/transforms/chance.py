"""What makes a transform random: a method `randomly(sample, rng)`.

A transform is anything to call with a sample. A random one has `randomly` instead, which is handed the sample's own
generator (see `data.draws`) and must take its chance from nothing else: then an epoch is the same with any number of
worker processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from windlass_proto.errors import UsageError

Step: TypeAlias = tuple[Callable[..., Any], bool]


@runtime_checkable
class RandomTransform(Protocol):
    """A transform that draws; the generator comes last."""

    def randomly(self, *sample_and_rng: Any) -> Any:
        """The sample (its parts one by one, if it is a tuple), changed by what the generator gives."""


class Random:
    """A random transform from a function of (sample, rng)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def randomly(self, *sample_and_rng: Any) -> Any:
        """What the function returns."""
        return self._function(*sample_and_rng)


class Compose:
    """Transforms in order, each applied to what the one before returned; random where one of them is."""

    def __init__(self, *transforms: Any) -> None:
        self.steps = tuple(step for transform in transforms for step in steps_of(transform))

    def __call__(self, *sample: Any) -> Any:
        """The sample after all of them, where none is random.

        Raises:
            UsageError: one of them is.
        """
        if any(random for _, random in self.steps):
            raise UsageError(
                "a chain with a random transform needs a generator", next_move="Call randomly(sample, rng)."
            )
        return run(self.steps, sample, None)

    def randomly(self, *sample_and_rng: Any) -> Any:
        """The sample after all of them."""
        return run(self.steps, sample_and_rng[:-1], sample_and_rng[-1])


def steps_of(transform: Any) -> tuple[Step, ...]:
    """A transform as what there is to call, and whether it takes a generator; a chain as its links."""
    if isinstance(transform, Compose):
        return transform.steps
    if isinstance(transform, RandomTransform):
        return ((transform.randomly, True),)
    if not callable(transform):
        given = type(transform).__name__
        raise UsageError("a transform is something to call", given=given, next_move="Give a function of the sample.")
    return ((transform, False),)


def run(steps: tuple[Step, ...], parts: tuple[Any, ...], rng: np.random.Generator | None) -> Any:
    """The sample made of `parts` after all steps; what returns a tuple hands the next one that many arguments."""
    sample: Any = parts if len(parts) > 1 else parts[0]
    for function, random in steps:
        arguments = sample if isinstance(sample, tuple) else (sample,)
        sample = function(*arguments, rng) if random else function(*arguments)
    return sample
