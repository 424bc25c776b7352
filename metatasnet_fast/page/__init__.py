"""A page on which a separation can be heard and seen, and a picture of it."""

from .picture import write_picture
from .write import Listening, listen_to, write_page

__all__ = ["Listening", "listen_to", "write_page", "write_picture"]
