"""Activations as blocks.

Most are one op; PReLU and a Swish with a factor are compositions, which the fusing pass makes one kernel of.
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

_ACTIVATIONS: Final[Mapping[str, str]] = {
    **{
        name: name
        for name in (
            "elu", "gelu", "gelu_tanh", "hard_sigmoid", "leaky_relu", "mish", "relu", "selu", "sigmoid", "silu",
            "softplus", "softsign", "tanh",
        )
    },
    "softrelu": "softplus",
    "swish": "silu",
}  # fmt: skip
"""The op of each name; softrelu is MXNet's name."""


def activation(name: str) -> Callable[[Any], Any]:
    """The function of an activation's name.

    Raises:
        UsageError: there is none.
    """
    if name not in _ACTIVATIONS:
        raise UsageError(f"there is no activation {name!r}", next_move=did_you_mean(str(name), _ACTIVATIONS))
    return function(_ACTIVATIONS[name])


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
        return function("elu")(x, alpha=self.alpha)

    def settings(self) -> str:
        return f"{self.alpha}"


class SELU(HybridBlock):
    """An ELU scaled so that activations keep mean 0 and variance 1.

    Source: Klambauer et al., Self-normalizing neural networks, NeurIPS 2017.
    """

    def forward(self, x: Any) -> Any:
        return function("selu")(x)


class Swish(HybridBlock):
    """x * sigmoid(beta * x). Source: Ramachandran, Zoph and Le, Searching for activation functions, 2017."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Any) -> Any:
        return function("silu")(x) if self.beta == 1 else x * function("sigmoid")(x * self.beta)


class SiLU(HybridBlock):
    """x * sigmoid(x)."""

    def forward(self, x: Any) -> Any:
        return function("silu")(x)


class GELU(HybridBlock):
    """x times the normal distribution's share below x. Source: Hendrycks and Gimpel, Gaussian error linear units, 2016.

    Args:
        approximation: "erf" is exact; "tanh" is the paper's approximation.
    """

    def __init__(self, approximation: str = "erf") -> None:
        super().__init__()
        if approximation not in ("erf", "tanh"):
            move = did_you_mean(str(approximation), ("erf", "tanh"))
            raise UsageError("this is no approximation of GELU", next_move=move, got=approximation)
        self.approximation = approximation

    def forward(self, x: Any) -> Any:
        return function("gelu" if self.approximation == "erf" else "gelu_tanh")(x)

    def settings(self) -> str:
        return self.approximation
