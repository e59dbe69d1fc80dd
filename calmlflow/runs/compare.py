"""What the entry points beside training do, as MLflow runs where something is to be written down."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import mlflow

from calmlflow.registry.load import load_results
from calmlflow.registry.tracking import log_new_params, tracked_run
from calmlflow.runs.predict import predict_table


def predict_in_run(data: str, output: str, stage: str) -> str:
    """Predict a table as an MLflow run, so that it is written down which version answered."""
    with tracked_run("predict"):
        log_new_params({"data": data, "output": output, "stage": stage})
        outcome = predict_table(data, output, stage)
        mlflow.set_tag("predicted_by_version", outcome.version)
        mlflow.log_metrics({"jobs_answered": outcome.answered, "jobs_failed": outcome.failed})
        return str(outcome)


def compare_in_run(this: str, other: str) -> str:
    """Compare two trainings on the jobs that both saw; the run keeps the page, the tables and the differences."""
    # The entry points that draw nothing need not wait for what draws.
    from calmlflow.results.plots.png import write_pngs
    from calmlflow.results.report.comparison import ComparisonContent, comparison_charts, comparison_html

    with tracked_run("compare") as run, tempfile.TemporaryDirectory() as pictures:
        log_new_params({"this": this, "other": other})
        left, right = load_results(this), load_results(other)
        comparisons = left.compare(right)
        for target, comparison in comparisons.items():
            mlflow.log_metrics(
                {f"difference_{target}_{name}": row["difference"] for name, row in comparison.scores.iterrows()}
            )
            mlflow.log_metric(f"jobs_compared_{target}", comparison.jobs)
            mlflow.log_text(comparison.scores.to_csv(), f"comparison_{target}.csv")
        text = "\n\n".join(str(comparison) for comparison in comparisons.values())
        mlflow.log_text(text, "comparison.txt")
        only_in = dict.fromkeys(left.by_target().keys() - comparisons, "this")
        only_in |= dict.fromkeys(right.by_target().keys() - comparisons, "the other")
        created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        content = ComparisonContent(this, other, run.info.run_id, created, comparisons, only_in)
        mlflow.log_text(comparison_html(content), "comparison.html")
        charts = {f"differences_{target}": chart for target, chart in comparison_charts(comparisons).items()}
        write_pngs(charts, Path(pictures))
        mlflow.log_artifacts(pictures)
        return text
