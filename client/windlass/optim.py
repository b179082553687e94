"""Update rules that servers run. Those that `torch.optim` has bear its names, arguments and defaults."""

from typing import TYPE_CHECKING, Any

from windlass.own_rule import own
from windlass_proto.arguments import unknown_name
from windlass_proto.rule_specs import (
    DCASGD,
    FTML,
    FTRL,
    LAMB,
    LARS,
    SGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    GroupAdagrad,
    GroupFTRL,
    Lion,
    NAdam,
    RMSprop,
    RowWiseAdagrad,
    Signum,
    Sum,
    from_name,
)

__all__ = [
    "DCASGD",
    "FTML",
    "FTRL",
    "LAMB",
    "LARS",
    "SGD",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "GroupAdagrad",
    "GroupFTRL",
    "Lion",
    "NAdam",
    "RMSprop",
    "RowWiseAdagrad",
    "Signum",
    "Sum",
    "from_name",
    "own",
]

if not TYPE_CHECKING:  # type checkers say it by themselves

    def __getattr__(name: str) -> Any:
        raise unknown_name("windlass.optim", name, __all__)
