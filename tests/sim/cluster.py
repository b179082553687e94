"""A whole cluster in one thread, from one seed: scheduler, servers, workers, links, and what goes wrong between them.

    safety     faults happen until `FAULTS_S`; every promise is checked as it is used
    liveness   faults stop; within `LIVENESS_S` every worker is through, every request answered, nothing parked

A run is a function of its seed: the seed chooses mode, sizes, faults and who dies, joins or is paused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.sim.ledger import WORKERS_MAX, Ledger, LedgerError
from tests.sim.norms import Norms, norms_of
from tests.sim.scheduler import STORE, Scheduler
from tests.sim.server import Server
from tests.sim.timeline import Faults, Link, Timeline
from tests.sim.worker import Job, Version, Worker
from windlass.window_core import WindowCore
from windlass_proto.consistency import Consistency, Mode
from windlass_proto.errors import InvariantError
from windlass_proto.layout import Block, GroupLayout, TensorSpec
from windlass_proto.step_modes import ModeChange, StepModes
from windlass_scheduler.roster_core import Entered
from windlass_server.reducing import Phases
from windlass_server.reduction_core import ReductionCore
from windlass_server.share_core import ShareCore

FAULTS_S = 0.5
LIVENESS_S = 60.0
SETTLE_S = 1.0
LEASE_S = 0.2
EVENTS_MAX = 50_000
VSHARDS = 4
BLOCK_ELEMENTS = 64
MODES = ("bsp", "ssp:1", "asp", "bsp", "ssp:0", "ssp:3", "bsp:k=2", "bsp:k=1,late=fold")


def _cores(consistency: Consistency, blocks: list[Block], *, mean: bool, phases: dict[int, Phases]) -> ShareCore:
    return ShareCore(consistency, blocks, mean=mean, phases=phases)


def _as_it_is(server: Server) -> None:
    """Nothing is put in place of what `server` is made of."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of; a seeded bug puts other parts in."""

    make_core: Callable[..., ShareCore] = _cores
    make_window: Callable[..., WindowCore] = WindowCore
    make_reduction: Callable[..., ReductionCore] = ReductionCore
    rebuild: Callable[[Server], None] = _as_it_is


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed stands for."""

    seed: int
    consistency: Consistency
    exact: bool
    workers: int
    servers: int
    steps: tuple[int, ...]
    layouts: list[GroupLayout]
    frame_bytes: int
    credit_bytes: int
    deaths: tuple[tuple[float, int], ...]
    pauses: tuple[tuple[float, int, float], ...]
    joins: tuple[float, ...]
    modes: tuple[tuple[float, str], ...]  # when which mode is set
    faults: Faults


def plan_of(seed: int) -> Plan:
    """The run that `seed` stands for. One in eight is an exact one: real gradients, a weighted mean, nobody dies."""
    rng = Random(seed)
    consistency = Consistency.parse(MODES[seed % len(MODES)])
    exact = seed % len(MODES) == 3
    workers = rng.randint(2, 4)
    deaths = [] if exact else [(rng.uniform(0.0, FAULTS_S), i) for i in range(workers) if rng.random() < 0.25]
    joins = [] if exact else [rng.uniform(0.05, FAULTS_S) for _ in range(rng.choice((0, 0, 1, 2)))]
    pauses = []
    for worker in range(workers):
        if rng.random() < 0.4:
            lengths = (0.02, 0.1) if exact else (0.02, 0.1, 1.0)
            pauses.append((rng.uniform(0.0, FAULTS_S), worker, rng.choice(lengths)))
    calm = rng.random() < 0.1
    return Plan(
        seed=seed,
        consistency=consistency,
        exact=exact,
        workers=workers,
        servers=rng.randint(1, 3),
        steps=tuple(rng.randint(6, 20) for _ in range(workers + len(joins))),
        layouts=_layouts(rng),
        frame_bytes=rng.choice((128, 512, 4096)),
        credit_bytes=rng.choice((512, 2048, 1 << 20)),
        deaths=tuple(deaths),
        pauses=tuple(pauses),
        joins=tuple(joins),
        modes=() if exact or rng.random() < 0.5 else tuple(_mode_changes(rng)),
        faults=Faults() if calm else Faults(rng.choice((0.0, 0.02, 0.08)), 0.05, rng.choice((0.0, 0.15)), 0.1),
    )


def _mode_changes(rng: Random) -> list[tuple[float, str]]:
    return sorted((rng.uniform(0.02, FAULTS_S), rng.choice(MODES)) for _ in range(rng.choice((1, 1, 2, 3))))


def _layouts(rng: Random) -> list[GroupLayout]:
    layouts = []
    for table in range(1, rng.randint(1, 2) + 1):
        tensors = tuple(TensorSpec(f"t{i}", (rng.choice((5, 16, 40)),)) for i in range(rng.randint(1, 4)))
        layouts.append(GroupLayout(table, "float32", tensors, BLOCK_ELEMENTS, VSHARDS))
    return layouts


@dataclass(slots=True)
class Cluster:
    """One run."""

    plan: Plan
    parts: Parts = field(default_factory=Parts)
    undisturbed: bool = False
    timeline: Timeline = field(init=False)
    faults: Faults = field(init=False)
    servers: list[Server] = field(init=False)
    workers: list[Worker] = field(init=False)
    scheduler: Scheduler = field(init=False)
    job: Job = field(init=False)
    norms: Norms = field(init=False)
    _sealed: bool = False
    _gone: set[int] = field(default_factory=set)
    _accepted: dict[int, list[Link]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan, p = self.plan, self.plan.faults
        self.timeline = Timeline(Random(f"{plan.seed}/time/{self.undisturbed}"))
        self.faults = Faults() if self.undisturbed else Faults(p.drop, p.duplicate, p.refuse, p.slow)
        count = plan.servers
        runs = [range(VSHARDS * i // count, VSHARDS * (i + 1) // count) for i in range(count)]
        ledger = Ledger(StepModes(plan.consistency))
        checks = (ledger.check_release, ledger.check_stamp)
        owner = {vshard: i for i, run in enumerate(runs) for vshard in run}
        self.norms = self._make_norms(owner)
        self.servers = self.norms.servers = [
            Server(self.timeline, plan.layouts, run, self._make_core, *checks, self.norms) for run in runs
        ]
        for server in self.servers:
            self.parts.rebuild(server)
        self.job = Job(plan.seed, plan.layouts, count, owner.__getitem__, ledger, plan.exact)
        self.workers = []
        self.scheduler = Scheduler(self.timeline, self.servers, plan.workers)

    # ---- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play the seed to its end.

        Raises:
            LedgerError: if a promise does not hold.
        """
        try:
            self._schedule()
            self._play_until(FAULTS_S + LIVENESS_S, self._all_have_left)
            for server, links in self._accepted.items():
                for link in links:
                    self.servers[server].disconnected(link)
            self._play_until(self.timeline.now_s + SETTLE_S, lambda: False)
        except InvariantError as error:
            raise LedgerError("invariant", str(error)) from error
        except AssertionError as error:
            if isinstance(error, LedgerError):
                raise
            raise LedgerError("driver", str(error)) from error
        self._check_liveness()
        self._check_end()

    def weights(self) -> dict[tuple[int, int], bytes]:
        return {place: held.tobytes() for server in self.servers for place, held in server.weights.items()}

    def _play_until(self, when_s: float, is_over: Callable[[], bool]) -> None:
        while self.timeline.now_s < when_s and self.timeline.events < EVENTS_MAX and not is_over():
            self.timeline.step()

    def _make_core(self, table: int, blocks: list[int]) -> ShareCore:
        held = [self.plan.layouts[table - 1].blocks[block] for block in blocks]
        phases = {index: spans for index, spans in self.norms.phases(table).items() if index in blocks}
        return self.parts.make_core(self.plan.consistency, held, mean=self.plan.exact, phases=phases)

    def _make_norms(self, owner: dict[int, int]) -> Norms:
        layouts = {layout.table_id: layout for layout in self.plan.layouts}
        modes = [self.plan.consistency, *(Consistency.parse(mode) for _, mode in self.plan.modes)]
        bsp = all(mode.mode is Mode.BSP for mode in modes)  # a store whose rules take norms keeps to it
        rules = {table: norms_of(self.plan.seed, table) if bsp else () for table in layouts}
        make = self.parts.make_reduction
        return Norms(self.timeline, self.faults, layouts, rules, owner.__getitem__, make)

    def _schedule(self) -> None:
        plan = self.plan
        for rank in range(plan.workers):
            self._join(rank)
        if self.undisturbed:
            return
        for when_s in plan.joins:
            self.timeline.at(when_s, lambda: self._join(self._free_rank()))
        for when_s, index in plan.deaths:
            self.timeline.at(when_s, lambda index=index: self._kill(self.workers[index]))  # type: ignore[misc]
        for when_s, index, length_s in plan.pauses:
            self.timeline.at(
                when_s,
                lambda index=index, length_s=length_s: self._pause(self.workers[index], length_s),  # type: ignore[misc]
            )
        for when_s, mode in plan.modes:
            self.timeline.at(when_s, lambda mode=mode: self._set_mode(mode))  # type: ignore[misc]
        self.timeline.at(FAULTS_S, self.faults.stop)

    def _set_mode(self, mode: str) -> None:
        """Somebody calls `store.set(consistency=...)`, half the time with hyper-parameters."""
        if not self.scheduler.rosters.roster(STORE).started:
            self.timeline.after(0.02, lambda: self._set_mode(mode))
            return
        with_rule = self.timeline.rng.random() < 0.5
        self.scheduler.change_mode(mode, lambda clock: self._mode_set(mode, clock, with_rule=with_rule))

    def _mode_set(self, mode: str, clock: int, *, with_rule: bool) -> int:
        """All servers agree: from step `clock` on. Returns the version of hyper-parameters that goes with it."""
        job, version = self.job, None
        if with_rule:
            version = len(job.versions) + 1
            since = max(clock, job.versions[-1].since if job.versions else 0)
            job.versions.append(Version(version, since, -1, self.timeline.now_s))
        modes = job.ledger.modes
        change = ModeChange(clock, Consistency.parse(mode), version)
        job.ledger.modes = StepModes(modes.declared, (*modes.changes, change))
        job.modes_set_s.append(self.timeline.now_s)
        return version or 0

    def _join(self, rank: int) -> None:
        index = len(self.workers)
        assert index < WORKERS_MAX
        window = self.parts.make_window(
            self.job.server_of, credit_bytes=self.plan.credit_bytes, frame_bytes=self.plan.frame_bytes
        )
        worker = Worker(self.timeline, self.job, rank, index, self.plan.steps[index], window)
        self.workers.append(worker)
        for server in range(len(self.servers)):
            self._connect(worker, server)
        self._enter(worker)

    def _free_rank(self) -> int:
        """The smallest rank that no live worker has, as the scheduler gives it."""
        taken = {worker.rank for worker in self.workers if not worker.book.ended}
        return next(rank for rank in range(WORKERS_MAX + 1) if rank not in taken)

    def _enter(self, worker: Worker) -> None:
        """Enter the roster once the first values are there, as `init` does; rank 0 writes them."""
        if worker.dead or worker.finished:
            return
        if worker.rank == 0 and not self._sealed:
            worker.initialise(self._seal)
        elif self._sealed:
            self.scheduler.enter(worker.session, worker.rank, lambda entered: self._entered(worker, entered))
        else:
            self.timeline.after(0.01, lambda: self._enter(worker))

    def _seal(self) -> None:
        self._sealed = True
        self._enter(self.workers[0])

    def _entered(self, worker: Worker, entered: Entered | None) -> None:
        if worker.dead or worker.book.ended:
            return
        if entered is None:
            self.timeline.after(0.1, lambda: self._enter(worker))
        else:
            worker.start(entered.join_clock)

    # ---- links -------------------------------------------------------------------------------------------------------

    def _connect(self, worker: Worker, server: int) -> None:
        if worker.dead:
            return
        link = Link(
            self.timeline,
            self.faults,
            lambda link, raw: self.servers[server].receive(worker.session, link, raw),
            lambda link, raw: worker.receive(server, link, raw),
            lambda link: self._broken(worker, server, link),
        )
        self._accepted.setdefault(server, []).append(link)
        self.servers[server].accept(worker.session, link)
        worker.link_up(server, link)

    def _broken(self, worker: Worker, server: int, link: Link) -> None:
        rng = self.timeline.rng
        worker.link_down(server, link)
        self.timeline.after(rng.uniform(0.0, 0.05), lambda: self.servers[server].disconnected(link))
        self.timeline.after(rng.uniform(0.0, 0.05), lambda: self._connect(worker, server))

    # ---- fates -------------------------------------------------------------------------------------------------------

    def _kill(self, worker: Worker) -> None:
        if not worker.book.counting and not worker.dead:  # the job would wait for it before its first step
            self.timeline.after(0.02, lambda: self._kill(worker))
            return
        if worker.finished or worker.dead:
            return
        worker.dead = worker.book.ended = True
        for link in list(worker.links.values()):
            link.break_it()
        self.timeline.after(self.timeline.rng.uniform(0.0, LEASE_S), lambda: self.scheduler.end(worker.session))

    def _pause(self, worker: Worker, length_s: float) -> None:
        """Stop a worker for a while; longer than its lease, its session ends while it still believes in it."""
        if worker.finished or worker.dead or (length_s > LEASE_S and not worker.book.counting):
            return
        worker.paused_until_s = self.timeline.now_s + length_s
        if length_s > LEASE_S:
            self.timeline.after(LEASE_S, lambda: self._expire(worker))
        self.timeline.at(worker.paused_until_s, worker.resume)

    def _expire(self, worker: Worker) -> None:
        worker.book.ended = True
        self.scheduler.end(worker.session)

    def _all_have_left(self) -> bool:
        over = self.undisturbed or self.timeline.now_s >= FAULTS_S
        for index, worker in enumerate(self.workers):
            if worker.book.ended or index in self._gone:
                continue
            if worker.finished and worker.window.open_requests() == 0:
                self._gone.add(index)
                self.scheduler.end(worker.session)
            else:
                over = False
        return over

    # ---- checks ------------------------------------------------------------------------------------------------------

    def _check_liveness(self) -> None:
        stuck = [w.rank for w in self.workers if not (w.dead or w.book.ended or w.finished)]
        if stuck:
            parked = [core.parked() for server in self.servers for core in server.cores.values()]
            text = f"workers {stuck} were not through after {self.timeline.now_s:.1f} s, answers parked: {parked}"
            raise LedgerError("liveness", text)
        for server in self.servers:
            for place, core in server.cores.items():
                if core.parked():
                    raise LedgerError("liveness", f"{core.parked()} answers stay parked on share {place}")
            kept = sum(buffer.released != 1 for buffer in server.buffers)
            if kept:
                raise LedgerError("buffers", f"{kept} of {len(server.buffers)} gradients were never given back")

    def _check_end(self) -> None:
        for server in self.servers:
            for (table, block), weights in server.weights.items():
                for seg, segment in enumerate(self.plan.layouts[table - 1].blocks[block].segments):
                    if not self.plan.exact:
                        self.job.ledger.check_balance((table, block, seg), weights[segment.begin : segment.end])


def play(seed: int, parts: Parts | None = None) -> Cluster:
    """Play `seed`; an exact one twice, and compare.

    Raises:
        LedgerError: with the command that plays the seed again.
    """
    plan = plan_of(seed)
    try:
        cluster = Cluster(plan, parts or Parts())
        cluster.run()
        if plan.exact:
            calm = Cluster(plan, parts or Parts(), undisturbed=True)
            calm.run()
            if calm.weights() != cluster.weights():
                raise LedgerError("exact", "the result differs from the undisturbed run's")
    except LedgerError as error:
        error.add_note(f"play it again: python -m tests.sim {seed}")
        raise
    return cluster
