"""Backends: objects that run the network's jobs (prepare, encode, mask, decode) on a device, in a precision."""

from .cache import PreparedCache
from .registry import (
    Availability,
    Backend,
    Choice,
    Request,
    available_backends,
    backend_names,
    current_choice,
    get_backend,
    resolve,
    use_backend,
)

__all__ = [
    "Availability",
    "Backend",
    "Choice",
    "PreparedCache",
    "Request",
    "available_backends",
    "backend_names",
    "current_choice",
    "get_backend",
    "resolve",
    "use_backend",
]
