"""How much memory there is, how much of it a KV cache may take, and when it takes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from plait.kernels.host_memory import Arena, lazy_zeros
from plait.kernels.kv_cache import KVCacheShape, new_kv_cache
from plait.server.engine.build import build_engine, default_cache_bytes, kept_blocks
from plait.server.memory import SystemMemory, system_memory
from plait.server.models.catalog import BadModel
from plait.server.settings import EngineSettings
from tests.fixtures.engines import drain, request
from tests.fixtures.source_tree import plant
from tests.fixtures.tiny_models import write_tiny_model

MEMINFO = (
    "MemTotal:        8000 kB\nMemFree:  100 kB\nMemAvailable:    5000 kB\nHugePages_Total: 0\n"
)
KIB = 1024
TOTAL, AVAILABLE = 8000 * KIB, 5000 * KIB


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({}, SystemMemory(TOTAL, AVAILABLE)),
        # Version 2, from outside: the tightest group on the way counts.
        (
            {
                "proc/self/cgroup": "0::/pods/one\n",
                "sys/fs/cgroup/pods/one/memory.max": "max\n",
                "sys/fs/cgroup/pods/one/memory.current": "7\n",
                "sys/fs/cgroup/pods/memory.max": f"{4000 * KIB}\n",
                "sys/fs/cgroup/pods/memory.current": f"{3000 * KIB}\n",
                "sys/fs/cgroup/pods/memory.stat": f"anon 1\ninactive_file {500 * KIB}\n",
            },
            SystemMemory(4000 * KIB, 1500 * KIB),
        ),
        # Version 2, in a container: its group is the root of what it sees.
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": f"{100 * KIB}\n",
                "sys/fs/cgroup/memory.current": f"{300 * KIB}\n",
                "sys/fs/cgroup/memory.stat": "inactive_file 0\n",
            },
            SystemMemory(100 * KIB, 0),
        ),
        # Version 1: the group's path leads nowhere from within the container.
        (
            {
                "proc/self/cgroup": "9:cpu:/\n4:memory:/docker/abc\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2000 * KIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{1000 * KIB}\n",
                "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {KIB}\n",
            },
            SystemMemory(2000 * KIB, 1001 * KIB),
        ),
        # Version 1 writes "no limit" as a number.
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
                "sys/fs/cgroup/memory/memory.stat": "\n",
            },
            SystemMemory(TOTAL, AVAILABLE),
        ),
    ],
)
def test_control_groups_bound_the_machines_memory(
    tmp_path: Path, files: dict[str, str], want: SystemMemory
) -> None:
    assert system_memory(plant(tmp_path, {"proc/meminfo": MEMINFO} | files)) == want


def test_a_system_that_says_nothing_has_no_known_memory(tmp_path: Path) -> None:
    assert system_memory(tmp_path) is None


def test_this_machine_has_memory() -> None:
    memory = system_memory()
    assert memory is not None
    assert 0 < memory.available <= memory.total


GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("one_sequence", "max_num_seqs", "available", "want"),
    [
        (16 * MIB, 64, None, GIB),  # all would need as much
        (16 * MIB, 8, None, 128 * MIB),  # no more than all can need
        (64 * MIB, 64, 100 * GIB, GIB),
        (3 * GIB, 64, 100 * GIB, 3 * GIB),  # one of full length must fit
        (3 * GIB, 64, 4 * GIB, 2 * GIB),  # but not in memory that isn't there
    ],
)
def test_the_default_cache(
    one_sequence: int, max_num_seqs: int, available: int | None, want: int
) -> None:
    assert default_cache_bytes(one_sequence, max_num_seqs, available) == want


@pytest.mark.parametrize(
    ("prefix_cache_bytes", "kv_cache_bytes", "length", "want"),
    [
        (0, 0, 4096, 512),  # of 256 KiB each
        (0, 0, 100_000, 6250),  # one of full length can be continued
        (0, GIB, 8192, None),
        (GIB, 0, 8192, 4096),
        (3 * MIB, GIB, 8192, 12),
    ],
)
def test_what_is_kept_of_ended_requests(
    prefix_cache_bytes: int, kv_cache_bytes: int, length: int, want: int | None
) -> None:
    settings = EngineSettings(prefix_cache_bytes=prefix_cache_bytes, kv_cache_bytes=kv_cache_bytes)
    assert kept_blocks(settings, 256 * KIB, length) == want


@pytest.mark.parametrize(("prefix_cache_bytes", "hits"), [(0, 48), (1, 0)])
def test_an_engine_remembers_no_more_than_it_shall(
    tmp_path: Path, prefix_cache_bytes: int, hits: int
) -> None:
    folder = write_tiny_model(tmp_path / "model", max_position_embeddings=512)
    settings = EngineSettings(model=str(folder), prefix_cache_bytes=prefix_cache_bytes)
    engine, _ = build_engine(settings)
    for first in (3, 70, 3):
        engine.add(request("r", range(first, first + 57), 2))
        drain(engine)
    assert engine.stats().counters.prefix_cache_hits == hits


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_cache_takes_memory_when_it_is_written() -> None:
    before = resident_bytes()
    cache = lazy_zeros((4, 2**25), torch.bfloat16)
    assert resident_bytes() - before < 16 * MIB
    cache[2, : 2**24] = 1.0
    assert 16 * MIB < resident_bytes() - before < 128 * MIB
    assert cache[2].sum(dtype=torch.float64) == 2**24
    assert not cache[3].any()


def test_a_kv_cache_takes_memory_for_the_blocks_that_are_written() -> None:
    shape = KVCacheShape(layers=8, kv_heads=2, head_dim=64, dtype=torch.float32)
    before = resident_bytes()
    cache = new_kv_cache(shape, 2**14, torch.device("cpu"))
    assert shape.block_bytes * 2**14 == 2**31
    cache.k[:, :9] = 1.0
    cache.v[:, :9] = 2.0
    assert resident_bytes() - before < 16 * MIB
    assert float(cache.k.flatten(2)[:, 8:10, 0].sum()) == 8
    assert cache.v[0, 3].is_contiguous()


@pytest.mark.parametrize("numbers", [[3, 100], [2**24 + 1, 5], []])
def test_an_arena_keeps_copies(numbers: list[int]) -> None:
    arena = Arena()
    tensors = [torch.arange(size, dtype=torch.int64) for size in numbers]
    kept = [arena.keep(tensor) for tensor in tensors]
    for tensor, copy in zip(tensors, kept, strict=True):
        assert copy.data_ptr() % 64 == 0
        assert torch.equal(copy, tensor)
        tensor.zero_()
    assert [int(copy[-1]) for copy in kept] == [size - 1 for size in numbers]


def test_what_can_never_fit_is_refused_at_start(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    with pytest.raises(BadModel, match=r"kv_cache_bytes 4\.0PiB is more than the memory there is"):
        build_engine(EngineSettings(model=str(folder), kv_cache_bytes=2**52))


def test_memory_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    settings = EngineSettings(model=str(folder), draft_model="self", draft_kv_cache_bytes=2**50)
    with pytest.raises(BadModel, match=r"a KV cache of \d+ bytes can't be had on cpu"):
        build_engine(settings)


def test_a_context_that_the_cache_cuts_is_logged(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", max_position_embeddings=512)
    with capture_logs() as logs:
        _, info = build_engine(EngineSettings(model=str(folder), kv_cache_bytes=2**17))
    assert info.max_model_len < 512
    (line,) = [line for line in logs if line["event"].startswith("context cut")]
    assert (line["max_model_len"], line["wanted"]) == (info.max_model_len, 512)
    with capture_logs() as logs:
        settings = EngineSettings(model=str(folder), kv_cache_bytes=line["enough"])
        assert build_engine(settings)[1].max_model_len == 512
    assert not [line for line in logs if line["event"].startswith("context cut")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    with pytest.raises(BadModel, match="device cuda:1: torch finds no GPU that it can use"):
        build_engine(EngineSettings(model=str(folder), device="cuda:1"))


def test_a_model_of_few_positions_is_served_with_the_cache_that_its_sequences_need(
    tmp_path: Path,
) -> None:
    folder = write_tiny_model(tmp_path / "model", max_position_embeddings=64)
    _, info = build_engine(EngineSettings(model=str(folder), max_num_seqs=3))
    assert info.max_model_len == 64
    assert info.num_blocks == 3 * (64 // 16 + 1)
