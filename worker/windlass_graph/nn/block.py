"""Blocks: parameters and other blocks under one name each, and a `forward` over them.

Invariant: what is assigned to an attribute is registered under the attribute's name, so every parameter has one
structural name, its path ("features.0.weight"), which depends on the code alone and is equal on every worker. A
parameter that is shared by several blocks carries the first of its names. A block whose children or parameters change
makes the blocks that compiled it forget what they compiled.

Prior art: MXNet's Gluon, whose vocabulary this is.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

from windlass_graph.array import Array, array_of
from windlass_graph.device import Device, seed_of_thread
from windlass_graph.initializers import Initializer, resolved
from windlass_graph.nn import parameter_file
from windlass_graph.nn.parameter import Parameter
from windlass_graph.nn.structure import flattened, rebuilt
from windlass_graph.nn.trace import Trace, current_device, current_trace, on_device, tracing_into
from windlass_graph.operand import Operand
from windlass_graph.passes.recompute import Policy
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError

_SETTABLE = ("decay_mult", "grad_req", "init", "lr_mult")

PreHook = Callable[["Block", tuple[Any, ...]], None]
Hook = Callable[["Block", tuple[Any, ...], Any], None]


class Attached:
    """A hook that is attached to a block."""

    def __init__(self, hooks: list[Any], hook: Any) -> None:
        self._hooks = hooks
        self._hook = hook

    def detach(self) -> None:
        """The hook is called no more."""
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


class Block:
    """A part of a net. Subclasses make children and parameters in `__init__` and say in `forward` what they compute.

    Example:
        class Net(nn.Block):
            def __init__(self):
                super().__init__()
                self.hidden = nn.Dense(64, activation="relu")
                self.out = nn.Dense(10)

            def forward(self, x):
                return self.out(self.hidden(x))
    """

    def __init__(self) -> None:
        object.__setattr__(self, "_children", {})
        object.__setattr__(self, "_own", {})
        self._hooks = []
        self._pre_hooks = []
        self._compiled_by = WeakSet()

    _children: dict[str, Block]
    _own: dict[str, Parameter]
    _hooks: list[Hook]
    _pre_hooks: list[PreHook]
    _compiled_by: WeakSet[Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block computes; written by subclasses with operators, `wl.F` and calls of children."""
        raise UsageError("a block has no forward", next_move="Define forward(self, x).", block=type(self).__name__)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Block | Parameter):
            self._register(name, value)
        elif name in self.__dict__.get("_children", ()) or name in self.__dict__.get("_own", ()):
            self._unregister(name)
        elif isinstance(value, list | tuple | dict):
            self._refuse_hidden(name, value.values() if isinstance(value, dict) else value)
        object.__setattr__(self, name, value)

    def _refuse_hidden(self, name: str, values: Iterable[Any]) -> None:
        """Refuse blocks and parameters in a list or dict, where nothing would find them."""
        known = {id(each) for each in (*self._children.values(), *self._own.values())}
        if any(isinstance(each, Block | Parameter) and id(each) not in known for each in values):
            raise UsageError(
                "a list or dict hides blocks or parameters from the block that holds it",
                next_move="Use a Sequential, give each an attribute, or register_child(block) before.",
                block=type(self).__name__,
                attribute=name,
            )

    def __delattr__(self, name: str) -> None:
        self._unregister(name)
        object.__delattr__(self, name)

    def _register(self, name: str, value: Block | Parameter) -> None:
        if "_children" not in self.__dict__:
            raise UsageError(
                "a block was given a child before it was made",
                next_move="Call super().__init__() first in __init__.",
                block=type(self).__name__,
                attribute=name,
            )
        if "." in name:
            raise UsageError("a part of a path has no full stop", block=type(self).__name__, attribute=name)
        self._check_child(name, value)
        self._unregister(name)
        if isinstance(value, Block):
            self._children[name] = value
        else:
            self._own[name] = value
            value.name = value.name or name

    def _check_child(self, name: str, value: Block | Parameter) -> None:
        """Refuse what this kind of block cannot hold."""

    def _unregister(self, name: str) -> None:
        self._children.pop(name, None)
        self._own.pop(name, None)
        self.forget_compiled()

    def forget_compiled(self) -> None:
        """Blocks that compiled this one compile again when they are called next."""
        for block in list(self._compiled_by):
            block.clear_cache()

    def register_child(self, block: Block, name: str | None = None) -> None:
        """Register a child under a name, its number unless given."""
        if not isinstance(block, Block):
            raise UsageError(
                "a child is a block",
                next_move="Make one of the class first."
                if isinstance(block, type)
                else "Wrap a function in nn.Lambda.",
                block=type(self).__name__,
                got=block.__name__ if isinstance(block, type) else type(block).__name__,
            )
        self._register(name or str(len(self._children)), block)

    @property
    def children(self) -> Mapping[str, Block]:
        return self._children

    def blocks(self, path: str = "") -> Iterator[tuple[str, Block]]:
        """This block and all below it with their paths, a block that is reached twice once."""
        yield from self._walk(path, set())

    def _walk(self, path: str, seen: set[int]) -> Iterator[tuple[str, Block]]:
        if id(self) in seen:
            return
        seen.add(id(self))
        yield path, self
        for name, child in self._children.items():
            yield from child._walk(f"{path}.{name}" if path else name, seen)

    def collect_params(self, *patterns: str) -> dict[str, Parameter]:
        """Parameters of this block and all below it, by structural name.

        Args:
            patterns: keep the names that one of them fits; those of fnmatch, so "*bias" is every bias.

        Raises:
            UsageError: a pattern fits no name.
        """
        found: dict[str, Parameter] = {}
        seen: set[int] = set()
        for path, block in self.blocks():
            for name, parameter in block._own.items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    found[f"{path}.{name}" if path else name] = parameter
        if not patterns:
            return found
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in found):
                raise UsageError(
                    "a pattern fits no parameter",
                    next_move="Patterns are those of fnmatch: * stands for anything, and case counts.",
                    pattern=pattern,
                    parameters=", ".join(found),
                )
        return {
            name: parameter
            for name, parameter in found.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        }

    def initialize(
        self,
        init: Initializer | str = "xavier",
        *,
        device: str | Device | Sequence[str | Device] | None = None,
        seed: int | None = None,
        force: bool = False,
    ) -> None:
        """Give every parameter first values, those whose shape is unknown as soon as a forward tells it.

        Args:
            init: for parameters without an initializer of their own.
            device: one, or several, each with a copy of the same values; `cpu:0` unless given.
            seed: the values follow from it and the structural names alone; that of `wl.nd.seed`, else 0.
            force: draw again for parameters that have values.
        """
        net = resolved(init)
        drawn_from = seed_of_thread() if seed is None else seed
        for name, parameter in self.collect_params().items():
            parameter.name = name
            parameter.initialize(net, device=device, seed=drawn_from, force=force)

    def save_parameters(self, path: str | Path) -> None:
        """Write all parameters to a safetensors file, by structural name.

        Raises:
            UsageError: one has no values yet.
        """
        parameter_file.save(path, self.collect_params())

    def load_parameters(
        self,
        path: str | Path,
        *,
        device: str | Device | Sequence[str | Device] | None = None,
        allow_missing: bool = False,
        ignore_extra: bool = False,
        cast_dtype: bool = False,
    ) -> None:
        """Take all parameters from a file, or none of them if anything does not fit.

        Args:
            device: where parameters lie that were not initialised before.
            allow_missing: parameters that the file lacks keep what they have.
            ignore_extra: names that no parameter has are passed over.
            cast_dtype: values of another dtype are cast to the parameter's.

        Raises:
            UsageError: names, shapes or dtypes do not fit; each is said.
            CorruptionError: it is not a whole file of arrays.
        """
        parameters = self.collect_params()
        for name, parameter in parameters.items():
            parameter.name = name
        rules = parameter_file.Tolerance(allow_missing, ignore_extra, cast_dtype)
        parameter_file.load(path, parameters, rules, device)

    def zero_grad(self) -> None:
        """Set all gradients to 0; needed with grad_req "add"."""
        for parameter in self.collect_params().values():
            parameter.zero_grad()

    def setattr(self, name: str, value: Any) -> None:
        """Set an attribute of every parameter that can have it: grad_req, lr_mult, decay_mult, init.

        Raises:
            UsageError: parameters have no such attribute to set.
        """
        if name not in _SETTABLE:
            raise UsageError(
                "parameters have no such attribute to set", next_move=did_you_mean(name, _SETTABLE), attribute=name
            )
        for parameter in self.collect_params().values():
            if name != "grad_req" or parameter.differentiable:
                setattr(parameter, name, resolved(value) if name == "init" else value)

    def cast(self, dtype: Any) -> Self:
        """Keep float parameters in another dtype."""
        for parameter in self.collect_params().values():
            if parameter.dtype.startswith("float"):
                parameter.cast(dtype)
        return self

    def reset_device(self, device: str | Device | Sequence[str | Device]) -> None:
        """Bring all parameters to other devices, with their values."""
        for parameter in self.collect_params().values():
            parameter.reset_device(device)

    def apply(self, function: Callable[[Block], object]) -> Self:
        """Call `function` with every block below this one, children first, and with this one."""
        for block in reversed([block for _, block in self.blocks()]):
            function(block)
        return self

    def register_forward_hook(self, hook: Hook) -> Attached:
        """Call `hook(block, inputs, output)` after each forward; inside a compiled block once, with symbols."""
        self._hooks.append(hook)
        return Attached(self._hooks, hook)

    def register_forward_pre_hook(self, hook: PreHook) -> Attached:
        """Call `hook(block, inputs)` before each forward; inside a compiled block once, with symbols."""
        self._pre_hooks.append(hook)
        return Attached(self._pre_hooks, hook)

    def hybridize(self, active: bool = True, *, recompute: Policy | None = None) -> None:
        """Compile the hybrid blocks below this one for each signature they are called with."""
        for child in self._children.values():
            child.hybridize(active, recompute=recompute)

    def summary(self, *inputs: Any) -> None:
        """Print a table of the blocks with output shapes and parameters, for these inputs."""
        from windlass_graph.nn.summary import summarised

        print(summarised(self, inputs))  # noqa: T201 - printing is its effect

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, between the hooks: of arrays (NumPy's are lifted), or of symbols, as symbols."""
        for before in list(self._pre_hooks):
            before(self, args)
        if current_device() is not None or current_trace() is not None:
            result = self._compute(args, kwargs)
        else:
            result = self._outermost(args, kwargs)
        for after in list(self._hooks):
            after(self, args, result)
        return result

    def _outermost(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Lift NumPy arrays, and compute where the inputs lie."""
        leaves, structure = flattened((args, kwargs))
        if not all(isinstance(leaf, Operand) for leaf in leaves):
            places = [leaf.device for leaf in leaves if isinstance(leaf, Array)]
            place = places[0] if places else None
            leaves = [leaf if isinstance(leaf, Operand) else array_of(leaf, device=place) for leaf in leaves]
            args, kwargs = rebuilt(structure, leaves)
        for leaf in leaves:
            if isinstance(leaf, Array):
                return on_device(leaf.device, self._compute, args, kwargs)
        if leaves:
            with tracing_into(self.trace()):
                return self._compute(args, kwargs)
        return self._compute(args, kwargs)

    def trace(self) -> Trace:
        """A trace of this block: inside it parameters are variables named by their paths."""
        paths = {id(block): path for path, block in self.blocks()}
        return Trace(self.collect_params(), paths, type(self).__name__)

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One forward, after what its own parameters waited for is told."""
        trace = current_trace()
        if trace is not None:
            with trace.within(self):
                return self.forward(*args, **kwargs)
        if self._own and any(parameter.is_deferred for parameter in self._own.values()):
            self._tell_shapes(args, kwargs)
        return self.forward(*args, **kwargs)

    def _tell_shapes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Finish deferred parameters from the inputs of a first forward."""
        waiting = [parameter.name for parameter in self._own.values() if parameter.is_deferred]
        raise UsageError(
            "a plain block cannot tell its parameters' shapes",
            next_move="Give them whole shapes, or make it a HybridBlock.",
            block=type(self).__name__,
            parameters=", ".join(waiting),
        )

    def settings(self) -> str:
        """What `repr` shows in brackets of a block without children."""
        return ""

    def __repr__(self) -> str:
        name = type(self).__name__
        if not self._children:
            return f"{name}({self.settings()})"
        lines = [f"  ({path}): " + repr(child).replace("\n", "\n  ") for path, child in self._children.items()]
        return "\n".join([f"{name}({self.settings()}", *lines, ")"])
