"""A registered version where nothing of the project is installed: MLflow's own environment, a container's, Spark's."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

# Benchmarks are no part of the installed package.
from benchmarks.serving import running, serving
from tests.samples.serving_samples import (
    JOBS,
    MOSAIC,
    SEEN,
    SPARSE,
    Published,
    Scorer,
    close,
    free_port,
    outside,
    publish,
)

SPARK = "pyspark==4.3.0"
FOREIGN = ("tensorflow", "keras", "sklearn", "matplotlib", "boto3", "sqlalchemy", "flask", "onnx")


@dataclass(frozen=True)
class Built:
    """The environment that MLflow made of a version's requirements, and the variables of a shell turned to it."""

    published: Published
    python: Path
    variables: Mapping[str, str]


@pytest.fixture(scope="module")
def published(server, tmp_path_factory):
    return publish(server, tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def built(server, published, tmp_path_factory) -> Built:
    """Made by `mlflow models serve --env-manager uv`, which two workers then answer from."""
    folder, port = tmp_path_factory.mktemp("uv"), free_port()
    root = folder / "environments"
    shell = outside(server, folder, MLFLOW_ENV_ROOT=str(root), UV_COMPILE_BYTECODE="1")
    with serving(published.uri, port, shell, ["--env-manager", "uv", "--workers", "2"], folder):
        close(Scorer(port).answers({"dataframe_records": JOBS}), published.expected(*JOBS))
    (environment,) = root.iterdir()
    binaries = environment / "bin"
    return Built(published, binaries / "python", {**shell, "PATH": f"{binaries}{os.pathsep}/usr/bin{os.pathsep}/bin"})


@pytest.mark.slow
def test_the_environment_that_mlflow_builds_has_what_serving_needs_and_no_more(built):
    script = (
        "import importlib.util, json, sys; print(json.dumps([n for n in sys.argv[1:] if importlib.util.find_spec(n)]))"
    )
    wanted = ("onnxruntime", "numpy", "pandas", "mlflow", "uvicorn", "fastapi")
    done = subprocess.run(
        [built.python, "-c", script, *wanted, *FOREIGN], env=built.variables, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == list(wanted)
    compiled = built.python.parent.parent.rglob("site-packages/onnxruntime/__pycache__/__init__.*.pyc")
    assert len(list(compiled)) == 1


@pytest.mark.slow
def test_what_the_container_runs_answers(server, published, built, tmp_path):
    """Its entry point but for the two places that the container has to itself: the model's folder, and the port."""
    context = tmp_path / "context"
    command = ["mlflow", "models", "generate-dockerfile", "-m", published.uri, "-d", str(context)]
    done = subprocess.run(command, cwd=tmp_path, env=outside(server, tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    dockerfile = (context / "Dockerfile").read_text()
    (entry,) = [
        json.loads(line.removeprefix("ENTRYPOINT ")) for line in dockerfile.splitlines() if "ENTRYPOINT" in line
    ]
    (copied,) = [line.split()[1] for line in dockerfile.splitlines() if line.startswith("COPY ")]
    port = free_port()
    own = f"C.MODEL_PATH = {str(context / copied)!r}; C.DEFAULT_INFERENCE_SERVER_PORT = {port}; "
    before, serve = entry[2].split("C._serve")
    command = [str(built.python), "-c", f"{before}{own}C._serve{serve}"]
    own = {"DISABLE_NGINX": "true", "MLFLOW_DISABLE_ENV_CREATION": "true", "MLFLOW_MODELS_WORKERS": "2"}
    with running(command, port, {**built.variables, **own}, tmp_path):
        close(Scorer(port).answers({"dataframe_records": JOBS}), built.published.expected(*JOBS))


# -- Spark ------------------------------------------------------------------------------------------------------------

SPARK_SCRIPT = """
import json, sys
import mlflow.pyfunc
from pyspark.sql import SparkSession
from pyspark.sql.functions import struct

uri, jobs = sys.argv[1], json.loads(sys.argv[2])
spark = (
    SparkSession.builder.master("local[2]")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.sql.shuffle.partitions", "2")
    .getOrCreate()
)
types = {"ipppssoot": "string", "n_files": "double", "total_mb": "double"}
types |= dict.fromkeys(("DETECTOR", "SUBARRAY", "DRIZCORR", "PCTECORR", "CRSPLIT"), "string")
table = spark.createDataFrame([tuple(map(job.get, types)) for job in jobs], ", ".join(map(" ".join, types.items())))
predict = mlflow.pyfunc.spark_udf(spark, uri, env_manager="local")
found = table.repartition(2).withColumn("answer", predict(struct(*table.columns)))
print("TYPE", found.schema["answer"].dataType.simpleString())
print("ANSWERS", json.dumps({row.ipppssoot: row.answer.asDict(True) for row in found.collect()}))
few = table.select("ipppssoot", "n_files", "total_mb")
row = few.withColumn("answer", predict(struct(*few.columns))).where("ipppssoot like 'o%'").first()
print("FEW", json.dumps(row.answer.asDict(True)))
spark.stop()
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="Spark needs Java: apt-get install default-jre-headless")
def test_spark_answers_with_the_columns_of_the_signature(built, tmp_path):
    uv, spark = str(Path(sys.executable).with_name("uv")), tmp_path / "spark"
    freeze = [uv, "pip", "freeze", "--python", str(built.python)]
    held = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout
    (tmp_path / "requirements.txt").write_text(f"{held}\n{SPARK}\npyarrow\n")
    subprocess.run([uv, "venv", "--quiet", "--python", str(built.python), str(spark)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(spark), "-r", str(tmp_path / "requirements.txt")]
    subprocess.run(install, check=True)
    python = str(spark / "bin" / "python")
    variables = {
        **built.variables,
        "PATH": f"{spark / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "PYSPARK_PYTHON": python,
        "SPARK_LOCAL_DIRS": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    jobs = [{**job, "n_files": float(job["n_files"])} for job in (SEEN, SPARSE, MOSAIC)]
    done = subprocess.run(
        [python, "-c", SPARK_SCRIPT, built.published.uri, json.dumps(jobs)],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = dict(
        line.split(" ", 1) for line in done.stdout.splitlines() if line.split(" ")[0] in ("TYPE", "ANSWERS", "FEW")
    )
    assert said["TYPE"] == (
        "struct<memBin:bigint,probabilities:array<double>,unseen:boolean,memVal:double,clockTime:bigint,killTime:bigint,"
        "evidence:struct<programme:bigint,row:bigint,run:bigint,visit:bigint>,warnings:array<string>>"
    )
    found = json.loads(said["ANSWERS"])
    close([found[job["ipppssoot"]] for job in jobs], built.published.expected(*jobs))
    close([json.loads(said["FEW"])], built.published.expected(SPARSE))
