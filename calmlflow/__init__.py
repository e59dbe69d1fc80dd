"""calmlflow: train, register, promote and serve the networks that size HST calibration jobs."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_results"]

# Imported when first asked for, so that `import calmlflow` costs nothing and the predictor stays free of pandas.
_LATE = {"load_results": "calmlflow.registry.load"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'calmlflow' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
