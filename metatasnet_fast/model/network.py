"""The network with the original's interface."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config import MetaTasNetConfig
from .methods import NetworkMethods
from .modules import Stage
from .pretrained import PretrainedMixin

__all__ = ["MultiTasNet"]


class MultiTasNet(PretrainedMixin, NetworkMethods):
    """Meta-TasNet: a drop-in for the authors' class of the same name.

    Args:
        args: the authors' ``argparse.Namespace``, or a :class:`MetaTasNetConfig`. It is kept as ``self.args``.

    Raises:
        ConfigError: for settings with which the network cannot be built.

    Source: Samuel et al. 2020; original ``model/tasnet.py``.
    """

    def __init__(self, args: Any) -> None:
        super().__init__()
        config = MetaTasNetConfig.from_namespace(args)
        self.args = args
        self.W = config.W
        self.base_sr = config.sampling_rate
        self.stages_num = config.stages_num
        self.stages = nn.ModuleList(Stage(config, index) for index in range(config.stages_num))
