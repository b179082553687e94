"""Record what `torch.optim` and Optax do in float64, for tests that run without them.

    python tests/rules/record_trajectories.py tests/rules/trajectories.json

Rules that torch lacks are Optax's; those that both lack (FTRL, FTML) are minimised here from the objective in
their papers, over the whole history and in 60 decimal digits, which is another way than their recurrences. A
few steps over a few parameters for each rule and each of its terms; weights are written by `float.hex`, so that
nothing is rounded. The file names the versions that made it. Run it again only to record more: the committed
file is what tests compare with.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterable
from decimal import Decimal, localcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

STEPS = 5
START = [0.5, -1.25, 3.0, 1e-3, -2e-2, 0.0]

Hyper: TypeAlias = dict[str, Any]
Weights: TypeAlias = list[list[float]]
Gradient: TypeAlias = Callable[[int, int], float]

BETAS = [0.8, 0.95]
TORCH: list[tuple[str, Hyper]] = [
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "weight_decay": 0.01}),
    ("sgd", {"lr": 0.1, "momentum": 0.9}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02, "nesterov": True}),
    ("adagrad", {"lr": 0.05}),
    (
        "adagrad",
        {"lr": 0.05, "lr_decay": 0.1, "weight_decay": 0.02, "initial_accumulator_value": 0.1, "eps": 1e-6},
    ),
    ("adam", {}),
    ("adam", {"lr": 0.01, "betas": BETAS, "eps": 1e-4, "weight_decay": 0.03}),
    ("adam", {"lr": 0.01, "betas": [0.8, 0.5], "weight_decay": 0.03, "amsgrad": True}),
    ("adamw", {}),
    ("adamw", {"lr": 0.02, "betas": [0.85, 0.9], "eps": 1e-5, "weight_decay": 0.1}),
    ("adamw", {"lr": 0.02, "betas": [0.8, 0.5], "weight_decay": 0.1, "amsgrad": True}),
    ("adadelta", {}),
    ("adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.05}),
    ("rmsprop", {}),
    ("rmsprop", {"lr": 0.02, "alpha": 0.8, "eps": 1e-4, "weight_decay": 0.05}),
    ("rmsprop", {"lr": 0.02, "alpha": 0.8, "momentum": 0.9}),
    ("rmsprop", {"lr": 0.02, "alpha": 0.8, "eps": 1e-2, "centered": True}),
    ("rmsprop", {"lr": 0.02, "alpha": 0.8, "weight_decay": 0.05, "momentum": 0.9, "centered": True}),
    ("nadam", {}),
    ("nadam", {"lr": 0.02, "betas": BETAS, "eps": 1e-4, "weight_decay": 0.05, "momentum_decay": 0.5}),
    ("nadam", {"lr": 0.02, "betas": BETAS, "weight_decay": 0.05, "decoupled_weight_decay": True}),
    ("adamax", {}),
    ("adamax", {"lr": 0.02, "betas": BETAS, "eps": 1e-4, "weight_decay": 0.05}),
]
CLIPPED: list[tuple[str, Hyper]] = [
    (rule, {"lr": 0.05, "weight_decay": 0.1, "clip_value": 0.25})
    for rule in ("sgd", "adagrad", "adam", "adamw", "adadelta", "rmsprop", "nadam", "adamax")
]
OPTAX: list[tuple[str, Hyper]] = [
    ("signum", {}),
    ("signum", {"lr": 0.02, "momentum": 0.0}),
    ("signum", {"lr": 0.02, "momentum": 0.6, "weight_decay": 0.1}),
    ("lion", {}),
    ("lion", {"lr": 0.02, "betas": [0.6, 0.8], "weight_decay": 0.1}),
    ("adabelief", {}),
    ("adabelief", {"lr": 0.02, "betas": BETAS, "eps": 1e-4}),
    ("lamb", {}),
    ("lamb", {"lr": 0.02, "betas": BETAS, "eps": 1e-4, "weight_decay": 0.1}),
    ("lamb", {"lr": 0.02, "clip_norm": 0.75}),
    ("sgd", {"lr": 0.05, "clip_norm": 0.75}),
    ("sgd", {"lr": 0.05, "clip_global_norm": 2.5}),
    ("lars", {}),
    ("lars", {"lr": 2.0, "momentum": 0.5, "trust_coefficient": 0.01, "eps": 1e-3}),
]
PAPERS: list[tuple[str, Hyper]] = [
    ("ftrl", {}),
    ("ftrl", {"lr": 0.3, "beta": 0.5, "l1": 0.4, "l2": 0.2}),
    ("ftml", {}),
    ("ftml", {"lr": 0.05, "betas": BETAS, "eps": 1e-3}),
    ("lars", {"lr": 2.0, "momentum": 0.5, "weight_decay": 0.1, "trust_coefficient": 0.01, "eps": 1e-3}),
]


def gradient(step: int, index: int) -> float:
    """A gradient that changes sign and scale; made of exact operations, so that any machine has the same."""
    return ((step * 7 + index * 5) % 11 - 5) / (1 << (index % 3 * 3)) + 0.125 * step


def torch_weights(rule: str, hyper: Hyper, steps: int = STEPS, gradient: Gradient = gradient) -> Weights:
    """The weights after each step of torch.optim; `clip_value` is torch's `clip_grad_value_`."""
    import torch  # type: ignore[import-not-found,unused-ignore]  # in no environment of ours

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # NAdam keeps its product of shares in float32 otherwise
    makers = {name.lower(): getattr(torch.optim, name) for name in torch.optim.__all__}
    w = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in hyper.items()}
    clip: Any = given.pop("clip_value", None)
    optimizer = makers[rule]([w], foreach=False, **given)
    weights = []
    for step in range(1, steps + 1):
        w.grad = torch.tensor([gradient(step, i) for i in range(len(START))], dtype=torch.float64)
        if clip is not None:
            torch.nn.utils.clip_grad_value_([w], clip, foreach=False)
        optimizer.step()
        weights.append(w.tolist())
    torch.set_default_dtype(before)
    return weights


def optax_transform(rule: str, hyper: Hyper) -> Any:
    """Optax's chain for a rule; decay that its alias does not take is added as Optax's `add_decayed_weights`."""
    import optax  # type: ignore[import-not-found,unused-ignore]  # in no environment of ours

    beta1, beta2 = hyper.get("betas", (0.9, 0.99 if rule == "lion" else 0.999))
    lr, decay = hyper.get("lr"), hyper.get("weight_decay", 0.0)
    bound = hyper.get("clip_norm", hyper.get("clip_global_norm", 1e300))  # of one tensor both are the same
    clip = optax.clip_by_global_norm(bound)
    if rule == "sgd":
        return optax.chain(clip, optax.sgd(lr))
    if rule == "lamb":
        lamb = optax.lamb(lr or 1e-3, beta1, beta2, hyper.get("eps", 1e-6), weight_decay=decay)
        return optax.chain(clip, lamb)
    if rule == "lars":
        trust = hyper.get("trust_coefficient", 1e-3)
        momentum = hyper.get("momentum", 0.9)
        return optax.lars(lr or 0.1, decay, trust_coefficient=trust, eps=hyper.get("eps", 0.0), momentum=momentum)
    if rule == "lion":
        return optax.lion(hyper.get("lr", 1e-4), beta1, beta2, weight_decay=hyper.get("weight_decay", 0.0))
    if rule == "adabelief":
        eps = hyper.get("eps", 1e-16)
        return optax.adabelief(hyper.get("lr", 1e-3), beta1, beta2, eps, eps)
    return optax.chain(
        optax.ema(hyper.get("momentum", 0.9), debias=False),
        optax.scale_by_sign(),
        optax.add_decayed_weights(hyper.get("weight_decay", 0.0)),
        optax.scale_by_learning_rate(hyper.get("lr", 1e-2)),
    )


def optax_weights(rule: str, hyper: Hyper) -> Weights:
    """The weights after each step of Optax."""
    import jax  # type: ignore[import-not-found,unused-ignore]  # in no environment of ours
    import jax.numpy as jnp  # type: ignore[import-not-found,unused-ignore]
    import optax  # type: ignore[import-not-found,unused-ignore]

    jax.config.update("jax_enable_x64", True)
    transform = optax_transform(rule, hyper)
    w = jnp.array(START, jnp.float64)
    state = transform.init(w)
    weights = []
    for step in range(1, STEPS + 1):
        g = jnp.array([gradient(step, i) for i in range(len(START))], jnp.float64)
        updates, state = transform.update(g, state, w)
        w = optax.apply_updates(w, updates)
        weights.append([float(value) for value in w])
    return weights


def total(terms: Iterable[Decimal]) -> Decimal:
    return sum(terms, Decimal(0))


def least(slope: Callable[[Decimal], Decimal]) -> Decimal:
    """Where a convex function is least, from its slope, by halving an interval."""
    low, high = Decimal(-1000), Decimal(1000)
    for _ in range(190):
        middle = (low + high) / 2
        if slope(middle) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def ftrl_path(hyper: Hyper, start: float, gradients: list[float]) -> list[float]:
    """McMahan 2013, section 3: argmin g_1:t w + sum_s (1/eta_s - 1/eta_(s-1)) / 2 (w - w_s)^2 + l1 |w| + l2 / 2 w^2."""
    lr, beta, l1, l2 = (Decimal(hyper.get(k, d)) for k, d in (("lr", 0.1), ("beta", 1.0), ("l1", 0.0), ("l2", 0.0)))
    visited, gs, inverse_rates = [Decimal(start)], list[Decimal](), [Decimal(0)]
    for g in gradients:
        gs.append(Decimal(g))
        inverse_rates.append((beta + total(each * each for each in gs).sqrt()) / lr)
        moves = [(new - old, w) for old, new, w in zip(inverse_rates, inverse_rates[1:], visited, strict=False)]

        def slope(w: Decimal, moves: list[tuple[Decimal, Decimal]] = moves) -> Decimal:
            """Of the objective at w, to the right."""
            return total(gs) + total(sigma * (w - past) for sigma, past in moves) + (l1 if w >= 0 else -l1) + l2 * w

        best = least(slope)
        visited.append(best if abs(best) > Decimal(10) ** -40 else Decimal(0))
    return [float(w) for w in visited[1:]]


def ftml_path(hyper: Hyper, start: float, gradients: list[float]) -> list[float]:
    """argmin of sum_i beta1^(t-i) ((1 - beta1) g_i w + sigma_i / 2 (w - w_(i-1))^2) (Zheng & Kwok 2017)."""
    lr, eps = Decimal(hyper.get("lr", 2.5e-3)), Decimal(hyper.get("eps", 1e-8))
    beta1, beta2 = (Decimal(beta) for beta in hyper.get("betas", (0.6, 0.999)))
    visited, gs, sigmas, before = [Decimal(start)], list[Decimal](), list[Decimal](), Decimal(0)
    for t, g in enumerate(gradients, start=1):
        gs.append(Decimal(g))
        mean = total((1 - beta2) * beta2 ** (t - i) * each**2 for i, each in enumerate(gs, 1)) / (1 - beta2**t)
        now = (1 - beta1**t) / lr * (mean.sqrt() + eps)
        sigmas.append(now - beta1 * before)
        before = now
        fading = [beta1 ** (t - i) for i in range(1, t + 1)]
        pull = total(
            f * (s * w - (1 - beta1) * each) for f, s, w, each in zip(fading, sigmas, visited, gs, strict=True)
        )
        visited.append(pull / total(f * s for f, s in zip(fading, sigmas, strict=True)))
    return [float(w) for w in visited[1:]]


def lars_weights(hyper: Hyper) -> Weights:
    """You et al. 2017, algorithm 1, for a layer that is the whole tensor; `eps` is added to its divisor."""
    lr, momentum, decay, trust, eps = (
        Decimal(hyper[k]) for k in ("lr", "momentum", "weight_decay", "trust_coefficient", "eps")
    )
    w = [Decimal(value) for value in START]
    v = [Decimal(0)] * len(w)
    weights = []
    for step in range(1, STEPS + 1):
        g = [Decimal(gradient(step, i)) for i in range(len(w))]
        norm_w, norm_g = (total(x * x for x in vector).sqrt() for vector in (w, g))
        local = trust * norm_w / (norm_g + decay * norm_w + eps)
        v = [momentum * vi + lr * local * (gi + decay * wi) for vi, gi, wi in zip(v, g, w, strict=True)]
        w = [wi - vi for wi, vi in zip(w, v, strict=True)]
        weights.append([float(value) for value in w])
    return weights


def paper_weights(rule: str, hyper: Hyper) -> Weights:
    """The weights after each step, from the rule's objective."""
    if rule == "lars":
        with localcontext() as context:
            context.prec = 60
            return lars_weights(hyper)
    path = {"ftrl": ftrl_path, "ftml": ftml_path}[rule]
    with localcontext() as context:
        context.prec = 60
        paths = [path(hyper, w, [gradient(s, i) for s in range(1, STEPS + 1)]) for i, w in enumerate(START)]
    return [list(step) for step in zip(*paths, strict=True)]


def main(path: str) -> None:
    sources = (
        ("torch", TORCH + CLIPPED, torch_weights),
        ("optax", OPTAX, optax_weights),
        ("paper", PAPERS, paper_weights),
    )
    lines = []
    for source, cases, weights in sources:
        for rule, hyper in cases:
            found = [[value.hex() for value in step] for step in weights(rule, hyper)]
            lines.append(json.dumps({"rule": rule, "source": source, "hyper_parameters": hyper, "weights": found}))
    made_by = {name: version(name) for name in ("torch", "optax", "jax")}
    made_by |= {"python": platform.python_version(), "machine": platform.machine()}
    cases_text = ",\n".join(lines)
    text = f'{{"made_by": {json.dumps(made_by)},\n"start": {json.dumps(START)},\n"cases": [\n{cases_text}\n]}}\n'
    Path(path).write_text(text)


if __name__ == "__main__":
    main(sys.argv[1])
