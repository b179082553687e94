"""`python -m windlass_server`: one server of a cluster as a process.

It stops on SIGTERM or SIGINT, when its parent's pipe ends, or when the scheduler has ended its session.
Exit status: 0 stopped in order, 1 the scheduler ended its session, 2 it could not start (one line says why).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from windlass_proto import limits, memory
from windlass_proto.control_link import ControlLink
from windlass_proto.errors import UsageError, WindlassError
from windlass_proto.links import preamble
from windlass_proto.token_file import read_token
from windlass_rules import installed
from windlass_rules.cupy_device import open_device
from windlass_rules.device import Device
from windlass_server.device_memory import ParameterDevice
from windlass_server.ingress import Ingress, listen_tcp, listen_unix
from windlass_server.membership import Membership, join
from windlass_server.node import ServerNode
from windlass_server.peers import Peers
from windlass_server.readers import Readers
from windlass_server.warm_up import WarmUp

ALLOWED_VARIABLE = "WINDLASS_ALLOW_RULES"
READERS_VARIABLE = "WINDLASS_ALLOW_READERS"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="windlass_server", description="A server of a windlass cluster.")
    parser.add_argument("--scheduler", required=True, metavar="HOST:PORT")
    parser.add_argument("--token-file", required=True, type=Path, metavar="F", help="the cluster's secret, mode 0600")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="data links; port 0: a free one")
    parser.add_argument("--advertise", metavar="HOST", help="name under which others reach this host")
    parser.add_argument("--socket-dir", type=Path, metavar="DIR", help="folder of the Unix socket; none without it")
    parser.add_argument("--name", default="", help="stable over restarts, e.g. server-0")
    parser.add_argument("--pool-bytes", type=int, default=0, metavar="N", help="at most; default half of memory")
    parser.add_argument("--device", default="memory", metavar="D", help="where dense tensors lie: memory, or gpu:N")
    parser.add_argument("--parent-fd", type=int, metavar="FD", help="stop at the end of this pipe")
    parser.add_argument("--ready-fd", type=int, metavar="FD", help="write one JSON line here when serving")
    parser.add_argument(
        "--allow-rule", action="append", default=[], metavar="NAME[==VERSION]", dest="allowed",
        help=f"run this rule of an installed package; may be given again; else ${ALLOWED_VARIABLE}, by commas",
    )  # fmt: skip
    parser.add_argument(
        "--allow-reader", action="append", default=[], metavar="NAME[==VERSION]", dest="readers",
        help=f"run this reader of an installed package; may be given again; else ${READERS_VARIABLE}, by commas",
    )  # fmt: skip
    parser.add_argument("--insecure", action="store_true", help="allow addresses beyond this host, in clear text")
    return parser


def _pool_bytes(asked: int) -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return asked or min(limits.SERVER_POOL_BYTES_MAX, physical // 2)


def _host_port(text: str, *, insecure: bool) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal():
        raise UsageError("--listen is not HOST:PORT", got=text, next_move="Write for example 127.0.0.1:0.")
    host = host.strip("[]")
    if host not in _LOOPBACK and not insecure:
        raise UsageError(
            "listening beyond this host needs TLS, which this release lacks",
            address=text,
            next_move="Listen on 127.0.0.1, or accept clear text inside a trusted network with --insecure.",
        )
    return host, int(port)


def _serve(arguments: argparse.Namespace, opened: Callable[[str], Device]) -> int:
    device = opened(arguments.device) if arguments.device != "memory" else None
    token = read_token(arguments.token_file)
    host, port = _host_port(arguments.listen, insecure=arguments.insecure)
    rules = installed.install(arguments.allowed or _listed(ALLOWED_VARIABLE))
    readers = Readers()
    reads = readers.install(arguments.readers or _listed(READERS_VARIABLE))
    tcp = listen_tcp(host, port)
    bound = tcp.getsockname()[1]
    listeners = [tcp]
    addresses = [("tcp", f"{arguments.advertise or host}:{bound}")]
    path: Path | None = None
    if arguments.socket_dir is not None:
        path = arguments.socket_dir / f"s{os.getpid()}.sock"
        listeners.append(listen_unix(path))
        addresses.append(("unix", str(path)))
    stop_read, stop_write = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(stop_write, b"s"))
    control = ControlLink(arguments.scheduler, token, found_by="--scheduler")
    try:
        joined = join(control, arguments.name, addresses, rules, reads)
        node = _node(_pool_bytes(arguments.pool_bytes), device, readers)
        key = preamble.link_key(token, joined.cluster_id)
        ingress = Ingress(listeners, key, node)
        peers = Peers(key, joined.session, lambda said, totals: node.reductions.told(said, totals, ingress.deliver))
        node.reductions.peers = peers
        ended: list[str] = []

        def on_ended(reason: str) -> None:
            ended.append(reason)
            os.write(stop_write, b"e")

        membership = Membership(control, joined, token, node, ingress, on_ended)
        if arguments.ready_fd is not None:
            line = json.dumps({"addresses": [f"{k}:{a}" for k, a in addresses], "index": joined.rank}) + "\n"
            os.write(arguments.ready_fd, line.encode())
            os.close(arguments.ready_fd)
        warming = WarmUp()
        _wait(stop_read, arguments.parent_fd)
        warming.stop()
        membership.close()
        peers.close()
        ingress.close()
        readers.close()
    finally:
        control.close()
        if path is not None:
            path.unlink(missing_ok=True)
    if ended:
        sys.stderr.write(f"windlass_server: the scheduler ended this server's session: {ended[0]}\n")
    return 1 if ended else 0


def _listed(variable: str) -> list[str]:
    return os.environ.get(variable, "").replace(",", " ").split()


def _node(pool_bytes: int, device: Device | None, readers: Readers) -> ServerNode:
    """The node, and its pool with a few warm buffers: of pinned memory where a device is to copy from it."""
    pool = memory.BufferPool(pool_bytes, *([device.pinned] if device is not None else []))
    pool.reserve(limits.FRAME_PAYLOAD_BYTES_TARGET, 4)
    return ServerNode(pool, device=ParameterDevice(device) if device is not None else None, readers=readers)


def _wait(stop: int, parent: int | None) -> None:
    """Until a byte comes from `stop`, or the parent's pipe ends."""
    poll = select.poll()
    poll.register(stop, select.POLLIN)
    if parent is not None:
        poll.register(parent, select.POLLIN | select.POLLHUP)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == stop or not os.read(descriptor, 1):
                return


def main(opened: Callable[[str], Device] = open_device) -> int:
    """Run until stopped; the exit status. `opened` gives the device that --device names."""
    arguments = _parser().parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.setswitchinterval(0.0005)
    try:
        return _serve(arguments, opened)
    except WindlassError as error:
        sys.stderr.write(f"windlass_server: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
