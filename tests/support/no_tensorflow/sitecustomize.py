"""Python imports this module when it starts: it then finds neither TensorFlow nor Keras."""

import sys
from importlib.machinery import ModuleSpec


class _Missing:
    """Finds none of the packages, in no place, and searches for no other."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name in ("tensorflow", "keras"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, _Missing())
