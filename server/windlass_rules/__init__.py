"""Update rules: optimizers as pure functions over arrays, compiled when they are declared.

`build(spec, dtype)` gives the kernels of a rule, from the cache of compiled code where they are in it, `reduce`
combines gradients. Servers import this package, and so do workers that train without a cluster; it knows neither shares
nor frames.
"""

from windlass_rules.registry import RuleKernels, build, check_arrays
from windlass_rules.rule import Slot

__all__ = ["RuleKernels", "Slot", "build", "check_arrays"]
