"""Define a type for every error that a user can cause; each message says what to do.

The command line turns any :class:`MetaTasNetError`, and any ``OSError`` of the system, into one sentence on standard
error.
"""

from __future__ import annotations

__all__ = [
    "AudioFormatError",
    "AudioReadError",
    "AudioWriteError",
    "BackendUnavailableError",
    "CheckpointError",
    "ConfigError",
    "EmptyAudioError",
    "MetaTasNetError",
    "MissingDependencyError",
    "MissingTrackError",
    "NotAudioError",
    "OutOfMemoryError",
    "OutputError",
    "ShapeError",
    "TrainingDataError",
    "TrainingError",
    "UnknownStemError",
]


class MetaTasNetError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(MetaTasNetError, ValueError):
    """A network configuration that cannot be built."""


class ShapeError(MetaTasNetError, ValueError):
    """A tensor whose shape, dtype or device does not fit."""


class CheckpointError(MetaTasNetError, ValueError):
    """A checkpoint that is missing, damaged, unsafe or of another network."""


class BackendUnavailableError(MetaTasNetError, RuntimeError):
    """A requested backend or device cannot serve; the message holds the reason."""


class MissingDependencyError(MetaTasNetError, ImportError):
    """A missing optional package is needed; the message names the command that installs it."""


class UnknownStemError(MetaTasNetError, ValueError):
    """A stem that the network does not produce."""


class AudioReadError(MetaTasNetError, OSError):
    """A file that cannot be read or decoded."""


class NotAudioError(AudioReadError):
    """A file that holds no audio stream."""


class MissingTrackError(NotAudioError):
    """A file that has audio, but no audio track of the requested number."""


class EmptyAudioError(AudioReadError):
    """A file or array with no samples."""


class OutputError(MetaTasNetError, OSError):
    """Results cannot be written to this file, folder or name; no half-written file is left."""


class AudioWriteError(OutputError):
    """An audio file that could not be written."""


class AudioFormatError(AudioWriteError):
    """Rate, channels, length or samples that an audio format cannot hold, or no such format: another one is needed."""


class OutOfMemoryError(MetaTasNetError, MemoryError):
    """The memory of a device or of the machine does not suffice; the message says how to use less."""


class TrainingDataError(MetaTasNetError, ValueError):
    """Tracks or a cache of them from which training cannot read."""


class TrainingError(MetaTasNetError, RuntimeError):
    """A training run that cannot start or continue; its last state is on disk."""
