"""Separate several files, and keep two sums of stems of each: the band, and the voices.

python examples/add_up_stems.py stems/ song.wav another.flac
"""

import sys

from metatasnet_fast import Separator

recipe = {"band": ("drums", "bass", "other"), "voices": ("vocals",)}
for separation in Separator().separate_files(sys.argv[2:], sys.argv[1], stems=recipe, format="flac"):
    print(*separation.files.values(), sep="\n")
