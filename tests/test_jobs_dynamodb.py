"""The store in DynamoDB, against moto's server over HTTP: what is particular to it."""

import threading
from collections import Counter

import boto3
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import ROWS, contents, frame, record

from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.jobs import dynamodb as module
from calmlflow.jobs.dynamodb import DynamoStore, open_dynamodb
from calmlflow.jobs.keeping import Batch, keep
from calmlflow.jobs.records import sort_records
from calmlflow.jobs.store import HISTORY, JOBS, MOSAICS, QUARANTINE


@pytest.fixture
def store(dynamodb_uri) -> DynamoStore:
    return open_dynamodb(dynamodb_uri, create=True)


def table_of(uri: str) -> str:
    return uri.removeprefix("dynamodb://").partition("?")[0]


@pytest.fixture
def client(dynamodb_uri):
    """A client of its own, as another program has it."""
    return boto3.client("dynamodb", region_name="us-east-1")


NUMBERS = st.one_of(
    st.just(0.0),
    st.floats(min_value=1e-130, max_value=9.9e125),
    st.floats(max_value=-1e-130, min_value=-9.9e125),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(NUMBERS, st.one_of(st.none(), st.integers(-(2**53), 2**53)), st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_value_comes_back_to_the_last_bit(store, number, whole, text):
    rows = frame(HISTORY, [record(text, wallclock=number, crsplit=whole, digest=text, split=text)])
    store.put(HISTORY, rows)
    pd.testing.assert_frame_equal(store.get(HISTORY, [text]), rows, check_exact=True)
    (found,) = [part[part["ipst"] == text] for part in store.read(HISTORY)]
    pd.testing.assert_frame_equal(found[found["digest"] == text].reset_index(drop=True), rows, check_exact=True)


@pytest.mark.parametrize("number", [float("inf"), 1e126, 1e-131])
def test_numbers_that_dynamodb_cannot_hold_are_told(store, number):
    with pytest.raises(InputError, match=r"table jobs, column wallclock: a cell is .*; expected"):
        store.put(JOBS, frame(JOBS, [record(wallclock=number)]))


def test_the_layout_is_the_one_that_exists(store, client, dynamodb_uri):
    store.put(JOBS, frame(JOBS, [record()]))
    (item,) = client.scan(TableName=table_of(dynamodb_uri))["Items"]
    assert item == {name: {"S" if name == "ipst" else "N": str(value)} for name, value in record().items()}
    described = client.describe_table(TableName=table_of(dynamodb_uri))["Table"]
    assert described["KeySchema"] == [{"AttributeName": "ipst", "KeyType": "HASH"}]


def test_attributes_of_earlier_tools_survive(store, client, dynamodb_uri):
    foreign = {"x_files": {"N": "0.25"}, "note": {"S": "kept"}, "tags": {"L": [{"S": "a"}]}}
    client.put_item(
        TableName=table_of(dynamodb_uri), Item={"ipst": {"S": "j8c601020"}, "split": {"S": "old"}, **foreign}
    )
    assert keep(store, Batch(jobs=pd.DataFrame([record()])), "test").total == 1
    (item,) = client.scan(TableName=table_of(dynamodb_uri))["Items"]
    assert {name: item[name] for name in foreign} == foreign
    assert item["wallclock"] == {"N": "126.0"}
    assert "split" not in item


def test_numbers_that_were_written_as_text_are_numbers(store, client, dynamodb_uri):
    texts = {name: {"S": str(value)} for name, value in record().items()}
    client.put_item(TableName=table_of(dynamodb_uri), Item=texts)
    pd.testing.assert_frame_equal(contents(store, JOBS), frame(JOBS, [record()]))


def test_a_cell_that_is_no_number_goes_to_the_quarantine_and_costs_no_other_row(store, client, dynamodb_uri):
    store.put(JOBS, frame(JOBS, [record(), record("j91jc4010")]))
    client.update_item(
        TableName=table_of(dynamodb_uri),
        Key={"ipst": {"S": "j8c601020"}},
        UpdateExpression="SET n_files = :bad",
        ExpressionAttributeValues={":bad": {"S": "many"}},
    )
    checked = sort_records(pd.concat(store.read(JOBS)), "test")
    assert checked.valid["ipst"].tolist() == ["j91jc4010"]
    assert checked.quarantine["n_files"].tolist() == ["many"]
    assert store.get(JOBS, ["j8c601020"])["n_files"].isna().all()


def count_calls(store: DynamoStore) -> Counter[str]:
    calls: Counter[str] = Counter()
    store._client.meta.events.register("before-call.dynamodb.*", lambda model, **_: calls.update([model.name]))
    return calls


def test_a_scan_holds_one_page(store):
    # About 400 kB of text each: DynamoDB's pages have 1 MB.
    rows = [{"ipst": f"x{number}", "digest": "", "record": "y" * 390_000} for number in range(9)]
    store.put(QUARANTINE, frame(QUARANTINE, rows))
    calls = count_calls(store)
    parts = store.read(QUARANTINE, ["ipst"])
    first = next(parts)
    assert calls["Scan"] == 1
    found = pd.concat([first, *parts])
    assert sorted(found["ipst"]) == [row["ipst"] for row in rows]
    assert calls["Scan"] > 3
    assert store.count(QUARANTINE) == 9


def test_filters_of_the_address_and_of_the_caller(store, dynamodb_uri):
    rows = [record(), record("j91jc4010", n_files=7), record("oaaaaaaa0", instr=2, split="test")]
    store.put(JOBS, frame(JOBS, rows))
    filtered = open_dynamodb(f"{dynamodb_uri}&instr=0")
    assert sorted(pd.concat(filtered.read(JOBS, ["ipst"]))["ipst"]) == ["j8c601020", "j91jc4010"]
    assert pd.concat(filtered.read(JOBS, where={"n_files": 7}))["ipst"].tolist() == ["j91jc4010"]
    named = open_dynamodb(f"{dynamodb_uri}&split=test")
    assert pd.concat(named.read(JOBS, ["ipst", "timestamp"]))["ipst"].tolist() == ["oaaaaaaa0"]
    assert list(filtered.read(JOBS, where={"n_files": 99})) == []


# -- Faults: moto never puts anything off, so botocore's own hook does ------------------------------------------------


def put_off(store: DynamoStore, act: str, part: str, times: int) -> Counter[str]:
    """Have DynamoDB put off all but the first item of a batch, so many times."""
    seen: Counter[str] = Counter()
    held: dict = {}

    def shorten(params, **_):
        seen["calls"] += 1
        (name,) = params["RequestItems"]
        wanted = params["RequestItems"][name]
        batch = wanted["Keys"] if part == "UnprocessedKeys" else wanted
        if seen["calls"] <= times and len(batch) > 1:
            rest = {**wanted, "Keys": batch[1:]} if part == "UnprocessedKeys" else batch[1:]
            held[threading.get_ident()] = {name: rest}
            first = {**wanted, "Keys": batch[:1]} if part == "UnprocessedKeys" else batch[:1]
            return {**params, "RequestItems": {name: first}}
        return params

    def tell(parsed, **_):
        rest = held.pop(threading.get_ident(), None)
        if rest:
            parsed[part] = rest

    events = store._client.meta.events
    events.register(f"provide-client-params.dynamodb.{act}", shorten)
    events.register(f"after-call.dynamodb.{act}", tell)
    return seen


@pytest.fixture
def _no_waits(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.0)


@pytest.mark.usefixtures("_no_waits")
def test_what_is_put_off_is_sent_again(store):
    rows = frame(MOSAICS, [{"ipst": f"acs_{number:03d}_01", "wallclock": float(number)} for number in range(60)])
    seen = put_off(store, "BatchWriteItem", "UnprocessedItems", 9)
    store.put(MOSAICS, rows)
    assert seen["calls"] >= 12
    seen = put_off(store, "BatchGetItem", "UnprocessedKeys", 5)
    found = store.get(MOSAICS, rows["ipst"].tolist()).sort_values("ipst").reset_index(drop=True)
    assert seen["calls"] == 6
    pd.testing.assert_frame_equal(found, rows)


@pytest.mark.usefixtures("_no_waits")
def test_what_is_put_off_for_ever_is_told(store):
    put_off(store, "BatchWriteItem", "UnprocessedItems", 1000)
    rows = frame(MOSAICS, [{"ipst": f"acs_{number:03d}_01"} for number in range(20)])
    with pytest.raises(CalmlflowError, match=r"cannot be written \(10 items were put off 10 times\); expected more"):
        store.put(MOSAICS, rows)


# -- Tables and addresses -------------------------------------------------------------------------------------------


def test_tables_beside_are_made_when_they_are_needed(store, client, dynamodb_uri):
    name = table_of(dynamodb_uri)
    assert [table for table in client.list_tables()["TableNames"] if table.startswith(name)] == [name]
    assert (store.count(QUARANTINE), store.get(QUARANTINE, ["x"]).empty, list(store.read(HISTORY))) == (0, True, [])
    store.put(QUARANTINE, frame(QUARANTINE, ROWS[QUARANTINE]))
    assert f"{name}-quarantine" in client.list_tables()["TableNames"]


def test_two_may_make_a_table_at_once(dynamodb_uri):
    opened = []
    threads = [
        threading.Thread(target=lambda: opened.append(open_dynamodb(dynamodb_uri, create=True))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.count(JOBS) for one in opened] == [0] * 5


def test_a_table_that_is_not_there(dynamodb_uri):
    with pytest.raises(InputError, match=r"cannot be opened \(ResourceNotFoundException\); expected a table"):
        open_dynamodb(dynamodb_uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("dynamodb://", "names ''"),
        ("dynamodb://a/b?region=x", "cannot be|names"),
        ("dynamodb://jobs table", "names 'jobs table'"),
        ("dynamodb://jobs?colour=red", "'colour' is no column"),
        ("dynamodb://jobs?n_files=many", "n_files='many' is no number"),
    ],
)
def test_addresses_that_break_a_rule(dynamodb_uri, uri, message):
    with pytest.raises(CalmlflowError, match=f"{message}.*; expected|{message}"):
        open_dynamodb(uri)


def test_who_cannot_be_reached_or_has_no_region(dynamodb_uri, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(CalmlflowError, match=r"cannot be opened \(EndpointConnectionError\); expected") as error:
        open_dynamodb(dynamodb_uri)
    assert "secret-of-tests" not in str(error.value)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(CalmlflowError, match=r"client for DynamoDB \(NoRegionError\); expected a region"):
        open_dynamodb("dynamodb://jobs")
