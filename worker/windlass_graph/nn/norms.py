"""Normalisations as layers: by batch, by layer, by groups of channels, by instance.

Invariant: batch norm's moving averages are parameters that no gradient reaches; each forward in training mode moves
them, at once or by the compiled graph.
"""

from __future__ import annotations

from typing import Any

from windlass_graph.functions import function
from windlass_graph.initializers import Initializer
from windlass_graph.nn.hybrid_block import HybridBlock
from windlass_graph.nn.layers import count
from windlass_graph.nn.parameter import Parameter


def _affine(size: int | None, init: Initializer | str, learned: bool) -> Parameter:
    """Gamma or beta; one that is not learned stays as it begins."""
    return Parameter((size,), init=init, grad_req="write" if learned else "null")


class BatchNorm(HybridBlock):
    """Each channel (axis 1) less its mean over its deviation, times gamma plus beta.

    In training by the batch's mean and variance, and the moving averages become momentum * average + (1 - momentum) *
    the batch's; in prediction by the averages. Source: Ioffe and Szegedy, Batch normalization, ICML 2015.

    Args:
        momentum: share of the averages that is kept.
        epsilon: added to the variance.
        center: whether beta is learned.
        scale: whether gamma is learned.
        use_global_stats: by the averages in training too.
        in_channels: told by the first forward unless given.
    """

    def __init__(
        self,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        *,
        center: bool = True,
        scale: bool = True,
        use_global_stats: bool = False,
        beta_initializer: Initializer | str = "zeros",
        gamma_initializer: Initializer | str = "ones",
        running_mean_initializer: Initializer | str = "zeros",
        running_variance_initializer: Initializer | str = "ones",
        in_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon
        self.use_global_stats = use_global_stats
        size = None if in_channels is None else count("in_channels", in_channels)
        self.gamma = _affine(size, gamma_initializer, scale)
        self.beta = _affine(size, beta_initializer, center)
        self.running_mean = Parameter((size,), init=running_mean_initializer, differentiable=False)
        self.running_var = Parameter((size,), init=running_variance_initializer, differentiable=False)

    def forward(self, x: Any) -> Any:
        operands = [self.gamma.data(), self.beta.data(), self.running_mean.data(), self.running_var.data()]
        attrs: dict[str, Any] = {"momentum": self.momentum, "epsilon": self.epsilon}
        if self.use_global_stats:
            attrs["training"] = False
        return function("batch_norm")(x, *operands, **attrs)

    def settings(self) -> str:
        return _channels(self.gamma)


class LayerNorm(HybridBlock):
    """Each row of the last axis less its mean over its deviation, times gamma plus beta.

    Source: Ba, Kiros and Hinton, Layer normalization, 2016.
    """

    def __init__(
        self,
        epsilon: float = 1e-5,
        *,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Initializer | str = "zeros",
        gamma_initializer: Initializer | str = "ones",
        in_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        size = None if in_channels is None else count("in_channels", in_channels)
        self.gamma = _affine(size, gamma_initializer, scale)
        self.beta = _affine(size, beta_initializer, center)

    def forward(self, x: Any) -> Any:
        return function("layer_norm")(x, self.gamma.data(), self.beta.data(), epsilon=self.epsilon)

    def settings(self) -> str:
        return _channels(self.gamma)


class GroupNorm(HybridBlock):
    """Each image's groups of channels (axis 1) less their mean over their deviation, times gamma plus beta by channel.

    Source: Wu and He, Group normalization, ECCV 2018.
    """

    def __init__(
        self,
        num_groups: int = 1,
        epsilon: float = 1e-5,
        *,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Initializer | str = "zeros",
        gamma_initializer: Initializer | str = "ones",
        in_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.num_groups = count("num_groups", num_groups)
        self.epsilon = epsilon
        size = None if in_channels is None else count("in_channels", in_channels)
        self.gamma = _affine(size, gamma_initializer, scale)
        self.beta = _affine(size, beta_initializer, center)

    def forward(self, x: Any) -> Any:
        attrs = {"groups": self.num_groups, "epsilon": self.epsilon}
        return function("group_norm")(x, self.gamma.data(), self.beta.data(), **attrs)

    def settings(self) -> str:
        return f"{_channels(self.gamma)}, groups={self.num_groups}"


class InstanceNorm(HybridBlock):
    """Each channel of each image (axis 1) less its mean over its deviation, times gamma plus beta.

    Source: Ulyanov, Vedaldi and Lempitsky, Instance normalization, 2016.
    """

    def __init__(
        self,
        epsilon: float = 1e-5,
        *,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Initializer | str = "zeros",
        gamma_initializer: Initializer | str = "ones",
        in_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        size = None if in_channels is None else count("in_channels", in_channels)
        self.gamma = _affine(size, gamma_initializer, scale)
        self.beta = _affine(size, beta_initializer, center)

    def forward(self, x: Any) -> Any:
        attrs = {"groups": int(x.shape[1]), "epsilon": self.epsilon}
        return function("group_norm")(x, self.gamma.data(), self.beta.data(), **attrs)

    def settings(self) -> str:
        return _channels(self.gamma)


def _channels(gamma: Parameter) -> str:
    size = None if gamma.shape is None else gamma.shape[0]
    return "?" if size is None else f"{size}"
