"""Separate a song with the bundled model, save its stems, and write a page to listen to them.

python examples/separate_a_song.py song.wav stems/
"""

import sys
from pathlib import Path

from metatasnet_fast import Separator
from metatasnet_fast.page import listen_to

song, folder = Path(sys.argv[1]), Path(sys.argv[2])
separation = Separator().separate_file(song)
files = separation.save(folder)
print(separation)
print(listen_to(song, files, song.stem, {"Engine": separation.backend}))
