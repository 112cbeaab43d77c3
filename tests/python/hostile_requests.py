"""Sends a server what it must not stumble over: mutated bodies, images and heads, and constraints that cost much.

    python3 hostile_requests.py BASE_URL PID SAMPLES_FOLDER [--count 5000] [--seed N] [--only N]

PID is the server's process, which is to have been started with --max-tokens 64, so that requests that have lost
their limit end. Prints one line of JSON: responses by status, the slowest request, and resident megabytes after
the warm-up and after each half. Fails when there is a 5xx, an error that has not OpenAI's form or tells of the
server's insides, a request of more than 10 s, memory that grows (from 2,000 requests on), or no server at the end. Each
fault goes to the standard error; --only N sends request N alone.
"""

import argparse
import base64
import collections
import concurrent.futures
import json
import pathlib
import random
import re
import socket
import struct
import sys
import threading
import time
import urllib.parse
import zlib

CONCURRENCY, SLOWEST, GIVE_UP = 4, 10, 60
LONG = 2000
URL = "/v1/chat/completions"
# What no message may tell, and how long one may be.
INSIDES = re.compile(r"panic|backtrace|unwrap|\.rs\b|/(?:root|home|usr|tmp|src)/|\.cargo", re.I)
LONGEST = 2000
# What the layer below the routes answers by itself, without a body.
OF_HEADS = {400, 408, 414, 431, 505}
ASKED = {"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 3}
NULL = {"type": "null"}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits=8, colours=2, rows=None, extra=b""):
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[colours]
    row = bytes(1 + (width * channels * bits + 7) // 8)
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    data = zlib.compress(row * (height if rows is None else rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(width, height, frames=1):
    screen = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff"
    frame = b"!\xf9\x04\0\0\0\0\0," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\x02\x02D\x01\0"
    return screen + frame * frames + b";"


# Eight by eight pixels of one colour.
WEBP = base64.b64decode("UklGRhwAAABXRUJQVlA4TA8AAAAvB8ABAAcQ/Y/+ByKi/wEA")
# Small as files, large or odd as images.
BOMBS = {
    "png 40000x1": png(40_000, 1),
    "png 1x40000": png(1, 40_000),
    "png of 16 bits": png(1500, 1500, 16, 6),
    "png of 1 bit": png(6000, 6000, 1, 0),
    "png 50000x50000": png(50_000, 50_000, rows=1),
    "png 2147483647x2147483647": png(2**31 - 1, 2**31 - 1, rows=0),
    "png of no size": png(0, 0),
    "png with little data": png(3000, 3000, rows=10),
    "png without a palette": png(64, 64, 8, 3),
    "png with a large text": png(8, 8, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(30_000_000), 9))),
    "png with a large profile": png(8, 8, extra=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(30_000_000), 9))),
    "gif 65535x65535": gif(65_535, 65_535),
    "gif of many frames": gif(600, 600, 5000),
    "webp of a large canvas": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\xff\xff\xff\xff\xff",
    "jpeg 65535x65535": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\1\x03\x11\1\xff\xd9",
    "nothing": b"",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>",
    "heif": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
}


def uri(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def nested(depth, inner, wrap):
    for _ in range(depth):
        inner = wrap(inner)
    return inner


def schemas(rng):
    deep, many = rng.choice([10, 50, 120]), rng.choice([100, 1000, 10_000])
    names = [f"n{i}" for i in range(many)]
    defs = [f"#/$defs/{name}" for name in [*names, "last"]]
    one_of = lambda *values: rng.choice(values)
    thing = lambda properties, **more: {"type": "object", "properties": properties, **more}
    chain = lambda wrap: {"$ref": defs[0], "$defs": dict(zip(names, map(wrap, defs[1:]))) | {"last": NULL}}
    return {
        "deep arrays": nested(deep, NULL, lambda s: {"type": "array", "items": s}),
        "deep objects": nested(deep // 2, NULL, lambda s: thing({"a": s}, required=["a"])),
        "deep anyOf": nested(deep, NULL, lambda s: {"anyOf": [s, {"type": "string"}]}),
        "deep allOf": nested(deep, NULL, lambda s: {"allOf": [s]}),
        "ever more": nested(12, NULL, lambda s: {"type": "array", "prefixItems": [s, s]}),
        "many values": {"enum": names},
        "many numbers": {"enum": list(range(many))},
        "a long value": {"const": "a" * many * 10},
        "many properties": thing(dict.fromkeys(names, NULL), additionalProperties=False),
        "many required": thing(dict.fromkeys(names, NULL), required=names),
        "many patterns": {"type": "object", "patternProperties": {f"^{name}$": NULL for name in names[:1000]}},
        "many in order": {"type": "array", "prefixItems": [NULL] * many},
        "many at least": {"type": "array", "items": NULL, "minItems": many},
        "many at most": nested(2, NULL, lambda s: {"type": "array", "items": s, "maxItems": many}),
        "many bounds": {"allOf": [{"type": "integer", "minimum": i} for i in range(many)]},
        "many kinds": {"anyOf": [thing({name: NULL}, required=[name]) for name in names]},
        "choices of each": {"allOf": [{"anyOf": [thing({n: NULL}), thing({f"{n}b": NULL})]} for n in names[:20]]},
        "a long text": {"type": "string", "minLength": many * 10, "maxLength": many * 1000},
        "a chain": chain(lambda ref: {"$ref": ref}),
        "a chain of properties": chain(lambda ref: thing({"a": {"$ref": ref}})),
        "a chain of allOf": chain(lambda ref: {"allOf": [{"minProperties": 1}, {"$ref": ref}]}),
        "itself": {"$ref": "#"},
        "itself through others": {"$ref": defs[0], "$defs": {"n0": {"$ref": defs[1]}, "n1": {"$ref": defs[0]}}},
        "itself in allOf": {"allOf": [{"$ref": "#"}, {"type": "object"}]},
        "itself in items": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        "itself in properties": thing({"a": {"$ref": "#"}}, required=["a"]),
        "two trees": {
            "allOf": [{"$ref": defs[0]}, {"$ref": defs[1]}],
            "$defs": {"n0": thing({"c": {"$ref": defs[0]}}), "n1": thing({"c": {"$ref": defs[1]}})},
        },
        "elsewhere": {"$ref": one_of("https://example.com/a", "file:///etc/passwd", "#/nowhere", "#/%zz", "\0")},
        "integers": {"const": one_of(-(2**63), 2**63, 2**64, 10**30, -(10**400))},
        "bounds": {"type": "integer", "minimum": one_of(-(2**63), -1e300, 2**63), "maximum": one_of(2**63, 1e300)},
        "small bounds": {"type": "number", "minimum": one_of(-1e308, -0.0), "maximum": one_of(1e308, 5e-324)},
        "multiples": {"type": "number", "multipleOf": one_of(0, 1e-300, 999_983, 2**32 - 5, 1e300, -1, 1e-10)},
        "bounded multiples": {"type": "integer", "multipleOf": 999_983, "minimum": 0, "maximum": 10**9},
        "common multiples": {"allOf": [{"type": "integer", "multipleOf": n} for n in one_of([65_537, 7], [99_991, 7])]},
        "a pattern": {"type": "string", "pattern": one_of(*regexes(rng))},
        "a format": {"type": "string", "format": one_of("email", "uri", "other"), "pattern": "^a+$", "minLength": many},
        "nonsense": one_of({"type": "other"}, {"type": []}, {"enum": []}, {"anyOf": []}, {"not": {}}, {"required": 1}),
        "guidance": {"x-guidance": one_of(1, {"whitespace_pattern": "(a+)+"}, {"item_separator": "("}, {"other": 1})},
    }


def regexes(rng):
    many = rng.choice([20, 1000, 100_000])
    return [
        "(a+)+" * 30, "(a|aa)+" * 20 + "$", "a{1,100000}", "(a{1,1000}){1,1000}", "((a{1,300}){1,300}){1,300}",
        f".*a.{{{min(many, 5000)}}}", "a?" * many + "a" * many, "(" * many + "a" + ")" * many, "a{999999999999}",
        "|".join(f"a{i}" for i in range(many)), f"[{''.join(map(chr, range(0x4E00, 0x4E00 + min(many, 20_000))))}]*",
        "\\p{L}{1,500}\\p{N}{1,500}", "(?i)" + "straße" * min(many, 1000), "(?P<n>a)(?P<n>b)", "(?=a)b", "(a)\\1",
        "\\",
    ]  # fmt: skip


def grammars(rng):
    many = rng.choice([20, 1000, 30_000])
    rules = lambda name: "".join(f"{name}{i}: {name}{i + 1}\n" for i in range(many))
    chain = lambda name: f'start: {name}0\n{rules(name)}{name}{many}: "a"'
    return [
        chain("r"), chain("R"), "start: " + "(" * many + '"a"' + ")" * many,
        "start: " + "[" * many + '"a"' + "]" * many, "start: start", "start: start start | ",
        'start: start "a" | "a" start | start start',
        "start: " + " | ".join(f'"a{i}"' for i in range(many)), "start: " + "a " * many + '\na: "b"? | "c"?',
        'start: ("a"~1..100000)~1..1000', 'start: "a"{1,100000}', "start: /" + "(a+)+" * 20 + "/",
        "start: A\nA: " + " & ".join(f"/.*a.{{{i}}}b.*/" for i in range(2, min(many, 40))), "start: A & ~A\nA: /a/",
        "start: %json {" + '"items": {' * min(many, 500), 'start: %json {"const": -9223372036854775808}',
        'start: %regex {"substring_words": "' + "a b " * min(many, 5000) + '"}', 'start: %lark {start: "a"}',
        "start: @other", "start: <|im_end|>", "start: <[0-99999999]>", "start: <[1]> " * min(many, 1000),
        "%import common.WORD\nstart: WORD", '%ignore /./\nstart: "a"', 'start[capture="a"]: "b"', '{"grammars": []}',
        "\0", "",
    ]  # fmt: skip


class Request:
    """Bytes for the server, and what they are. Others than HTTP need no answer, nor one with a body; where the
    server would wait for more, the client ends its side."""

    def __init__(self, what, data, is_http=True, ends=False):
        self.what, self.data, self.is_http, self.ends = what, data, is_http, ends


def post(what, body, kind="application/json"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nConnection: close\r\n"
    return Request(what, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def mutate(rng, data, most=8):
    data = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at, length = rng.randrange(len(data) + 1), min(rng.choice([1, 2, 4, 16, 64, 1000]), len(data))
        begin = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.choice(b'\xff\0\x7f\x80"\\{[')
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = rng.randbytes(rng.choice([1, 4, 16]))
            case 5:
                del data[max(1, at) :]
            case _:
                data[at : at + length] = data[begin : begin + length]
    return bytes(data)


def places(value, path=()):
    """Where there are values in a JSON value: the keys that lead to them."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []:
        yield from places(inner, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


class Maker:
    """Makes one request."""

    def __init__(self, rng, samples):
        self.rng, self.one_of, self.samples = rng, lambda *values: rng.choice(values), samples
        self.small = [sample for sample in samples if len(sample[0]) < 20_000]

    def request(self):
        makers = {
            self.flipped: 12, self.wrong_value: 20, self.more_fields: 6, self.twice: 3, self.literal: 3, self.deep: 3,
            self.long_text: 2, self.many: 3, self.image: 14, self.changed_chunks: 4, self.bomb: 3, self.odd_uri: 2,
            self.schema: 9, self.structured: 6, self.content_type: 2, self.chunked: 4, self.head: 8, self.route: 6,
        }  # fmt: skip
        return self.rng.choices(list(makers), list(makers.values()))[0]()

    def body(self):
        """A request with some of all fields that is right."""
        rng = self.rng
        text, image = {"type": "text", "text": "What is this?"}, self.image_part(uri(*rng.choice(self.small)))
        parameters = {"type": "object", "properties": {"a": {"enum": [1, "b"]}}}
        tools = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": parameters}}]
        call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
        messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [text, image]}]
        if rng.random() < 0.3:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": "c", "content": "Nothing."})
        optional = {
            "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7, "n": 2, "repetition_penalty": 1.1,
            "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {"5": -10, "6": 3.5}, "stop": ["a", "\n"],
            "logprobs": True, "top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True},
            "tools": tools, "image_settings": {"max_image_tokens": 64, "min_tiles": 2, "use_thumbnail": False},
            "tool_choice": self.one_of("auto", "required", {"type": "function", "function": {"name": "look"}}),
            "parallel_tool_calls": False, "modalities": ["text"], "ignore_eos": True, "user": "me",
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
            "structured_outputs": {"choice": ["a", "b"]}, "chat_template_kwargs": {"enable_thinking": True},
        }  # fmt: skip
        chosen = {name: optional[name] for name in rng.sample(list(optional), rng.randint(0, 6))}
        return {"messages": messages} | chosen | {"max_completion_tokens": rng.choice([1, 2, 4])}

    def anything(self):
        return self.one_of(
            None, True, -1, 0, 1, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63), 2**64, 10**40, 0.5, -0.0, 1e308, -1e308,
            5e-324, float("nan"), float("inf"), -float("inf"), "", "a", "1", "\0", "\ud800", "\udc00\ud800", "\uffff",
            "🦊" * 50, "a" * 100_000, "<|im_end|>", "<image>", "{{ 1 / 0 }}", [], [[]], [None], ["a"] * 5000, {},
            {"": {}}, {"$ref": "#"}, {"type": "image_url"}, {f"k{i}": i for i in range(5000)},
            nested(100, [], lambda v: [v]), nested(100, {}, lambda v: {"a": v}),
        )  # fmt: skip

    # Bodies.

    def flipped(self):
        return post("changed bytes", mutate(self.rng, json.dumps(self.body()).encode()))

    def wrong_value(self):
        body = self.body()
        path = self.rng.choice([path for path in places(body) if path])
        inner = at(body, path[:-1])
        if isinstance(inner, dict) and self.rng.random() < 0.15:
            del inner[path[-1]]
        else:
            inner[path[-1]] = self.anything()
        return post(f"wrong value at {path}", body)

    def more_fields(self):
        body = self.body()
        inners = (at(body, path) for path in places(body))
        inner = self.rng.choice([inner for inner in inners if isinstance(inner, (dict, list))])
        name = self.one_of("unknown", "", "$ref", "type", "a" * 10_000, "\ud800", "__proto__", "content")
        if isinstance(inner, dict):
            inner[name] = self.anything()
        else:
            inner.append(self.anything())
        return post(f"another field {name[:20]!r}", body)

    def twice(self):
        body = self.body()
        name = self.rng.choice(list(body))
        again = json.dumps({name: self.one_of(body[name], self.anything())})
        return post(f"'{name}' twice", f"{json.dumps(body)[:-1]}, {again[1:]}".encode())

    def literal(self):
        """A number that JSON has not, or that is very long, in the place of another one."""
        long = "9" * 10_000
        literal = self.one_of("NaN", "-Infinity", "1e999", "1e-999", "0x10", "01", "1.", "+1", long, f"0.{long}")
        body = re.sub(r": -?[0-9.]+\b", f": {literal}", json.dumps(self.body()), count=self.rng.randint(1, 3))
        return post(f"the number {literal[:12]}", body.encode())

    def deep(self):
        opening, closing = self.one_of(("[", "]"), ('{"a":', "}"), ('[{"messages":', "}]"))
        depth = self.one_of(100, 127, 128, 1000, 100_000)
        inner = opening * depth + self.one_of("", "1" + closing * depth)
        field = self.one_of("messages", "tools", "response_format", "chat_template_kwargs", "metadata", "stop")
        body = f'{{"{field}": {inner}, {json.dumps(ASKED)[1:]}'
        return post(f"depth {depth}", self.one_of(inner, body).encode())

    def long_text(self):
        text = self.one_of("a", "a ", "\n", "<|im_end|>", "é", "🦊", "\u0301", "1", "漢", "\u202e", "\0")
        text *= self.one_of(5000, 100_000, 900_000)
        message = {"role": self.one_of("user", "system", "tool", text)}
        part = {"type": "text", "text": text}
        message |= self.one_of({"content": text}, {"content": [part]}, {"content": "a", "other": text})
        return post(f"{len(text)} characters", ASKED | {"messages": [message]})

    def many(self):
        count = self.one_of(1, 17, 1000, 20_000)
        urls = ["", "data:,", "file:///etc/passwd", "http://127.0.0.1:1/", "https://[::1]/", "/etc/passwd", "a://b"]
        image = self.image_part(self.one_of(*urls))
        part = self.one_of({"type": "text", "text": "a"}, image, {"type": "image"}, {"type": "input_audio"})
        properties = {"type": "object", "properties": {f"p{i}": {} for i in range(200)}}
        parameters = self.one_of(None, {}, [], 1, {"type": "array"}, properties)
        name = lambda i: self.one_of(*[f"f{i}"] * 20, "f", "", "a b", "é", "f\n", '"', "f" * 65, "1", "a-b.c")
        kind = lambda: self.one_of(*["function"] * 20, "other")
        tools = [{"type": kind(), "function": {"name": name(i), "parameters": parameters}} for i in range(count // 8)]
        return self.one_of(
            post(f"{count} messages", ASKED | {"messages": ASKED["messages"] * count}),
            post(f"{count} parts {part}", ASKED | {"messages": [{"role": "user", "content": [part] * count}]}),
            post(f"{len(tools)} tools", ASKED | {"tools": tools}),
        )

    # Images.

    def image_part(self, url):
        return {"type": "image_url", "image_url": {"url": url, "detail": self.one_of("low", "high", "auto")}}

    def with_image(self, what, url):
        return post(what, ASKED | {"messages": [{"role": "user", "content": [self.image_part(url)]}]})

    def image(self):
        data, kind = self.rng.choice(self.small if self.rng.random() < 0.8 else self.samples)
        return self.with_image(f"a changed {kind}", uri(mutate(self.rng, data, 20), kind))

    def changed_chunks(self):
        """A PNG whose checksums are right."""
        data = self.rng.choice([data for data, kind in self.small if kind == "png"])
        parts, begin = [data[:8]], 8
        while begin + 12 <= len(data):
            length = int.from_bytes(data[begin : begin + 4])
            kind, inner = data[begin + 4 : begin + 8], data[begin + 8 : begin + 8 + length]
            inner = mutate(self.rng, inner, 3) if self.rng.random() < 0.3 else inner
            parts += [chunk(kind, inner)] * self.one_of(0, 1, 1, 1, 1, 2)
            begin += 12 + length
        return self.with_image("changed chunks of a png", uri(b"".join(parts)))

    def bomb(self):
        what, data = self.rng.choice(list(BOMBS.items()))
        return self.with_image(what, uri(data, self.one_of("png", "jpeg", "gif", "webp")))

    def odd_uri(self):
        whole = uri(self.small[0][0])
        odd = self.one_of(
            whole[:-1], whole + "=", whole.replace("base64", "base32"), whole.replace(";base64", ""), "data:",
            whole.replace(",", ",\n\t "), "DATA:image/png;BASE64,AAAA", "data:;base64;base64,%41%zz", whole[:99] + "é",
            "data:text/html,<b>", "data:,a", "data:" + "a" * 100_000,
        )  # fmt: skip
        return self.with_image("an odd data URI", odd)

    # Constraints.

    def schema(self):
        what, schema = self.rng.choice(list(schemas(self.rng).items()))
        function = {"name": "a", "parameters": self.one_of(schema, {"type": "object", "properties": {"a": schema}})}
        form = self.one_of(
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
            {"tools": [{"type": "function", "function": function}], "tool_choice": self.one_of("auto", "required")},
        )
        return post(f"schema: {what}", ASKED | form | {"n": self.one_of(*[1] * 9, 8)})

    def structured(self):
        kind, value = self.one_of(
            ("regex", self.one_of(*regexes(self.rng))),
            ("grammar", self.one_of(*grammars(self.rng))),
            ("choice", self.one_of(list(map(str, range(30_000))), ["c" * 300_000], ["a"] * 5000, ["\x7f"], [""], [])),
        )
        return post(f"{kind}: {str(value)[:60]!r}", ASKED | {"structured_outputs": {kind: value}})

    # HTTP.

    def content_type(self):
        kind = self.one_of("text/plain", "", "application/json; charset=utf-16", "multipart/form-data", "a" * 5000)
        text = json.dumps(self.body())
        body = self.one_of(*map(text.encode, ["utf-8", "utf-16", "utf-8-sig"]), zlib.compress(text.encode()))
        return post("another content type", body, kind)

    def chunked(self):
        body, size = json.dumps(self.body()).encode(), self.rng.randint(1, 2000)
        head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
        pieces = (body[begin : begin + size] for begin in range(0, len(body), size))
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        whole = head + chunks + b"0\r\n\r\n"
        wrong = self.one_of(b"zz\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"7fffffffffffffff\r\na")
        return self.one_of(
            Request("chunks", whole),
            Request("chunks that end early", whole[: self.rng.randrange(len(head), len(whole))], False, True),
            Request("a chunk of another length", whole.replace(b"\r\n{", b"\r\n1{", 1), False, True),
            Request("a chunk of no length", head + wrong, False, True),
            Request("many trailers", head + chunks + b"0\r\n" + b"a: b\r\n" * 5000 + b"\r\n", False, True),
        )

    def head(self):
        """A head that may be none."""
        rng, body = self.rng, json.dumps(self.body()).encode()
        head = post("", body).data[: -len(body)]
        plus = lambda lines: head[:-2] + lines + b"\r\n\r\n" + body
        length = lambda value: re.sub(rb"Length: \d+", b"Length: " + value, head) + body
        odd_length = self.one_of(b"-1", b"1e3", b"99999999999999999999", b"", b"0x10")
        version = self.one_of(b"HTTP/1.0", b"HTTP/0.9", b"HTTP/3")
        get = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"
        waits, odd = {"is_http": False, "ends": True}, {"is_http": False}
        return self.one_of(
            Request("a changed head", mutate(rng, head, 4) + body, **waits),
            Request("a cut head", head[: rng.randrange(len(head))], **waits),
            Request("a cut body", head + body[: rng.randrange(len(body))], **waits),
            Request("more than the body", head + body + b"a" * 1000, **odd),
            Request("two lengths", plus(b"Content-Length: 5"), **odd),
            Request("length and chunks", plus(b"Transfer-Encoding: chunked"), **waits),
            Request("an odd length", length(odd_length), **odd),
            Request("a large length", length(b"9999999999"), **waits),
            Request("many headers", plus(b"\r\n".join([b"a: b"] * 5000)), **odd),
            Request("a long header", plus(b"a: " + b"b" * 1_000_000), **odd),
            Request("a long path", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", **odd),
            Request("another HTTP", plus(b"a: b").replace(b"HTTP/1.1", version), **odd),
            Request("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", **waits),
            Request("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500), **waits),
            Request("noise", rng.randbytes(self.one_of(1, 100, 10_000)), **waits),
            Request("nothing", b"", **waits),
            Request("several at once", (get + b"\r\n") * 20 + get + b"Connection: close\r\n\r\n"),
            Request("one that waits for 100", plus(b"Expect: 100-continue")),
            Request("an odd expectation", plus(b"Expect: a miracle"), **odd),
            Request("an odd key", plus(b"Authorization: Bearer \xff\xfe\r\nx-request-id: " + b"a" * 5000)),
        )

    def route(self):
        numbers = ["0", "1", "3000", "-1", "50000000", "4294967295", "99999999999", "", "a", "1e3", "%00"]
        settings = ["min_image_tokens", "max_image_tokens", "min_tiles", "max_tiles", "use_thumbnail", "other"]
        names = ["width", "height", *self.rng.sample(settings, 2)]
        query = "&".join(f"{name}={self.one_of(*numbers)}" for name in names)
        path = self.one_of(
            f"/v1/image_layout?{query}", f"/v1/image_layout?width=9000&height=5000&{names[2]}=1", "/v1/models/%zz",
            "/v1/models/" + urllib.parse.quote(self.rng.randbytes(5)), "/v1/models/a%2Fb", "/v1/models/..%2f..", "/%00",
            "/v1/models/", "/metrics?a=b", "/v1/completions", URL + "/", "/../etc/passwd", "http://a.b/", "*", "//",
        )  # fmt: skip
        methods = ["POST", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "CONNECT", "get", "A" * 50]
        method = self.one_of(*["GET"] * 6, *methods)
        is_http = method != "CONNECT" and path != "*"
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        return Request(f"{method} {path[:60]}", head.encode(), is_http, not is_http)


def exchange(address, request):
    """What the server writes until it closes the connection."""
    received = b""
    with socket.create_connection(address, GIVE_UP) as connection:
        try:
            # The server may answer before it has read all, and close.
            connection.sendall(request.data)
            if request.ends:
                connection.shutdown(socket.SHUT_WR)
        except TimeoutError:
            raise
        except OSError:
            pass
        try:
            while piece := connection.recv(1 << 20):
                received += piece
        except ConnectionResetError:
            pass
    return received


def parsed(received):
    """Status, headers and body of the first response, if there is one; 100s are skipped."""
    head, _, body = received.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1\.[01] ([0-9]{3})", head)
    if not found:
        return None, {}, received
    if found[1] == b"100":
        return parsed(body)
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    return int(found[1]), headers, body[: int(headers.get(b"content-length", len(body)))]


def fault_of(request, status, headers, body):
    if status is None:
        return f"no response: {body[:100]}" if request.is_http else None
    if status >= 500 and status != 505:
        return f"status {status}: {body[:500]}"
    is_of_head = status in OF_HEADS and not request.is_http
    if status < 400 or (not body and (is_of_head or request.data.startswith(b"HEAD"))):
        return None
    try:
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}, f"fields {sorted(error)}"
        assert headers.get(b"content-type") == b"application/json", f"content type {headers.get(b'content-type')}"
        message = error["message"]
        assert isinstance(message, str) and message.strip(), "no message"
        assert all(error[name] is None or isinstance(error[name], str) for name in error), "no texts"
        assert len(message.splitlines()) == 1, "a message of several lines"
        assert not (found := INSIDES.search(message)) or found[0].encode() in request.data, f"it tells '{found[0]}'"
        assert len(message) <= LONGEST, f"a message of {len(message)} characters"
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        return f"status {status} has no right error ({error!r}): {body[:600]}"
    return None


class Run:
    def __init__(self, base_url, pid, samples, seed):
        url = urllib.parse.urlsplit(base_url)
        self.address, self.pid, self.samples, self.seed = (url.hostname, url.port), pid, samples, seed
        self.statuses, self.faults, self.slowest = collections.Counter(), 0, (0, None)
        self.gone, self.lock = threading.Event(), threading.Lock()

    def send(self, index):
        if self.gone.is_set():
            return
        request = Maker(random.Random(f"{self.seed}/{index}"), self.samples).request()
        start = time.monotonic()
        try:
            status, headers, body = parsed(exchange(self.address, request))
            fault = fault_of(request, status, headers, body)
        except ConnectionError as error:
            self.gone.set()
            status, fault = None, f"the server is gone: {error!r}"
        except TimeoutError:
            status, fault = None, f"no answer within {GIVE_UP} s"
        took = round(time.monotonic() - start, 2)
        if not fault and took > SLOWEST:
            fault = f"it took {took} s"
        with self.lock:
            self.statuses[str(status or "none")] += 1
            self.slowest = max(self.slowest, (took, f"{index}: {request.what}"), key=lambda pair: pair[0])
            if fault:
                self.faults += 1
                print(f"request {index} ({request.what}): {fault}", file=sys.stderr, flush=True)

    def send_all(self, indices):
        """Resident megabytes when all are answered."""
        with concurrent.futures.ThreadPoolExecutor(CONCURRENCY) as pool:
            list(pool.map(self.send, indices))
        seen = []
        for _ in range(20):
            # What nobody waits for any more may still be at work.
            time.sleep(0.25)
            seen.append(self.memory())
        return None if None in seen else min(seen)

    def memory(self):
        try:
            status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
            return round(int(re.search(r"VmRSS:\s+([0-9]+)", status)[1]) / 1024, 1)
        except (OSError, TypeError):
            self.gone.set()
            return None

    def is_ready(self):
        request = Request("", b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        try:
            return parsed(exchange(self.address, request))[0] == 200
        except OSError:
            return False


def read_samples(folder):
    kinds = {".png": "png", ".jpg": "jpeg", ".webp": "webp", ".gif": "gif"}
    found = [(path.read_bytes(), kinds[path.suffix]) for path in sorted(folder.iterdir()) if path.suffix in kinds]
    made = [(png(40, 30), "png"), (png(9, 9, 16, 6), "png"), (png(33, 5, 1, 0), "png"), (gif(50, 40, 3), "gif")]
    return found + made + [(WEBP, "webp")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("pid", type=int)
    parser.add_argument("samples", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    run = Run(arguments.base_url, arguments.pid, read_samples(arguments.samples), arguments.seed)
    assert run.memory() and run.is_ready(), "no server is there, or it has another process id"
    count = arguments.count
    # What is loaded once, and caches, is no growth.
    ranges = [range(-count // 4, 0), range(count // 2), range(count // 2, count)]
    memory = [run.send_all(indices) for indices in (ranges if arguments.only is None else [[arguments.only]])]
    # With fewer requests it is still taking what it keeps.
    judged = arguments.count >= LONG and None not in memory and len(memory) == 3
    grows = judged and memory[2] > memory[1] * 1.1 + 30
    is_ready = run.is_ready()
    report = {
        "statuses": dict(sorted(run.statuses.items())),
        "slowest_s": run.slowest[0],
        "slowest": run.slowest[1],
        "memory_mb": memory,
        "grows": grows,
        "ready": is_ready,
        "faults": run.faults,
    }
    print(json.dumps(report))
    return bool(run.faults or grows or not is_ready)


if __name__ == "__main__":
    sys.exit(main())
