"""Own rules on the worker's side: a name and hyper-parameters, tried where the rule's package is installed.

    optimizer = wl.optim.own("heavy_ball", lr=0.1, beta=0.9)

The servers run the rule, if they were started with `--allow-rule heavy_ball`; its code is never sent. A worker needs
the package only to be told of bad values before anything is declared.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from windlass_proto import own_rules
from windlass_proto.errors import UsageError
from windlass_proto.own_rules import ENTRY_POINTS, OwnRule


def own(name: str, *, version: str | None = None, **hyper_parameters: Any) -> OwnRule:
    """The rule `name` of a package that the servers have.

    Args:
        version: of the package. None: the one installed here, or else whichever all servers have.
        hyper_parameters: those that its `Spec` has; what is not given has the rule's default. `lr` and `weight_decay`
            may be schedules.

    Raises:
        UsageError: a value is none that can be sent, or the rule, where it is installed here, refuses it.
    """
    given = own_rules.own(name, version or "", hyper_parameters)
    found = list(importlib.metadata.entry_points(group=ENTRY_POINTS, name=name))
    if not found:
        return given
    here = found[0].dist.version if found[0].dist is not None else ""
    if version is not None and here != version:
        raise UsageError(
            "an update rule is installed in another version",
            rule=name,
            asked=version,
            installed=here,
            next_move="Install the version that is asked for, or ask for none.",
        )
    own_rules.tried(found[0].load().Spec, given)
    return own_rules.own(name, here, hyper_parameters)
