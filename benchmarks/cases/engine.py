"""Training steps of five models on CPU: the engine's three fronts, PyTorch eager, MXNet's gluon hybridized.

A step is forward, backward and an update by SGD, on a batch that is there already. All contenders are given the same
number of threads, which the setting states. Ratios compare the median times of a step, round by round; the processor
time of a step, of all threads, is what a busy machine changes least.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.case import Case, Extent
from benchmarks.child import Child
from benchmarks.contender import LOGS, Field, Fleet, View
from benchmarks.contest import Goal, best_of_each, outcome, references
from benchmarks.engine_models import MODELS, Model, batch_of, values_of
from benchmarks.load import Load
from benchmarks.peers.fleets import open_mxnet_models, open_torch_models, threads_environment
from benchmarks.report import GoalOutcome, Row
from benchmarks.rounds import Figure, compare
from windlass_graph import functions
from windlass_graph.compile import program_of
from windlass_graph.device import CPU
from windlass_graph.inference import typed
from windlass_graph.symbol import Variable
from windlass_graph.tensor_type import type_of
from windlass_graph.training_graph import training_graph

CASE = "engine"
FRONTS = ("hybridized", "symbolic", "imperative")
COMPILED, PLAIN = "windlass hybridized", "windlass imperative"
GOALS = {
    "mlp": (Goal(COMPILED, "torch", 1.0),),
    "lenet": (Goal(COMPILED, "mxnet", 1.2), Goal(COMPILED, "torch", 0.8)),
    "fm": (Goal(COMPILED, "torch", 1.0),),
}
SAVED_AT_LEAST = 0.4  # of LeNet's memory


def open_engine(threads: int) -> Fleet:
    """A process that trains on every front."""
    argv = [sys.executable, "-m", "benchmarks.engine_worker"]
    with ExitStack() as opened:
        worker = Child("windlass", argv, LOGS / "engine.log", threads_environment(threads))
        opened.callback(worker.close)
        return Fleet("windlass", [worker]).take_over(opened)


def engine(extent: Extent) -> Iterator[Row]:
    cores = os.cpu_count() or 1
    for threads in (1,) if extent.quick or cores == 1 else (1, cores):
        with Field() as field:
            fleet = field.enter("windlass", partial(open_engine, threads))
            if fleet is not None:
                field.replace(fleet, [front_of(fleet, front) for front in FRONTS])
            field.enter("torch eager", partial(open_torch_models, threads))
            field.enter("mxnet gluon hybridized", partial(open_mxnet_models, threads))
            for model in MODELS.values():
                yield from contested(model, threads, field, extent)


def front_of(fleet: Fleet | object, front: str) -> View:
    assert isinstance(fleet, Fleet), "what was opened is a fleet"

    def own(load: Load) -> Load:
        return Load(f"{load.key}/{front}", load.shapes)

    return View(f"windlass {front}", fleet, own)


def contested(model: Model, threads: int, field: Field, extent: Extent) -> Iterator[Row]:
    """One model, all contenders in turn; one that has no such layers is left out of this model alone."""
    setting = f"{model.name}, batch {model.batch}, {'1 thread' if threads == 1 else f'{threads} threads'}"
    load = Load(model.name, ((model.batch,),))  # one number a sample: what a step carries is not what it costs
    entered, missing = list(field.contenders), dict(field.not_measured)
    figures = compare(field, load, extent.pace)
    for figure in figures:
        yield row_of(model, setting, load, figure, figures)
    for contender, why in field.not_measured.items():
        yield Row(CASE, setting, contender, not_measured=why)
    field.contenders[:], field.not_measured = entered, missing


def row_of(model: Model, setting: str, load: Load, figure: Figure, figures: Sequence[Figure]) -> Row:
    shown = {
        "samples_per_s": model.batch / figure.seconds_p50,
        "p50_s": figure.seconds_p50,
        "p99_s": figure.seconds_p99,
        "cpu_s": figure.cpu_s_per_gb * 2 * load.payload_bytes / 1e9,
    }
    if not figure.contender.startswith("windlass"):
        return Row(CASE, setting, figure.contender, shown)
    others = references(figure.contender, best_of_each(figures))
    goals = tuple(
        outcome(goal, figure, others[goal.against])
        for goal in GOALS.get(model.name, ())
        if goal.ours == figure.contender and goal.against in others
    )
    if figure.contender != PLAIN:
        others |= {each.contender.split()[1]: each for each in figures if each.contender == PLAIN}
    ratios = {name: figure.times_as_fast_as(other) for name, other in others.items()}
    return Row(CASE, setting, figure.contender, shown, ratios, goals)


def memory(_: Extent) -> Iterator[Row]:
    """What all intermediate values of a training step take, by the plan and with memory of its own for each."""
    for model in MODELS.values():
        arena_bytes, unplanned_bytes = planned(model)
        saved = 1 - arena_bytes / unplanned_bytes
        figures = {
            "planned_mib": arena_bytes / 2**20,
            "unplanned_mib": unplanned_bytes / 2**20,
            "saved_percent": 100 * saved,
        }
        text = f"saves >= {SAVED_AT_LEAST:.0%}, is {saved:.1%}"
        goals = (GoalOutcome(text, saved >= SAVED_AT_LEAST),) if model.name == "lenet" else ()
        yield Row("engine-memory", f"{model.name}, batch {model.batch}", "windlass plan", figures, {}, goals)


def planned(model: Model) -> tuple[int, int]:
    """Bytes of the joint graph's intermediate values: in the arena, and unplanned; both after the passes."""
    names = [f"data{i}" for i in range(len(batch_of(model)))]
    variables = {name: Variable(name) for name in model.shapes}
    losses = model.losses(functions, [Variable(name) for name in names], variables)
    arrays = values_of(model) | dict(zip(names, batch_of(model), strict=True))
    graph = typed(losses.graph, {name: type_of(array) for name, array in arrays.items()}).checked()
    program = program_of(training_graph(graph, tuple(model.shapes), heads=True).graph, CPU)
    return program.arena_bytes, program.unplanned_bytes


CASES = (
    Case(CASE, "training steps on CPU: MLP, LeNet, LSTM, Transformer block, FM; three fronts, PyTorch, MXNet", engine),
    Case("engine-memory", "memory of a training step with the plan and without", memory),
)
