"""Update rules that servers run. Those that `torch.optim` has bear its names, arguments and defaults."""

from windlass_proto.rule_specs import (
    FTML,
    FTRL,
    SGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    NAdam,
    RMSprop,
    Signum,
    Sum,
    from_name,
)

__all__ = [
    "FTML",
    "FTRL",
    "SGD",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "RMSprop",
    "Signum",
    "Sum",
    "from_name",
]
