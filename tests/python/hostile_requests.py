"""Sends a server what it must not stumble over: mutated bodies, images and heads, and constraints that cost much.

    python3 hostile_requests.py BASE_URL PID SAMPLES_FOLDER [--count 5000] [--seed N] [--only N]

PID is the server's process, which is to have been started with --max-tokens 64, so that requests that have lost
their limit end. Prints one line of JSON: responses by status, the slowest request, and memory. Fails when there
is a 5xx, an error that has not OpenAI's form or tells of the server's insides, a request of more than 10 s, a
memory that grows, or no server at the end. Each fault goes to the standard error; --only N sends request N alone.
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
URL = "/v1/chat/completions"
# What the layer below the routes answers by itself, without a body.
OF_HEADS = {400, 408, 414, 431, 505}
# What no message may tell.
INSIDES = re.compile(r"panic|backtrace|unwrap|\.rs\b|/root|/home/|/usr/|/tmp/|/src/|\.cargo", re.I)


# Images.


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits=8, colours=2, rows=None, extra=b""):
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    length = 1 + (width * channels * bits + 7) // 8
    data = zlib.compress(bytes(length) * (height if rows is None else rows), 9)
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(width, height, frames=1):
    frame = b"!\xf9\x04\0\0\0\0\0," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\x02\x02D\x01\0"
    screen = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff"
    return screen + frame * frames + b";"


def bombs():
    """Images that are small as files and large or odd as images."""
    yield "png 40000x1", png(40_000, 1)
    yield "png 1x40000", png(1, 40_000)
    yield "png 16 bits rgba", png(1500, 1500, 16, 6)
    yield "png 50000x50000", png(50_000, 50_000, rows=1)
    yield "png 6000x6000 of 1 bit", png(6000, 6000, 1, 0)
    yield "png of no size", png(0, 0)
    yield "png of 2^31", png(2**31 - 1, 2**31 - 1, rows=0)
    yield "png with little data", png(3000, 3000, rows=10)
    yield "png without palette", png(64, 64, 8, 3)
    yield "png with a large text", png(8, 8, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(30_000_000), 9)))
    yield "png with a large profile", png(8, 8, extra=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(30_000_000), 9)))
    yield "gif 65535x65535", gif(65_535, 65_535)
    yield "gif of many frames", gif(600, 600, 5000)
    yield "webp of a large canvas", b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\xff\xff\xff\xff\xff"
    yield "jpeg 65535x65535", b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\1\x03\x11\1\xff\xd9"
    yield "nothing", b""
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>"
    yield "heif", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def uri(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# Constraints.


def nested(depth, inner, wrap):
    for _ in range(depth):
        inner = wrap(inner)
    return inner


def schemas(rng):
    deep = rng.choice([10, 50, 120])
    many = rng.choice([100, 1000, 10_000])
    null = {"type": "null"}
    names = [f"n{i}" for i in range(many)]
    chain = lambda wrap: {"$ref": "#/$defs/n0", "$defs": {n: wrap(f"#/$defs/n{i + 1}") for i, n in enumerate(names)} | {f"n{many}": null}}
    return {
        "deep arrays": nested(deep, null, lambda s: {"type": "array", "items": s}),
        "deep objects": nested(deep // 2, null, lambda s: {"type": "object", "properties": {"a": s}, "required": ["a"]}),
        "deep anyOf": nested(deep, null, lambda s: {"anyOf": [s, {"type": "string"}]}),
        "deep allOf": nested(deep, null, lambda s: {"allOf": [s]}),
        "twice each": nested(deep // 4, null, lambda s: {"type": "array", "prefixItems": [s, s]} if deep < 50 else {"items": s}),
        "many values": {"enum": names},
        "many numbers": {"enum": list(range(many))},
        "long value": {"const": "a" * many * 10},
        "many properties": {"type": "object", "properties": dict.fromkeys(names, null), "additionalProperties": False},
        "many required": {"type": "object", "properties": dict.fromkeys(names, null), "required": names},
        "many patterns": {"type": "object", "patternProperties": {f"^{n}$": null for n in names[:1000]}},
        "many in order": {"type": "array", "prefixItems": [null] * many},
        "many at least": {"type": "array", "items": null, "minItems": many},
        "many at most": {"type": "array", "items": {"type": "array", "maxItems": many, "items": null}, "maxItems": many},
        "many bounds": {"allOf": [{"type": "integer", "minimum": i} for i in range(many)]},
        "many kinds": {"anyOf": [{"type": "object", "properties": {n: null}, "required": [n]} for n in names]},
        "long text": {"type": "string", "minLength": many * 10, "maxLength": many * 1000},
        "chain": chain(lambda ref: {"$ref": ref}),
        "chain of properties": chain(lambda ref: {"type": "object", "properties": {"a": {"$ref": ref}}}),
        "chain of allOf": chain(lambda ref: {"allOf": [{"minProperties": 1}, {"$ref": ref}]}),
        "itself": {"$ref": "#"},
        "itself through another": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "itself in allOf": {"allOf": [{"$ref": "#"}, {"type": "object"}]},
        "itself in items": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        "itself in properties": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        "two trees": {
            "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
            "$defs": {n: {"type": "object", "properties": {"c": {"$ref": f"#/$defs/{n}"}}} for n in "ab"},
        },
        "elsewhere": {"$ref": rng.choice(["https://example.com/a.json", "file:///etc/passwd", "#/nowhere", "#/%zz", "\0"])},
        "integer": {"const": rng.choice([-(2**63), 2**63, 2**64, 10**30, -(10**400)])},
        "bounds": {"type": "integer", "minimum": rng.choice([-(2**63), -1e300, 2**63]), "maximum": rng.choice([2**63, 1e300])},
        "bounds of a number": {"type": "number", "minimum": rng.choice([-1e308, 1e-308, -0.0]), "maximum": rng.choice([1e308, 5e-324])},
        "multiple": {"type": "number", "multipleOf": rng.choice([0, 1e-300, 5e-324, 4_294_967_295, 1e300, -1, 1e-10])},
        "multiples": {"allOf": [{"type": "integer", "multipleOf": n} for n in rng.choices([0, 65_537, 99_991, 1e-9, 7], k=4)]},
        "pattern": {"type": "string", "pattern": rng.choice(regexes(rng))},
        "format": {"type": "string", "format": rng.choice(["email", "uri", "nothing"]), "pattern": "^a+$", "minLength": many},
        "nonsense": rng.choice([{"type": "nothing"}, {"type": []}, {"enum": []}, {"anyOf": []}, {"not": {}}, {"type": 1}, {"required": 1}]),
        "guidance": {"x-guidance": rng.choice([1, {"whitespace_pattern": "(a+)+"}, {"item_separator": "("}, {"no": 1}])},
    }


def regexes(rng):
    many = rng.choice([20, 1000, 100_000])
    return [
        "(a+)+" * 30,
        "(a|aa)+" * 20 + "$",
        "a{1,100000}",
        "(a{1,1000}){1,1000}",
        "((a{1,300}){1,300}){1,300}",
        f".*a.{{{min(many, 5000)}}}",
        "a?" * many + "a" * many,
        "(" * many + "a" + ")" * many,
        "|".join(f"a{i}" for i in range(many)),
        "[" + "".join(map(chr, range(0x4E00, 0x4E00 + min(many, 20_000)))) + "]*",
        "\\p{L}{1,500}\\p{N}{1,500}",
        "(?=a)b",
        "(a)\\1",
        "\\",
        "[",
        "a{999999999999}",
        "(?P<n>a)(?P<n>b)",
        "(?i)" + "straße" * min(many, 1000),
    ]


def grammars(rng):
    many = rng.choice([20, 1000, 30_000])
    chain = lambda name: f"start: {name}0\n" + "\n".join(f"{name}{i}: {name}{i + 1}" for i in range(many)) + f'\n{name}{many}: "a"\n'
    return [
        chain("r"),
        chain("R"),
        "start: " + "(" * many + '"a"' + ")" * many,
        "start: " + "[" * many + '"a"' + "]" * many,
        "start: start",
        "start: start start | ",
        'start: start "a" | "a" start | start start',
        "start: " + " | ".join(f'"a{i}"' for i in range(many)),
        "start: " + " ".join(f"r{i % 50}" for i in range(many)) + "\n" + "\n".join(f'r{i}: "a"?' for i in range(50)),
        'start: ("a"~1..100000)~1..1000',
        'start: "a"{1,100000}',
        "start: %json {" + '"items": {' * min(many, 500),
        'start: %json {"const": -9223372036854775808}',
        'start: %regex { "substring_words": "' + "a b " * min(many, 5000) + '" }',
        'start: %lark { start: %lark { start: "a" } }',
        "start: @other",
        "start: <|im_end|>",
        "start: <[0-99999999]>",
        "start: <[1]> " * min(many, 1000),
        "start: /" + "(a+)+" * 20 + "/",
        "%import common.WORD\nstart: WORD",
        "%ignore /./\nstart: \"a\"",
        'start[capture="a"]: "b"',
        'start[lazy]: /.*/ "a"',
        "\0",
        "",
        '{"grammars": []}',
        "start: A & ~A\nA: /a/",
        "start: A\nA: " + " & ".join(f"/.*a.{{{i}}}b.*/" for i in range(2, min(many, 40))),
    ]


# Requests.


class Request:
    """Bytes for the server, what they are, and whether the client ends its side after them."""

    def __init__(self, what, data, is_http=True, ends=False):
        self.what, self.data, self.is_http, self.ends = what, data, is_http, ends


def post(what, body, kind="application/json"):
    head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nConnection: close\r\n"
    return Request(what, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def written(value):
    """As JSON, with lone surrogates and NaN as Python writes them."""
    return json.dumps(value).encode()


def mutate(rng, data, most=8):
    data = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at, length = rng.randrange(len(data) + 1), min(rng.choice([1, 2, 4, 16, 64, 1000]), len(data))
        match rng.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.choice([0, 255, 127, 128, 34, 92, 123, 91])
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = rng.randbytes(rng.choice([1, 4, 16]))
            case 5:
                del data[max(1, at) :]
            case _:
                begin = rng.randrange(len(data) + 1)
                data[at : at + length] = data[begin : begin + length]
    return bytes(data)


class Maker:
    def __init__(self, rng, samples):
        self.rng, self.samples = rng, samples

    def body(self):
        """A request with many fields that is right."""
        rng = self.rng
        image = {"type": "image_url", "image_url": {"url": uri(*rng.choice(self.small())), "detail": "low"}}
        text = {"type": "text", "text": "What is this?"}
        function = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {"a": {"enum": [1, "b"]}}}}
        call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
        messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [text, image]}]
        if rng.random() < 0.3:
            messages += [
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "Nothing."},
            ]
        body = {"messages": messages}
        optional = {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.1,
            "logit_bias": {"5": -10, "6": 3.5},
            "seed": 7,
            "stop": ["a b c", "\n\n"],
            "n": 2,
            "logprobs": True,
            "top_logprobs": 2,
            "stream": rng.random() < 0.5,
            "stream_options": {"include_usage": True},
            "tools": [{"type": "function", "function": function}],
            "tool_choice": rng.choice(["auto", "none", "required", {"type": "function", "function": {"name": "look"}}]),
            "parallel_tool_calls": False,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
            "structured_outputs": {"choice": ["a", "b"]},
            "image_settings": {"max_image_tokens": 64, "min_tiles": 2, "use_thumbnail": False},
            "chat_template_kwargs": {"enable_thinking": True},
            "ignore_eos": True,
            "modalities": ["text"],
            "user": "me",
        }
        for name in rng.sample(list(optional), rng.randint(0, 6)):
            body[name] = optional[name]
        return body | {"max_completion_tokens": rng.choice([1, 2, 4])}

    def small(self):
        return [(data, kind) for data, kind in self.samples if len(data) < 20_000]

    def anything(self):
        rng = self.rng
        return rng.choice([
            None, True, -1, 0, 1, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63), 2**64, 10**40, 0.5, -0.0, 1e308, -1e308, 5e-324,
            float("nan"), float("inf"), float("-inf"), "", "a", "1", "\0", "\ud800", "\udc00\ud800", "\uffff", "🦊" * 50,
            "a" * 100_000, "<|im_end|>", "<|image_pad|><image>", "{{ 1 / 0 }}", [], [[]], [None], {}, {"": {}}, {"type": "image_url"},
            {"$ref": "#"}, nested(100, [], lambda v: [v]), nested(100, {}, lambda v: {"a": v}), ["a"] * 5000, {f"k{i}": i for i in range(5000)},
        ])  # fmt: skip

    def places(self, value, path=()):
        yield path
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
        for key, inner in items:
            yield from self.places(inner, (*path, key))

    def wrong_value(self):
        body = self.body()
        path = self.rng.choice([path for path in self.places(body) if path])
        inner = body
        for key in path[:-1]:
            inner = inner[key]
        if self.rng.random() < 0.15 and isinstance(inner, dict):
            del inner[path[-1]]
        else:
            inner[path[-1]] = self.anything()
        return post(f"wrong value at {path}", written(body))

    def more_fields(self):
        body = self.body()
        places = [path for path in self.places(body)]
        inner = body
        for key in self.rng.choice(places):
            inner = inner[key] if isinstance(inner[key], (dict, list)) else inner
        name = self.rng.choice(["unknown", "", "$ref", "type", "a" * 10_000, "\ud800", "__proto__", "content"])
        if isinstance(inner, dict):
            inner[name] = self.anything()
        else:
            inner.append(self.anything())
        return post(f"another field '{name[:20]}'", written(body))

    def twice(self):
        """A field that is there twice."""
        body = self.body()
        name = self.rng.choice(list(body))
        other = written(self.rng.choice([body[name], self.anything()]))
        return post(f"'{name}' twice", written(body)[:-1] + b", " + written(name) + b": " + other + b"}")

    def flipped(self):
        return post("changed bytes", mutate(self.rng, written(self.body())))

    def literal(self):
        """A number that JSON has not, or that is very long, in the place of another."""
        literals = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"0x10", b"01", b"1.", b"+1", b"9" * 10_000, b"0." + b"1" * 10_000]
        literal = self.rng.choice(literals)
        return post(f"literal {literal[:12]}", re.sub(rb": (-?[0-9.]+)\b", b": " + literal, written(self.body()), count=self.rng.randint(1, 3)))

    def deep(self):
        opening, closing = self.rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"messages":', b"}]")])
        depth = self.rng.choice([100, 127, 128, 1000, 100_000])
        inner = opening * depth + (b"1" + closing * depth if self.rng.random() < 0.7 else b"")
        place = self.rng.choice([b'{"messages": %s}', b'{"messages": [{"role": "user", "content": "a"}], "tools": %s}',
                                 b'{"messages": [{"role": "user", "content": %s}]}', b"%s",
                                 b'{"messages": [{"role": "user", "content": "a"}], "response_format": %s}',
                                 b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "chat_template_kwargs": {"a": %s}}'])  # fmt: skip
        return post(f"depth {depth}", place % inner)

    def long_text(self):
        rng = self.rng
        text = rng.choice(["a", "a ", "\n", "<|im_end|>", "é", "🦊", "\u0301", "1", "漢", "\u202e", "\0", " "]) * rng.choice([5000, 100_000, 900_000])
        message = rng.choice([{"role": "user", "content": text}, {"role": "system", "content": text}, {"role": text, "content": "a"},
                              {"role": "user", "content": [{"type": "text", "text": text}]}, {"role": "user", "content": "a", "name": text}])  # fmt: skip
        return post(f"{len(text)} characters", written({"messages": [message], "max_completion_tokens": 1}))

    def many_parts(self):
        rng = self.rng
        count = rng.choice([17, 1000, 20_000])
        image = {"type": "image_url", "image_url": {"url": rng.choice(["", "data:,", "file:///etc/passwd", "http://127.0.0.1:1/", "https://[::1]/a", "/etc/passwd", "gopher://a"])}}
        part = rng.choice([{"type": "text", "text": "a"}, image, {"type": "image"}, {"type": "input_audio"}])
        if rng.random() < 0.5:
            return post(f"{count} messages", written({"messages": [{"role": "user", "content": "a"}] * count, "max_completion_tokens": 1}))
        content = [part] * rng.choice([1, count])
        return post(f"parts of {part}", written({"messages": [{"role": "user", "content": content}], "max_completion_tokens": 1}))

    def with_image(self, what, url):
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
        return post(what, written({"messages": [{"role": "user", "content": content}], "max_completion_tokens": 2}))

    def image(self):
        data, kind = self.rng.choice(self.small() if self.rng.random() < 0.8 else self.samples)
        return self.with_image(f"changed {kind}", uri(mutate(self.rng, data, 20), kind))

    def changed_chunk(self):
        """A PNG whose checksums are right."""
        data = self.rng.choice([data for data, kind in self.small() if kind == "png"])
        parts, at = [data[:8]], 8
        while at + 12 <= len(data):
            length = int.from_bytes(data[at : at + 4])
            kind, inner = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
            if self.rng.random() < 0.3:
                inner = mutate(self.rng, inner, 3)
            parts += [chunk(kind, inner)] * self.rng.choice([0, 1, 1, 1, 1, 2])
            at += 12 + length
        return self.with_image("changed chunks of a png", uri(b"".join(parts)))

    def bomb(self):
        what, data = self.rng.choice(list(BOMBS.items()))
        return self.with_image(what, uri(data, self.rng.choice(["png", "jpeg", "gif", "webp"])))

    def odd_uri(self):
        whole = uri(self.small()[0][0])
        return self.with_image("an odd data URI", self.rng.choice([
            whole[:-1], whole + "=", whole.replace("base64", "base32"), whole.replace(";base64", ""), "data:", "data:,a", "DATA:image/png;BASE64,AAAA",
            "data:image/png;base64," + "A" * 100_000, whole.replace(",", ",\n\t "), "data:;base64;base64,%41%zz", "data:text/html,<b>", whole[:200] + "é", "data:" + "a" * 100_000,
        ]))  # fmt: skip

    def schema(self):
        what, schema = self.rng.choice(list(schemas(self.rng).items()))
        body = {"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 3}
        if self.rng.random() < 0.5:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        else:
            schema = self.rng.choice([schema, {"type": "object", "properties": {"a": schema}, "required": ["a"]}])
            body |= {"tools": [{"type": "function", "function": {"name": "a", "parameters": schema}}], "tool_choice": self.rng.choice(["auto", "required"])}
        return post(f"schema: {what}", written(body | ({"n": 8} if self.rng.random() < 0.1 else {})))

    def structured(self):
        rng = self.rng
        kind = rng.choice(["regex", "grammar", "choice"])
        value = {
            "regex": lambda: rng.choice(regexes(rng)),
            "grammar": lambda: rng.choice(grammars(rng)),
            "choice": lambda: rng.choice([[f"c{i}" for i in range(30_000)], ["c" * 300_000], ["\x7f"], ["a"] * 5000, [""], [], ["\ud800"], ['"', "\\", "\n"]]),
        }[kind]()
        shown = value if isinstance(value, str) else f"{len(value)} choices, {value[:1]}"
        return post(f"{kind}: {shown[:60]!r}", written({"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 3, "structured_outputs": {kind: value}}))

    def many_tools(self):
        rng = self.rng
        name = lambda i: rng.choice([f"f{i}", "f", "", "a b", "é", "f\n", '"', "f" * 65, "1", "a-b.c", f"__{i}"])
        parameters = rng.choice([None, {}, [], 1, {"type": "array"}, {"type": "object", "properties": {f"p{i}": {} for i in range(200)}}])
        tools = [{"type": rng.choice(["function"] * 20 + ["other", None]), "function": {"name": name(i), "parameters": parameters}} for i in range(rng.choice([1, 3, 128, 129, 5000]))]
        return post(f"{len(tools)} tools", written({"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 2, "tools": tools}))

    def content_type(self):
        kind = self.rng.choice(["text/plain", "", "application/json; charset=utf-16", "multipart/form-data", "a" * 5000, "application/x-www-form-urlencoded"])
        body = written(self.body())
        return post("another content type", self.rng.choice([body, body.decode().encode("utf-16"), b"\xef\xbb\xbf" + body, zlib.compress(body)]), kind)

    def chunked(self):
        body = written(self.body())
        head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
        size = self.rng.randint(1, 2000)
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[at : at + size] for at in range(0, len(body), size)))
        whole = head + chunks + b"0\r\n\r\n"
        kind = self.rng.randrange(5)
        if kind == 0:
            return Request("whole in chunks", whole)
        if kind == 1:
            return Request("chunks that end early", whole[: self.rng.randrange(len(head), len(whole))], False, True)
        if kind == 2:
            return Request("a chunk with a wrong length", head + chunks.replace(b"\r\n", b"\r\n1", 1) + b"0\r\n\r\n", False, True)
        if kind == 3:
            return Request("a chunk of no length", head + self.rng.choice([b"zz\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"7fffffffffffffff\r\na"]), False, True)
        return Request("many trailers", head + chunks + b"0\r\n" + b"a: b\r\n" * 5000 + b"\r\n", False, True)

    def head(self):
        """A head that may be none."""
        rng, body = self.rng, written(self.body())
        head = post("", body).data[: -len(body)]
        early = rng.randrange(len(body))
        return rng.choice([
            lambda: Request("a changed head", mutate(rng, head, 4) + body, False, True),
            lambda: Request("a cut head", head[: rng.randrange(len(head))], False, True),
            lambda: Request("a body that ends early", head + body[:early], False, True),
            lambda: Request("a body that is too long", head + body + b"a" * 1000, False),
            lambda: Request("two lengths", head.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n") + body, False),
            lambda: Request("length and chunks", head.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") + body, False),
            lambda: Request("an odd length", re.sub(rb"Length: \d+", b"Length: " + rng.choice([b"-1", b"1e3", b"99999999999999999999", b"", b"0x10"]), head) + body, False),
            lambda: Request("a large length", re.sub(rb"Length: \d+", b"Length: 9999999999", head) + body, False, True),
            lambda: Request("many headers", head.replace(b"\r\n\r\n", b"\r\n" + b"a: b\r\n" * 5000 + b"\r\n") + body, False),
            lambda: Request("a long header", head.replace(b"\r\n\r\n", b"\r\na: " + b"b" * 1_000_000 + b"\r\n\r\n") + body, False),
            lambda: Request("a long path", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", False),
            lambda: Request("old HTTP", head.replace(b"HTTP/1.1", rng.choice([b"HTTP/1.0", b"HTTP/0.9", b"HTTP/3"])) + body, False),
            lambda: Request("new HTTP", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", False, True),
            lambda: Request("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500), False, True),
            lambda: Request("noise", rng.randbytes(rng.choice([1, 100, 10_000])), False, True),
            lambda: Request("nothing", b"", False, True),
            lambda: Request("several at once", (f"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".encode() * 20) + b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
            lambda: Request("waits for 100", head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") + body),
            lambda: Request("an odd expectation", head.replace(b"\r\n\r\n", b"\r\nExpect: a miracle\r\n\r\n") + body, False),
            lambda: Request("an odd key", head.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer \xff\xfe\r\nx-request-id: " + b"a" * 5000 + b"\r\n\r\n") + body),
        ])()  # fmt: skip

    def route(self):
        rng = self.rng
        number = lambda: rng.choice(["0", "1", "-1", "50000000", "4294967295", "99999999999", "", "a", "1e3", "%00"])
        settings = ["min_image_tokens", "max_image_tokens", "min_tiles", "max_tiles", "do_image_splitting", "use_thumbnail", "other"]
        query = "&".join(f"{name}={number()}" for name in ["width", "height", *rng.sample(settings, rng.randint(0, 4))])
        path = rng.choice([
            f"/v1/image_layout?{query}", f"/v1/image_layout?width={rng.randint(1, 9000)}&height={rng.randint(1, 5000)}&{query}",
            "/v1/models/" + urllib.parse.quote(rng.randbytes(5)), "/v1/models/%zz", "/v1/models/a%2Fb", "/v1/models/..%2f..", "/v1/models/", "//", "/%00", "/metrics?a=b",
            "/v1/completions", "/v1/chat/completions/", "/../etc/passwd", "http://example.com/healthz", "*",
        ])  # fmt: skip
        method = rng.choice(["GET"] * 6 + ["POST", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "CONNECT", "get", "A" * 50])
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        is_http = method != "CONNECT" and path[0] in "/h"
        return Request(f"{method} {path[:60]}", head, is_http, not is_http)

    def request(self):
        makers = {
            self.flipped: 12, self.wrong_value: 20, self.more_fields: 6, self.twice: 3, self.literal: 3, self.deep: 3, self.long_text: 2,
            self.many_parts: 2, self.image: 14, self.changed_chunk: 4, self.bomb: 3, self.odd_uri: 2, self.schema: 8, self.structured: 6,
            self.many_tools: 2, self.content_type: 2, self.chunked: 4, self.head: 8, self.route: 6,
        }  # fmt: skip
        return self.rng.choices(list(makers), list(makers.values()))[0]()


BOMBS = dict(bombs())


# Answers.


def exchange(address, request):
    """What the server writes until it closes the connection, or says that the answer ends."""
    with socket.create_connection(address, GIVE_UP) as connection:
        connection.settimeout(GIVE_UP)
        received = b""
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


def parts(received):
    """Status, headers and body of the first response, if there is one; 100s are skipped."""
    while True:
        head, _, rest = received.partition(b"\r\n\r\n")
        if not (found := re.match(rb"HTTP/1\.[01] ([0-9]{3})", head)):
            return None, {}, received
        status = int(found[1])
        if status != 100:
            break
        received = rest
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if b"content-length" in headers:
        rest = rest[: int(headers[b"content-length"])]
    return status, headers, rest


def fault_of(request, status, headers, body):
    if status is None:
        return f"no response: {body[:100]}" if request.is_http else None
    if status >= 500 and status != 505:
        return f"status {status}: {body[:500]}"
    if status < 400:
        return None
    if not body and (status in OF_HEADS and not request.is_http or request.data.startswith(b"HEAD")):
        return None
    try:
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}, f"fields {sorted(error)}"
        assert headers.get(b"content-type") == b"application/json", f"content type {headers.get(b'content-type')}"
        message = error["message"]
        assert isinstance(message, str) and message.strip(), "no message"
        assert all(error[name] is None or isinstance(error[name], str) for name in ["type", "param", "code"]), "no texts"
        assert "\n" not in message and "\r" not in message, "a message of several lines"
        assert not (found := INSIDES.search(message)) or found[0].encode() in request.data, f"it tells '{found[0]}'"
        assert len(message) < 2000, f"a message of {len(message)} characters"
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        return f"status {status} has no OpenAI error ({error!r}): {body[:600]}"
    return None


class Run:
    def __init__(self, address, pid, samples, seed):
        self.address, self.pid, self.samples, self.seed = address, pid, samples, seed
        self.statuses, self.faults, self.slowest = collections.Counter(), [], (0, None)
        self.gone, self.lock = threading.Event(), threading.Lock()

    def send(self, index):
        if self.gone.is_set():
            return
        request = Maker(random.Random(f"{self.seed}/{index}"), self.samples).request()
        start = time.monotonic()
        try:
            status, headers, body = parts(exchange(self.address, request))
            fault = fault_of(request, status, headers, body)
        except ConnectionRefusedError:
            self.gone.set()
            status, fault = "refused", "the server is gone"
        except TimeoutError:
            status, fault = "none", f"no answer within {GIVE_UP} s"
        took = time.monotonic() - start
        if not fault and took > SLOWEST:
            fault = f"it took {took:.1f} s"
        with self.lock:
            self.statuses[str(status)] += 1
            self.slowest = max(self.slowest, (round(took, 2), f"{index}: {request.what}"), key=lambda pair: pair[0])
            if fault:
                self.faults.append(index)
                print(f"request {index} ({request.what}): {fault}", file=sys.stderr, flush=True)

    def send_all(self, indices):
        with concurrent.futures.ThreadPoolExecutor(CONCURRENCY) as pool:
            list(pool.map(self.send, indices))
        # What was dropped has some time to go.
        seen = []
        for _ in range(20):
            time.sleep(0.25)
            seen.append(self.memory())
        return None if None in seen else min(seen)

    def memory(self):
        """Resident megabytes of the server."""
        try:
            status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
            return round(int(re.search(r"VmRSS:\s+([0-9]+)", status)[1]) / 1024, 1)
        except (OSError, TypeError):
            self.gone.set()
            return None

    def is_ready(self):
        request = Request("", b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        try:
            return parts(exchange(self.address, request))[0] == 200
        except OSError:
            return False


def read_samples(folder):
    kinds = {".png": "png", ".jpg": "jpeg", ".webp": "webp", ".gif": "gif"}
    found = [(path.read_bytes(), kinds[path.suffix]) for path in sorted(folder.iterdir()) if path.suffix in kinds]
    return found + [(png(40, 30), "png"), (png(9, 9, 16, 6), "png"), (png(33, 5, 1, 0), "png"), (gif(50, 40, 3), "gif"), (WEBP, "webp")]


# Eight by eight pixels of one colour, without loss.
WEBP = base64.b64decode("UklGRhwAAABXRUJQVlA4TA8AAAAvB8ABAAcQ/Y/+ByKi/wEA")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("pid", type=int)
    parser.add_argument("samples", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    url = urllib.parse.urlsplit(arguments.base_url)
    run = Run((url.hostname, url.port), arguments.pid, read_samples(arguments.samples), arguments.seed)
    assert run.memory() and run.is_ready(), "no server is there, or it has another process id"
    if arguments.only is not None:
        memory = [run.send_all([arguments.only])]
    else:
        # What is loaded once, and caches, is no growth.
        warm_up = run.send_all(range(-arguments.count // 4, 0))
        half = arguments.count // 2
        memory = [warm_up, run.send_all(range(half)), run.send_all(range(half, arguments.count))]
    ready = run.is_ready()
    grows = None not in memory and len(memory) == 3 and memory[2] > memory[1] * 1.1 + 30
    print(json.dumps({
        "statuses": dict(sorted(run.statuses.items())),
        "slowest_s": run.slowest[0],
        "slowest": run.slowest[1],
        "memory_mb": memory,
        "grows": grows,
        "ready": ready,
        "faults": len(run.faults),
    }))
    return bool(run.faults or grows or not ready)


if __name__ == "__main__":
    sys.exit(main())
