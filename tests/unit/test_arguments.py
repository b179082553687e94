"""Wrong arguments and names: refused as errors of windlass, with the nearest right one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_proto.arguments import did_you_mean, nearest, refused_in_words
from windlass_proto.errors import UsageError

MODULES = [wl.optim, wl.schedule, wl.init, wl.admit, wl.evict, wl.codec]


@pytest.mark.parametrize(
    ("module", "name", "near"),
    [
        (wl.optim, "Adm", "Adam"),
        (wl.optim, "adamw", "AdamW"),
        (wl.schedule, "CosineAnnealing", "Cosine"),
        (wl.init, "Normale", "Normal"),
        (wl.admit, "Counts", "Count"),
        (wl.evict, "ttl", "TTL"),
        (wl.codec, "Top_K", "TopK"),
        (wl, "conect", "connect"),
    ],
)
def test_a_name_that_a_module_lacks_is_refused_with_the_nearest(module: Any, name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"has no such name .*Did you mean {near}"):
        getattr(module, name)


@pytest.mark.parametrize("module", [*MODULES, wl], ids=lambda module: module.__name__)
def test_modules_are_asked_for_absent_names_as_any_others_are(module: Any) -> None:
    assert not hasattr(module, "absent")
    assert getattr(module, "absent", 7) == 7
    with pytest.raises(AttributeError) as raised:
        module.__absent__  # noqa: B018
    assert type(raised.value) is AttributeError


def test_an_absent_name_cannot_be_imported() -> None:
    with pytest.raises(ImportError, match="absent"):
        from windlass.optim import absent  # type: ignore[attr-defined]  # noqa: F401


OPTIM: Any = wl.optim
WRONG: list[tuple[Any, str]] = [
    (lambda: OPTIM.Adam(learning_rate=1), "Adam has no such argument .*Did you mean lr"),
    (lambda: OPTIM.SGD(lr=1, momentun=0.9), "SGD has no such argument .*Did you mean momentum"),
    (OPTIM.SGD, "SGD lacks an argument .*Give lr"),
    (lambda: OPTIM.SGD(0.1, lr=0.1), "SGD was given an argument twice .argument=lr"),
    (lambda: OPTIM.Sum(*range(9)), "Sum was given too many arguments"),
    (lambda: OPTIM.LAMB(lr="fast"), "LAMB takes a number or a schedule as lr"),
    (lambda: wl.schedule.Cosine(1e-3), "Cosine lacks an argument .*Give steps"),  # type: ignore[call-arg]
    (lambda: wl.schedule.Step(0.1, step=3), "Step has no such argument .*Did you mean step_size"),  # type: ignore[call-arg]
    (lambda: wl.schedule.Plateau(0.1, "loss", rises=1), "rises=True or False"),  # type: ignore[arg-type]
    (lambda: wl.init.Normal(sdt=0.1), "Normal has no such argument .*Did you mean std"),  # type: ignore[call-arg]
    (lambda: wl.init.Normal(None), "Normal takes a finite std"),  # type: ignore[arg-type]
    (lambda: wl.init.Uniform([0], 1), "Uniform takes a finite low"),  # type: ignore[arg-type]
    (lambda: wl.admit.Probability(None), "Probability takes p above 0"),  # type: ignore[arg-type]
    (lambda: wl.admit.Count(m=3), "Count has no such argument"),  # type: ignore[call-arg]
    (lambda: wl.evict.LRU(rows=1 << 20), "LRU has no such argument .*Did you mean rows_max"),  # type: ignore[call-arg]
    (lambda: wl.evict.TTL("3"), "TTL takes a whole steps"),  # type: ignore[arg-type]
    (wl.codec.TwoBit, "TwoBit lacks an argument .*Give threshold"),
    (lambda: wl.codec.Int8(blocks=64), "Int8 has no such argument .*Did you mean block"),  # type: ignore[call-arg]
    (lambda: wl.codec.Dithering(bits=4.0), "Dithering takes 4 or 8 bits"),  # type: ignore[arg-type]
    (lambda: wl.codec.Dithering(natural=1), "natural=True or False"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "words"), WRONG)
def test_a_spec_that_is_called_wrongly_says_so_in_words(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_every_spec_that_users_make_refuses_an_unknown_argument_in_words() -> None:
    made = [getattr(module, name) for module in MODULES for name in module.__all__]
    classes: list[Any] = [cls for cls in made if inspect.isclass(cls)]
    assert len(classes) > 40
    for cls in classes:
        with pytest.raises(UsageError, match="has no such argument"):
            cls(no_such_thing=1)


def test_a_number_of_numpy_is_a_number() -> None:
    float32: Any = np.float32
    assert wl.init.Normal(float32(0.5)).std == 0.5
    assert wl.admit.Probability(np.float64(0.5)).p == 0.5


def test_what_goes_wrong_inside_a_spec_stays_what_it_is() -> None:
    @refused_in_words
    class Broken:
        def __init__(self, lr: float) -> None:
            raise TypeError(f"a bug at {lr}")

    with pytest.raises(TypeError, match="a bug at 1") as raised:
        Broken(1)
    assert type(raised.value) is TypeError


def test_a_name_like_none_is_answered_with_what_there_is() -> None:
    assert nearest("zzz", ["lr", "eps"]) == ""
    assert did_you_mean("zzz", ["lr", "eps"]) == "Known: lr, eps."
    assert did_you_mean("zzz", []) == "Known: none."
