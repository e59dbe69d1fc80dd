"""Control files: which object in S3 is meant, and what may go wrong with reading it."""

import contextlib
import http.server
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import calmlflow.storage.s3
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.control import control_object, read_control_file, read_control_object

TEXT = "n_files=17\ntotal_mb=9.6\nDETECTOR=SBC\n"
KEYS = {"n_files": "17", "total_mb": "9.6", "DETECTOR": "SBC"}
BUCKET = "calcloud-processing"
JOB = "jabc03020"
FOLDER = f"control/{JOB}/"
USUAL = f"{FOLDER}{JOB}_MemModelFeatures.txt"


@pytest.fixture(autouse=True)
def _no_client_of_another_test():
    calmlflow.storage.s3._kept_client.cache_clear()
    yield
    calmlflow.storage.s3._kept_client.cache_clear()


def test_a_file_is_read(tmp_path):
    (tmp_path / "control.txt").write_text(TEXT)
    assert read_control_file(tmp_path / "control.txt") == KEYS
    with pytest.raises(InputError, match=f"control file {tmp_path} cannot be read"):
        read_control_file(tmp_path)
    with pytest.raises(InputError, match="expected at most 65536"):
        read_control_file(Path("/dev/zero"))


# -- Which object ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "", "control", USUAL])
def test_the_usual_key_is_that_of_the_dataset(key):
    found = control_object(JOB.upper(), BUCKET, key)
    assert (found.dataset.name, found.bucket, found.key) == (JOB, BUCKET, USUAL)


def test_another_file_of_the_dataset_may_be_named():
    assert control_object(JOB, BUCKET, f"{FOLDER}old/été +1.txt").key == f"{FOLDER}old/été +1.txt"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (5, "Key of type int is not that of a file of jabc03020; expected a printable key"),
        ("elsewhere", "Key 'elsewhere' is not that of a file of jabc03020"),
        *(
            (key, "is not that of a file of jabc03020; expected .* in control/jabc03020/")
            for key in (
                "control/jabc03010/jabc03010_MemModelFeatures.txt", "control/JABC03020/JABC03020_MemModelFeatures.txt",
                f"/{USUAL}", f"x/{USUAL}", FOLDER, f"{FOLDER}old/", f"{FOLDER}../jabc03010/file", f"{FOLDER}./file",
                f"{FOLDER}a\nb", f"{FOLDER}\0", f"{FOLDER}\ud800", f"{FOLDER}\u202etxt", f"{FOLDER}{'ü' * 600}",
            )
        ),
    ],
)  # fmt: skip
def test_a_key_that_is_not_the_datasets_own_is_refused(key, words):
    with pytest.raises(InputError, match=words) as caught:
        control_object(JOB, BUCKET, key)
    assert len(str(caught.value)) < 300


# -- Reading it -----------------------------------------------------------------------------------------------------


def test_an_object_is_read_by_its_key_or_that_of_its_dataset(s3):
    s3.put_object(Bucket=BUCKET, Key=USUAL, Body=TEXT.encode())
    s3.put_object(Bucket=BUCKET, Key=f"{FOLDER}elsewhere", Body=b"n_files=1\ntotal_mb=2\n")
    assert read_control_object(JOB, BUCKET) == KEYS
    assert read_control_object(JOB.upper(), BUCKET, "control") == KEYS
    assert read_control_object(JOB, BUCKET, f"{FOLDER}elsewhere") == {"n_files": "1", "total_mb": "2"}


def point_s3_at(monkeypatch, address):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, address)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_mosaic_needs_no_object(monkeypatch, ports):
    point_s3_at(monkeypatch, f"http://127.0.0.1:{ports[0]}")
    assert read_control_object("acs_8ph_01", BUCKET) == {}


@contextmanager
def store(parts):
    """A server that sends these bytes to the first request of each connection, ten parts a second."""
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                for part in parts:
                    self.wfile.write(part)
                    over.wait(0.1)

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            over.set()
            server.shutdown()
            thread.join()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("parts", "kind", "words"),
    [
        ([OK + b"Content-Length: 40\r\n\r\nn_files=17\n"], CalmlflowError, "cannot be read"),
        ([b"HTTP/1.1 503 Slow Down\r\nContent-Length: 4\r\n\r\noops"], CalmlflowError, r"cannot be read \(503\)"),
        ([OK + b"Content-Length: 600\r\n\r\n", *[b"#"] * 600], CalmlflowError, r"\(no answer in time\)"),
        # Of a terabyte only the header ever comes.
        ([OK + b"Content-Length: 1000000000000\r\n\r\n#"], InputError, "has 1000000000000 bytes; expected a control"),
    ],
)
def test_a_store_that_breaks_off_or_never_ends_is_told(monkeypatch, parts, kind, words):
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "5" if len(parts) == 1 else "0.3")
    with store(parts) as address:
        point_s3_at(monkeypatch, address)
        with pytest.raises(kind, match=words) as caught:
            read_control_object(JOB, BUCKET)
    assert isinstance(caught.value, InputError) == (kind is InputError)
