"""Asks `lfm2vl serve` with OpenAI's own Python client, as programs do that were written for OpenAI.

    python3 openai_client.py BASE_URL SAMPLES_FOLDER

BASE_URL is like http://127.0.0.1:8080/v1, of a server with the sample model in float32 and default settings,
which nobody else asks meanwhile; SAMPLES_FOLDER has samples.json and its images, and the folder around it the
tokenizer. Prints one line of JSON: what each check saw. Fails when one of them did; the others are made all the same.
Needs openai 3.57.0.
"""

import asyncio
import base64
import contextlib
import json
import math
import mimetypes
import pathlib
import re
import sys
import time
import traceback
import urllib.request
from typing import Literal

import openai
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel, Field

BASE_URL, SAMPLES = sys.argv[1], pathlib.Path(sys.argv[2])
CLIENT = OpenAI(base_url=BASE_URL, api_key="none", max_retries=0, timeout=120)
MODEL = CLIENT.models.list().data[0]
CHAT = CLIENT.chat.completions
QUESTIONS = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
# What the sample model has never seen, so that it may say anything.
STRANGE = [{"role": "user", "content": "Purple elephants?"}]


def text(content):
    return [{"role": "user", "content": content}]


def uri(name):
    kind, _ = mimetypes.guess_type(name)
    return f"data:{kind};base64,{base64.b64encode((SAMPLES / name).read_bytes()).decode()}"


def image(url, **more):
    return {"type": "image_url", "image_url": {"url": url, **more}}


def messages_of(question):
    content = [image(uri(name)) for name in question["images"]] + [{"type": "text", "text": question["prompt"]}]
    system = [{"role": "system", "content": question["system"]}] if "system" in question else []
    return [*system, {"role": "user", "content": content}]


def options(messages, **more):
    return {"model": MODEL.id, "messages": messages, "temperature": 0, "max_tokens": 200, **more}


def answer(messages, **more):
    return CHAT.create(**options(messages, **more))


def said(messages, **more):
    return answer(messages, **more).choices[0].message.content


def streamed(messages, **more):
    """The text of each choice, its log probabilities, its reasons to end, and the usage, of a stream."""
    texts, logprobs, reasons, usage = {}, {}, {}, None
    for chunk in CHAT.create(**options(messages, **more), stream=True, stream_options={"include_usage": True}):
        assert usage is None, "a chunk after the usage"
        usage = chunk.usage
        assert bool(chunk.choices) == (usage is None)
        for choice in chunk.choices:
            assert choice.index not in reasons, "a chunk after the end"
            texts.setdefault(choice.index, "")
            texts[choice.index] += choice.delta.content or ""
            if choice.logprobs:
                logprobs.setdefault(choice.index, []).extend(choice.logprobs.content)
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return texts, logprobs, reasons, usage


def models():
    assert [model.id for model in CLIENT.models.list()] == [MODEL.id]
    assert CLIENT.models.retrieve(MODEL.id) == MODEL
    return {"id": MODEL.id, "context": MODEL.context_length}


def samples():
    for question in QUESTIONS:
        messages = messages_of(question)
        whole = answer(messages)
        assert whole.choices[0].message.content == question["answer"], f"{question}: {whole}"
        assert whole.choices[0].finish_reason == "stop"
        texts, _, reasons, usage = streamed(messages)
        assert (texts, reasons) == ({0: question["answer"]}, {0: "stop"}), f"{question}: {texts}"
        counts = [(u.prompt_tokens, u.completion_tokens, u.total_tokens) for u in (whole.usage, usage)]
        assert counts[0] == counts[1] and sum(counts[0][:2]) == counts[0][2] and min(counts[0]) > 0, f"{counts}"
        assert (usage.prompt_tokens_details.image_tokens > 0) == bool(question["images"])
    return {"questions": len(QUESTIONS)}


async def many():
    """Answers to all questions, eight at a time."""
    async with AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0, timeout=120) as client:
        places = asyncio.Semaphore(8)

        async def one(question):
            async with places:
                whole = await client.chat.completions.create(**options(messages_of(question)))
                return whole.choices[0].message.content

        return await asyncio.gather(*map(one, QUESTIONS))


def eight_at_a_time():
    texts = asyncio.run(many())
    assert texts == [question["answer"] for question in QUESTIONS], f"{texts}"
    return {"questions": len(texts)}


def conversation():
    """A second question is answered from the state of the first one."""
    first, second = [question for question in QUESTIONS if question["images"] == ["tiled.jpg"]][1:3]
    messages = messages_of(first)
    reply = answer(messages).choices[0].message
    used = answer([*messages, reply, *text(second["prompt"])]).usage.prompt_tokens_details
    again = answer([*messages, reply, *text(second["prompt"])]).usage.prompt_tokens_details
    # What programs make of a message that they keep.
    parts = {"role": "assistant", "content": [{"type": "text", "text": reply.content}]}
    for form in (reply.model_dump(), reply.to_dict(), parts):
        assert answer([*messages, form, *text(second["prompt"])]).usage.prompt_tokens_details == again
    assert min(used.cached_tokens, again.cached_tokens) > used.image_tokens > 0, f"{used}, {again}"
    roles = [{"role": "developer", "content": "Be brief.", "name": "maker"}, {**STRANGE[0], "name": "somebody"}]
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert answer([*roles, refusal, *text("Hello")]).choices[0].finish_reason == "stop"
    return {"cached": used.cached_tokens, "cached_again": again.cached_tokens}


def choices():
    wild = {"temperature": 2, "max_tokens": 60}
    both = answer(STRANGE, **wild, n=2, seed=7)
    texts = [choice.message.content for choice in both.choices]
    assert [choice.index for choice in both.choices] == [0, 1] and texts[0] != texts[1], f"{texts}"
    alone = [answer(STRANGE, **wild, seed=seed) for seed in (7, 8)]
    assert texts == [one.choices[0].message.content for one in alone], f"{texts}"
    assert both.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    assert both.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert both.system_fingerprint == alone[0].system_fingerprint
    streams, _, reasons, usage = streamed(STRANGE, **wild, n=2, seed=7)
    assert streams == dict(enumerate(texts)) and usage.completion_tokens == both.usage.completion_tokens
    assert reasons == {choice.index: choice.finish_reason for choice in both.choices}
    # The first choice's text is held back, as it may become the stop text; the client takes the choices in order.
    held = {"n": 2, "seed": 7, "stop": texts[0][:6] + "~"}
    with CHAT.stream(**options(STRANGE, **wild, **held)) as stream:
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == texts, f"{final.choices}"
    return {"choices": texts}


def stops():
    count = text("Count to ten.")
    for stop in (", 4", ["ten", ", 4"]):
        whole = answer(count, stop=stop).choices[0]
        assert (whole.message.content, whole.finish_reason) == ("1, 2, 3", "stop"), f"{whole}"
        texts, _, reasons, _ = streamed(count, stop=stop)
        assert (texts, reasons) == ({0: "1, 2, 3"}, {0: "stop"}), f"{texts}"
    short = answer(count, max_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    shorter = CHAT.create(model=MODEL.id, messages=count, max_completion_tokens=2)
    assert shorter.usage.completion_tokens == 2
    return {"stopped": "1, 2, 3"}


def logprobs():
    # Some tokens of the answer are parts of a character.
    emoji = text("Send me an emoji.")
    whole = answer(emoji, logprobs=True, top_logprobs=20)
    tokens, content = whole.choices[0].logprobs.content, whole.choices[0].message.content
    assert bytes(byte for token in tokens for byte in token.bytes).decode() == content, f"{tokens}"
    assert len(tokens) == whole.usage.completion_tokens
    for token in tokens:
        top = [entry.logprob for entry in token.top_logprobs]
        total = sum(map(math.exp, top))
        assert 0.9 < total < 1.0001 and top == sorted(top, reverse=True) and len(top) == 20, f"{total}: {token}"
        # The most likely one is taken.
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, top[0]), f"{token}"
    texts, pieces, _, _ = streamed(emoji, logprobs=True, top_logprobs=20)
    assert texts == {0: content} and [piece.token for piece in pieces[0]] == [token.token for token in tokens]
    assert all(math.isclose(a.logprob, b.logprob, abs_tol=1e-3) for a, b in zip(pieces[0], tokens))
    assert answer(emoji, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert answer(emoji).choices[0].logprobs is None
    stopped = answer(emoji, logprobs=True, stop=" are").choices[0]
    kept = bytes(byte for token in stopped.logprobs.content for byte in token.bytes).decode()
    assert kept.startswith(stopped.message.content) and stopped.message.content == "Here you"
    return {"tokens": len(tokens), "partial": sum("\ufffd" in token.token for token in tokens)}


def logit_bias():
    ids = json.loads((SAMPLES.parent / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    hello = said(text("Hello"), max_tokens=1)
    assert hello == "Hello"
    forced = said(text("Hello"), max_tokens=1, logit_bias={str(ids["Paris"]): 100})
    forbidden = said(text("Hello"), max_tokens=1, logit_bias={ids["Hello"]: -100})
    assert forced == "Paris" and forbidden != "Hello", f"{forced}, {forbidden}"
    return {"forced": forced, "instead": forbidden}


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=9)
    unit: Literal["C", "F"] | None


class Clock(BaseModel):
    """What time it is."""

    city: Literal["Berlin"]


ARGUMENTS = {"Weather": Weather, "Clock": Clock}
TOOLS = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Clock)]


def tools():
    ask = text("How is the weather?")
    one = {"tools": TOOLS, "parallel_tool_calls": False}
    named = {"type": "function", "function": {"name": "Clock"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    assert answer(ask, tools=TOOLS, tool_choice="none").choices[0].message.tool_calls is None
    called = {}
    for choice in ("auto", "required", named, allowed):
        whole = answer(ask, **one, tool_choice=choice).choices[0]
        calls = whole.message.tool_calls or []
        if choice == "auto" and not calls:
            assert whole.message.content and whole.finish_reason == "stop"
            continue
        assert len(calls) == 1 and whole.finish_reason in ("tool_calls", "stop"), f"{whole}"
        name, arguments = calls[0].function.name, calls[0].function.arguments
        assert name == "Clock" or choice in ("auto", "required"), f"{whole}"
        ARGUMENTS[name].model_validate_json(arguments)
        assert calls[0].id and calls[0].type == "function" and whole.message.content is None
        called[str(choice)] = f"{name}({arguments})"
    several = answer(ask, tools=TOOLS, tool_choice="required").choices[0].message.tool_calls
    assert len({call.id for call in several}) == len(several)
    return {"called": called, "several": len(several)}


def tool_streams():
    ask, one = text("How is the weather?"), {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    whole = answer(ask, **one).choices[0].message.tool_calls[0].function
    parsed = CHAT.parse(**options(ask, **one)).choices[0].message.tool_calls[0].function.parsed_arguments
    assert parsed == ARGUMENTS[whole.name].model_validate_json(whole.arguments)
    calls, reason = {}, None
    for chunk in CHAT.create(**options(ask, **one), stream=True):
        for piece in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(piece.index, {"id": None, "name": "", "arguments": ""})
            call["id"] = call["id"] or piece.id
            call["name"] += piece.function.name or ""
            call["arguments"] += piece.function.arguments or ""
        reason = reason or chunk.choices[0].finish_reason
    assert len(calls) == 1 and calls[0].pop("id"), f"{calls}"
    assert calls[0] == {"name": whole.name, "arguments": whole.arguments}, f"{calls}"
    assert reason == "tool_calls", f"{reason}"
    with CHAT.stream(**options(ask, **one)) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        message = stream.get_final_completion().choices[0].message
    assert [event.parsed_arguments for event in done] == [parsed] == [message.tool_calls[0].function.parsed_arguments]
    # The call goes back as programs send it, with its result.
    plain = CHAT.create(**options(ask, **one)).choices[0].message
    forms = [message, plain, plain.model_dump(), plain.to_dict()]
    replies = []
    for form in forms:
        result = {"role": "tool", "tool_call_id": plain.tool_calls[0].id, "content": json.dumps({"sky": "clear"})}
        replies.append(said([*ask, form, result], tools=TOOLS, tool_choice="none"))
    assert replies[0] and len(set(replies)) == 1, f"{replies}"
    return {"call": calls[0], "reply": replies[0]}


class Shape(BaseModel):
    kind: Literal["circle", "square", "triangle", "star"]
    colour: Literal["red", "green", "blue", "yellow"]


class Picture(BaseModel):
    shapes: list[Shape] = Field(max_length=3)
    background: Literal["black", "white"] | None
    number: int = Field(ge=0, le=99)
    bright: bool


def formats():
    ask = messages_of(QUESTIONS[0])
    parsed = CHAT.parse(**options(ask), response_format=Picture).choices[0].message.parsed
    assert isinstance(parsed, Picture)
    with CHAT.stream(**options(ask), response_format=Picture) as stream:
        done = [event.parsed for event in stream if event.type == "content.done"]
    assert done == [parsed], f"{done}"
    schema = {"name": "shape", "strict": True, "schema": {**Shape.model_json_schema(), "additionalProperties": False}}
    strict = said(ask, response_format={"type": "json_schema", "json_schema": schema})
    Shape.model_validate_json(strict)
    free = said(text("Hello"), response_format={"type": "json_object"})
    assert isinstance(json.loads(free), dict), f"{free}"
    try:
        CHAT.parse(**options(ask, max_tokens=2), response_format=Picture)
        raise AssertionError("half an object was parsed")
    except openai.LengthFinishReasonError:
        pass
    return {"parsed": parsed.model_dump(), "strict": strict, "free": free}


def sampling():
    greedy, wild = said(STRANGE), {"temperature": 2, "seed": 1}
    for only in ({"top_k": 1}, {"min_p": 1}):
        assert said(STRANGE, **wild, extra_body=only) == greedy, f"{only}"
    return {"greedy": greedy}


def structured_outputs():
    seen = {}
    for name, form, matches in (
        ("choice", ["red", "blue"], "red|blue"),
        ("regex", "[A-F]{3}-[0-9]{2}", "[A-F]{3}-[0-9]{2}"),
        ("choice_with_blanks", [" red", " blue"], " red| blue"),
        ("regex_with_blanks", r"\n\n {2}[a-f]+\.", r"\n\n {2}[a-f]+\."),
    ):
        seen[name] = said(STRANGE, extra_body={"structured_outputs": {name.split("_")[0]: form}})
        assert re.fullmatch(matches, seen[name]), f"{name}: {seen[name]!r}"
    return seen


def image_settings():
    def tokens(detail=None, **settings):
        picture = image(uri("number-tiled.png"), **({"detail": detail} if detail else {}))
        ask = [{"role": "user", "content": [picture, {"type": "text", "text": "Describe the image."}]}]
        return answer(ask, extra_body={"image_settings": settings}).usage.prompt_tokens_details.image_tokens

    few = tokens(max_image_tokens=4, min_image_tokens=1, do_image_splitting=False)
    low, high, default = tokens("low"), tokens("high"), tokens()
    assert 0 < few <= 4 < low < high == default, f"{few}, {low}, {high}, {default}"
    assert tokens("original") == high
    return {"few": few, "low": low, "high": high}


def unused():
    """Fields without a meaning here change nothing, nor do fields that are null."""
    hello = said(text("Hello"))
    kept = {"user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "me"}
    assert said(text("Hello"), **kept, prompt_cache_key="here", modalities=["text"]) == hello
    names = """audio frequency_penalty logit_bias logprobs max_completion_tokens metadata modalities n
        parallel_tool_calls prediction presence_penalty reasoning_effort response_format seed stop store stream
        stream_options tool_choice tools top_logprobs top_p user verbosity"""
    problems = []
    for name in names.split():
        try:
            assert said(text("Hello"), extra_body={name: None}) == hello, name
        except openai.APIError as error:
            problems.append(f"null as {name}: {error}")
    assert not problems, "\n".join(problems)
    return {"kept": sorted(kept), "null": len(names.split())}


def refused(kind, param, code=None, messages=None, **more):
    """What is wrong with how a request is refused, if anything."""
    for stream in (False, True):
        try:
            list(answer(messages or text("Hello"), **more, stream=stream))
            yield f"{more}, stream {stream}: it was answered"
        except openai.APIError as error:
            expected = (kind, param, code, "invalid_request_error")
            found = (type(error), error.param, error.code, error.type)
            if found != expected:
                yield f"{more}, stream {stream}: {found}, not {expected}: {error}"


def errors():
    def wrong(param, *code, **more):
        return refused(BadRequestError, param, *code, **more)

    cases = [refused(NotFoundError, "model", "model_not_found", model="nobody")]
    for param, value in (
        ("temperature", 3),
        ("top_p", 1.5),
        ("n", 0),
        ("n", 1000),
        ("max_tokens", 0),
        ("max_tokens", 10**9),
        ("max_completion_tokens", -1),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("top_logprobs", 3),
        ("stop", 3),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "nobody"}}),
    ):
        cases.append(wrong(param, **{param: value}))
    cases.append(wrong("top_logprobs", logprobs=True, top_logprobs=21))
    cases.append(wrong("logit_bias.1000000000", logit_bias={"1000000000": 1}))
    cases.append(wrong("nonsense", "unsupported_parameter", extra_body={"nonsense": 1}))
    # The second one is known only when it is made.
    for regex in ("(", "(a{1000}){1000}"):
        cases.append(wrong("structured_outputs", extra_body={"structured_outputs": {"regex": regex}}))
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    cases.append(wrong("response_format", response_format=form))
    cases.append(wrong("messages", "context_length_exceeded", messages=text("hello " * MODEL.context_length)))
    cases.append(wrong("messages", messages=[{"role": "user", "content": [image(uri("plain.png"))] * 17}]))
    broken = ["data:image/png;base64,AAAA", "data:image/png;base64,%", "data:,"]
    for url in (*broken, "file:///etc/passwd", "/etc/passwd", "http://127.0.0.1:1/a.png", BASE_URL):
        parts = [{"type": "text", "text": "Look:"}, image(url)]
        cases.append(wrong("messages[0].content[1].image_url", messages=[{"role": "user", "content": parts}]))
    problems = [problem for case in cases for problem in case]
    assert not problems, "\n".join(problems)
    return {"refused": len(cases)}


def figures():
    lines = urllib.request.urlopen(BASE_URL.removesuffix("/v1") + "/metrics", timeout=10).read().decode().splitlines()
    pairs = (line.split() for line in lines if line.startswith("lfm2vl_requests_"))
    return {name.removeprefix("lfm2vl_requests_"): float(value) for name, value in pairs}


@contextlib.contextmanager
def given_up(answers):
    """What is done meanwhile gives up so many answers."""
    before = figures()
    yield
    end = time.monotonic() + 2
    expected = before["cancelled_total"] + answers
    while (now := figures())["active"] or now["waiting"] or now["cancelled_total"] < expected:
        assert time.monotonic() < end, f"two seconds later: {before}, {now}"
        time.sleep(0.02)
    same = ("finished_total", "failed_total")
    assert [now[name] for name in same] == [before[name] for name in same], f"{before}, {now}"


async def cancelled(endless):
    async with AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0) as client:
        task = asyncio.create_task(client.chat.completions.create(**endless))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()


def leaving():
    """Nothing goes on for clients that have left."""
    endless = options(STRANGE, n=4, max_tokens=MODEL.context_length - 100, extra_body={"ignore_eos": True})
    with given_up(4):
        try:
            CLIENT.with_options(timeout=1).chat.completions.create(**endless)
            raise AssertionError("it was answered")
        except openai.APITimeoutError:
            pass
    with given_up(4):
        stream = CHAT.create(**endless, stream=True)
        for _ in range(20):
            next(stream)
        active = figures()["active"]
        assert active == 4, f"{active} are active"
        stream.close()
    with given_up(1):
        with CHAT.stream(**{**endless, "n": 1}) as stream:
            next(iter(stream))
    with given_up(4):
        asyncio.run(cancelled(endless))
    assert said(text("Hello"))
    return {"given_up": 13}


CHECKS = (
    models,
    samples,
    eight_at_a_time,
    conversation,
    choices,
    stops,
    logprobs,
    logit_bias,
    tools,
    tool_streams,
    formats,
    sampling,
    structured_outputs,
    image_settings,
    unused,
    errors,
    leaving,
)

if __name__ == "__main__":
    seen, failed = {}, []
    for check in CHECKS:
        try:
            seen[check.__name__] = check()
        except Exception:
            traceback.print_exc()
            failed.append(check.__name__)
    print(json.dumps({**seen, "failed": failed}, ensure_ascii=False))
    sys.exit(bool(failed))
