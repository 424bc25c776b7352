"""Every error a user can cause has a type here, and a message that says what to do.

The command line turns any :class:`MetaTasNetError`, and any ``OSError`` of the system, into one sentence on standard error;
nothing else is caught.
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
    """A backend was asked for by name and cannot serve; the message holds the reason."""


class MissingDependencyError(MetaTasNetError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


class UnknownStemError(MetaTasNetError, ValueError):
    """A stem that the network does not produce."""


class AudioReadError(MetaTasNetError, OSError):
    """A file that cannot be read or decoded."""


class NotAudioError(AudioReadError):
    """A file that holds no audio stream."""


class MissingTrackError(NotAudioError):
    """A file whose audio has no track of a number."""


class EmptyAudioError(AudioReadError):
    """A file or array with no samples."""


class OutputError(MetaTasNetError, OSError):
    """Results cannot be written to this file, folder or name; no half-written file is left."""


class AudioWriteError(OutputError):
    """An audio file that could not be written."""


class AudioFormatError(AudioWriteError):
    """Rate, channels, length or samples that an audio format cannot hold, or no such format: another one is needed."""


class OutOfMemoryError(MetaTasNetError, MemoryError):
    """Memory, a device's or the machine's, does not suffice; the message says what needs less."""


class TrainingDataError(MetaTasNetError, ValueError):
    """Tracks or a cache of them from which training cannot read."""


class TrainingError(MetaTasNetError, RuntimeError):
    """A training run that cannot start or continue; its last state is on disk."""
