"""Metrics files -> targets (design 4.2)."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.hst.resources import MAX_METRICS_FILE_BYTES, job_targets, parse_runs, parse_usage


def metrics(elapsed: object = "0:01.00", resident_kb: object = 1000, status: object = 0, before: str = "") -> str:
    """What GNU time --verbose writes, in its order; the lines that calmlflow has no use for are cut to a few."""
    return (
        f'{before}\tCommand being timed: "step --dataset jzzz01010"\n'
        "\tUser time (seconds): 12.34\n"
        "\tPercent of CPU this job got: 99%\n"
        f"\tElapsed (wall clock) time (h:mm:ss or m:ss): {elapsed}\n"
        "\tAverage total size (kbytes): 0\n"
        f"\tMaximum resident set size (kbytes): {resident_kb}\n"
        "\tAverage resident set size (kbytes): 0\n"
        "\tPage size (bytes): 4096\n"
        f"\tExit status: {status}\n"
    )


@pytest.mark.parametrize(
    ("elapsed", "seconds"),
    [
        *(("0:00.00", 0), ("0:00.99", 0), ("0:59.99", 59), ("1:00.00", 60), ("59:59.99", 3599), ("1:02,50", 62)),
        *(("1:00:00", 3600), ("2:03:04", 7384), ("47:59:59", 172_799), ("100:00:00", 360_000)),
    ],
)
def test_elapsed_time(elapsed, seconds):
    assert parse_usage(metrics(elapsed)).elapsed_s == seconds


@pytest.mark.parametrize(
    "elapsed", ["", "12", "0:60.00", "1:60:00", "60:00.00", "1:2", "-1:00:00", "1:00:00:00", "?", "9" * 5000 + ":00:00"]
)
def test_elapsed_time_that_is_none(elapsed):
    with pytest.raises(InputError, match=r"^job x: elapsed time is .*; expected h:mm:ss or m:ss\.ss") as error:
        parse_usage(metrics(elapsed), "job x")
    assert len(str(error.value)) < 200


def test_lines_are_found_by_label_in_any_order_and_the_last_one_counts():
    lines = metrics("1:02.50", 345_678, 3).splitlines()
    assert parse_usage("\n".join(reversed(lines))) == (62, 345_678, 3)
    assert parse_usage("\r\n".join(lines).encode()) == (62, 345_678, 3)
    # What the step printed itself does not count.
    assert parse_usage(metrics("0:07.00", 7, 7) + metrics("0:01.00", 1, 0)) == (1, 1, 0)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "shift-jis"])
def test_the_timed_command_may_be_in_any_encoding(encoding):
    command = {"shift-jis": "\u65e5\u672c"}.get(encoding, "caf\u00e9")
    text = f'\tCommand being timed: "{command}"\n' + metrics("1:02.50", 345_678, 3)
    assert parse_usage(text.encode(encoding)) == (62, 345_678, 3)


@pytest.mark.parametrize("label", ["Elapsed (wall clock) time", "Maximum resident set size", "Exit status"])
def test_a_missing_line_is_named(label):
    cut = "\n".join(line for line in metrics().splitlines() if label not in line)
    with pytest.raises(InputError) as error:
        parse_usage(cut, "job x")
    assert "job x has no line" in str(error.value)
    assert label in str(error.value)


@pytest.mark.parametrize("value", ["", "-1", "1.5", "12 kB", "x", "\u0661", "9" * 5000])
def test_numbers_that_are_none(value):
    with pytest.raises(InputError, match=r"Maximum resident set size .*; expected a whole number"):
        parse_usage(metrics(resident_kb=value))
    with pytest.raises(InputError, match=r"Exit status .*; expected a whole number"):
        parse_usage(metrics(status=value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no line"),
        (b"\xff\xfe\0\1", "no line"),
        (b" " * (MAX_METRICS_FILE_BYTES + 1), "expected at most"),
    ],
)
def test_what_is_no_metrics_file(content, message):
    with pytest.raises(InputError, match=f"^job x.*{message}"):
        parse_usage(content, "job x")


@given(st.one_of(st.binary(), st.text(), st.builds(metrics, st.text(), st.text(), st.text())))
def test_any_content_parses_or_is_an_input_error(content):
    try:
        usage = parse_usage(content)
    except InputError:
        return
    assert min(usage) >= 0


@given(st.integers(0, 59), st.integers(0, 59), st.integers(1, 10**8), st.integers(1, 10**8))
def test_targets_of_any_job(process_s, preview_s, process_kb, preview_kb):
    process = metrics(f"0:{process_s:02}.99", process_kb)
    preview = metrics(f"0:{preview_s:02}.99", preview_kb)
    targets = job_targets("jzzz01010", process, preview)
    assert targets.wallclock == process_s + preview_s + 1
    assert targets.memory == pytest.approx((process_kb + preview_kb) / 1e6)
    total_kb = process_kb + preview_kb
    assert targets.mem_bin == (total_kb >= 1_792_000) + (total_kb >= 7_168_000) + (total_kb >= 14_336_000)


@pytest.mark.parametrize("step", ["process", "preview"])
@pytest.mark.parametrize(
    ("content", "message"), [(metrics(status=1), "says exit status 1; expected 0"), ("nothing", "has no line")]
)
def test_a_failed_step_or_a_bad_file_gives_no_targets(step, content, message):
    files = {"process": metrics(), "preview": metrics()} | {step: content}
    with pytest.raises(InputError, match=rf"^jzzz01010: {step}_metrics\.txt {message}"):
        job_targets("jzzz01010", **files)


def test_a_killed_step_gives_no_targets_though_time_says_exit_status_0():
    killed = metrics(before="Command terminated by signal 9\n")
    assert parse_usage(killed).exit_status == 137
    with pytest.raises(InputError, match=r"preview_metrics\.txt says exit status 137"):
        job_targets("jzzz01010", metrics(), killed)


@given(st.lists(st.tuples(st.integers(0, 59), st.integers(1, 10**8), st.sampled_from([0, 1, 137])), min_size=1))
def test_the_last_of_several_runs_counts_and_the_others_are_told(runs):
    def written(seconds: int, resident_kb: int, status: int) -> str:
        signal = "Command terminated by signal 9\n" if status == 137 else ""
        return metrics(f"0:{seconds:02}.00", resident_kb, 0 if status == 137 else status, signal)

    text = "".join(written(*run) for run in runs)
    assert parse_runs(text) == runs
    assert parse_usage(text) == runs[-1]


def test_targets_are_those_of_the_run_after_a_kill():
    killed = metrics("0:41.12", 1_790_211, before="Command terminated by signal 9\n")
    targets = job_targets("jzzz01010", killed + metrics("3:02.77", 2_650_118), metrics("0:28.10", 230_001))
    assert targets == (182 + 28 + 1, pytest.approx(2.880119), 1)


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)])
def test_a_metrics_file_of_the_real_gnu_time(tmp_path, command, status):
    if not Path("/usr/bin/time").exists():
        pytest.skip("GNU time is not installed (Debian package: time)")
    subprocess.run(["/usr/bin/time", "--verbose", "--output", tmp_path / "metrics", "sh", "-c", command], check=False)
    usage = parse_usage((tmp_path / "metrics").read_bytes())
    assert usage.exit_status == status
    # A shell needs more than 100 kB and less than 1 GB.
    assert 100 < usage.resident_kb < 1_000_000
