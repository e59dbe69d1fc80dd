"""Stores in files of somebody's own: killed, filled up, linked, and with columns and types that are not ours."""

import csv
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calmlflow.errors import InputError
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.base import JOBS
from calmlflow.jobs.stores.open import open_store, read_jobs
from calmlflow.jobs.upsert import Batch, keep
from tests.samples.store_samples import RECORD, frame, record

# A table as somebody keeps it by hand, with columns of their own and cells that are no numbers.
HEADER = ["note", *RECORD, "exposure"]
OWN = [
    ["", *map(str, RECORD.values()), "007"],
    ['a "quoted", long\nnote', *map(str, {**RECORD, "ipst": "j91jc4010", "n_files": "1_0"}.values()), "NA"],
    ["nan", *map(str, {**RECORD, "ipst": "lbny02010", "memory": "", "instr": 1}.values()), "1e5"],
    ["é", *map(str, {**RECORD, "ipst": "J9SOUND10", "total_mb": "93.7"}.values()), "0.10"],
]


def rows_of(path: Path) -> list[list[str]]:
    """A CSV by Python's own reader."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_own(path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *OWN])
    return path


def put(path: Path, rows: pd.DataFrame) -> None:
    with closing(open_store(str(path), create=True)) as store:
        store.put(JOBS, rows)


def test_a_record_that_is_replaced_keeps_what_the_store_knows_nothing_of(tmp_path):
    path = write_own(tmp_path / "jobs.csv")
    put(path, frame(JOBS, [record("ib0101xyq", dtype=0, instr=3), record(memory=1.5)]))
    header, *rows = rows_of(path)
    assert header[: len(HEADER)] == HEADER
    by_name = {row[header.index("ipst")]: row for row in rows}
    assert list(by_name) == ["j8c601020", "j91jc4010", "lbny02010", "J9SOUND10", "ib0101xyq"]
    for own in OWN[1:]:
        assert by_name[own[1]][: len(HEADER)] == own
    changed = dict(zip(header, by_name["j8c601020"], strict=True))
    assert (changed["note"], changed["exposure"], float(changed["memory"])) == ("", "007", 1.5)


def test_a_link_and_the_rights_of_a_file_stay(tmp_path):
    (tmp_path / "there").mkdir()
    real = write_own(tmp_path / "there" / "real.csv")
    real.chmod(0o640)
    link = tmp_path / "jobs.csv"
    link.symlink_to(real)
    put(link, frame(JOBS, [record(memory=1.5)]))
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert "1.5" in {row[HEADER.index("memory")] for row in rows_of(real)}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_of_another_kind_is_not_written_into(tmp_path, kind):
    path = tmp_path / f"other.{kind}"
    other = pd.DataFrame({"a": [1, 2]})
    other.to_csv(path, index=False) if kind == "csv" else other.to_parquet(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="has no column ipst, "), closing(open_store(str(path))) as store:
        keep(store, Batch(jobs=pd.DataFrame([record()])), "test")
    assert path.read_bytes() == before


def test_a_table_may_be_named_like_one_of_ours(tmp_path):
    put(tmp_path / "new" / "my.jobs.csv", frame(JOBS, [record()]))
    assert len(read_jobs(str(tmp_path / "new")).valid) == 1


WRITER = """
import sys
from calmlflow.jobs.upsert import Batch, keep
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.open import open_store
store, jobs = open_store(sys.argv[1], create=True), draw_sample(300, 4)
for first in range(0, 300, 3):
    keep(store, Batch(jobs=jobs[first : first + 3]), "test")
    print(first, flush=True)
"""


def test_a_process_that_is_killed_leaves_whole_files(tmp_path):
    path = tmp_path / "jobs.csv"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(4)]
        writer.kill()
    jobs = draw_sample(300, 4)
    found = set(read_jobs(str(path)).valid["ipst"])
    assert set(jobs["ipst"][: told[-1] + 3]) <= found
    with closing(open_store(str(path))) as store:
        assert keep(store, Batch(jobs=jobs), "test").stored == len(jobs) - len(found)
        assert store.count(JOBS) == len(jobs)


def test_a_disk_that_is_full_changes_nothing(tmp_path):
    path = tmp_path / "jobs.csv"
    put(path, frame(JOBS, [record()]))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    # A limit on what the process may write stands for the disk.
    code = (
        "import resource, signal, sys; from calmlflow.jobs.stores.open import open_store\n"
        "from calmlflow.jobs.upsert import Batch, keep; from calmlflow.jobs.sample import draw_sample\n"
        "jobs = draw_sample(500); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: keep(open_store(sys.argv[1]), Batch(jobs=jobs), 'test')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    told = f"CalmlflowError {path} cannot be written (File too large); expected a file in a folder of yours\n"
    assert done.stdout == told, done.stderr
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_parquet_of_other_types_is_read(tmp_path):
    jobs = draw_sample(40)
    narrow = [name for name in jobs if jobs[name].dtype == "int64" and name != "timestamp"]
    table = pa.table(
        {
            "ipst": pa.array(jobs["ipst"]).dictionary_encode(),
            **{name: pa.array(jobs[name].to_numpy(), pa.int16()) for name in narrow},
            "timestamp": pa.array(jobs["timestamp"], pa.uint64()),
            "total_mb": pa.array(jobs["total_mb"].astype(int).map(str), pa.large_string()),
            "wallclock": pa.array(jobs["wallclock"]),
            "memory": pa.array(jobs["memory"]),
            "extra": pa.array([[1]] * 40),
        }
    )
    pq.write_table(table, tmp_path / "jobs.parquet", compression="snappy", row_group_size=7)
    pd.testing.assert_frame_equal(read_jobs(str(tmp_path / "jobs.parquet")).valid, jobs, check_exact=True)
