"""Asks a server for answers to random JSON Schemas, and checks each answer by its schema.

    python3 random_schemas.py BASE_URL [--count 200] [--seed N] [--only N]

All schemas are bounded, so that an answer ends. Every fourth one of an object is also that of a function's
arguments. Prints one line of JSON: how many were asked and valid, and the median time per token. Fails unless all are
valid, but that answers to recursive schemas may reach the most tokens. What is wrong goes to the standard error, and
--only N asks for schema N alone.
Needs jsonschema[format-nongpl].
"""

import argparse
import calendar
import collections
import concurrent.futures
import decimal
import http.client
import json
import random
import re
import statistics
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import jsonschema
from jsonschema import Draft202012Validator

CONCURRENCY, MAX_TOKENS, TOOLS_EVERY = 8, 3072, 4
FORMATS = Draft202012Validator.FORMAT_CHECKER
# With the most characters where the format itself has no bound.
FORMAT_LENGTHS = {
    "date": None,
    "uuid": None,
    "ipv4": None,
    "ipv6": None,
    "date-time": 30,
    "time": 20,
    "duration": 10,
    "email": 16,
    "hostname": 12,
    "uri": 16,
}
# Numbers are compared digit by digit: multiples of 0.01 have no exact binary form.
decimal.DefaultContext.prec = 20_000
decimal.setcontext(decimal.DefaultContext.copy())


@FORMATS.checks("date")
def is_date(value):
    """As RFC 3339 has it, year 0 included."""
    found = isinstance(value, str) and re.fullmatch(r"([0-9]{4})-([0-9]{2})-([0-9]{2})", value)
    if not found:
        return not isinstance(value, str)
    year, month, day = map(int, found.groups())
    days = [31, 29 if calendar.isleap(year) else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    return 1 <= month <= 12 and 1 <= day <= days[month - 1]


def is_integer(_, value):
    """Also one that is written with a fraction or an exponent."""
    is_whole = isinstance(value, decimal.Decimal) and value == value.to_integral_value()
    return is_whole or (isinstance(value, int) and not isinstance(value, bool))


TYPES = Draft202012Validator.TYPE_CHECKER.redefine("integer", is_integer)
Validator = jsonschema.validators.extend(Draft202012Validator, type_checker=TYPES)


def quoted(name):
    """A name as a part of a reference."""
    return urllib.parse.quote(name.replace("~", "~0").replace("/", "~1"), safe="~")


class Maker:
    """Makes one random schema."""

    def __init__(self, random):
        self.random, self.definitions = random, {}
        # Whether an answer may go on for as long as the model likes.
        self.is_endless = False

    def chance(self, probability):
        return self.random.random() < probability

    def some(self, least, most, make):
        return [make() for _ in range(self.random.randint(least, most))]

    def whole(self):
        schema = self.object(3) if self.chance(0.8) else self.schema(3)
        if self.chance(0.1):
            schema = {"$ref": self.define(schema)}
        elif self.chance(0.1) and schema.get("required") and not schema.keys() & {"minProperties", "maxProperties"}:
            # References to places that are no definitions.
            name = schema["required"][0]
            schema["properties"]["again"] = {"$ref": f"#/properties/{quoted(name)}"}
            schema["properties"]["inner"] = {"anyOf": [{"type": "null"}, {"$ref": "#"}]}
            self.is_endless = True
        if self.definitions:
            schema["$defs"] = self.definitions
        if self.chance(0.2):
            schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        return schema

    def schema(self, depth):
        simple = [self.string, self.format, self.pattern, self.integer, self.number, self.choice, self.simple]
        nested = [self.object, self.array, self.tuple, self.any_of, self.several_types, self.all_of, self.reference]
        nested += [self.recursive]
        make = self.random.choice(nested) if depth > 0 and self.chance(0.6) else self.random.choice(simple)
        schema = make(depth - 1)
        for name in ["title", "description", "$comment"]:
            if self.chance(0.05):
                schema[name] = self.text()
        return schema

    def define(self, schema):
        """Where `schema` is from now on: a reference to it."""
        name = f"{self.random.choice(['part', 'a b', 'x/y~z', 'Größe', 'a%20b'])}{len(self.definitions)}"
        self.definitions[name] = schema
        if self.chance(0.2):
            schema["$anchor"] = f"anchor{len(self.definitions)}"
            return f"#anchor{len(self.definitions)}"
        return f"#/$defs/{quoted(name)}"

    # Texts.

    def text(self):
        letters = "abc XYZ019_-.,:;!?'\"\\/{}[]()<>|#%&äß漢🦊\n\t\u0001\u007f\u2028"
        return "".join(self.random.choices(letters, k=self.random.randint(0, 8)))

    def string(self, _):
        most = self.random.randint(0, 12)
        schema = {"type": "string", "maxLength": most}
        if self.chance(0.5):
            schema["minLength"] = self.random.randint(0, most)
        return schema

    def format(self, _):
        name, most = self.random.choice(list(FORMAT_LENGTHS.items()))
        return {"type": "string", "format": name} | ({"maxLength": most} if most else {})

    def pattern(self, _):
        atoms = ["a", "[a-f]", "[0-9]", "\\d", "\\w", "[^a-z\\s]", ".", "\\.", "-", "é", "\\s"]
        piece = lambda: self.random.choice(atoms) + self.random.choice(["", "", "?", "{2}", "{0,2}", "{1,3}"])
        words = lambda: "(" + "|".join("".join(self.some(1, 3, piece)) for _ in range(2)) + ")"
        regex = "".join(self.some(1, 4, lambda: words() if self.chance(0.2) else piece()))
        if self.chance(0.7):
            return {"type": "string", "pattern": f"^{regex}$"}
        # Anywhere in the text, which then needs another bound.
        begin, end = self.random.choice([("", ""), ("^", ""), ("", "$")])
        return {"type": "string", "pattern": begin + regex + end, "maxLength": 16}

    # Numbers.

    def integer(self, _):
        schema = {"type": "integer"}
        multiple = self.random.choice([1, 1, 1, 2, 3, 7, 12, 100, 250])
        if multiple > 1:
            schema["multipleOf"] = multiple
        least = self.random.randint(-(10 ** self.random.randint(0, 6)), 10 ** self.random.randint(0, 6))
        # There are always two multiples between the bounds; without one of these, few digits would be the last.
        return schema | self.bounds(least, least + multiple * self.random.randint(3, 1000), 1 if multiple > 1 else 0.8)

    def number(self, _):
        schema = {"type": "number"}
        digits = self.random.randint(0, 3)
        step = self.random.choice([None, None, None, 0.5, 0.25, 0.1, 0.01, 0.125, 2.5, 3])
        if step is not None:
            schema["multipleOf"] = step
        least = round(self.random.uniform(-1, 1) * 10 ** self.random.randint(0, 5), digits)
        width = round(self.random.uniform(1, 100) * 3 * (step or 1) + 10**-digits, digits)
        return schema | self.bounds(least, round(least + width, digits), 1 if step else 0.8)

    def bounds(self, least, most, probability):
        bounds = {}
        for value, names in [(least, ["minimum", "exclusiveMinimum"]), (most, ["maximum", "exclusiveMaximum"])]:
            if self.chance(probability):
                bounds[self.random.choice(names)] = value
        return bounds

    # Values.

    def value(self, depth=2):
        makers = [
            lambda: None,
            lambda: self.chance(0.5),
            lambda: self.random.randint(-1000, 1000),
            lambda: round(self.random.uniform(-100, 100), 3),
            lambda: self.random.choice([0.0, -0.0, 1.0, 1e-7, 1e15, -2.5e-300]),
            # From 2^53 on, numbers are refused.
            lambda: self.random.choice([2**31, 2**53 - 1, 1 - 2**53]),
            self.text,
            self.text,
        ]
        if depth > 0:
            makers.append(lambda: self.some(0, 3, lambda: self.value(depth - 1)))
            makers.append(lambda: {self.text(): self.value(depth - 1) for _ in range(self.random.randint(0, 3))})
        return self.random.choice(makers)()

    def choice(self, _):
        if self.chance(0.3):
            return {"const": self.value()}
        values = self.some(1, 5, self.value)
        schema = {"enum": values}
        if self.chance(0.4):
            # Values of other types are none then.
            types = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
            kind = types.get(type(values[0]))
            schema |= {"type": kind} if kind else {}
        return schema

    def simple(self, _):
        return {"type": self.random.choice(["boolean", "null", "integer", "number"])}

    # What has other schemas in it.

    def name(self):
        plain = ["a", "b_c", "city", "Name", "x1", "count", "type", "enum", "items"]
        odd = ["two words", "it's", 'quo"ted', "ключ", "a.b", "$ref", "", "line\nbreak", "class", "None"]
        return self.random.choice(plain if self.chance(0.85) else odd)

    def object(self, depth):
        names = list(dict.fromkeys(self.some(0, 4, self.name)))
        schema = {"type": "object", "properties": {name: self.schema(depth) for name in names}}
        required = [name for name in names if self.chance(0.6)]
        if required or self.chance(0.5):
            schema["required"] = required
        schema["additionalProperties"] = False
        optional = len(names) - len(required)
        if not optional and self.chance(0.3):
            pattern = self.random.choice(["^k[0-9]$", "^[A-Z]{1,2}_$"])
            schema["patternProperties"] = {pattern: self.schema(min(depth, 1))}
            schema["maxProperties"] = len(names) + self.random.randint(0, 3)
            schema["minProperties"] = self.random.randint(0, min(len(names) + 1, schema["maxProperties"]))
        elif optional and self.chance(0.1):
            # The only ones that are supported beside optional properties.
            schema[self.random.choice(["minProperties", "maxProperties"])] = len(required) + 1
        elif self.chance(0.05):
            schema["properties"]["never"] = False
        items = list(schema.items())
        self.random.shuffle(items)
        return dict(items)

    def array(self, depth):
        most = self.random.randint(0, 3)
        schema = {"type": "array", "items": self.schema(depth), "maxItems": most}
        return schema | ({"minItems": self.random.randint(0, most)} if self.chance(0.5) else {})

    def tuple(self, depth):
        first = self.some(1, 3, lambda: self.schema(depth))
        schema = {"type": "array", "prefixItems": first, "items": False}
        if self.chance(0.3):
            schema |= {"items": self.schema(depth), "maxItems": len(first) + 1}
        return schema | ({"minItems": self.random.randint(0, len(first))} if self.chance(0.7) else {})

    def any_of(self, depth):
        if self.chance(0.2):
            return {"oneOf": [self.string(0), self.integer(0), {"type": "null"}]}
        return {"anyOf": self.some(2, 3, lambda: self.schema(depth))}

    def several_types(self, depth):
        kinds = {
            "null": lambda: {},
            "boolean": lambda: {},
            "string": lambda: self.string(0),
            "integer": lambda: self.integer(0),
            "array": lambda: self.array(depth),
            "object": lambda: self.object(depth),
        }
        chosen = self.random.sample(list(kinds), self.random.randint(2, 3))
        merged = {key: value for kind in chosen for key, value in kinds[kind]().items()}
        return merged | {"type": chosen}

    def all_of(self, depth):
        if self.chance(0.5):
            return {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 40}, {"multipleOf": 2}, {"multipleOf": 3}]}
        parts = [self.object(depth) for _ in range(2)]
        for index, part in enumerate(parts):
            # No part may forbid what the other one has.
            part["properties"] = {f"{name}{index}": value for name, value in part["properties"].items()}
            part["required"] = [f"{name}{index}" for name in part.get("required", [])]
            for key in ["additionalProperties", "patternProperties", "minProperties", "maxProperties"]:
                part.pop(key, None)
        parts[0]["properties"] |= {name: True for name in parts[1]["properties"]}
        parts[0]["additionalProperties"] = False
        return {"allOf": parts}

    def reference(self, depth):
        return {"$ref": self.define(self.schema(depth))}

    def recursive(self, depth):
        """A list that goes on as the model likes, or one whose length is bounded by one definition for each place."""
        if self.chance(0.5):
            self.is_endless = True
            schema = {"type": "object", "required": ["value", "next"], "additionalProperties": False}
            reference = self.define(schema)
            or_null = {"anyOf": [{"type": "null"}, {"$ref": reference}]}
            in_array = {"type": "array", "items": {"$ref": reference}, "maxItems": 1}
            schema["properties"] = {"value": self.schema(0), "next": self.random.choice([or_null, in_array])}
            return {"$ref": reference}
        inner = self.schema(0)
        for _ in range(self.random.randint(1, 4)):
            inner = {"$ref": self.define({"type": "array", "items": inner, "minItems": 1, "maxItems": 1})}
        return inner


def number(text):
    """A number to compare; one beyond all bounds stays so, but with an exponent that can be calculated with."""
    digits, _, exponent = text.lower().partition("e")
    return decimal.Decimal(digits).scaleb(max(-1000, min(int(exponent or 0), 1000)))


def read(text, pairs=dict):
    return json.loads(text, parse_float=number, object_pairs_hook=pairs)


def has_duplicates(text):
    """Whether an object has a name twice, which no grammar can rule out."""
    found = []

    def pairs(members):
        found.append(len(dict(members)) < len(members))
        return dict(members)

    read(text, pairs)
    return any(found)


def ask(base, body):
    """Status and answer."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{base}/v1/chat/completions", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


class Job:
    """A schema, asked for in one of two ways, and what came of it."""

    def __init__(self, seed, index, as_tool):
        maker = Maker(random.Random(f"{seed}/{index}"))
        self.index, self.as_tool, self.schema = index, as_tool, maker.whole()
        self.is_endless = maker.is_endless
        self.validator = Validator(read(json.dumps(self.schema)), format_checker=FORMATS)
        Draft202012Validator.check_schema(self.schema)
        self.outcome, self.cause, self.duplicates, self.seconds_per_token = "not asked", None, False, None

    def body(self):
        body = {
            "messages": [{"role": "user", "content": "Write something."}],
            "temperature": 1.5,
            # A small model writes digits for ever, which nothing in a schema can bound.
            "frequency_penalty": 2,
            "seed": self.index,
            "max_completion_tokens": MAX_TOKENS,
        }
        if not self.as_tool:
            form = {"type": "json_schema", "json_schema": {"name": "it", "schema": self.schema}}
            return body | {"response_format": form}
        tool = {"type": "function", "function": {"name": "use", "parameters": self.schema}}
        # There may be 16 calls then.
        parallel = len(json.dumps(self.schema)) < 500
        choice = {"type": "function", "function": {"name": "use"}}
        return body | {"tools": [tool], "tool_choice": choice, "parallel_tool_calls": parallel}

    def run(self, base, gone):
        if gone.is_set():
            return
        start = time.monotonic()
        try:
            status, answer = ask(base, self.body())
        except (OSError, http.client.HTTPException) as error:
            # All others would fail as well.
            gone.set()
            self.outcome, self.cause = "unanswered", repr(error)
            return
        if status != 200:
            self.outcome, self.cause = "failed", f"{status}: {answer['error']['message']}"
            return
        self.seconds_per_token = (time.monotonic() - start) / max(1, answer["usage"]["completion_tokens"])
        choice = answer["choices"][0]
        self.outcome, self.cause = "valid", None
        if choice["finish_reason"] != ("tool_calls" if self.as_tool else "stop"):
            shown = json.dumps(choice["message"], ensure_ascii=False)
            self.outcome, self.cause = "unfinished", f"finish_reason is {choice['finish_reason']}: {shown[-400:]}"
            return
        for text in self.texts(choice["message"]):
            try:
                fault = next((f"{e.json_path}: {e.message}" for e in self.validator.iter_errors(read(text))), None)
                self.duplicates |= has_duplicates(text)
            except ValueError as error:
                fault = error
            if fault:
                self.outcome, self.cause = "invalid", f"{fault}, in {text}"

    def texts(self, message):
        """What has to keep to the schema."""
        if not self.as_tool:
            return [message["content"]]
        functions = [call["function"] for call in message["tool_calls"]]
        return [function["arguments"] if function["name"] == "use" else "" for function in functions]

    def is_fine(self):
        return self.outcome == "valid" or (self.outcome == "unfinished" and self.is_endless)

    def __str__(self):
        form = "as a tool" if self.as_tool else "as a format"
        return f"schema {self.index} {form}: {self.outcome}: {self.cause}\n  {json.dumps(self.schema)}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    unknown = FORMAT_LENGTHS.keys() - FORMATS.checkers.keys()
    assert not unknown, f"jsonschema does not check {unknown}; install jsonschema[format-nongpl]"

    indices = range(arguments.count) if arguments.only is None else [arguments.only]
    jobs = [Job(arguments.seed, index, False) for index in indices]
    objects = [job for job in jobs if job.schema.get("type") == "object"]
    jobs += [Job(arguments.seed, job.index, True) for job in objects[::TOOLS_EVERY]]
    gone = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(CONCURRENCY) as pool:
        list(pool.map(lambda job: job.run(arguments.base_url, gone), jobs))
    for job in jobs:
        if not job.is_fine() and job.outcome != "not asked":
            print(job, file=sys.stderr)
    counts = collections.Counter(job.outcome for job in jobs)
    times = [job.seconds_per_token for job in jobs if job.seconds_per_token is not None]
    report = {
        "asked": len(jobs),
        "as_tools": sum(job.as_tool for job in jobs),
        "valid": counts.pop("valid", 0),
        **counts,
        "with_duplicate_names": sum(job.duplicates for job in jobs),
        "median_ms_per_token": round(statistics.median(times) * 1000, 2) if times else None,
    }
    print(json.dumps(report))
    return not all(job.is_fine() for job in jobs)


if __name__ == "__main__":
    sys.set_int_max_str_digits(0)
    sys.exit(main())
