"""Answer what a job needs with bundles pulled from the registry by stage, without any training library."""

from typing import TYPE_CHECKING, Any

from calmlflow.predictor.bundle import Bundle, Predictions

if TYPE_CHECKING:
    from calmlflow.predictor.predictor import Predictor

__all__ = ["Bundle", "Predictions", "Predictor"]


def __getattr__(name: str) -> Any:
    # On demand: a served model packs the modules that run a bundle, and none of those that ask a registry.
    if name == "Predictor":
        from calmlflow.predictor.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
