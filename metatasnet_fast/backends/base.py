"""The interface of a backend: an object that runs the network's jobs on some devices, in some precisions."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from .. import reference
from ..config import MetaTasNetConfig, StageConfig
from ..errors import ShapeError
from ..precision import Precision
from ..reference import LossWeights

__all__ = ["Backend", "Request", "check_device", "exactly"]

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Request:
    """A request to a backend: a device, a precision, and whether gradients are needed (``training``)."""

    device: torch.device
    precision: Precision
    training: bool = False
    config: MetaTasNetConfig | None = None

    def __str__(self) -> str:
        return f"{'training' if self.training else 'inference'} in {self.precision.value} on {self.device}"


class Backend(ABC):
    """The jobs of the network: prepare (which includes the generator), encode, mask, decode.

    A job depends only on its arguments and on what :meth:`prepare` returned. Between jobs, tensors have the shapes named here;
    the backend chooses their strides and their (lower) dtype. Every job accepts any strides and a batch of zero items. For
    ``training`` requests, every job is differentiable with respect to its inputs and to the parameters.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line about the backend, for the list of backends."""

    def variant(self) -> str:
        """Return what prepared weights depend on, apart from the weights: for example an instruction set forced by the user."""
        return ""

    @abstractmethod
    def unavailable(self) -> str | None:
        """Return None if this machine can run the backend at all, else one sentence that a user can act on."""

    @abstractmethod
    def supports(self, request: Request) -> str | None:
        """Return None if the request can be served, else one sentence that a user can act on."""

    @abstractmethod
    def prepare(self, config: StageConfig, parameters: Mapping[str, Tensor], precision: Precision) -> Any:
        """Generate, fold and pack the weights of one stage.

        Args:
            config: the stage's sizes.
            parameters: the stage's parameters by the original's names, on one device.
            precision: the precision of all jobs that get the result.

        Returns:
            an object that only this backend understands. Under ``torch.no_grad`` the object must not share memory with the
            parameters: the network keeps it until a parameter changes.
        """

    @abstractmethod
    def encode(self, prepared: Any, signal: Tensor) -> Tensor:
        """Encode signals (n, 1, T) into latents (n, N, T // W), for any n."""

    @abstractmethod
    def mask(self, prepared: Any, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None) -> Tensor:
        """Return the masked latents (n, I, N, T') of I instruments.

        ``latent`` (n, N, T') is the mixture's. ``partial`` (n, I, N / 2, T') is the masked latent of the previous stage, None
        in the first stage. ``dropout`` (n, I, N) are factors for the masking network's copy of the latent.
        """

    @abstractmethod
    def decode(self, prepared: Any, latent: Tensor) -> Tensor:
        """Decode latents (n, N, T') into signals (n, 1, T' W), for any n."""

    def repeat(
        self, prepared: Sequence[Any], job: Callable[..., tuple[Tensor, ...]], name: Hashable, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return ``job(*inputs)``, an inference of several of the backend's jobs that is called repeatedly with other values.

        A backend may record the job under ``name`` and the inputs' shapes, and replay the record. ``prepared`` holds the
        prepared weights of the stages.
        """
        return job(*inputs)

    def stage_loss(
        self,
        estimate: Tensor,
        target: Tensor,
        mask: Tensor,
        latents: Tensor | None,
        mix_estimate: Tensor | None,
        mix: Tensor,
        weights: LossWeights,
        divisors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return loss and statistics of a stage; the default is :func:`metatasnet_fast.reference.stage_loss`."""
        return reference.stage_loss(estimate, target, mask, latents, mix_estimate, mix, weights, divisors)


def check_device(tensor: Tensor, device: torch.device) -> None:
    """Raise :class:`ShapeError` for a tensor that is not on the device of the weights."""
    if tensor.device != device:
        raise ShapeError(f"A tensor is on {tensor.device}, the weights on {device}: move one of them.")


def exactly(method: Method) -> Method:
    """Run a method without autocast, which would round the results of PyTorch's operations in the method."""

    @functools.wraps(method)
    def run(*args: Any, **named: Any) -> Any:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return method(*args, **named)

    return cast(Method, run)
