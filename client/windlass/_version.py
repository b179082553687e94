"""The one place where the version is written: the wheel's metadata and `windlass.__version__` read it."""

__version__ = "0.1.0"
