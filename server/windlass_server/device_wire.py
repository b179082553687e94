"""How a dense group's values travel, where they are decoded and encoded on a device.

An entry's bytes are copied to the device as they came and decoded there, all segments in one launch, so that what
crosses the bus is what crossed the wire. Half tensors, and weights that go down as halves, are made halves there.

Invariant: this says what is put on a lane, and nothing is read back here; who asks waits for the lane, and looks at the
two flags that `cuda_codecs` writes. What is not known here (`decodes`, `encodes` say no) is the host's affair, by
`group_wire`, which also says in words what is wrong with bytes that cannot be read.
"""

from __future__ import annotations

import numpy as np

from windlass_proto.codec_specs import BFloat16, CodecSpec, Float16
from windlass_proto.codecs import registry
from windlass_proto.frames import Op
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import HALVES, Block
from windlass_rules import device as devices
from windlass_rules.cuda_codecs import HALF_CODECS, decode_source, encode_source, names_places
from windlass_rules.cuda_source import CudaSource, fill_source
from windlass_rules.device import Lane

_GRADIENTS = frozenset({Op.PUSH, Op.PUSH_PULL})
_FLOAT32 = np.dtype(np.float32)


class DeviceWire:
    """The wire of one group, on its device."""

    def __init__(self, spec: GroupSpec) -> None:
        half = spec.layout.dtype_name if spec.layout.dtype_name in HALVES else None
        up: CodecSpec | None = HALF_CODECS[half]() if half is not None else spec.transfer.up
        self._always = half is not None  # not gradients alone
        self._up = registry.build(up) if up is not None else None
        self._decode = decode_source(type(up)) if up is not None else None
        self._fill = fill_source(_FLOAT32)
        self._encode: CudaSource | None = None
        self._down = None
        if half is not None:
            self._encode = encode_source(half)
        elif isinstance(spec.transfer.down, Float16 | BFloat16):
            self._encode = encode_source(type(spec.transfer.down))
            self._down = registry.build(spec.transfer.down)

    @property
    def programs(self) -> list[CudaSource]:
        """What the device must have compiled."""
        return [program for program in (self._decode, self._fill, self._encode) if program is not None]

    def decodes(self, op: int) -> bool:
        """Do the values of such an entry travel as something that is decoded here?"""
        return self._up is not None and (self._always or op in _GRADIENTS)

    @property
    def encodes(self) -> bool:
        """Are weights encoded here?"""
        return self._encode is not None

    def decode(self, lane: Lane, staged: int, values: int, flags: int, block: Block, begin: int, end: int) -> None:
        """Decode segments [begin, end) of `block`, whose bytes are at `staged`, into the float32 at `values`."""
        assert self._up is not None
        assert self._decode is not None
        if self._always:  # half tensors travel as they lie, with what segments are filled up with
            first, last = block.span(begin, end)
            if last > first:
                run = (last - first, staged, values, last - first, 0, 0.0, flags)
                lane.launch(devices.launch_of(self._decode, [run], []))
            return
        runs, fills, at = [], [], 0
        for segment in block.segments[begin:end]:
            if not segment.elements:
                continue
            size, elements = segment.end - segment.begin, segment.elements
            count, number = self._up.arguments(elements)
            if names_places(type(self._up.spec)):
                fills.append((size, values, 0.0))
                size = count
            runs.append((size, staged + at, values, elements, count, number, flags))
            values += (segment.end - segment.begin) * _FLOAT32.itemsize
            at += self._up.room(elements)
        if fills:
            lane.launch(devices.launch_of(self._fill, fills, []))
        if runs:
            lane.launch(devices.launch_of(self._decode, runs, []))

    def encode(self, lane: Lane, weights: int, to: int, block: Block, begin: int, end: int) -> None:
        """Encode the float32 at `weights`, which are segments [begin, end) of `block`."""
        assert self._encode is not None
        runs, at, (first, last) = [], to, block.span(begin, end)
        if self._down is None:
            runs.append((last - first, weights, last - first, to))
        else:
            for segment in block.segments[begin:end]:
                room = self._down.room(segment.elements)
                there = weights + (segment.begin - first) * _FLOAT32.itemsize
                runs.append((room // 2, there, segment.elements, at))
                at += room
        runs = [run for run in runs if run[0]]
        if runs:
            lane.launch(devices.launch_of(self._encode, runs, []))
