"""The scheduler of a windlass cluster: who is a member, which server holds which keys, which workers count in
a step.

Decisions live in cores (`*_core.py`): events in, effects out, no sockets, threads, clocks or randomness.
`cluster.py` feeds them, writes what must last before anybody sees it, and `service.py` speaks gRPC. Nothing
here touches the data plane: while the scheduler is away pushes and pulls go on, only changes wait.
"""
