"""Clients that leave a server at random moments, by closing or resetting the connection.

    python3 leaving_clients.py BASE_URL SAMPLES_FOLDER [--count 200] [--seed N] [--pid PID]

They leave while they send the head or the body, while images are processed, while they wait for a slot or the
answer, or in the stream. Prints one line of JSON: how many left where, and how long the server took to be free.
Fails unless it then works and waits on nothing, answers a new request at once, and, where PID is given, has as
few sockets as before.
"""

import argparse
import asyncio
import base64
import collections
import json
import os
import pathlib
import random
import re
import socket
import struct
import sys
import time
import urllib.parse
import zlib

# More than the server has slots, so that some wait.
CONCURRENCY = 32
# What it may take until nobody's answer is made, and until a new one is there.
FREE, AT_ONCE, GIVE_UP = 10, 3, 60


def body_of(rng, samples, stream):
    content = [{"type": "text", "text": f"What is this? {rng.random()}"}]
    for sample in rng.choices(samples, k=rng.choice([0, 0, 1, 4])):
        url = f"data:image/png;base64,{base64.b64encode(sample).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    body = {"messages": [{"role": "user", "content": content}], "ignore_eos": True, "max_completion_tokens": 2000}
    # Answers that are made in several places at once.
    body |= {"stream": stream, "n": rng.choice([1, 1, 3])}
    if rng.random() < 0.2:
        body["structured_outputs"] = {"regex": "[a-z ]{1,5000}"}
        del body["ignore_eos"]
    return json.dumps(body).encode()


def request_of(body):
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode()


def large_png(side=2500):
    """Few bytes that take a while to decode and to process."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes((3 * side + 1) * side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def leave(address, rng, samples, moments):
    moment = rng.choice(["head", "body", "sent", "images", "waiting", "first event", "stream"])
    body = body_of(rng, samples, stream=moment in ("first event", "stream") or rng.random() < 0.5)
    head = request_of(body)
    reader, writer = await asyncio.open_connection(*address)
    try:
        if moment == "head":
            writer.write(head[: rng.randrange(len(head))])
        elif moment == "body":
            writer.write(head + body[: rng.randrange(len(body))])
        else:
            writer.write(head + body)
        await writer.drain()
        if moment in ("head", "body", "images"):
            await asyncio.sleep(rng.uniform(0, 0.05))
        elif moment == "waiting":
            await asyncio.sleep(rng.uniform(0.05, 2))
        elif moment in ("first event", "stream"):
            status = await reader.readline()
            if b" 429 " in status:
                moment = "refused"
            else:
                assert b" 200 " in status, f"{status}"
                for _ in range(rng.randint(2, 100) if moment == "stream" else 1):
                    if b"[DONE]" in await reader.readuntil(b"\n\n"):
                        moment = "end"
                        break
        if rng.random() < 0.5:
            # The server is told by a reset, not by an end.
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        moments[moment] += 1
    finally:
        writer.close()


async def leave_all(address, count, seed, samples):
    moments, free = collections.Counter(), asyncio.Semaphore(CONCURRENCY)

    async def one(index):
        async with free:
            await asyncio.wait_for(leave(address, random.Random(f"{seed}/{index}"), samples, moments), GIVE_UP)

    await asyncio.gather(*map(one, range(count)))
    return moments


async def get(address, path):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), GIVE_UP)
    writer.close()
    return answer.partition(b"\r\n\r\n")[2].decode()


async def figures(address):
    """What the server works or waits on."""
    text = await get(address, "/metrics")
    names = ["requests_active", "requests_waiting", "requests_in_prompt"]
    return {name: float(re.search(rf"^lfm2vl_{name} (\S+)$", text, re.M)[1]) for name in names}


async def ask(address):
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_completion_tokens": 2}).encode()
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request_of(body).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
    answer = await asyncio.wait_for(reader.read(), GIVE_UP)
    writer.close()
    return answer.split(b"\r\n")[0].decode()


def sockets(pid):
    if pid is None:
        return None
    folder = pathlib.Path(f"/proc/{pid}/fd")
    found = 0
    for name in os.listdir(folder):
        try:
            found += os.readlink(folder / name).startswith("socket:")
        except FileNotFoundError:
            pass
    return found


async def wait_until(seconds, fine):
    """Waits until `fine` holds; the seconds that this took, or None, and what was seen last."""
    start = time.monotonic()
    while True:
        is_fine, seen = await fine()
        took = time.monotonic() - start
        if is_fine or took > seconds:
            return round(took, 2) if is_fine else None, seen
        await asyncio.sleep(0.05)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("samples", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pid", type=int)
    arguments = parser.parse_args()
    url = urllib.parse.urlsplit(arguments.base_url)
    address, pid = (url.hostname, url.port), arguments.pid
    samples = [path.read_bytes() for path in sorted(arguments.samples.glob("*.png"))]
    samples.append(large_png())
    assert (await ask(address)).split()[1] == "200", "the server does not answer"
    await asyncio.sleep(0.2)
    before = sockets(pid)
    moments = await leave_all(address, arguments.count, arguments.seed, samples)

    async def is_free():
        seen = await figures(address)
        return not any(seen.values()), seen

    async def has_few_sockets():
        seen = sockets(pid)
        return pid is None or seen <= before, seen

    free_after, seen = await wait_until(FREE, is_free)
    start = time.monotonic()
    status = await ask(address)
    answered_in = round(time.monotonic() - start, 2)
    closed_after, after = await wait_until(FREE, has_few_sockets)
    report = {
        "left": dict(moments),
        "free_after_s": free_after,
        "figures": seen,
        "answer": status,
        "answered_in_s": answered_in,
        "sockets": [before, after],
        "closed_after_s": closed_after,
    }
    print(json.dumps(report))
    return free_after is None or closed_after is None or status.split()[1] != "200" or answered_in > AT_ONCE


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
