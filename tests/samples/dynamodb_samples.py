"""A real DynamoDB server (moto's), and a proxy before it that counts requests and answers some of them itself."""

import json
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.error import HTTPError

import boto3

from tests.samples.http_server import serving

Answer = tuple[int, dict]
Forward = Callable[[dict], Answer]


class Proxy:
    """Passes requests on. A test may set ``answer(operation, request, forward)``, which answers in its place."""

    def __init__(self, target: str):
        self.target = target
        self.counts: Counter[str] = Counter()
        self.answer: Callable[[str, dict, Forward], Answer] = lambda operation, request, forward: forward(request)
        self.address = ""


def error(code: str) -> Answer:
    """What DynamoDB says where it refuses; the text holds what nobody may see."""
    return 400, {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "told-to-nobody"}


@contextmanager
def proxy_of(target: str) -> Iterator[Proxy]:
    proxy = Proxy(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            operation = self.headers["X-Amz-Target"].partition(".")[2]
            proxy.counts[operation] += 1

            def forward(changed: dict) -> Answer:
                data = json.dumps(changed).encode()
                headers["Content-Length"] = str(len(data))
                asked = urllib.request.Request(proxy.target, data, headers)
                try:
                    with urllib.request.urlopen(asked) as answer:
                        return answer.status, json.load(answer)
                except HTTPError as refused:
                    return refused.code, json.load(refused)

            status, answer = proxy.answer(operation, request, forward)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with serving(Handler) as proxy.address:
        yield proxy


def client():
    return boto3.session.Session().client("dynamodb", region_name="us-east-1")


def items_of(table: str) -> list[dict]:
    """All items of a table, as boto3's own paginator gives them."""
    pages = client().get_paginator("scan").paginate(TableName=table)
    return [item for page in pages for item in page["Items"]]


def table_of(uri: str) -> str:
    return uri.removeprefix("dynamodb://").partition("?")[0]


def older_item(ipst: str = "j8c601020", **attributes: dict) -> dict:
    """A record as calcloud's own tools write it, with attributes that are no columns."""
    numbers = {
        **{"timestamp": 1_620_740_441, "n_files": 5, "total_mb": 94, "drizcorr": 1, "pctecorr": 1, "crsplit": 2},
        **{"subarray": 0, "detector": 1, "dtype": 1, "instr": 0, "wallclock": "126.0", "memory": "1.17", "mem_bin": 0},
        **{"x_files": "0.25", "x_size": "-1.5"},
    }
    return {"ipst": {"S": ipst}, **{name: {"N": str(value)} for name, value in numbers.items()}, **attributes}
