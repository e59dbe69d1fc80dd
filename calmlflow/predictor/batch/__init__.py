"""Many jobs: read in pieces, answered by columns, written in parts; the one wing of the predictor that needs Arrow."""

from calmlflow.predictor.batch.run import BatchOutcome, predict_many

__all__ = ["BatchOutcome", "predict_many"]
