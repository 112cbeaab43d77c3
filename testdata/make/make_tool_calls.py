"""Calls in Python's syntax, and what Python's own parser reads from them.

    python make_tool_calls.py ../prompts/tool-calls.json

`calls` is null where Python refuses the text, or where it is no list of calls with keyword
arguments whose values are JSON.
"""

import ast
import json
import sys

TEXTS = [
    "[]", "[f()]", "[f(),]", "[ f ( ) , g ( ) ]", '[f(a="x", b=3)]', "[f(a='x',)]", "[f(a=1), f(a=2)]",
    "[get_weather(city='Zürich', units=\"°C\")]", "[f(a=True, b=False, c=None)]", "[f(a=[1, 2.5, 'x', [None]])]",
    "[f(a={'k': 1, \"l\": {'m': []}}, b={})]", "[f(a=(1, 2), b=(1,), c=(1), d=())]", "[f(a=((1,)), b=((1, 2),))]",
    "[f(a=0, b=-1, c=+2, d=1_000, e=0x1F, f=0b101, g=0o17, h=00)]", "[f(a=9223372036854775807, b=-9223372036854775808, c=18446744073709551615)]",
    "[f(a=1.0, b=.5, c=5., d=1e3, e=1E-3, f=-2.5e+10, g=0.1, h=1_0.0_1)]", "[f(a=01)]", "[f(a=1__0)]", "[f(a=_1)]", "[f(a=1e)]", "[f(a=0x)]", "[f(a=.)]", "[f(a=1.2.3)]",
    r"[f(a='it\'s', b=\"q\", c='a\nb\tc\\d')]".replace('\\"', '"'), r"[f(a='\x41\u00e9\U0001F600\101\0')]", r"[f(a='\q\.\ ')]", r"[f(a='\x4')]", r"[f(a='\u12')]", r"[f(a='\a\b\f\v\r')]",
    "[f(a='one\\\ntwo')]", "[f(a='a' 'b' \"c\")]", '[f(a="""tri"ple\nlines""")]', "[f(a='''it's''')]", "[f(a='')]", '[f(a="", b=\'\')]', "[f(a='🦀👩‍👩‍👧')]",
    "[f(a={'x': [1, {'y': (2, 3)}]}, b='z')]", "[f(a={1: 2})]", "[f(a={'x', 'y'})]", "[f(1)]", "[f(*a)]", "[f(**a)]", "[f(a=b)]", "[f(a=g())]", "[f(a=1+1)]", "[f(a=--1)]", "[f(a=1, a=2)]",
    "[f(a=1]", "[f(a='x)]", "[f(a=1)", "f(a=1)", "[f]", "[1]", "[f(a)]", "[f(a=)]", "[f(=1)]", "[f(a=1,,b=2)]", "[f(a=1) g()]", "[f(a=1)] g", "", " ", "[", "[f(", "f", "[f(a=1);]",
    "[f(a=inf)]", "[f(a=1j)]", "[f(a=b'x')]", "[f(a=...)]", "[[f()]]", "[f(a=[1, 2)]", "[f(a={'k' 1})]", "[f(a=1 b=2)]", "[f(a='x'y)]", "[f(a=1e400)]", "[größe(é='ü')]",
    "[f(\n  a=1,\n  b='two',\n)]", "[f(a=[\n1,\n2,\n])]", "[a.b.c(x=1)]", "[f(a=True1)]", "[f(a=[,])]", "[f(a=(,))]", "[f(a=[1,])]", "[f(a={'k': 1,})]", "[f(a={'k': 1, 'k': 2})]",
]


def value(node):
    v = ast.literal_eval(node)
    text = json.dumps(v, allow_nan=False)
    if any(isinstance(n, (ast.BinOp, ast.Set)) for n in ast.walk(node)) or any(isinstance(n, ast.UnaryOp) and isinstance(n.operand, ast.UnaryOp) for n in ast.walk(node)):
        raise ValueError("no literal")
    for n in ast.walk(node):
        if isinstance(n, ast.Dict) and not all(isinstance(k, ast.Constant) and isinstance(k.value, str) for k in n.keys):
            raise ValueError("keys")
    return json.loads(text)


def name(node):
    return node.id if isinstance(node, ast.Name) else name(node.value) + "." + node.attr


def parse(text):
    try:
        compile(text.strip(), "", "eval")
        body = ast.parse(text.strip(), mode="eval").body
        assert isinstance(body, ast.List)
        calls = []
        for call in body.elts:
            assert isinstance(call, ast.Call) and not call.args
            assert all(k.arg for k in call.keywords)
            calls.append({"name": name(call.func), "arguments": {k.arg: value(k.value) for k in call.keywords}})
        return calls
    except (SyntaxError, ValueError, TypeError, AssertionError, AttributeError):
        return None


rows = [{"text": text, "calls": parse(text)} for text in TEXTS]
with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
print(len(rows), sum(row["calls"] is not None for row in rows))
