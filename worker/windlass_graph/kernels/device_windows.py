"""What windows do on a GPU: columns of images and back, and pooling, as CUDA C beside the loops of the host.

Each thread makes one element of what comes out, a grid apart, from all that it needs: nothing is added by two threads,
so results are the same at every run, in the order of taps that the host's loops have. `columns` and `pooling` say what
is computed; arrays here are CuPy's, contiguous and of one dtype.

`xp` is CuPy: it compiles a program by NVRTC at its first call for a dtype.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from windlass_graph.kernels.windows import Window

THREADS: Final = 256
BLOCKS_MAX: Final = 1 << 16
OPTIONS: Final = ("--std=c++17", "--fmad=false")

REALS: Final = {"float32": "float", "float64": "double"}
_SPACE: Final = ("d, h, w", "kd, kh, kw", "sd, sh, sw", "pd, ph, pw", "dd, dh, dw", "od, oh, ow")
_WINDOW: Final = ", ".join(f"i64 {name}" for names in _SPACE for name in names.split(", "))

_PRELUDE: Final = """\
typedef long long i64;
typedef {real} real;
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

// The place whose tap, `at` elements from the window's first, sees the point; -1 if there is none.
static __device__ inline i64 place_of(i64 point, i64 at, i64 stride, i64 places)
{{
    const i64 from = point - at;
    return from >= 0 && from % stride == 0 && from / stride < places ? from / stride : -1;
}}

// How many taps of a window are inside the image along one axis.
static __device__ inline i64 inside(i64 first, i64 taps, i64 dilation, i64 size)
{{
    i64 found = 0;
    for (i64 tap = 0; tap < taps; ++tap)
        found += first + tap * dilation >= 0 && first + tap * dilation < size;
    return found > 0 ? found : 1;
}}
"""

_KERNEL: Final = """
extern "C" __global__ void {name}({parameters}, {window}, i64 total)
{{
    const i64 grid = gridDim.x * (i64)blockDim.x;
    const i64 points = d * h * w, places = od * oh * ow, taps = kd * kh * kw;
    for (i64 to = blockIdx.x * (i64)blockDim.x + threadIdx.x; to < total; to += grid) {{
{body}    }}
}}
"""

# Each tap of the window at (z, y, x), with the point that it sees.
_TAPS_SEEN: Final = """\
        for (i64 tap = 0; tap < taps; ++tap) {
            const i64 at_d = z * sd + tap / (kh * kw) * dd - pd, at_h = y * sh + tap / kw % kh * dh - ph;
            const i64 at_w = x * sw + tap % kw * dw - pw;
            if (at_d < 0 || at_d >= d || at_h < 0 || at_h >= h || at_w < 0 || at_w >= w)
                continue;
            const i64 point = (at_d * h + at_h) * w + at_w;
"""

# Each place that sees the point, with the tap by which it does.
_PLACES_SEEING: Final = """\
        for (i64 tap = 0; tap < taps; ++tap) {
            const i64 z = place_of(point / (h * w), tap / (kh * kw) * dd - pd, sd, od);
            const i64 y = place_of(point / w % h, tap / kw % kh * dh - ph, sh, oh);
            const i64 x = place_of(point % w, tap % kw * dw - pw, sw, ow);
            if (z < 0 || y < 0 || x < 0)
                continue;
            const i64 place = (z * oh + y) * ow + x;
"""

_OF_PLACE: Final = """\
        const i64 channel = to / places, place = to % places;
        const i64 z = place / (oh * ow), y = place / ow % oh, x = place % ow;
"""

_SHARE: Final = """\
            const real count = padding ? (real)taps : (real)(inside(z * sd - pd, kd, dd, d)
                * inside(y * sh - ph, kh, dh, h) * inside(x * sw - pw, kw, dw, w));
"""

_BODIES: Final = {
    "fill": (
        "const real *images, real *columns, i64 channels, i64 count",
        """\
        const i64 column = to % (count * places), row = to / (count * places);
        const i64 image = column / places, place = column % places, tap = row % taps;
        const i64 at_d = place / (oh * ow) * sd + tap / (kh * kw) * dd - pd;
        const i64 at_h = place / ow % oh * sh + tap / kw % kh * dh - ph, at_w = place % ow * sw + tap % kw * dw - pw;
        const bool seen = at_d >= 0 && at_d < d && at_h >= 0 && at_h < h && at_w >= 0 && at_w < w;
        const i64 plane = (image * channels + row / taps) * d + at_d;
        columns[to] = seen ? images[(plane * h + at_h) * w + at_w] : (real)0;
""",
    ),
    "add_back": (
        "const real *columns, real *images, i64 channels, i64 count",
        """\
        const i64 point = to % points, channel = to / points % channels, image = to / (points * channels);
        real sum = 0;
"""
        + _PLACES_SEEING
        + """\
            sum = sum + columns[((channel * taps + tap) * count + image) * places + place];
        }
        images[to] = sum;
""",
    ),
    "largest": (
        "const real *images, real *out, int *at",
        _OF_PLACE
        + """\
        real best = (real)(-INFINITY);
        i64 best_at = -1;
"""
        + _TAPS_SEEN
        + """\
            const real value = images[channel * points + point];
            if (value > best || value != value) {
                best = value;
                best_at = point;
            }
        }
        out[to] = best;
        at[to] = (int)best_at;
""",
    ),
    "spread": (
        "const real *grad, const int *at, real *images",
        """\
        const i64 channel = to / points, point = to % points;
        real sum = 0;
"""
        + _PLACES_SEEING
        + """\
            if (at[channel * places + place] == point)
                sum = sum + grad[channel * places + place];
        }
        images[to] = sum;
""",
    ),
    "mean": (
        "const real *images, real *out, int padding",
        _OF_PLACE
        + """\
        real sum = 0;
"""
        + _TAPS_SEEN
        + """\
            sum = sum + images[channel * points + point];
        }
"""
        + _SHARE
        + """\
        out[to] = sum / count;
""",
    ),
    "mean_gradient": (
        "const real *grad, real *images, int padding",
        """\
        const i64 channel = to / points, point = to % points;
        real sum = 0;
"""
        + _PLACES_SEEING
        + _SHARE
        + """\
            sum = sum + grad[channel * places + place] / count;
        }
        images[to] = sum;
""",
    ),
}

NAMES: Final = tuple(_BODIES)


def program(name: str, dtype: str) -> str:
    """The CUDA C of one kernel for a dtype."""
    parameters, body = _BODIES[name]
    kernel = _KERNEL.format(name=name, parameters=parameters, window=_WINDOW, body=body)
    return _PRELUDE.format(real=REALS[dtype]) + kernel


@functools.cache
def _compiled(xp: Any, name: str, dtype: str) -> Any:
    return xp.RawKernel(program(name, dtype), name, options=OPTIONS)


def _launch(xp: Any, name: str, out: Any, window: Window, *arguments: Any) -> None:
    """One thread for each element of `out`, up to a grid."""
    if out.size == 0:
        return
    blocks = min(-(-out.size // THREADS), BLOCKS_MAX)
    numbers = [np.int64(number) for number in window.numbers]
    _compiled(xp, name, out.dtype.name)((blocks,), (THREADS,), (*arguments, *numbers, np.int64(out.size)))


def fill(xp: Any, images: Any, columns: Any, window: Window) -> None:
    """Write `columns` (channels * taps, images * places) of `images` (images, channels, points)."""
    _launch(xp, "fill", columns, window, images, columns, np.int64(images.shape[1]), np.int64(len(images)))


def add_back(xp: Any, columns: Any, images: Any, window: Window) -> None:
    """Write `images`: at each point the sum of the columns' elements that were taken from there."""
    _launch(xp, "add_back", images, window, columns, images, np.int64(images.shape[1]), np.int64(len(images)))


def largest(xp: Any, x: Any, out: Any, at: Any, window: Window) -> None:
    """As `pooling.largest`."""
    _launch(xp, "largest", out, window, x, out, at)


def spread(xp: Any, grad: Any, at: Any, out: Any, window: Window) -> None:
    """As `pooling.spread`, of the window that `at` is of."""
    _launch(xp, "spread", out, window, grad, at, out)


def mean(xp: Any, x: Any, out: Any, window: Window, *, count_padding: bool) -> None:
    """As `pooling.mean`."""
    _launch(xp, "mean", out, window, x, out, np.int32(count_padding))


def mean_gradient(xp: Any, grad: Any, out: Any, window: Window, *, count_padding: bool) -> None:
    """As `pooling.mean_gradient`."""
    _launch(xp, "mean_gradient", out, window, grad, out, np.int32(count_padding))
