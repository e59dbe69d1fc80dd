"""The CloudFormation template: what a linter says, who may do what, and the stack that moto makes of it."""

import json
import re
import subprocess
from itertools import chain

import boto3
import pytest
from cfnlint.decode.cfn_yaml import load
from moto.events.models import EventPattern

from calmlflow.jobs.health import check_health
from calmlflow.jobs.stores.base import TABLES
from calmlflow.jobs.stores.open import open_source, open_store
from calmlflow.runs.watch import emf_line
from tests.samples.commands import ROOT
from tests.samples.container_commands import check_command

PATH = ROOT / "deploy" / "template.yaml"
TEMPLATE = load(str(PATH))
ACCOUNT = "123456789012"
GIVEN = {
    **{f"{name}Image": f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/{name.lower()}@sha256:{'0' * 64}" for name in (
        "Predictor", "Ingest", "Server"
    )},
    "ServerImageRepository": f"arn:aws:ecr:us-east-1:{ACCOUNT}:repository/server",
    "Bucket": "calcloud-processing",
    "TrackingUri": "https://mlflow.example.org",
    "TrackingSecret": f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:promoter-abcdef",
    "Subnets": "subnet-1,subnet-2",
    "SecurityGroups": "sg-1",
}  # fmt: skip


def resources(kind: str) -> dict[str, dict]:
    found = {name: one["Properties"] for name, one in TEMPLATE["Resources"].items() if one["Type"] == kind}
    assert found
    return found


def as_list(value) -> list:
    return value if isinstance(value, list) else [value]


def as_text(value) -> str:
    """A text of the template, with values for what it refers to."""
    if not isinstance(value, str):
        return as_text(value["Fn::Sub"])
    return re.sub(
        r"\$\{([^}]+)\}", lambda name: {"MaxAgeDays": "2", "AWS::Region": "us-east-1"}.get(name[1], "x"), value
    )


def test_a_linter_finds_nothing():
    done = subprocess.run(["cfn-lint", str(PATH)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")


def test_each_role_may_what_it_names_on_what_it_names():
    for role in resources("AWS::IAM::Role").values():
        assert "ManagedPolicyArns" not in role
        for statement in chain(*(policy["PolicyDocument"]["Statement"] for policy in role["Policies"])):
            actions = as_list(statement["Action"])
            assert not [action for action in actions if "*" in action]
            # The one action that IAM grants for no single resource.
            assert ("*" in as_list(statement["Resource"])) == (actions == ["ecr:GetAuthorizationToken"])


def test_a_message_is_hidden_for_six_times_the_timeout_of_the_function_and_fails_alone():
    queue = resources("AWS::SQS::Queue")["IngestQueue"]
    assert queue["VisibilityTimeout"] >= 6 * resources("AWS::Lambda::Function")["Ingest"]["Timeout"]
    (mapping,) = resources("AWS::Lambda::EventSourceMapping").values()
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


def test_the_scheduled_commands_exist():
    found = {}
    for task in resources("AWS::ECS::TaskDefinition").values():
        (container,) = task["ContainerDefinitions"]
        assert container["ReadonlyRootFilesystem"] is True
        found[container["Name"]] = [as_text(word) for word in container["Command"]]
        check_command(found[container["Name"]])
    assert "entrypoints.retrain" in found["retrain"]
    assert found["status"][:3] == ["calmlflow", "jobs", "status"]


def test_a_scheduled_command_that_cannot_start_is_heard_of():
    pattern = resources("AWS::Events::Rule")["FailedCommand"]["EventPattern"]
    arn = f"arn:aws:ecs:us-east-1:{ACCOUNT}:cluster/calmlflow"
    given = {**pattern, "detail": {**pattern["detail"], "clusterArn": [arn]}}
    event = {"source": "aws.ecs", "detail-type": "ECS Task State Change"}
    # No container ran, so none has an exit status.
    detail = {"clusterArn": arn, "lastStatus": "STOPPED", "containers": [{"name": "retrain"}]}
    hears = EventPattern(None, given).matches_event
    assert hears({**event, "detail": {**detail, "stopCode": "TaskFailedToStart"}})
    assert not hears({**event, "detail": {**detail, "stopCode": "EssentialContainerExited"}})


def test_alarms_watch_what_the_scheduled_command_writes():
    line = json.loads(emf_line(check_health(open_source("sample:200"), None), {}))
    (written,) = line["_aws"]["CloudWatchMetrics"]
    ours = [one for one in resources("AWS::CloudWatch::Alarm").values() if one["Namespace"] == written["Namespace"]]
    assert {one["MetricName"] for one in ours} <= {one["Name"] for one in written["Metrics"]}
    assert (written["Dimensions"], [one for one in ours if "Dimensions" in one]) == ([[]], [])
    (rule,) = (one for name, one in resources("AWS::Events::Rule").items() if name == "StatusSchedule")
    assert rule["ScheduleExpression"] == "rate(6 hours)"
    assert {one["Period"] for one in ours} == {6 * 3600}
    (container,) = resources("AWS::ECS::TaskDefinition")["Status"]["ContainerDefinitions"]
    assert container["Command"][-2:] == ["--format", "emf"]


def test_alarms_are_of_age_quarantine_dead_letters_and_errors_and_somebody_hears_them():
    found = sorted((one["Namespace"], one["MetricName"]) for one in resources("AWS::CloudWatch::Alarm").values())
    assert found == [
        *(("AWS/Lambda", "Errors"), ("AWS/Lambda", "Errors"), ("AWS/SQS", "ApproximateNumberOfMessagesVisible")),
        *(("calmlflow", "AgeDays"), ("calmlflow", "Quarantine")),
    ]
    assert all(one["AlarmActions"] == [{"Ref": "Alarms"}] for one in resources("AWS::CloudWatch::Alarm").values())
    statements = resources("AWS::SNS::TopicPolicy")["AlarmsPolicy"]["PolicyDocument"]["Statement"]
    # No condition on what EventBridge sends to SNS ever holds.
    has_condition = {one["Principal"]["Service"]: "Condition" in one for one in statements}
    assert has_condition == {"cloudwatch.amazonaws.com": True, "events.amazonaws.com": False}


def table_names(database) -> list[str]:
    pages = database.get_paginator("list_tables").paginate()
    return [name for page in pages for name in page["TableNames"]]


@pytest.mark.filterwarnings("ignore:Tried to parse")
def test_moto_makes_the_stack_and_its_tables_are_the_store(dynamodb, dynamodb_uri, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", dynamodb)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = dynamodb_uri.removeprefix("dynamodb://").partition("?")[0]
    parameters = [
        {"ParameterKey": key, "ParameterValue": value} for key, value in (GIVEN | {"StoreTable": name}).items()
    ]
    stacks = boto3.client("cloudformation")
    stacks.create_stack(StackName=name, TemplateBody=PATH.read_text(), Parameters=parameters)
    made = stacks.describe_stack_resources(StackName=name)["StackResources"]
    # What moto cannot make has no name: policies of queues and topics, and alarms.
    number = {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in made if "LogicalResourceId" in one}
    assert {"Predictor", "Ingest", "IngestMessages", "Retrain", "Status", "RetrainSchedule", "StatusSchedule"} <= set(
        number
    )

    database = boto3.client("dynamodb")
    before = table_names(database)
    assert {name, *(f"{name}-{table.name}" for table in TABLES[1:])} <= set(before)
    for table in TABLES:
        known = database.describe_table(TableName=name if table is TABLES[0] else f"{name}-{table.name}")["Table"]
        assert tuple(key["AttributeName"] for key in known["KeySchema"]) == table.key
        types = {one["AttributeName"]: one["AttributeType"] for one in known["AttributeDefinitions"]}
        assert types == {key: "S" if table.columns[key] == "text" else "N" for key in table.key}
    # With these, the function needs no right to make tables.
    opened = open_store(dynamodb_uri, create=True)
    assert opened.count(TABLES[0]) == 0
    opened.close()
    assert table_names(database) == before

    queues = boto3.client("sqs")
    redrive = queues.get_queue_attributes(QueueUrl=number["IngestQueue"], AttributeNames=["RedrivePolicy"])
    dead = queues.get_queue_attributes(QueueUrl=number["IngestDeadLetters"], AttributeNames=["QueueArn"])
    assert f'"{dead["Attributes"]["QueueArn"]}"' in redrive["Attributes"]["RedrivePolicy"]
    settings = boto3.client("lambda").get_function_configuration(FunctionName=number["Ingest"])
    assert settings["Environment"]["Variables"] == {"CALMLFLOW_JOBS": dynamodb_uri}
    stacks.delete_stack(StackName=name)
