"""The run of a comparison."""

import mlflow

from calmlflow.results.files import write_results
from calmlflow.runs.compare import compare_in_run
from tests.samples.results_samples import small


def test_the_run_keeps_page_tables_and_text(tracking, tmp_path):
    for name, targets in (("one", ("mem_bin", "memory")), ("two", ("memory", "wallclock"))):
        for target in targets:
            write_results(small(target), tmp_path / name / "results" / target)
    mlflow.set_experiment("comparison")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    text = compare_in_run(one, two)

    client = mlflow.MlflowClient()
    run_id = mlflow.last_active_run().info.run_id
    assert {artifact.path for artifact in client.list_artifacts(run_id)} == {
        "comparison.html", "comparison.txt", "comparison_memory.csv",
    }  # fmt: skip
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/comparison.txt") == text
    assert text.startswith("compared: networks\n")
    page = mlflow.artifacts.load_text(f"runs:/{run_id}/comparison.html")
    assert f"{one} against {two}" in page
    assert "Memory bin: only this has it" in page
    assert "Wallclock: only the other has it" in page


def test_answers_are_compared_where_both_have_them(tracking, tmp_path):
    for name, targets in (("one", ("memory", "wallclock")), ("two", ("memory",))):
        write_results(small("mem_bin"), tmp_path / name / "results" / "mem_bin")
        for target in targets:
            write_results(small(target), tmp_path / name / "results" / "answer" / target)
    mlflow.set_experiment("comparison")
    text = compare_in_run(str(tmp_path / "one"), str(tmp_path / "two"))
    assert text.startswith("compared: answers\n")
    run = mlflow.last_active_run()
    assert run.data.tags["compared"] == "answers"
    assert {name.split("_")[1] for name in run.data.metrics if name.startswith("difference_")} == {"memory"}
    page = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/comparison.html")
    assert "Compared are the answers" in page
    assert "Wallclock: only this has it" in page
