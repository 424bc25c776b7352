"""``python -m metatasnet_fast`` is the command ``metatasnet-fast``."""

from __future__ import annotations

import sys

from .cli.main import main

sys.exit(main())
