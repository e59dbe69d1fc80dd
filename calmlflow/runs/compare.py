"""Compare two trainings on the jobs that both held out, as an MLflow run."""

from datetime import UTC, datetime

import mlflow

from calmlflow.registry.load import load_results
from calmlflow.registry.tracking import log_new_params, tracked_run
from calmlflow.results.report.comparison import ComparisonContent, comparison_html


def compare_in_run(this: str, other: str) -> str:
    """Compare two trainings, named as for `calmlflow.load_results`; the run keeps page, tables and differences.

    Answers are compared where both have them, else the networks. Returns the comparison as a table of text.
    """
    with tracked_run("compare") as run:
        log_new_params({"this": this, "other": other})
        left, right, compared = load_results(this), load_results(other), "networks"
        if left.answer and right.answer:
            left, right, compared = left.answer, right.answer, "answers"
        mlflow.set_tag("compared", compared)
        comparisons = left.compare(right)
        for target, comparison in comparisons.items():
            differences = comparison.scores["difference"].items()
            mlflow.log_metrics({f"difference_{target}_{name}": value for name, value in differences})
            mlflow.log_metric(f"jobs_compared_{target}", comparison.jobs)
            mlflow.log_text(comparison.scores.to_csv(), f"comparison_{target}.csv")
        text = "\n\n".join([f"compared: {compared}", *map(str, comparisons.values())])
        mlflow.log_text(text, "comparison.txt")
        only_in = dict.fromkeys(left.by_target().keys() - comparisons, "this")
        only_in |= dict.fromkeys(right.by_target().keys() - comparisons, "the other")
        created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        content = ComparisonContent(this, other, run.info.run_id, created, comparisons, only_in, compared)
        mlflow.log_text(comparison_html(content), "comparison.html")
        return text
