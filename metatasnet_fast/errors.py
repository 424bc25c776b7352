"""The types of all errors that a user can cause. Each message says what to do.

The command line prints any :class:`MetaTasNetError`, and any ``OSError`` of the system, as one sentence.
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
    "EvaluationError",
    "MetaTasNetError",
    "MissingDependencyError",
    "MissingTrackError",
    "NotAudioError",
    "OutOfMemoryError",
    "OutputError",
    "ShapeError",
    "SilentSourceError",
    "TrainingDataError",
    "TrainingError",
    "UnknownStemError",
]


class MetaTasNetError(Exception):
    """The base of all errors that this package raises on purpose."""


class ConfigError(MetaTasNetError, ValueError):
    """A network configuration that cannot be built."""


class ShapeError(MetaTasNetError, ValueError):
    """A tensor whose shape, dtype or device does not fit."""


class CheckpointError(MetaTasNetError, ValueError):
    """A checkpoint that is missing, damaged or unsafe, or that belongs to another network."""


class BackendUnavailableError(MetaTasNetError, RuntimeError):
    """A requested backend or device that cannot be used; the message gives the reason."""


class MissingDependencyError(MetaTasNetError, ImportError):
    """An optional package that is needed but missing; the message names the command that installs it."""


class UnknownStemError(MetaTasNetError, ValueError):
    """A stem that the network does not produce."""


class AudioReadError(MetaTasNetError, OSError):
    """A file that cannot be read or decoded."""


class NotAudioError(AudioReadError):
    """A file that holds no audio stream."""


class MissingTrackError(NotAudioError):
    """A file that has audio, but no audio track of the requested number."""


class EmptyAudioError(AudioReadError):
    """A file or an array that holds no samples."""


class OutputError(MetaTasNetError, OSError):
    """A file, folder or name to which results cannot be written; no half-written file is left."""


class AudioWriteError(OutputError):
    """An audio file that could not be written."""


class AudioFormatError(AudioWriteError):
    """An unknown audio format, or one that cannot hold this sample rate, these channels, length or samples."""


class OutOfMemoryError(MetaTasNetError, MemoryError):
    """Too little memory on a device or in the machine; the message says how to use less memory."""


class TrainingDataError(MetaTasNetError, ValueError):
    """Tracks, or a cache of tracks, that cannot be used for training."""


class TrainingError(MetaTasNetError, RuntimeError):
    """A training run that cannot start or continue; the last saved state of the run stays on disk."""


class EvaluationError(MetaTasNetError, ValueError):
    """Signals, scores or score files that cannot be evaluated."""


class SilentSourceError(EvaluationError):
    """A reference or an estimate that is silent from end to end, under ``strict=True``."""
