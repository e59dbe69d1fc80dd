"""Answer many jobs by columns, from and to tables; the only part of the predictor that needs Arrow."""

from calmlflow.predictor.batch.predict import BatchOutcome, predict_many

__all__ = ["BatchOutcome", "predict_many"]
