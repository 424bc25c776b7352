"""Separate songs in the browser, on this machine: a page with an upload field and a player for each stem.

Needs `pip install gradio`. Nothing leaves the machine.

    python examples/separate_in_the_browser.py
"""

from pathlib import Path
from tempfile import mkdtemp

import gradio

from metatasnet_fast import Separator

separator = Separator()


def separate(song: str) -> list[str]:
    stems = separator.separate_file(song).save(Path(mkdtemp()))
    return [str(stems[stem]) for stem in separator.sources]


page = gradio.Interface(
    separate,
    gradio.Audio(type="filepath", label="song"),
    [gradio.Audio(label=stem) for stem in separator.sources],
    title="metatasnet-fast",
    description=f"On {separator.device} by the backend {separator.backend}.",
    flagging_mode="never",
)
if __name__ == "__main__":
    page.launch()
