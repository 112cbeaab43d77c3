"""Checks what a server says of itself: its answers by its /openapi.json, and /metrics by the rules of Prometheus.

    python3 server_contract.py BASE_URL [--key KEY]

All routes are asked for all that they can be made to answer with. Fields that a schema does not know are faults,
as are statuses and content types that the document has not. KEY is one of the server's keys, if it has some.
Prints a sentence for each fault, and a line of JSON: the statuses that were seen of each route, the fields of
requests that are taken and not described, and how many faults there are. Needs jsonschema[format-nongpl],
openapi-spec-validator and prometheus-client, and uses promtool, which Debian has in the package prometheus, where
it is there.
"""

import argparse
import collections
import concurrent.futures
import copy
import http.client
import json
import math
import re
import shutil
import subprocess
import sys
import urllib.parse

import openapi_spec_validator
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

CHAT = "/v1/chat/completions"
# Requests and bytes, more than a server takes by default.
MANY, LARGE = 128, 64 << 20

MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}}
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"enum": [1, "b"]}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": PARAMETERS}}]
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
CALLED = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "Nothing."},
]
LOOK = {"type": "function", "function": {"name": "look"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": TOOLS}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": PARAMETERS}}
# What requests may have.
RIGHT = [
    {},
    {"logprobs": True, "top_logprobs": 3},
    {"logprobs": True, "n": 2},
    {"n": 2, "temperature": 1, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "logit_bias": {"5": -1.5}, "stop": "a"},
    {"tools": TOOLS},
    {"tools": TOOLS, "tool_choice": "required", "max_completion_tokens": 200, "parallel_tool_calls": False},
    {"tools": TOOLS, "tool_choice": LOOK, "max_completion_tokens": 200, "logprobs": True},
    {"tools": TOOLS, "tool_choice": ALLOWED},
    {"tools": TOOLS, "tool_choice": "none", "stop": ["a", "b"]},
    {"tools": TOOLS, "messages": MESSAGES + CALLED},
    {"response_format": SCHEMA, "max_completion_tokens": 30},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "text"}},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"structured_outputs": {"regex": "[a-z]+"}},
    {"structured_outputs": {"grammar": 'start: "a"'}},
    {"structured_outputs": {"json": {"type": "null"}}},
    {"messages": [{"role": "user", "content": [IMAGE]}], "image_settings": {"max_image_tokens": 64}},
    {"presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.2, "modalities": ["text"]},
    {"chat_template_kwargs": {"enable_thinking": True}, "ignore_eos": True, "user": "me", "metadata": {"a": "b"}},
    {"store": False, "service_tier": "auto", "safety_identifier": "a", "prompt_cache_key": "b"},
    {"temperature": None, "stop": None, "tools": None, "response_format": None, "seed": None},
]
# What is refused.
WRONG = [
    {"messages": []},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,a"}}]}]},
    {"messages": [{"role": "user", "content": "a " * 100_000}]},
    {"temperature": 3},
    {"temperature": "1"},
    {"n": 0},
    {"top_logprobs": 2},
    {"logit_bias": {"a": 1}},
    {"tools": [{"type": "function", "function": {"name": "a b"}}]},
    {"tool_choice": "required"},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}},
    {"image_settings": {"no": 1}},
    {"unknown": 1},
    {"max_completion_tokens": 10**9},
    {"modalities": ["audio"]},
]

# Prometheus' own rules, as promtool has them.
UNITS = {"seconds", "bytes", "meters", "grams", "joules", "kelvin", "volts", "amperes", "celsius", "ratio", "percent"}
OTHER_UNITS = "milliseconds|microseconds|nanoseconds|minutes|hours|days|kilobytes|megabytes|gigabytes|bits|mebibytes"
SHORT_UNITS = "s|ms|us|ns|sec|b|kb|mb|gb|tb|pb|m|h|d"
TYPES = "counter|gauge|histogram|summary|untyped"
SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(.*)\})? (\S+)$")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')


class Contract:
    def __init__(self, base_url, key):
        self.url, self.key = urllib.parse.urlsplit(base_url), key
        self.faults, self.seen, self.undocumented = [], collections.defaultdict(set), set()

    def fault(self, text):
        if text not in self.faults:
            self.faults.append(text)
            print(text, flush=True)

    def fetch(self, method, path, body=None, authorization=None):
        """Status, headers and body."""
        headers = {"Content-Type": "application/json"}
        if authorization or self.key:
            headers["Authorization"] = authorization or f"Bearer {self.key}"
        connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=120)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            try:
                connection.request(method, path, data, headers)
            except (BrokenPipeError, ConnectionResetError):
                # It may answer before it has read all.
                pass
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    # The interface.

    def load(self):
        status, _, text = self.fetch("GET", "/openapi.json")
        assert status == 200, f"/openapi.json is answered with {status}"
        self.document = json.loads(text)
        if not self.document["openapi"].startswith("3.1."):
            self.fault(f"the document is of OpenAPI {self.document['openapi']}")
        for error in openapi_spec_validator.OpenAPIV31SpecValidator(self.document).iter_errors():
            self.fault(f"the document is no OpenAPI 3.1: {error.message} at {error.json_path}")
        names = [operation["operationId"] for path in self.document["paths"].values() for operation in path.values()]
        for name, count in collections.Counter(names).items():
            if count > 1:
                self.fault(f"{count} operations have the id {name}")
        strict = copy.deepcopy(self.document)
        closed(strict["components"])
        documents = {"strict:": strict, "as-is:": self.document}
        resources = [(name, Resource(document, DRAFT202012)) for name, document in documents.items()]
        self.registry = Registry().with_resources(resources)

    def validator(self, schema, strict=True):
        """Of a schema of the document, which refers to others of it."""
        prefix = "strict:" if strict else "as-is:"
        schema = json.loads(json.dumps(schema).replace('"#/', f'"{prefix}#/'))
        return Draft202012Validator(schema, registry=self.registry, format_checker=Draft202012Validator.FORMAT_CHECKER)

    def check_schema(self, what, schema, value, strict=True):
        for error in self.validator(schema, strict).iter_errors(value):
            error = max([error, *(error.context or [])], key=lambda e: len(e.absolute_path))
            # Where in it, but not in the how-manieth place.
            where = re.sub(r"\[\d+\]", "[]", error.json_path)
            self.fault(f"{what}: {where}: {error.message[:300]}")

    def ask(self, method, path, route=None, body=None, expect=None, **more):
        """The answer, checked by what the document says of the route."""
        route = route or path.partition("?")[0]
        status, headers, data = self.fetch(method, path, body, **more)
        what = f"{method} {route} {status}"
        self.seen[f"{method} {route}"].add(status)
        if expect and status != expect:
            self.fault(f"{method} {path} {str(body or '')[:200]}: status {status} and not {expect}: {data[:200]}")
        for needs, name in [(405, "Allow"), (401, "WWW-Authenticate"), (429, "Retry-After")]:
            if status == needs and not headers.get(name):
                self.fault(f"{what}: it has no header {name}")
        kind = headers.get_content_type()
        operation = self.document["paths"].get(route, {}).get(method.lower())
        if operation is None:
            # No such path, or not with this method.
            self.check_error(what, kind, data)
            return status, headers, data
        if isinstance(body, dict) and status < 400:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            self.check_schema(f"request of {method} {route}", schema, body, strict=False)
            self.undocumented |= unknown_fields(self.validator(schema), body)
        response = operation["responses"].get(str(status))
        if response is None:
            self.fault(f"{what}: the document has no such status of it")
            self.check_error(what, kind, data)
            return status, headers, data
        schema = response.get("content", {}).get(kind, {}).get("schema")
        if schema is None:
            self.fault(f"{what}: the document has no content of type {kind} of it")
        elif kind == "text/event-stream":
            self.check_stream(what, schema, data)
        else:
            self.check_schema(what, schema, json.loads(data) if kind == "application/json" else data.decode())
        return status, headers, data

    def check_error(self, what, kind, data):
        if kind != "application/json":
            self.fault(f"{what}: an error of type {kind}: {data[:100]}")
            return
        self.check_schema(what, {"$ref": "#/components/schemas/ErrorBody"}, json.loads(data))

    def check_stream(self, what, schema, data):
        events = data.decode().split("\n\n")
        lines = [event.removeprefix("data: ") for event in events if event and not event.startswith(":")]
        if events[-1] or lines[-1] != "[DONE]":
            self.fault(f"{what}: the stream does not end with [DONE]")
            return
        chunks = [json.loads(line) for line in lines[:-1]]
        for chunk in chunks:
            self.check_schema(f"{what}, chunk", schema, chunk)
        ends = [choice["index"] for chunk in chunks for choice in chunk.get("choices", []) if choice["finish_reason"]]
        if len(ends) != len(set(ends)):
            self.fault(f"{what}: a choice ends twice")

    def check_interface(self):
        model = json.loads(self.ask("GET", "/v1/models", expect=200)[2])["data"][0]["id"]
        self.ask("GET", f"/v1/models/{urllib.parse.quote(model, safe='')}", "/v1/models/{model}", expect=200)
        self.ask("GET", "/v1/models/none", "/v1/models/{model}", expect=404)
        self.ask("GET", "/v1/models/%ff", "/v1/models/{model}")
        for path in ["/healthz", "/readyz"]:
            self.ask("GET", path, expect=200)
        for size in [(64, 64), (3000, 2000), (1, 9000)]:
            self.ask("GET", f"/v1/image_layout?width={size[0]}&height={size[1]}&use_thumbnail=false", expect=200)
        for query in ["", "?width=1", "?width=0&height=1", "?width=a&height=1", "?width=9&height=9&min_tiles=0"]:
            self.ask("GET", f"/v1/image_layout{query}", expect=400)
        self.ask("GET", "/nothing", expect=404)
        self.ask("GET", CHAT, expect=405)
        for path in ["/v1/models", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/image_layout"]:
            self.ask("DELETE", path, expect=405)
        self.check_chat(model)
        self.check_many()
        if self.key:
            for authorization in ["Bearer wrong", "Bearer ", "Basic YTpi"]:
                self.ask("POST", CHAT, body={"messages": []}, expect=401, authorization=authorization)
            self.ask("GET", "/v1/models", expect=401, authorization="Bearer wrong")
            self.ask("GET", "/v1/models/a", "/v1/models/{model}", expect=401, authorization="Bearer wrong")
            self.ask("GET", "/v1/image_layout?width=1&height=1", expect=401, authorization="Bearer wrong")

    def check_chat(self, model):
        base = {"model": model, "messages": MESSAGES, "max_completion_tokens": 4, "seed": 1}
        for more in RIGHT:
            body = base | more
            self.ask("POST", CHAT, body=body, expect=200)
            self.ask("POST", CHAT, body=body | {"stream": True}, expect=200)
            self.ask("POST", CHAT, body=body | {"stream": True, "stream_options": {"include_usage": True}}, expect=200)
        # Its first token is made when the status is out already.
        endless = {"structured_outputs": {"grammar": "start: start"}}
        self.ask("POST", CHAT, body=base | endless | {"stream": True})
        for wrong in WRONG:
            self.ask("POST", CHAT, body=base | wrong, expect=400)
        for data in [b"", b"{", b"[]", b"\xff", b'{"messages": [{"role": "user", "content": "a"}]} x']:
            self.ask("POST", CHAT, body=data, expect=400)
        self.ask("POST", CHAT, body=base | {"model": "none"}, expect=404)
        self.ask("POST", CHAT, body=b" " * LARGE, expect=413)

    def check_many(self):
        """So many requests that some are refused."""
        body = {"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 300, "ignore_eos": True}
        with concurrent.futures.ThreadPoolExecutor(MANY) as pool:
            list(pool.map(lambda _: self.ask("POST", CHAT, body=body), range(MANY)))

    # The figures.

    def check_metrics(self):
        status, headers, data = self.ask("GET", "/metrics", expect=200)
        if headers.get("Content-Type") != "text/plain; version=0.0.4":
            self.fault(f"/metrics: content type {headers.get('Content-Type')!r}")
        text = data.decode()
        families = list(text_string_to_metric_families(text))
        if not families:
            self.fault("/metrics: it has none")
        for fault in faults_of_metrics(text):
            self.fault(f"/metrics: {fault}")
        if promtool := shutil.which("promtool"):
            command = [promtool, "check", "metrics"]
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
            for line in (done.stdout + done.stderr).splitlines():
                self.fault(f"/metrics: promtool: {line}")
        counters = [sample for family in families if family.type == "counter" for sample in family.samples]
        return {f"{sample.name}{sorted(sample.labels.items())}": sample.value for sample in counters}


def unknown_fields(validator, value):
    """The fields of a value that a closed schema has not."""
    found = set()
    errors = list(validator.iter_errors(value))
    while errors:
        error = errors.pop()
        errors += error.context or []
        if error.validator == "additionalProperties":
            found |= {f"{error.json_path}.{name}" for name in error.instance if name not in error.schema["properties"]}
    # Another one of several forms has a field with fields in it.
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def closed(schema):
    """Makes every object of a schema have the fields that it names, and no others."""
    if isinstance(schema, dict):
        if "properties" in schema and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
        for inner in schema.values():
            closed(inner)
    elif isinstance(schema, list):
        for inner in schema:
            closed(inner)


def faults_of_metrics(text):
    """What the parser of prometheus_client lets through."""
    helps, types, samples, finished, current = {}, {}, {}, set(), None
    if not text.endswith("\n"):
        yield "the last line does not end"
    for line in text.splitlines():
        comment = re.fullmatch(r"# (HELP|TYPE) (\S+) (.+)", line)
        if comment:
            kind, name, value = comment.groups()
            known = helps if kind == "HELP" else types
            if name in known:
                yield f"{name} has {kind} twice"
            if name in samples:
                yield f"{name} has {kind} behind its samples"
            known[name] = value
            continue
        found = SAMPLE.fullmatch(line)
        if not found:
            yield f"a line that is none: {line!r}"
            continue
        name, _, labels, value = found.groups()
        family = next((f for f in (name, re.sub("_(bucket|sum|count)$", "", name)) if f in types), None)
        if family is None:
            yield f"{name} has no TYPE before it"
            continue
        if family != current:
            finished.add(current)
            current = family
            if family in finished:
                yield f"the samples of {family} are not together"
        pairs = LABEL.findall(labels or "")
        if labels and "".join(f'{k}="{v}",' for k, v in pairs).rstrip(",") != labels.rstrip(","):
            yield f"labels that are none: {labels}"
        key = (name, tuple(sorted(pairs)))
        series = samples.setdefault(family, {})
        if key in series:
            yield f"{name}{{{labels}}} is there twice"
        series[key] = float(value)
    for name, kind in types.items():
        if name not in helps:
            yield f"{name} has no HELP"
        if name not in samples:
            yield f"{name} has no samples"
        yield from faults_of_name(name, kind)
        yield from faults_of_values(name, kind, samples.get(name, {}))


def faults_of_name(name, kind):
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        yield f"{name} has other characters than small letters, digits and _"
    if (kind == "counter") != name.endswith("_total"):
        yield f"{name} is a {kind}: counters end in _total, and only these"
    if kind not in ("histogram", "summary") and re.search("_(bucket|sum|count|info)$", name):
        yield f"{name} is a {kind} with the end of another type"
    if found := re.search(rf"(^|_)({TYPES})(_|$)", name):
        yield f"{name} has the type '{found[2]}' in its name"
    if found := re.search(rf"_({OTHER_UNITS}|{SHORT_UNITS})(_total)?$|_({OTHER_UNITS})_", name):
        yield f"{name} has a unit that is no base unit: {found[0]}"
    bare = name.removesuffix("_total")
    if any(unit in bare.split("_")[:-1] for unit in UNITS):
        yield f"{name} has its unit before other words"
    if kind == "histogram" and bare.split("_")[-1] not in UNITS:
        yield f"{name} is a histogram without a unit"


def faults_of_values(name, kind, series):
    for (sample, labels), value in series.items():
        names = [label for label, _ in labels]
        if len(names) != len(set(names)):
            yield f"{sample} has a label twice"
        if math.isnan(value) or (kind != "gauge" and (value < 0 or math.isinf(value))):
            yield f"{sample} is {value}"
        if "quantile" in names or ("le" in names) != sample.endswith("_bucket"):
            yield f"{sample} has labels {names}"
    if kind != "histogram":
        return
    groups = collections.defaultdict(list)
    for (sample, labels), value in series.items():
        if sample == f"{name}_bucket":
            bounds = dict(labels)
            groups[tuple(pair for pair in labels if pair[0] != "le")].append((float(bounds["le"]), value))
    if not groups:
        yield f"{name} has no buckets"
    for labels, buckets in groups.items():
        if buckets != sorted(buckets) or [count for _, count in buckets] != sorted(count for _, count in buckets):
            yield f"the buckets of {name} are not cumulative: {buckets}"
        if buckets[-1] != (math.inf, series.get((f"{name}_count", labels))):
            yield f"the last bucket of {name} is {buckets[-1]}, and not +Inf with all"
        if (f"{name}_sum", labels) not in series:
            yield f"{name} has no sum"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("--key")
    arguments = parser.parse_args()
    contract = Contract(arguments.base_url, arguments.key)
    contract.load()
    before = contract.check_metrics()
    contract.check_interface()
    after = contract.check_metrics()
    for name, value in before.items():
        if after.get(name, -1) < value:
            contract.fault(f"/metrics: the counter {name} went from {value} to {after.get(name)}")
    report = {
        "seen": {route: sorted(statuses) for route, statuses in sorted(contract.seen.items())},
        "undocumented_request_fields": sorted(contract.undocumented),
        "counters": len(after),
        "promtool": shutil.which("promtool") is not None,
        "faults": len(contract.faults),
    }
    print(json.dumps(report))
    return bool(contract.faults)


if __name__ == "__main__":
    sys.exit(main())
