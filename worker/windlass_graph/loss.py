"""`wl.loss`: losses as blocks.

    loss = wl.loss.SoftmaxCrossEntropy()
    losses = loss(scores, labels)               # one number a sample
    losses = loss(scores, labels, weights)      # each weighed

Invariant: a loss gives one number for each sample, the mean over all axes but the batch's, as MXNet's do; whoever wants
the loss of a batch takes its mean. `weight` multiplies every element; `sample_weight`, of the batch's length or of a
shape that broadcasts against the elements, multiplies before the mean, whose divisor stays the number of elements.
Labels take the shape of the predictions, so that a label of (N,) never broadcasts against scores of (N, 1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from windlass_graph import functions as F  # noqa: N812 - what the field calls it
from windlass_graph.nn.hybrid_block import HybridBlock
from windlass_proto.arguments import did_you_mean, unknown_name
from windlass_proto.errors import UsageError

__all__ = [
    "CTC",
    "L1",
    "L2",
    "CosineEmbedding",
    "Hinge",
    "Huber",
    "KLDiv",
    "Logistic",
    "Loss",
    "Paired",
    "PoissonNLL",
    "SigmoidBinaryCrossEntropy",
    "SoftmaxCrossEntropy",
    "SquaredHinge",
    "Triplet",
]

_TINY = 1e-12


class Loss(HybridBlock):
    """What all losses share: the weights and the mean. One's own says in `forward` what it costs and reduces it.

    Args:
        weight: factor of every element.
        batch_axis: the axis of samples.
    """

    def __init__(self, weight: float = 1.0, batch_axis: int = 0) -> None:
        super().__init__()
        self.weight = weight
        self.batch_axis = batch_axis

    def reduced(self, losses: Any, sample_weight: Any) -> Any:
        """Elements weighed, and their mean over all axes but the batch's."""
        if self.weight != 1:
            losses = losses * self.weight
        alike = sample_weight is not None and _rank(sample_weight) == _rank(losses)
        if alike:
            losses = losses * sample_weight
        if self.batch_axis:
            axes = tuple(axis for axis in range(losses.ndim) if axis != self.batch_axis % losses.ndim)
            means = F.mean(losses, axis=axes)
            return means if sample_weight is None or alike else means * sample_weight
        rows = F.flatten(losses)
        if sample_weight is not None and not alike:
            rows = rows * F.flatten(sample_weight)
        return F.mean(rows, axis=1)

    def settings(self) -> str:
        return "" if self.weight == 1 else f"weight={self.weight}"


class Paired(Loss):
    """A loss of a prediction and a label; one's own says in `elements` what each element costs."""

    def forward(self, prediction: Any, label: Any, sample_weight: Any = None) -> Any:
        """One number a sample."""
        return self.reduced(self.elements(prediction, label), sample_weight)

    def elements(self, prediction: Any, label: Any) -> Any:
        """The loss of each element, of the batch's length along `batch_axis`."""
        raise UsageError("a loss has no elements", next_move="Define elements(self, prediction, label).")


def _rank(operand: Any) -> int | None:
    return None if operand.shape is None else len(operand.shape)


def _like(label: Any, prediction: Any) -> Any:
    return F.reshape_like(label, prediction)


def _stable_log1p_exp(x: Any) -> Any:
    """log(1 + exp(-|x|)), which never overflows."""
    return F.softplus(-abs(x))


class L1(Paired):
    """|prediction - label|."""

    def elements(self, prediction: Any, label: Any) -> Any:
        return abs(prediction - _like(label, prediction))


class L2(Paired):
    """(prediction - label)^2 / 2."""

    def elements(self, prediction: Any, label: Any) -> Any:
        return F.square(prediction - _like(label, prediction)) * 0.5


class SoftmaxCrossEntropy(Paired):
    """-log(softmax(prediction)[label]); with distributions as labels the mean under them.

    Args:
        axis: the axis of classes.
        sparse_label: labels are class indices, without that axis; otherwise distributions of the predictions' shape.
        from_logits: predictions are logarithms of probabilities already.
        weight: factor of every element.
        batch_axis: the axis of samples.
    """

    def __init__(
        self,
        axis: int = -1,
        *,
        sparse_label: bool = True,
        from_logits: bool = False,
        weight: float = 1.0,
        batch_axis: int = 0,
    ) -> None:
        super().__init__(weight, batch_axis)
        self.axis = axis
        self.sparse_label = sparse_label
        self.from_logits = from_logits

    def elements(self, prediction: Any, label: Any) -> Any:
        if not self.sparse_label:
            log_p = prediction if self.from_logits else F.log_softmax(prediction, axis=self.axis)
            return -F.sum(log_p * _like(label, log_p), axis=self.axis)
        if self.axis != -1 and self.axis != prediction.ndim - 1:
            order = [axis for axis in range(prediction.ndim) if axis != self.axis % prediction.ndim]
            prediction = F.transpose(prediction, axes=(*order, self.axis % prediction.ndim))
        if _rank(label) is not None and _rank(label) == _rank(prediction):
            label = F.squeeze(label, axis=self.axis)
        return -F.pick(prediction, label) if self.from_logits else F.softmax_cross_entropy(prediction, label)


class SigmoidBinaryCrossEntropy(Loss):
    """-label log p - (1 - label) log(1 - p) with p = sigmoid(prediction), computed without overflow.

    max(x, 0) - x label + log(1 + exp(-|x|))

    Args:
        from_sigmoid: predictions are probabilities already; logarithms are then taken of p + 1e-12.
        weight: factor of every element.
        batch_axis: the axis of samples.
    """

    def __init__(self, *, from_sigmoid: bool = False, weight: float = 1.0, batch_axis: int = 0) -> None:
        super().__init__(weight, batch_axis)
        self.from_sigmoid = from_sigmoid

    def forward(self, prediction: Any, label: Any, sample_weight: Any = None, pos_weight: Any = None) -> Any:
        """One number a sample; `pos_weight` multiplies the part of positive labels."""
        label = _like(label, prediction)
        if self.from_sigmoid:
            positive = F.log(prediction + _TINY) * label
            negative = F.log(1 - prediction + _TINY) * (1 - label)
            losses = -(negative + (positive if pos_weight is None else positive * pos_weight))
        elif pos_weight is None:
            losses = F.relu(prediction) - prediction * label + _stable_log1p_exp(prediction)
        else:
            both = 1 + (pos_weight - 1) * label
            losses = prediction * (1 - label) + both * (_stable_log1p_exp(prediction) + F.relu(-prediction))
        return self.reduced(losses, sample_weight)


class KLDiv(Paired):
    """label (log(label + 1e-12) - log p): the divergence of p from label, before the mean.

    Args:
        from_logits: predictions are log p; otherwise scores, of which log softmax is taken along `axis`.
        axis: of classes.
        weight: factor of every element.
        batch_axis: the axis of samples.
    """

    def __init__(self, *, from_logits: bool = True, axis: int = -1, weight: float = 1.0, batch_axis: int = 0) -> None:
        super().__init__(weight, batch_axis)
        self.from_logits = from_logits
        self.axis = axis

    def elements(self, prediction: Any, label: Any) -> Any:
        log_p = prediction if self.from_logits else F.log_softmax(prediction, axis=self.axis)
        label = _like(label, log_p)
        return label * (F.log(label + _TINY) - log_p)


class Huber(Paired):
    """(d^2) / (2 rho) for |d| <= rho, |d| - rho / 2 beyond. Source: Huber, Annals of Mathematical Statistics 35, 1964;
    over rho, so that the slope beyond is 1."""

    def __init__(self, rho: float = 1.0, *, weight: float = 1.0, batch_axis: int = 0) -> None:
        super().__init__(weight, batch_axis)
        if not rho > 0:
            raise UsageError("Huber takes rho above 0", rho=rho)
        self.rho = rho

    def elements(self, prediction: Any, label: Any) -> Any:
        distance = abs(prediction - _like(label, prediction))
        return F.where(distance > self.rho, distance - 0.5 * self.rho, F.square(distance) * (0.5 / self.rho))


class Hinge(Paired):
    """max(0, margin - prediction label), labels -1 and 1."""

    def __init__(self, margin: float = 1.0, *, weight: float = 1.0, batch_axis: int = 0) -> None:
        super().__init__(weight, batch_axis)
        self.margin = margin

    def elements(self, prediction: Any, label: Any) -> Any:
        return F.relu(self.margin - prediction * _like(label, prediction))


class SquaredHinge(Paired):
    """max(0, margin - prediction label)^2, labels -1 and 1."""

    def __init__(self, margin: float = 1.0, *, weight: float = 1.0, batch_axis: int = 0) -> None:
        super().__init__(weight, batch_axis)
        self.margin = margin

    def elements(self, prediction: Any, label: Any) -> Any:
        return F.square(F.relu(self.margin - prediction * _like(label, prediction)))


class Logistic(Paired):
    """log(1 + exp(-prediction label)), computed without overflow.

    Args:
        label_format: "signed" for labels -1 and 1, "binary" for 0 and 1.
        weight: factor of every element.
        batch_axis: the axis of samples.
    """

    def __init__(self, label_format: str = "signed", *, weight: float = 1.0, batch_axis: int = 0) -> None:
        super().__init__(weight, batch_axis)
        if label_format not in ("signed", "binary"):
            move = did_you_mean(str(label_format), ("signed", "binary"))
            raise UsageError("this is no label_format", next_move=move, got=label_format)
        self.label_format = label_format

    def elements(self, prediction: Any, label: Any) -> Any:
        label = _like(label, prediction)
        if self.label_format == "signed":
            label = (label + 1) * 0.5
        return F.relu(prediction) - prediction * label + _stable_log1p_exp(prediction)


class Triplet(Loss):
    """max(0, |prediction - positive|^2 - |prediction - negative|^2 + margin), squares summed over a sample.

    Source: Schroff, Kalenichenko and Philbin, FaceNet, CVPR 2015, equation 1.
    """

    def __init__(self, margin: float = 1.0, *, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.margin = margin

    def forward(self, prediction: Any, positive: Any, negative: Any, sample_weight: Any = None) -> Any:
        """One number a sample."""
        near = F.square(prediction - _like(positive, prediction))
        far = F.square(prediction - _like(negative, prediction))
        losses = F.relu(F.sum(F.flatten(near - far), axis=1) + self.margin)
        return self.reduced(losses, sample_weight)


class CosineEmbedding(Loss):
    """1 - cos(one, other) where the label is 1, max(0, cos(one, other) - margin) where it is -1.

    The cosine is that of the last axis.
    """

    def __init__(self, margin: float = 0.0, *, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.margin = margin

    def forward(self, one: Any, other: Any, label: Any, sample_weight: Any = None) -> Any:
        """One number a sample."""
        other = _like(other, one)
        lengths = F.sqrt(F.sum(F.square(one), axis=-1) * F.sum(F.square(other), axis=-1))
        cosine = F.sum(one * other, axis=-1) / F.maximum(lengths, _TINY)
        losses = F.where(_like(label, cosine) > 0, 1 - cosine, F.relu(cosine - self.margin))
        return self.reduced(losses, sample_weight)


class PoissonNLL(Paired):
    """exp(prediction) - label prediction: the negative logarithm of a Poisson's likelihood without what is constant.

    MXNet's gives the mean of the batch; here it is one number a sample, as of every loss.

    Args:
        from_logits: predictions are logarithms of rates; otherwise rates, of which log(rate + 1e-8) is taken.
        compute_full: add Stirling's approximation of log(label!) for labels above 1.
        weight: factor of every element.
        batch_axis: the axis of samples.
    """

    def __init__(
        self,
        *,
        from_logits: bool = True,
        compute_full: bool = False,
        weight: float = 1.0,
        batch_axis: int = 0,
    ) -> None:
        super().__init__(weight, batch_axis)
        self.from_logits = from_logits
        self.compute_full = compute_full

    def elements(self, prediction: Any, label: Any) -> Any:
        label = _like(label, prediction)
        if self.from_logits:
            losses = F.exp(prediction) - label * prediction
        else:
            losses = prediction - label * F.log(prediction + 1e-8)
        if not self.compute_full:
            return losses
        above = F.maximum(F.cast_like(label, prediction), 1.0)
        stirling = above * F.log(above) - above + F.log(above * (2 * math.pi)) * 0.5
        return losses + F.where(label > 1, stirling, 0.0)


class CTC(Loss):
    """-log of the probability that softmax(prediction) spells the labels, summed over all alignments.

    Source: Graves et al., Connectionist temporal classification, ICML 2006.

    Args:
        layout: of the predictions, "NTC" (batch, steps, classes) or "TNC".
        blank: the class that is no label; -1, the last, as MXNet's.
        weight: factor of every loss.

    Labels are (batch, labels). What is below 0 pads them, unless `label_lengths` are given.
    """

    def __init__(self, layout: str = "NTC", blank: int = -1, *, weight: float = 1.0) -> None:
        super().__init__(weight)
        if layout not in ("NTC", "TNC"):
            raise UsageError("this is no layout", next_move=did_you_mean(str(layout), ("NTC", "TNC")), got=layout)
        self.layout = layout
        self.blank = blank

    def forward(
        self,
        prediction: Any,
        label: Any,
        input_lengths: Any = None,
        label_lengths: Any = None,
        sample_weight: Any = None,
    ) -> Any:
        """One number a sequence."""
        if self.layout == "NTC":
            prediction = F.transpose(prediction, axes=(1, 0, 2))
        steps, _, classes = prediction.shape
        lengths = F.sum(F.cast(label >= 0, dtype="int32"), axis=1) if label_lengths is None else label_lengths
        if input_lengths is None:
            input_lengths = F.zeros_like(lengths) + steps
        blank = self.blank % classes if -classes <= self.blank < 0 else self.blank
        losses = F.ctc_loss(prediction, label, input_lengths, lengths, blank=blank)
        return self.reduced(losses, sample_weight)


if not TYPE_CHECKING:  # type checkers say it by themselves

    def __getattr__(name: str) -> Any:
        raise unknown_name("windlass.loss", name, __all__)
