"""Opens the peers: their servers, their workers, ports that are free."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from benchmarks.child import Child
from benchmarks.contender import LOGS, READY_S, Fleet
from benchmarks.peers.environments import python_of


def open_mxnet(mode: str, workers: int = 1, servers: int = 1) -> Fleet:
    """A KVStore of `mode` ("dist_sync", "dist_async"): scheduler, servers and workers on this machine."""
    python = python_of("mxnet")
    roles = {
        "DMLC_PS_ROOT_URI": "127.0.0.1",
        "DMLC_PS_ROOT_PORT": str(free_port()),
        "DMLC_NUM_SERVER": str(servers),
        "DMLC_NUM_WORKER": str(workers),
        "DMLC_NODE_HOST": "127.0.0.1",
    }
    log = LOGS / f"mxnet-{mode}.log"
    with ExitStack() as opened:

        def start(role: str, argv: list[str]) -> Child:
            env = {**roles, "DMLC_ROLE": role}
            argv = [python, "-W", "ignore", *argv]
            child = Child(f"mxnet {role}", argv, log, env, ends_with_input=False)
            opened.callback(child.close)
            return child

        servants = [start(role, ["-c", "import mxnet"]) for role in ("scheduler", *["server"] * servers)]
        members = [start("worker", ["-m", "benchmarks.peers.mxnet_worker", mode]) for _ in range(workers)]
        return Fleet(f"mxnet {mode}", members, servants).take_over(opened)


def open_grpc() -> Fleet:
    """The gRPC parameter server: one server, one worker."""
    python = python_of("grpc")
    log = LOGS / "grpc.log"
    with ExitStack() as opened:
        server = Child("grpc server", [python, "-m", "benchmarks.peers.grpc_ps"], log, ends_with_input=False)
        opened.callback(server.close)
        port = server.line(READY_S)
        worker = Child("grpc worker", [python, "-m", "benchmarks.peers.grpc_worker", port], log)
        opened.callback(worker.close)
        return Fleet("grpc python", [worker], [server]).take_over(opened)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def open_torch_adam() -> Fleet:
    """PyTorch's fused Adam, in a process of its own, one core."""
    python = python_of("torch")
    with ExitStack() as opened:
        worker = Child("torch", [python, "-m", "benchmarks.peers.torch_adam"], LOGS / "torch.log")
        opened.callback(worker.close)
        return Fleet("torch fused adam", [worker]).take_over(opened)


def threads_environment(threads: int) -> dict[str, str]:
    """What tells a process, before it begins, how many threads its loops and its BLAS use."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def open_torch_models(threads: int) -> Fleet:
    """PyTorch on the engine's models."""
    python = python_of("torch")
    argv = [python, "-m", "benchmarks.peers.torch_models", str(threads)]
    with ExitStack() as opened:
        worker = Child("torch", argv, LOGS / "torch-models.log", threads_environment(threads))
        opened.callback(worker.close)
        return Fleet("torch eager", [worker]).take_over(opened)


def open_mxnet_models(threads: int) -> Fleet:
    """MXNet's gluon on the engine's models."""
    python = python_of("mxnet")
    env = {**threads_environment(threads), "MXNET_CPU_WORKER_NTHREADS": str(threads)}
    with ExitStack() as opened:
        worker = Child(
            "mxnet", [python, "-W", "ignore", "-m", "benchmarks.peers.mxnet_models"], LOGS / "mxnet-models.log", env
        )
        opened.callback(worker.close)
        return Fleet("mxnet gluon hybridized", [worker]).take_over(opened)
