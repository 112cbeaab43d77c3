"""Runs the Ray job of examples/ray on replicas of the server, and kills one of them and a worker half-way.

    python3 ray_captions.py LFM2VL_PROGRAM MODEL_FOLDER

Fails unless each image is captioned exactly once, a second run asks the server for nothing, and a run
after a part was deleted asks for that part's images only. Prints one line of JSON: what it saw.
Needs the packages that examples/ray/README.md names.
"""

import base64
import collections
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import secrets
import shlex
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib

# A cluster for this test alone, which nobody else can use and which tells nobody of itself.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import ray  # noqa: E402
import psutil  # noqa: E402  Ray brings it along.

IMAGES, BLOCK = 40, 4
JOB = pathlib.Path(__file__).parents[2] / "examples/ray/caption.py"


def random_png(size=64):
    rows = b"".join(b"\0" + os.urandom(3 * size) for _ in range(size))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def wait_for(what, condition, seconds):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def replica(program, model):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen([*program, "serve", model, "--listen", address], stdout=subprocess.DEVNULL)
    try:

        def ready():
            assert process.poll() is None, "the server has ended"
            try:
                return urllib.request.urlopen(f"http://{address}/readyz", timeout=5).status == 200
            except OSError:
                return False

        wait_for("a server that is ready", ready, 120)
        yield process, f"http://{address}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def counter(server, names, tell):
    """A server that passes requests on, and the list of the images in them, of whose length it tells before that."""
    asked, lock = [], threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            uri = json.loads(body)["messages"][0]["content"][0]["image_url"]["url"]
            with lock:
                asked.append(names[hashlib.sha256(base64.b64decode(uri.split(",")[1])).digest()])
                tell(len(asked))
            request = urllib.request.Request(server + self.path, body, {"Content-Type": "application/json"})
            try:
                answer = urllib.request.urlopen(request, timeout=120)
            except urllib.error.HTTPError as error:
                answer = error
            self.send_response(answer.status)
            if wait := answer.headers.get("Retry-After"):
                self.send_header("Retry-After", wait)
            self.end_headers()
            self.wfile.write(answer.read())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as passing_on:
        threading.Thread(target=passing_on.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{passing_on.server_port}", asked
        finally:
            passing_on.shutdown()


def run_job(images, out, servers, *options):
    command = [sys.executable, JOB, images, "-o", out, "--block", BLOCK, "--max-tokens", 16, *options]
    for server in servers:
        command += ["--server", server]
    subprocess.run(list(map(str, command)), check=True, timeout=600)


def rows(out):
    return [json.loads(line) for part in out.glob("part-*.jsonl") for line in part.open(encoding="utf-8")]


def workers():
    """The processes of this test's cluster that caption."""
    processes = psutil.Process().children(recursive=True)
    return [process for process in processes if any("MapWorker" in word for word in process.cmdline())]


def main(program, model):
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    images, out, start = folder / "images", folder / "out", time.monotonic()
    images.mkdir()
    names = {}
    for index in range(IMAGES):
        name, data = f"{index:02}.png", random_png()
        (images / name).write_bytes(data)
        names[hashlib.sha256(data).digest()] = name
    doomed, doomed_url = stack.enter_context(replica(program, model))
    _, url = stack.enter_context(replica(program, model))
    stack.callback(ray.shutdown)
    cluster = ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        _node_ip_address="127.0.0.2",
        _temp_dir=str(folder / "ray"),
    )
    os.environ["RAY_ADDRESS"] = cluster.address_info["gcs_address"]

    killed = {}

    def kill_half_way(requests):
        # Each replica gets about as many, and this request's worker waits for it.
        if requests == IMAGES // 4:
            victim = workers()[0]
            doomed.kill()
            victim.kill()
            killed.update(replica=doomed.pid, worker=victim.pid, captioned_before=len(rows(out)))

    counted, asked = stack.enter_context(counter(url, names, kill_half_way))
    run_job(images, out, [doomed_url, counted], "--workers", 2, "--concurrency", 4)
    assert killed and killed["captioned_before"] < IMAGES, f"nothing was killed in time: {killed}"
    found = rows(out)
    captioned = collections.Counter(row["image"] for row in found)
    assert captioned == collections.Counter(names.values()), f"{captioned}"
    failed = [row for row in found if row["error"] is not None or not row["caption"] or not row["completion_tokens"]]
    assert not failed, f"{failed}"

    asked.clear()
    # In blocks of other images, whose parts are not there.
    run_job(images, out, [counted], "--block", BLOCK + 1)
    second_run = len(asked)
    assert not asked, f"a finished job has asked for {asked}"
    part = min(out.glob("part-*.jsonl"))
    lost = sorted(json.loads(line)["image"] for line in part.open(encoding="utf-8"))
    part.unlink()
    run_job(images, out, [counted])
    again = sorted(set(asked))
    assert again == lost, f"{lost} were deleted, and {again} asked for"
    assert collections.Counter(row["image"] for row in rows(out)) == captioned
    return {
        "images": IMAGES,
        "killed": killed,
        "rows": len(found),
        "failed": len(failed),
        "asked_by_a_second_run": second_run,
        "asked_after_a_part_was_deleted": len(again),
        "seconds": round(time.monotonic() - start, 1),
    }


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        report = main(shlex.split(sys.argv[1]), sys.argv[2])
    print(json.dumps(report))
