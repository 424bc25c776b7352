"""Reading, resampling and writing audio."""

from metatasnet_fast.audio.resample import StreamingResampler, fit_length, resample, resampled_length

__all__ = ["StreamingResampler", "fit_length", "resample", "resampled_length"]
