"""A page on which a separation can be heard and seen, and a picture of it."""

from .page import Listening, write_page
from .picture import write_picture

__all__ = ["Listening", "write_page", "write_picture"]
