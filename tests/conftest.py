"""Settings of every test run."""

from __future__ import annotations

import torch

# The networks under test are small: threads would wait for each other longer than they compute.
torch.set_num_threads(1)
