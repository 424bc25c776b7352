"""Read, resample and write audio. The packages of the extra `audio` are imported when a file is read or written."""

from metatasnet_fast.audio.read import AudioFile, AudioStream, is_address, open_audio, read_audio
from metatasnet_fast.audio.resample import StreamingResampler, fit_length, resample, resampled_length
from metatasnet_fast.audio.tags import Tags, read_tags
from metatasnet_fast.audio.write import AudioWriter, WrittenAudio, closest_subtype, write_audio

__all__ = [
    "AudioFile", "AudioStream", "AudioWriter", "StreamingResampler", "Tags", "WrittenAudio", "closest_subtype",
    "fit_length", "is_address", "open_audio", "read_audio", "read_tags", "resample", "resampled_length",
    "write_audio",
]  # fmt: skip
