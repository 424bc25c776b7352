"""Changes of the site's pages: the roles of docstrings, such as :class:`Separator`, become plain names."""

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Return a page's HTML without the names of roles and the tildes in front of code."""
    return re.sub(r":(?:class|func|meth|mod|data|attr):\s*<code>[~.]*", "<code>", html)
