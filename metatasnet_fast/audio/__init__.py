"""Reading, resampling and writing audio. soundfile and av (the extra `audio`) are imported when a file is touched."""

from metatasnet_fast.audio.read import AudioFile, AudioStream, open_audio, read_audio
from metatasnet_fast.audio.resample import StreamingResampler, fit_length, resample, resampled_length
from metatasnet_fast.audio.write import AudioWriter, WrittenAudio, write_audio

__all__ = [
    "AudioFile",
    "AudioStream",
    "AudioWriter",
    "StreamingResampler",
    "WrittenAudio",
    "fit_length",
    "open_audio",
    "read_audio",
    "resample",
    "resampled_length",
    "write_audio",
]
