"""Freed memory is kept, where the system's allocator can be told so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from diffusion_forcing.launch import cli as allocator

GLIBC = sys.platform.startswith("linux") and "glibc" in " ".join(
    os.confstr(name) or "" for name in ["CS_GNU_LIBC_VERSION"]
)
FAULTS = """
import resource, sys
from diffusion_forcing.launch.cli import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else "plain")
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 100 * 2**20
def touch():
    p = libc.malloc(size); ctypes.memset(p, 1, size); libc.free(p)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str) -> tuple[str, int]:
    """What was answered, and the pages that were mapped anew by 5 allocations of 100 MB after a first one."""
    environment: Mapping[str, str] = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", FAULTS, word], capture_output=True, text=True, env=environment)
    answer, count = done.stdout.split()
    return answer, int(count)


@pytest.mark.skipif(not GLIBC, reason="glibc's allocator alone can be told")
def test_memory_that_was_freed_is_there_again_without_new_pages() -> None:
    answer, kept = faults("keep")
    _, plain = faults("plain")
    assert answer == "True"
    assert kept < plain / 10


def test_what_the_user_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert not allocator.keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert not allocator.keep_freed_memory()
