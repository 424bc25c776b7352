"""The tests under ``interpreted`` run in a process of their own: Triton decides when it is imported."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
