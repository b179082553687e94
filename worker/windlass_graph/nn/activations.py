"""Activations as blocks.

Those that are one op are that op; the others are compositions, which the fusing pass makes one kernel of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from windlass_graph.functions import function
from windlass_graph.initializers import Initializer
from windlass_graph.nn.hybrid_block import HybridBlock
from windlass_graph.nn.parameter import Parameter
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError

_SELU_ALPHA: Final = 1.6732632423543772
_SELU_SCALE: Final = 1.0507009873554805


def _elu(x: Any, alpha: float = 1.0) -> Any:
    below = function("expm1")(function("minimum")(x, 0.0)) * alpha
    return function("where")(x > 0, x, below)


def _selu(x: Any) -> Any:
    return _elu(x, _SELU_ALPHA) * _SELU_SCALE


def _silu(x: Any) -> Any:
    return x * function("sigmoid")(x)


def _softsign(x: Any) -> Any:
    return x / (abs(x) + 1)


def _mish(x: Any) -> Any:
    return x * function("tanh")(function("softplus")(x))


def _op(name: str) -> Callable[[Any], Any]:
    def call(x: Any) -> Any:
        return function(name)(x)

    return call


_ACTIVATIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "relu": _op("relu"),
    "sigmoid": _op("sigmoid"),
    "tanh": _op("tanh"),
    "softplus": _op("softplus"),
    "softsign": _softsign,
    "selu": _selu,
    "elu": _elu,
    "silu": _silu,
    "swish": _silu,
    "mish": _mish,
}


def activation(name: str) -> Callable[[Any], Any]:
    """The function of an activation's name.

    Raises:
        UsageError: there is none.
    """
    found = _ACTIVATIONS.get(name)
    if found is None:
        raise UsageError(f"there is no activation {name!r}", next_move=did_you_mean(str(name), _ACTIVATIONS))
    return found


class Activation(HybridBlock):
    """An activation by its name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._function = activation(name)

    def forward(self, x: Any) -> Any:
        return self._function(x)

    def settings(self) -> str:
        return self.name


class LeakyReLU(HybridBlock):
    """x above 0, slope * x below."""

    def __init__(self, slope: float = 0.01) -> None:
        super().__init__()
        if slope < 0:
            raise UsageError("a leaky rectifier's slope is 0 or more", slope=slope)
        self.slope = slope

    def forward(self, x: Any) -> Any:
        return function("leaky_relu")(x, slope=self.slope)

    def settings(self) -> str:
        return f"{self.slope}"


class PReLU(HybridBlock):
    """x above 0, alpha * x below, with alpha learned: one, or one for each channel (axis 1).

    Source: He et al., Delving deep into rectifiers, ICCV 2015, section 2.1.
    """

    def __init__(self, in_channels: int = 1, alpha_initializer: Initializer | str | None = None) -> None:
        super().__init__()
        self.alpha = Parameter((in_channels,), init=_Quarter() if alpha_initializer is None else alpha_initializer)

    def forward(self, x: Any) -> Any:
        alpha = self.alpha.data()
        if alpha.shape != (1,) and x.ndim > 2:
            alpha = alpha.reshape(-1, *[1] * (x.ndim - 2))
        return function("where")(x > 0, x, x * alpha)


class _Quarter:
    """The first alpha of the paper."""

    value = 0.25


class ELU(HybridBlock):
    """x above 0, alpha * (exp(x) - 1) below.

    Source: Clevert, Unterthiner and Hochreiter, Fast and accurate deep network learning by ELUs, ICLR 2016.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Any) -> Any:
        return _elu(x, self.alpha)

    def settings(self) -> str:
        return f"{self.alpha}"


class SELU(HybridBlock):
    """An ELU scaled so that activations keep mean 0 and variance 1.

    Source: Klambauer et al., Self-normalizing neural networks, NeurIPS 2017.
    """

    def forward(self, x: Any) -> Any:
        return _selu(x)


class Swish(HybridBlock):
    """x * sigmoid(beta * x). Source: Ramachandran, Zoph and Le, Searching for activation functions, 2017."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Any) -> Any:
        return _silu(x) if self.beta == 1 else x * function("sigmoid")(x * self.beta)


class SiLU(HybridBlock):
    """x * sigmoid(x)."""

    def forward(self, x: Any) -> Any:
        return _silu(x)
