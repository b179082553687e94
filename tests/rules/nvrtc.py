"""NVRTC, the compiler of CUDA C, through its C interface: it needs no driver and no device.

`pip install nvidia-cuda-nvrtc-cu12` brings it (the extra `test-all` does); a CUDA toolkit has it too.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from windlass_rules.cuda_source import OPTIONS

WHEELS = ("nvidia.cuda_nvrtc", "nvidia.cu13")


def _libraries() -> Iterator[str]:
    for name in WHEELS:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        for folder in (found.submodule_search_locations or ()) if found is not None else ():
            yield from map(str, sorted(Path(folder).glob("lib/libnvrtc.so.*")))
    yield "libnvrtc.so"
    yield from map(str, Path("/usr/local/cuda/lib64").glob("libnvrtc.so"))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The first NVRTC that loads; None where there is none."""
    for path in _libraries():
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def compiled(text: str, architecture: int) -> str:
    """The PTX of a program for an architecture such as 80; fails with the compiler's words."""
    nvrtc = library()
    assert nvrtc is not None
    program = ctypes.c_void_p()
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    assert created == 0
    try:
        options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture=compute_{architecture}")]
        given = (ctypes.c_char_p * len(options))(*options)
        status = nvrtc.nvrtcCompileProgram(program, len(options), given)
        log = _text(nvrtc, program, "ProgramLog")
        assert status == 0, log
        assert "error" not in log
        return _text(nvrtc, program, "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    assert getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc, f"nvrtcGet{what}")(program, buffer) == 0
    return buffer.value.decode()


def architectures() -> set[int]:
    """Those this NVRTC compiles for."""
    nvrtc = library()
    assert nvrtc is not None
    count = ctypes.c_int()
    assert nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)) == 0
    found = (ctypes.c_int * count.value)()
    assert nvrtc.nvrtcGetSupportedArchs(found) == 0
    return set(found)
