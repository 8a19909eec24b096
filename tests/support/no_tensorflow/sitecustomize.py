"""Python imports this module when it starts: it then finds neither TensorFlow nor Keras."""

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_modules.update(dict.fromkeys(("tensorflow", "keras")))
