"""Write a page on which a user can hear and see a separation, and a picture of it."""

from .write import Listening, listen_to, write_page, write_picture

__all__ = ["Listening", "listen_to", "write_page", "write_picture"]
