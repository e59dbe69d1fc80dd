"""Events as AWS Lambda gets them, whole and damaged."""

import json

from hypothesis import strategies as st

BUCKET = "calcloud-processing"
JOB = "jabc07020"
FOLDER = f"control/{JOB}/"
KEY = f"{FOLDER}{JOB}_MemModelFeatures.txt"
JOB_EVENT = {"Bucket": BUCKET, "Key": KEY, "Ipppssoot": JOB}


def s3_record(key: object = KEY, bucket: object = BUCKET, **more) -> dict:
    described = {"bucket": {"name": bucket}, "object": {"key": key, "size": 120}}
    return {"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": described, **more}


def eventbridge(key: object = KEY, **more) -> dict:
    detail = {"bucket": {"name": BUCKET}, "object": {"key": key, "size": 120}, "reason": "PutObject"}
    return {"version": "0", "source": "aws.s3", "detail-type": "Object Created", "detail": detail, **more}


def sns(event: object) -> dict:
    """What SNS makes of an event, for SQS or HTTP, or in a record for Lambda."""
    return {"Type": "Notification", "TopicArn": "arn:aws:sns:us-east-1:1:jobs", "Message": json.dumps(event)}


def sns_event(*events: object) -> dict:
    return {"Records": [{"EventSource": "aws:sns", "EventVersion": "1.0", "Sns": sns(event)} for event in events]}


def sqs_event(*bodies: object) -> dict:
    """Messages 0, 1, ... of a queue; a body is a text, or an event as JSON."""
    texts = [body if isinstance(body, str) else json.dumps(body) for body in bodies]
    return {"Records": [{"messageId": str(i), "eventSource": "aws:sqs", "body": body} for i, body in enumerate(texts)]}


def batch_event(job: str = JOB, reason: str = "Essential container in task exited", **more) -> dict:
    """Batch's event of a job that ran for 100 s and failed; ``more`` are keys of its detail."""
    container = {
        "command": ["caldp-process", job, f"s3://{BUCKET}/inputs/{job}.tar.gz", f"s3://{BUCKET}/outputs"],
        "exitCode": 1,
        "resourceRequirements": [{"value": "2", "type": "VCPU"}, {"value": "1792", "type": "MEMORY"}],
    }
    times = {"startedAt": 1_700_000_000_000, "stoppedAt": 1_700_000_100_000}
    attempt = {"container": {"exitCode": 1}, "statusReason": reason, **times}
    detail = {"jobName": job, "jobId": "4c7599ae", "status": "FAILED", "statusReason": reason, "attempts": [attempt]}
    detail |= {"container": container, **times, **more}
    return {"version": "0", "source": "aws.batch", "detail-type": "Batch Job State Change", "detail": detail}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, float("nan"), float("inf")])
    # Not a sample: hypothesis could not print it.
    | st.none().map(lambda _: 10**5000)
    | st.floats()
    | st.text(st.characters(), max_size=30)
    | st.sampled_from([JOB, KEY, BUCKET, "control", FOLDER, f"{FOLDER}\ud800", "acs_8ph_01", "x" * 100_000, "aws:s3"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


def damaged(whole: object) -> st.SearchStrategy:
    """A value of which one part, or nothing, is something else."""
    if isinstance(whole, dict):
        keys = st.sampled_from(sorted(whole))
        less = keys.map(lambda gone: {key: part for key, part in whole.items() if key != gone})
        return less | keys.flatmap(lambda key: damaged(whole[key]).map(lambda part: {**whole, key: part})) | ANYTHING
    if isinstance(whole, list):
        return st.lists(damaged(whole[0]), max_size=3) | ANYTHING
    return st.just(whole) | SCALARS


def deep() -> object:
    """Lists within lists, as JSON may have them; too deep to be printed."""
    value: object = "x"
    for _ in range(50_000):
        value = [value]
    return value


HUGE = 10**5000
EXTREMES = {
    "deep": deep(),
    "deep bucket": {"Bucket": deep(), "Ipppssoot": JOB},
    "deep name": {"Bucket": BUCKET, "Ipppssoot": deep()},
    "deep other name": {"Bucket": BUCKET, "Ipppssoot": JOB, "Dataset": deep()},
    "deep key": {"Bucket": BUCKET, "Ipppssoot": JOB, "Key": deep()},
    "deep records": {"Records": deep()},
    "deep record": {"Records": [s3_record(s3=deep())]},
    "huge": HUGE,
    "huge name": {"Bucket": BUCKET, "Ipppssoot": JOB, "Dataset": HUGE},
    "huge key": {"Bucket": BUCKET, "Ipppssoot": JOB, "Key": HUGE},
    "huge size": {"Records": [s3_record(s3={"bucket": {"name": BUCKET}, "object": {"key": KEY, "size": HUGE}})]},
    "half a character": {"Bucket": BUCKET, "Ipppssoot": "\ud800", "Key": "\ud800"},
    "NaN": {"Bucket": BUCKET, "Ipppssoot": JOB, "Dataset": float("nan")},
    "long": {"Bucket": BUCKET, "Ipppssoot": "j" * 10_000_000},
}
"""Events that hypothesis could not print, or would seldom find; all are refused."""

EVENTS = st.one_of(
    ANYTHING,
    damaged({**JOB_EVENT, "Dataset": JOB}),
    damaged({"Records": [s3_record()]}),
    damaged(eventbridge()),
    damaged({"Event": "s3:TestEvent", **JOB_EVENT}),
)
