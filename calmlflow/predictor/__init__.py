"""Answer what a job needs: bundles pulled from the registry by stage, run without any training library."""

from calmlflow.predictor.bundle import Bundle, Predictions
from calmlflow.predictor.predictor import Predictor

__all__ = ["Bundle", "Predictions", "Predictor"]
