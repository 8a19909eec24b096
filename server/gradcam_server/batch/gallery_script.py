"""The script of the gallery: the viewer of the server's page, in one text to embed."""

import base64
import hashlib
import re
from importlib.resources import files

# The page's files, without importing its server.
_PAGE = files("gradcam_server") / "transport" / "http" / "ui"
_OWN = files("gradcam_server") / "batch"
# In the order of their imports.
_MODULES = ("colormaps.js", "contour.js", "geometry.js", "viewer.js")
_IMPORT = re.compile(r"^import .*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def script() -> str:
    """Returns the viewer and what the gallery does with it, as one script without modules.

    A module would be one file for each, which a page in one file cannot import.
    """
    paths = [*(_PAGE / name for name in _MODULES), _OWN / "gallery.js"]
    texts = (_EXPORT.sub("", _IMPORT.sub("", path.read_text("utf-8"))) for path in paths)
    return '"use strict";\n{\n' + "\n".join(texts) + "}\n"


def source_hash(text: str) -> str:
    """Returns the source of a Content-Security-Policy that allows this script and no other."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
