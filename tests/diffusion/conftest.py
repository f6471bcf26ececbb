from __future__ import annotations

from hypothesis import settings

# the same examples in every run: a red test means a changed code
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
