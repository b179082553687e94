"""Keys: the same everywhere, and spread so that servers hold like numbers of blocks."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto import keys
from windlass_scheduler.placement import place

TABLES = st.integers(0, 2**32 - 1)


def test_mix64_gives_the_published_values_of_splitmix64() -> None:
    """The generator's first outputs for seed 0 are the mixes of the golden ratio's multiples."""
    golden = 0x9E3779B97F4A7C15
    outputs = [keys.mix64(golden * (i + 1)) for i in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_block_keys_never_change() -> None:
    found = [keys.block_key(7, block, 3) for block in range(3)]
    assert found[0] == keys.mix64(7)
    assert found == [0x12AE30237B17DF14, 0x68038578D06D3469, 0xBD58DACE25C289BE]


@given(key=st.integers(0, keys.MASK64), bits=st.integers(0, 16))
def test_a_key_lies_in_the_range_of_its_vshard(key: int, bits: int) -> None:
    vshards = 1 << bits
    begin, end = keys.vshard_range(keys.vshard_of(key, vshards), vshards)
    assert begin <= key < end


@pytest.mark.parametrize("vshards", [1, 2, 256, 1 << 16])
def test_vshard_ranges_tile_the_key_space(vshards: int) -> None:
    ranges = [keys.vshard_range(v, vshards) for v in range(vshards)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 1 << 64
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))


@given(table=TABLES, servers=st.integers(2, 8), data=st.data())
def test_no_server_holds_more_than_four_thirds_of_the_mean(table: int, servers: int, data: st.DataObject) -> None:
    """The promise of the module, at its worst: three blocks a server, whatever the table."""
    blocks = data.draw(st.integers(3 * servers, 64 * servers))
    owner = {
        vshard: server
        for server, runs in place(range(servers), keys.VSHARDS_DEFAULT).items()
        for run in runs
        for vshard in range(run.begin, run.end)
    }
    vshards = (keys.vshard_of(keys.block_key(table, b, blocks), keys.VSHARDS_DEFAULT) for b in range(blocks))
    load = Counter(owner[vshard] for vshard in vshards)
    assert 3 * servers * max(load.values()) <= 4 * blocks
