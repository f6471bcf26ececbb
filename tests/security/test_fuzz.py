"""A few damaged files for every reader, the same each time; `python -m tests.security.fuzz` reads a thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security.fuzz import READERS, damaged_files

COUNT = 8


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    outcomes = damaged_files(name, COUNT, 1, tmp_path)
    assert not [outcome for outcome in outcomes if outcome.startswith("fault")], outcomes
    assert outcomes["read"] + outcomes["refused"] == COUNT
