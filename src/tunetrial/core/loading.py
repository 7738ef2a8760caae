"""Heavy libraries, loaded by what needs them."""

import gc
import importlib
import sys
from types import ModuleType


def load(module: str) -> ModuleType:
    """Import a module whose libraries make a million objects that live as long as the process does.

    None of them is garbage: none is looked for meanwhile, which takes a tenth of the time of loading torch and
    transformers, and what is there then is left out of later collections, such as those between two bases. To be
    called before anything large is held: that, too, would be left out.

    Raises:
        ImportError: There is no such module, or it cannot be loaded.
    """
    if module in sys.modules:
        return sys.modules[module]
    collecting = gc.isenabled()
    gc.disable()
    try:
        loaded = importlib.import_module(module)
        gc.freeze()
    finally:
        if collecting:
            gc.enable()
    return loaded
