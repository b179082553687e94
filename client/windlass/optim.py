"""Update rules that servers run, named as in `torch.optim`."""

from windlass_proto.rule_specs import SGD, Adagrad, Adam, AdamW

__all__ = ["SGD", "Adagrad", "Adam", "AdamW"]
