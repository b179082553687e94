"""Between the cores' values and protobuf messages: pure functions, one a message.

Readers (`_untrusted`) check what arithmetic cannot: sizes that would cost memory, and enumerations. Meaning
is the cores'.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from windlass_proto import job_quotas, own_rules, rule_records, rule_specs, table_specs, transfer_specs
from windlass_proto.errors import UsageError
from windlass_proto.gen import control_pb2 as pb
from windlass_proto.layout import TensorSpec
from windlass_proto.rule_records import RuleRecord
from windlass_scheduler import limits
from windlass_scheduler.declared import Group, Tensor
from windlass_scheduler.members import Address, Job, Member
from windlass_scheduler.metrics_core import LoggedStep
from windlass_scheduler.roster import Roster
from windlass_scheduler.routing_core import OwnedRun, Routing
from windlass_scheduler.shards_core import Position


def addresses_untrusted(addresses: Iterable[pb.Address]) -> tuple[Address, ...]:
    read = []
    for address in addresses:
        if address.kind not in ("tcp", "unix") or len(address.address.encode()) > limits.HOST_BYTES_MAX:
            raise UsageError(
                "a server joined with an unusable address", kind=repr(address.kind[:20]), known="tcp or unix"
            )
        read.append(Address(address.kind, address.address))
    return tuple(read)


def tensors_untrusted(tensors: Iterable[pb.Tensor]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(TensorSpec(t.name, tuple(t.shape), t.lr_mult, t.decay_mult), t.dtype, _table_untrusted(t))
        for t in tensors
    )


def _table_untrusted(tensor: pb.Tensor) -> bytes:
    if not tensor.HasField("table"):
        return b""
    table_specs.check_table(tensor)
    return tensor.table.SerializeToString(deterministic=True)


def rule_text_untrusted(rule: bytes) -> str:
    """The rule in words; raises ProtocolError or UsageError for bytes that are no rule of this release."""
    return repr(rule_specs.from_bytes_untrusted(rule))


def vectors_untrusted(request: pb.DeclareRequest, job: Job) -> int:
    """What servers keep beside dense weights, for the job's workers: of the rule, and of what workers were shown."""
    kept = job_quotas.vectors(rule_specs.from_bytes_untrusted(request.rule), job.workers_awaited)
    return kept + transfer_specs.from_bytes_untrusted(request.transfer).deltas


def check_own_rule(request: pb.DeclareRequest, servers: Iterable[Member]) -> None:
    """All servers can run the rule that tensors are declared with, if it is one of a package.

    Raises:
        UsageError: one cannot.
    """
    rule = rule_specs.from_bytes_untrusted(request.rule)
    if isinstance(rule, own_rules.OwnRule):
        table = any(tensor.HasField("table") for tensor in request.tensors)
        here = {f"server {member.rank} ({member.host})": member.rules for member in servers}
        own_rules.check_servers(rule, here, table=table)


def logged_steps_untrusted(records: Iterable[pb.LogRecord]) -> tuple[LoggedStep, ...]:
    return tuple(
        LoggedStep(record.step, record.weight, tuple((s.name, s.value) for s in record.scalars), record.unix_s)
        for record in records
    )


def store_figures_untrusted(stores: Collection[pb.StoreFigures]) -> dict[int, pb.StoreFigures]:
    """By store; raises UsageError for more than any server has to say."""
    workers = max((len(store.workers) for store in stores), default=0)
    lags = max((len(store.staleness) for store in stores), default=0)
    if len(stores) > limits.STORES_MAX or workers > limits.MEMBERS_MAX or lags > limits.LAGS_MAX:
        raise UsageError("a server reports too much of its stores", stores=len(stores), workers=workers, lags=lags)
    return {store.store_id: store for store in stores}


def position(found: pb.DataPosition) -> Position:
    return Position(found.epoch, found.rounds, found.workers, found.batches, found.row)


def data_position(found: Position) -> pb.DataPosition:
    return pb.DataPosition(
        epoch=found.epoch, rounds=found.rounds, workers=found.workers, batches=found.batches, row=found.row
    )


def addresses(found: Iterable[Address]) -> list[pb.Address]:
    return [pb.Address(kind=address.kind, address=address.address) for address in found]


def runs(found: Iterable[OwnedRun]) -> list[pb.VshardRun]:
    return [pb.VshardRun(begin=r.begin, end=r.end, owner_generation=r.owner_generation) for r in found]


def routing(found: Routing) -> pb.Routing:
    servers = [
        pb.ServerRoute(
            member_id=owner.member_id,
            index=owner.index,
            host=owner.host,
            addresses=addresses(owner.addresses),
            runs=runs(owner.runs),
        )
        for owner in found.owners
    ]
    return pb.Routing(generation=found.generation, vshards=found.vshards, servers=servers)


def roster(found: Roster, consistency: str) -> pb.Roster:
    """`consistency` is what was declared."""
    members = [
        pb.RosterMember(session=m.session, rank=m.rank, join_clock=m.join_clock, host=m.host) for m in found.members
    ]
    return pb.Roster(
        store_id=found.store_id,
        version=found.version,
        declared=found.declared,
        started=found.started,
        members=members,
        job=found.job,
        store=found.store,
        consistency=found.modes[-1].consistency if found.modes else consistency,
        proposal_settled=found.proposal_settled,
        modes=[pb.StepMode(clock=m.clock, consistency=m.consistency, record=m.record) for m in found.modes],
    )


def job_state(job: Job, workers: Iterable[Member]) -> pb.JobState:
    ranks = [worker.rank for worker in workers]
    return pb.JobState(job=job.name, workers_declared=job.workers_awaited, ranks_joined=ranks)


def group(
    found: Group,
    consistency: str,
    vshards: int,
    deleted: frozenset[str] = frozenset(),
    job: str = "",
    quota_bytes: int = 0,
) -> pb.Group:
    tensors = [
        pb.Tensor(
            name=spec.name,
            dtype=found.dtype,
            shape=spec.shape,
            lr_mult=spec.lr_mult,
            decay_mult=spec.decay_mult,
            deleted=spec.name in deleted,
            table=pb.Table.FromString(found.table) if found.table else None,
        )
        for spec in found.tensors
    ]
    return pb.Group(
        table_id=found.table_id,
        dtype=found.dtype,
        tensors=tensors,
        block_elements=found.block_elements,
        rule=found.rule,
        reduce=found.reduce,
        store_id=found.store_id,
        consistency=consistency,
        vshards=vshards,
        transfer=found.transfer,
        lazy=found.lazy,
        layout=found.layout,
        homes=found.homes,
        job=job,
        quota_bytes=quota_bytes,
    )


def rule_changed(store_id: int, record: RuleRecord) -> pb.RuleChanged:
    return pb.RuleChanged(store_id=store_id, record=rule_records.to_bytes(record))


def metrics(job: str, records: Iterable[LoggedStep]) -> pb.Metrics:
    merged = [
        pb.LogRecord(
            step=record.step,
            weight=record.weight,
            scalars=[pb.Scalar(name=name, value=value) for name, value in record.scalars],
            unix_s=record.unix_s,
        )
        for record in records
    ]
    return pb.Metrics(job=job, records=merged)
