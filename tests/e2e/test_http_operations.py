"""Everything but classify: models, health, metrics, documents, the log, HEAD and OPTIONS."""

import hashlib
import json
import re
import subprocess

import pytest
import requests

from conftest import BINARY, ROOT, error_of, post, read_reply

GET_ROUTES = ["/", "/v1/models", "/v1/models/{name}", "/v1/models/{name}/summary", "/healthz/live", "/healthz/ready",
              "/metrics", "/openapi.json"]


@pytest.fixture(scope="module")
def name(server):
    return server.get("/v1/models").json()["models"][0]["name"]


def test_models(server, name):
    listed = server.get("/v1/models").json()["models"][0]
    one = server.get("/v1/models/" + name).json()
    assert listed["default"] is True
    assert all(one[key] == value for key, value in listed.items())
    assert len(one["labels"]) == one["classes"]
    assert one["weights"]["sha256"] == hashlib.sha256(
        (ROOT / "config/weights" / one["weights"]["file"]).read_bytes()).hexdigest()
    assert one["precision"] in ("fp32", "bf16") and one["kernels"] and one["arithmetic"]
    assert len(one["input"]["mean"]) == len(one["input"]["std"]) == one["input"]["channels"] == 3
    assert one["modules"].startswith("ResNet(\n  (conv1): Conv2d(3, 64, kernel_size=(7, 7)")
    text = server.get("/v1/models/" + name, headers={"Accept": "text/plain"})
    assert text.headers["Content-Type"].startswith("text/plain")
    assert text.text == one["modules"]
    for accept in ("*/*", "application/json, text/plain", "text/html,*/*;q=0.8"):
        assert server.get("/v1/models/" + name, headers={"Accept": accept}).json() == one
    error_of(server.get("/v1/models/nothing"), 404, "unknown_model")
    error_of(server.get("/v1/models/nothing/summary"), 404, "unknown_model")
    error_of(server.get("/v1/models?x=1"), 400, "unknown_parameter")


def test_the_demo_model_says_what_it_is(server):
    body = server.get("/v1/models").json()
    if body["models"][0]["name"] == "demo64":
        assert "demo" in body["note"] and "demo" in server.log()


def test_summary(server, name):
    url = "/v1/models/%s/summary" % name
    body = server.get(url + "?height=97&width=211").json()
    assert body["input"]["shape"] == [1, 3, 97, 211]
    rows = body["rows"]
    assert rows[0] == {"name": "conv1", "type": "Conv2d", "shape": [1, 64, 49, 106], "parameters": 64 * 3 * 49,
                       "multiply_adds": 64 * 3 * 49 * 49 * 106}
    assert body["totals"]["parameters"] == sum(row["parameters"] for row in rows)
    assert body["totals"]["multiply_adds"] == sum(row["multiply_adds"] for row in rows)
    assert body["totals"]["parameters"] == server.get("/v1/models/" + name).json()["parameters"]
    crop = server.get("/v1/models/" + name).json()["input"]["crop"]
    assert server.get(url).json()["input"]["shape"] == [1, 3, crop, crop]
    text = server.get(url, headers={"Accept": "text/plain"})
    assert text.headers["Content-Type"].startswith("text/plain")
    assert "Conv2d-1" in text.text and "Total params" in text.text
    for query in ("?height=0", "?width=0", "?height=65536", "?height=x", "?height=-1", "?width="):
        error_of(server.get(url + query), 400, "bad_parameter")
    error_of(server.get(url + "?height=1&height=1"), 400, "duplicate_parameter")
    error_of(server.get(url + "?top_k=1"), 400, "unknown_parameter")
    assert server.get(url + "?height=65535&width=65535").status_code in (200, 422)


def test_health(server):
    assert server.get("/healthz/live").json() == {"status": "live"}
    assert server.get("/healthz/ready").json() == {"status": "ready"}


def test_metrics(start, cat):
    server = start()
    server.classify(cat)
    server.classify(cat)
    server.classify(b"text")
    server.get("/nothing")
    server.wait_metric(2, "resnetd_requests_total", route="/v1/classify", status="200")
    assert server.metric("resnetd_requests_total", route="/v1/classify", status="415") == 1
    assert server.metric("resnetd_requests_total", route="other", status="404") == 1
    assert server.metric("resnetd_images_total", outcome="ok") == 2
    assert server.metric("resnetd_images_total", outcome="not_an_image") == 1
    assert server.metric("resnetd_received_bytes_total") == 2 * len(cat) + 4
    for stage, count in (("queue", 3), ("decode", 2), ("preprocess", 2), ("inference", 2), ("total", 3)):
        assert server.metric("resnetd_stage_seconds_count", stage=stage) == count
        assert server.metric("resnetd_stage_seconds_bucket", stage=stage, le="+Inf") == count
        assert server.metric("resnetd_stage_seconds_sum", stage=stage) > 0
    assert server.metric("resnetd_queue_depth") == 0
    assert server.metric("resnetd_queue_limit") > 0
    assert server.metric("resnetd_workers") >= 1
    assert server.metric("resnetd_requests_in_flight") == 1
    assert server.metric("process_resident_memory_bytes") > 1e6
    assert server.metric("process_start_time_seconds") > 1e9
    assert server.metric("process_cpu_seconds_total") > 0
    assert server.metric("resnetd_model_info", model=server.get("/v1/models").json()["models"][0]["name"]) == 1
    assert server.metric("resnetd_ready") == 1


def test_metrics_are_valid_prometheus_text(server, cat):
    server.classify(cat)
    reply = server.get("/metrics")
    assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    types, seen, buckets = {}, set(), {}
    for line in reply.text.splitlines():
        if line.startswith("# TYPE "):
            _, _, metric, kind = line.split()
            assert metric not in types
            types[metric] = kind
        elif not line.startswith("# HELP "):
            found = re.fullmatch(r'([a-z_]+)(\{(?:[a-z_0-9]+="[^"]*",?)+\})? (\S+)', line)
            assert found, line
            family = re.sub(r"_(bucket|sum|count)$", "", found.group(1))
            assert found.group(1) in types or types.get(family) == "histogram", line
            assert line.rsplit(" ", 1)[0] not in seen, line
            seen.add(line.rsplit(" ", 1)[0])
            assert float(found.group(3)) >= 0
            if found.group(1).endswith("_bucket"):
                key = found.group(1) + re.sub(r',?le="[^"]*"', "", found.group(2))
                assert float(found.group(3)) >= buckets.get(key, 0), line
                buckets[key] = float(found.group(3))
    assert buckets


def test_head_and_options(server, name):
    for route in GET_ROUTES:
        path = route.format(name=name)
        get = server.get(path)
        head = requests.head(server.url + path, timeout=60)
        assert get.status_code == head.status_code == 200
        assert head.content == b"" and int(head.headers["Content-Length"]) > 0
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
        options = requests.options(server.url + path, timeout=60)
        assert options.status_code == 204 and options.content == b""
        assert options.headers["Allow"] == "GET, HEAD, OPTIONS"
    options = requests.options(server.url + "/v1/classify", timeout=60, headers={
        "Origin": "https://example.org", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type"})
    assert options.status_code == 204
    assert options.headers["Allow"] == options.headers["Access-Control-Allow-Methods"] == "POST, OPTIONS"
    assert "Content-Type" in options.headers["Access-Control-Allow-Headers"]
    assert requests.options(server.url + "/nothing", timeout=60).status_code == 404
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(post(path="*", method="OPTIONS") + post(path="/nothing", method="HEAD") +
                           post(path="/healthz/live", method="GET"))
        assert read_reply(file).status == 204
        assert read_reply(file, head=True).status == 404
        assert read_reply(file).json() == {"status": "live"}


def test_openapi_describes_what_there_is(server, cat):
    reply = server.get("/openapi.json")
    document = reply.json()
    version = subprocess.run([str(BINARY), "--version"], capture_output=True, text=True, check=True).stdout
    assert document["info"]["version"] in version
    assert document["openapi"].startswith("3.")
    assert set(document["paths"]) == {"/v1/classify", *GET_ROUTES}
    post_operation = document["paths"]["/v1/classify"]["post"]
    assert {p["name"] for p in post_operation["parameters"]} == {"top_k", "size", "orient", "model", "stages", "X-Request-Id"}
    assert set(post_operation["responses"]) >= {"200", "400", "404", "413", "415", "422", "503"}
    codes = set(document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"])
    source = (ROOT / "server/errors.c").read_text()
    assert codes == set(re.findall(r'= \{[45]\d\d, "(\w+)"', source))

    def resolve(schema):
        while "$ref" in schema:
            target = document
            for step in schema["$ref"].split("/")[1:]:
                target = target[step]
            schema = target
        return schema

    def check(schema, value, where):
        """As much of JSON Schema as the document uses."""
        schema = resolve(schema)
        if "oneOf" in schema:
            for one in schema["oneOf"]:
                if set(resolve(one).get("required", ())) <= set(value):
                    return check(one, value, where)
            raise AssertionError(where)
        kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
        assert isinstance(value, kinds[schema["type"]]), where
        if "enum" in schema:
            assert value in schema["enum"], where
        if schema["type"] == "object":
            assert set(schema.get("required", ())) <= set(value), where
            for key, member in value.items():
                assert key in schema["properties"], where + "." + key
                check(schema["properties"][key], member, where + "." + key)
        if schema["type"] == "array":
            for element in value:
                check(schema["items"], element, where + "[]")
        return None

    def schema_of(path, method="get", status="200", kind="application/json"):
        return document["paths"][path][method]["responses"][status]["content"][kind]["schema"]

    check(schema_of("/v1/classify", "post"), server.classify(cat).json(), "classify")
    files = [("image", ("a.png", cat)), ("image", ("b", b"x"))]
    check(schema_of("/v1/classify", "post"), requests.post(server.url + "/v1/classify", files=files, timeout=60).json(), "form")
    error = resolve(document["components"]["responses"]["Error"])["content"]["application/json"]["schema"]
    check(error, server.classify(b"").json(), "error")
    models = server.get("/v1/models").json()
    check(schema_of("/v1/models"), models, "models")
    path = "/v1/models/" + models["models"][0]["name"]
    check(schema_of("/v1/models/{name}"), server.get(path).json(), "model")
    check(schema_of("/v1/models/{name}/summary"), server.get(path + "/summary").json(), "summary")


def test_the_page_needs_nothing_from_elsewhere(server):
    reply = server.get("/")
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(["']?http""", reply.text)
    assert "/v1/classify" in reply.text and "resnetd" in reply.text


def request_lines(server, target):
    server.wait_log(re.escape(target))
    return [line for line in server.lines if target in line]


def test_one_log_line_a_request(start, cat):
    server = start(LOG_FORMAT="json")
    reply = server.classify(cat, "?top_k=2")
    line, = [json.loads(text) for text in request_lines(server, "top_k=2")]
    assert line["message"] == "request" and line["level"] == "info"
    assert line["id"] == reply.json()["request_id"]
    assert (line["method"], line["target"], line["status"]) == ("POST", "/v1/classify?top_k=2", 200)
    assert line["bytes_in"] == len(cat) and line["bytes_out"] == len(reply.content)
    assert line["model"] == reply.json()["model"] and line["remote"] == "127.0.0.1"
    for stage, value in reply.json()["timing_ms"].items():
        assert line[stage + "_ms"] == value
    server.classify(b"", "?top_k=3")
    line, = [json.loads(text) for text in request_lines(server, "top_k=3")]
    assert line["status"] == 400 and line["error"] == "empty_body"


@pytest.mark.parametrize("kind", ["text", "json"])
def test_no_request_can_forge_a_log_line(start, kind):
    server = start(LOG_FORMAT=kind)
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"GET /mark\x1b[31m\"\\\xff%0a%0d{}= HTTP/1.1\r\nHost: a\r\nX-Request-Id: a\tb\r\n\r\n")
        assert read_reply(file).status == 404
        connection.sendall(b"GET /" + b"a" * 5000 + b"mark HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_reply(file).status == 404
    server.stop()
    lines = [line for line in server.lines if "unknown_route" in line]
    assert len(lines) == 2
    assert all(char >= " " for line in lines for char in line)
    assert len(lines[1]) < 1500
    if kind == "json":
        assert json.loads(lines[0])["target"].startswith("/mark\x1b[31m\"\\\ufffd%0a")

