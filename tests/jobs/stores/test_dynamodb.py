"""The store in DynamoDB, on moto's real server; what moto cannot do wrong is done by a proxy before it."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import MAX_FILES
from calmlflow.jobs.records import check_records
from calmlflow.jobs.stores.base import HISTORY, JOBS, MOSAICS, PREDICTIONS, TABLES, conform
from calmlflow.jobs.stores.dynamodb import open_dynamodb
from calmlflow.jobs.stores.open import open_source, read_table
from calmlflow.jobs.upsert import Batch, Counts, upsert, write_back
from tests.samples.dynamodb_samples import client, error, items_of, older_item, proxy_of, table_of
from tests.samples.store_samples import ROWS, contents, frame, record


@pytest.fixture
def store(dynamodb_uri):
    with closing(open_dynamodb(dynamodb_uri, create=True)) as opened:
        yield opened


@pytest.fixture
def proxy(dynamodb, store, monkeypatch):
    """Before the server, for stores that are opened from now on."""
    with proxy_of(dynamodb) as started:
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", started.address)
        yield started


@pytest.fixture
def proxied(proxy, dynamodb_uri):
    with closing(open_dynamodb(dynamodb_uri)) as opened:
        proxy.counts.clear()
        yield opened


def put_items(uri: str, items: list[dict]) -> None:
    for item in items:
        client().put_item(TableName=table_of(uri), Item=item)


def many(count: int) -> pd.DataFrame:
    return frame(JOBS, [record(f"j{number:07d}q", n_files=1 + number % 90, dtype=0) for number in range(count)])


# -- Rows -----------------------------------------------------------------------------------------------------------


def test_tables_and_items_are_laid_out_as_the_pipeline_has_them(store, dynamodb_uri):
    """Names of tables and keys, numbers as N, nothing where nothing is: written down by hand."""
    keys = {
        "": [("ipst", "S")],
        "-mosaics": [("ipst", "S")],
        "-killed_jobs": [("ipst", "S"), ("timestamp", "N")],
        "-history": [("ipst", "S"), ("digest", "S")],
        "-quarantine": [("ipst", "S"), ("digest", "S")],
        "-predictions": [("ipst", "S"), ("timestamp", "N")],
    }
    for suffix, expected in keys.items():
        described = client().describe_table(TableName=table_of(dynamodb_uri) + suffix)["Table"]
        types = {one["AttributeName"]: one["AttributeType"] for one in described["AttributeDefinitions"]}
        assert [(key["AttributeName"], types[key["AttributeName"]]) for key in described["KeySchema"]] == expected
        assert described["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    store.put(JOBS, frame(JOBS, [record()]))
    (item,) = items_of(table_of(dynamodb_uri))
    numbers = {name: Decimal(repr(value)) for name, value in record().items() if name != "ipst"}
    assert item.pop("ipst") == {"S": "j8c601020"}
    assert {name: Decimal(value["N"]) for name, value in item.items()} == numbers


KEPT = st.floats(-9e125, 9e125).filter(lambda x: abs(x) >= 1e-130) | st.just(0.0)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(KEPT, st.none() | st.integers(-(2**63) + 1, 2**63 - 1), TEXTS, TEXTS)
@example(1 / 3, 2**53 + 1, "", "-")
@example(float(np.nextafter(1e126, 0)), -1, "-", "")
@example(-1e-130, None, "--", "---")
def test_any_value_comes_back_to_the_last_bit(store, number, whole, name, digest):
    rows = frame(HISTORY, [record(name, wallclock=number, crsplit=whole, digest=digest, split=digest)])
    store.put(HISTORY, rows)
    found = store.get(HISTORY, [name])
    found = found[found["digest"] == digest].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, rows, check_exact=True)


@pytest.mark.parametrize("number", [1e-131, -1e126, float("inf"), 5e-324])
def test_a_number_that_dynamodb_does_not_keep_is_told(store, number):
    with pytest.raises(InputError, match=r"table jobs, column wc_err: DynamoDB keeps no .*; expected 0, or a number"):
        store.put(JOBS, frame(JOBS, [record(wc_err=number)]))
    assert store.count(JOBS) == 0


# -- Items of others ------------------------------------------------------------------------------------------------


def test_attributes_of_others_stay_when_a_record_is_replaced(store, dynamodb_uri):
    extra = {"note": {"M": {"by": {"S": "me"}, "at": {"N": "1"}}}, "wc_std": {"N": "3"}}
    put_items(dynamodb_uri, [older_item(**extra), older_item("j91jc4010")])
    upsert(store, Batch(jobs=pd.DataFrame([record(timestamp=1_700_000_000, memory=1.5)])), "test")
    items = {item["ipst"]["S"]: item for item in items_of(table_of(dynamodb_uri))}
    assert items["j91jc4010"] == older_item("j91jc4010")
    changed = items["j8c601020"]
    assert changed["memory"] == {"N": "1.5"}
    assert {name: changed[name] for name in ("x_files", "x_size", "note")} == {
        **{name: older_item()[name] for name in ("x_files", "x_size")},
        "note": extra["note"],
    }
    # A column of ours is replaced with the rest.
    assert "wc_std" not in changed


def test_numbers_that_were_written_as_text_are_numbers(store, dynamodb_uri):
    as_text = {name: {"S": value["N"]} for name, value in older_item().items() if "N" in value}
    put_items(dynamodb_uri, [{**older_item(), **as_text}, older_item("j91jc4010", n_files={"S": " 5.0 "})])
    wanted = frame(JOBS, [record(), record("j91jc4010")])
    pd.testing.assert_frame_equal(contents(store, JOBS), wanted)
    pd.testing.assert_frame_equal(store.get(JOBS, ["j8c601020"]), wanted.iloc[:1])


NO_NUMBERS = [
    *({"S": text} for text in ("many", "5.5", "1_0", "\u0663", "1e30", "5 files", "inf")),
    *({"N": "5.5"}, {"BOOL": True}, {"L": [{"N": "5"}]}, {"M": {}}, {"SS": ["5"]}, {"B": b"5"}),
]


def test_a_cell_that_is_no_number_is_quarantined_and_the_rest_is_read(store, dynamodb_uri):
    bad = {f"j{number:07d}0": cell for number, cell in enumerate(NO_NUMBERS)}
    put_items(dynamodb_uri, [older_item(), *(older_item(name, n_files=cell) for name, cell in bad.items())])
    checked = check_records(pd.concat(store.read(JOBS)), "test")
    assert checked.valid["ipst"].tolist() == ["j8c601020"]
    assert sorted(checked.quarantine["ipst"]) == sorted(bad)
    assert set(checked.quarantine["reason"]) == {f"n_files is not a whole number, 1 to {MAX_FILES}"}
    assert {"many", "5.5", "True"} <= set(checked.quarantine["n_files"])
    # A newer record takes its place.
    assert store.get(JOBS, list(bad))["n_files"].isna().all()
    newer = pd.DataFrame([record(name, timestamp=1_700_000_000) for name in bad])
    counts = upsert(store, Batch(jobs=newer), "test")
    assert (counts.updated, counts.quarantined) == (len(bad), 0)
    assert len(check_records(read_table(dynamodb_uri), "test").valid) == 1 + len(bad)


def test_a_cell_that_says_that_nothing_is_there(store, dynamodb_uri):
    cells = {"j8c601010": {"NULL": True}, "j8c601020": {"S": ""}, "j8c601030": {"S": "NaN"}}
    put_items(dynamodb_uri, [older_item(name, wc_mean=cell) for name, cell in cells.items()])
    pd.testing.assert_frame_equal(contents(store, JOBS), frame(JOBS, [record(name) for name in cells]))
    # Cells of other tables that cannot be read are missing.
    item = {"ipst": {"S": "acs_8ph_01"}, "disk": {"S": "much"}, "memory": {"N": "2.5"}}
    client().put_item(TableName=table_of(dynamodb_uri) + "-mosaics", Item=item)
    pd.testing.assert_frame_equal(contents(store, MOSAICS), frame(MOSAICS, [{"ipst": "acs_8ph_01", "memory": 2.5}]))


# -- Many -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_pages(monkeypatch):
    """DynamoDB's pages have 1 MB."""
    monkeypatch.setattr("moto.dynamodb.models.table.RESULT_SIZE_LIMIT", 4_000)


def test_a_scan_holds_one_page(small_pages, store, proxied, proxy):
    rows = many(300)
    store.put(JOBS, rows)
    parts = proxied.read(JOBS)
    assert proxy.counts["Scan"] == 0
    for drawn in range(1, 4):
        assert 0 < len(next(parts)) < 60
        assert proxy.counts["Scan"] == drawn
    parts.close()
    assert proxy.counts["Scan"] == 3
    pd.testing.assert_frame_equal(contents(proxied, JOBS), rows)
    assert proxied.count(JOBS) == 300


def test_columns_and_filters(small_pages, store, dynamodb_uri):
    """``timestamp`` and others are reserved words of DynamoDB; numbers may be text."""
    rows = many(300).assign(split=lambda rows: np.where(rows["n_files"] % 2, "test", "train"))
    store.put(JOBS, rows)
    put_items(dynamodb_uri, [older_item("j9999999q", n_files={"S": "7"}, split={"S": "test"}, dtype={"N": "0"})])
    names = [*rows["ipst"][(rows["n_files"] == 7) & (rows["split"] == "test")], "j9999999q"]
    filtered = open_source(f"{dynamodb_uri}&n_files=7&split=test&memory=1.17")
    parts = filtered.read(JOBS, ["timestamp", "ipst"])
    found = pd.concat(parts, ignore_index=True).sort_values("ipst")
    assert list(found.columns) == ["timestamp", "ipst"]
    assert found["ipst"].tolist() == names
    assert filtered.count(JOBS) == len(names) == 5
    filtered.close()
    with pytest.raises(InputError, match="filters by n_files; expected no filter there"):
        open_dynamodb(f"{dynamodb_uri}&n_files=7", create=True)


def test_many_rows_of_one_name_are_all_found(small_pages, store):
    rows = frame(PREDICTIONS, [{"ipst": name, "timestamp": float(at)} for name in ("a", "b") for at in range(200)])
    store.put(PREDICTIONS, rows)
    found = store.get(PREDICTIONS, ["b", "none", "a", "b"]).sort_values(["ipst", "timestamp"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(found, rows)


# -- Other writers --------------------------------------------------------------------------------------------------


@pytest.fixture
def between(proxied, proxy):
    """A store through the proxy; what `between` is given happens between its next reading and writing."""

    def arrange(act) -> object:
        waiting = [act]

        def answer(name, request, forward):
            if name == "UpdateItem" and waiting:
                waiting.pop()()
            return forward(request)

        proxy.answer = answer
        return proxied

    return arrange


def test_a_newer_record_that_comes_between_reading_and_writing_is_kept(store, between):
    old, new, newest = (pd.DataFrame([record(timestamp=time, memory=1 + time / 1000)]) for time in (100, 200, 300))
    upsert(store, Batch(jobs=old), "test")
    slow = between(lambda: upsert(store, Batch(jobs=newest), "test"))
    assert upsert(slow, Batch(jobs=new), "test") == Counts(older=1)
    assert contents(store, JOBS)["timestamp"].tolist() == [300]
    assert sorted(contents(store, HISTORY)["timestamp"]) == [100, 200]


def test_a_record_that_ingest_stores_during_a_write_back_is_kept(store, between):
    trained = pd.DataFrame([record(timestamp=100)])
    upsert(store, Batch(jobs=trained), "test")
    newer = pd.DataFrame([record(timestamp=200, memory=1.5)])
    slow = between(lambda: upsert(store, Batch(jobs=newer), "test"))
    assert write_back(slow, trained.assign(bin_pred=1), 1_700_000_000) == (0, 1)
    found = contents(store, JOBS).assign(stored_at=None)
    pd.testing.assert_frame_equal(conform(found, JOBS), conform(newer, JOBS))
    assert contents(store, HISTORY)["timestamp"].tolist() == [100]


def test_answers_that_are_written_while_a_newer_record_comes_are_in_the_history(store, between):
    trained = pd.DataFrame([record(timestamp=100)])
    upsert(store, Batch(jobs=trained), "test")
    slow = between(lambda: write_back(store, trained.assign(bin_pred=1), 1_700_000_000))
    assert upsert(slow, Batch(jobs=pd.DataFrame([record(timestamp=200)])), "test") == Counts(updated=1)
    assert contents(store, JOBS)["bin_pred"].isna().all()
    assert contents(store, HISTORY)["bin_pred"].tolist() == [1]


def test_what_a_batch_leaves_undone_is_written_again(proxied, proxy, store):
    def answer(name, request, forward):
        if name != "BatchWriteItem" or proxy.counts[name] % 3 == 0:
            return forward(request)
        ((table, asked),) = request["RequestItems"].items()
        status, answered = forward({**request, "RequestItems": {table: asked[:10]}})
        return status, {**answered, "UnprocessedItems": {table: asked[10:]} if asked[10:] else {}}

    proxy.answer = answer
    rows = many(200)
    proxied.put(JOBS, rows)
    pd.testing.assert_frame_equal(contents(store, JOBS), rows)


# -- Tables ---------------------------------------------------------------------------------------------------------


def make_jobs_alone(uri: str, key: str = "ipst") -> None:
    client().create_table(
        TableName=table_of(uri),
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
        KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )


def test_tables_are_not_made_by_looking(dynamodb_uri):
    with pytest.raises(InputError, match=r"does not exist; expected a table of DynamoDB with the key ipst"):
        open_dynamodb(dynamodb_uri)
    assert table_of(dynamodb_uri) not in client().list_tables()["TableNames"]
    make_jobs_alone(dynamodb_uri)
    store = open_dynamodb(dynamodb_uri)
    for table in TABLES:
        assert contents(store, table).empty
        assert store.count(table) == 0
        assert store.get(table, ["j8c601020"]).empty
    assert upsert(store, Batch(jobs=many(3)), "test").stored == 3
    store.put(PREDICTIONS, frame(PREDICTIONS, ROWS[PREDICTIONS]))
    assert store.count(PREDICTIONS) == 2
    store.close()


def test_a_table_of_something_else(dynamodb_uri):
    make_jobs_alone(dynamodb_uri, "name")
    for create in (True, False):
        with pytest.raises(InputError, match="holds no job records; expected a table with the key ipst and no other"):
            open_dynamodb(dynamodb_uri, create)


def test_many_who_make_the_tables_at_once(dynamodb_uri):
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(lambda _: open_dynamodb(dynamodb_uri, create=True), range(6)))
    opened[0].put(HISTORY, frame(HISTORY, ROWS[HISTORY]))
    assert [one.count(HISTORY) for one in opened] == [2] * 6
    for one in opened:
        one.close()


# -- What can go wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("dynamodb://", "the address names no table"),
        ("dynamodb://me:told-to-nobody@table?region=us-east-1", "the address names no table"),
        ("dynamodb://table?secret=told-to-nobody", "'secret' is no column of job records"),
        ("dynamodb://table?region=evil.com/", "region 'evil.com/' is not one"),
        ("dynamodb://table?instr=acs", "instr='acs' is no whole number"),
        ("dynamodb://table?memory=nan", "memory='nan' is no number"),
    ],
)
def test_addresses_that_are_none(uri, message):
    with pytest.raises(InputError, match=f"{message}.*; expected dynamodb://TABLE") as caught:
        open_dynamodb(uri)
    assert "told-to-nobody" not in str(caught.value)


def test_no_region_no_credentials_nobody_there(dynamodb_uri, monkeypatch, ports):
    for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(f"AWS_{name}", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(CalmlflowError, match=r"cannot be opened \(NoRegionError\); expected \?region=\.\.\."):
        open_dynamodb(dynamodb_uri.partition("?")[0])
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", f"http://127.0.0.1:{ports[0]}")
    with pytest.raises(CalmlflowError, match=r"cannot be opened \(EndpointConnectionError\); expected a table of"):
        open_dynamodb(dynamodb_uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", "told-to-nobody")
    with pytest.raises(CalmlflowError, match=r"cannot be opened \(ValueError\); expected AWS_\* variables") as caught:
        open_dynamodb(dynamodb_uri)
    assert "told-to-nobody" not in str(caught.value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_DYNAMODB")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CalmlflowError, match=r"cannot be opened \(NoCredentialsError\); expected AWS credentials"):
        open_dynamodb(dynamodb_uri)


HINTS = {
    "AccessDeniedException": "the permission dynamodb:{operation}",
    "ThrottlingException": "a table with capacity to spare",
    "InternalServerError": "a table of DynamoDB that answers",
}


@pytest.mark.parametrize("code", HINTS)
@pytest.mark.parametrize(
    ("operation", "verb", "act"),
    [
        ("Scan", "read", lambda store: store.count(JOBS)),
        ("Query", "read", lambda store: store.get(JOBS, ["j8c601020"])),
        ("BatchWriteItem", "written", lambda store: store.put(JOBS, many(60))),
    ],
)
def test_refusals_are_a_sentence(proxy, dynamodb_uri, monkeypatch, code, operation, verb, act):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.answer = lambda name, request, forward: error(code) if name == operation else forward(request)
    with closing(open_dynamodb(dynamodb_uri)) as store, pytest.raises(CalmlflowError) as caught:
        act(store)
    expected = f"cannot be {verb} ({code}); expected {HINTS[code].format(operation=operation)}"
    assert str(caught.value).startswith(f"{dynamodb_uri} {expected}")
    assert "told-to-nobody" not in str(caught.value)


def test_who_may_not_make_tables_is_told_and_may_use_those_that_are_there(proxy, dynamodb_uri, monkeypatch):
    proxy.answer = lambda name, request, forward: (
        error("AccessDeniedException") if name == "CreateTable" else forward(request)
    )
    open_dynamodb(dynamodb_uri, create=True).close()
    client().delete_table(TableName=table_of(dynamodb_uri) + "-history")
    store = open_dynamodb(dynamodb_uri)
    with pytest.raises(CalmlflowError, match=r"Exception\); expected the permission dynamodb:CreateTable"):
        store.put(HISTORY, frame(HISTORY, ROWS[HISTORY]))
    store.close()
