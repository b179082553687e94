"""`python -m tests.device_server`: a windlass server whose --device, of any name, is in ordinary memory."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.host_device import HostDevice
from windlass_server import __main__ as server


def main() -> int:
    """A server's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        device = HostDevice(Path(folder))
        return server.main(lambda _: device)


if __name__ == "__main__":
    sys.exit(main())
