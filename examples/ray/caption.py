"""Captions the images of a folder through replicas of `lfm2vl serve`, as a Ray Data job.

    python3 caption.py IMAGES_FOLDER -o OUT_FOLDER --server URL [--server URL]... [--prompt TEXT]
                       [--concurrency N] [--format jsonl|parquet]

OUT_FOLDER gets one part file for each block of images, with the columns image, caption, prompt_tokens,
completion_tokens and error. A second run asks only for the images that no part has. The environment
variable OPENAI_API_KEY is the servers' key, and RAY_ADDRESS a cluster that runs already.

Ends with 0 when every image has its row, and with 1 when some have none, or a server refuses the job.
"""

import argparse
import base64
import collections
import concurrent.futures
import datetime
import email.utils
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import random
import sys
import threading
import time
import uuid

import pyarrow
import pyarrow.parquet
import ray
import ray.data
import requests

TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".bmp": "bmp", ".gif": "gif"}
# What may go well at another time or with another replica, besides everything from 500 on.
PASSING = {408, 409, 425, 429}
# What would be said of any image: a wrong key, address or model name.
REFUSING = {401, 403, 404, 405}
# Each doubles a replica's rest, which begins with half a second and is half a minute at most.
MOST_FAILURES = 7
COLUMNS = pyarrow.schema([
    ("image", pyarrow.string()),
    ("caption", pyarrow.string()),
    ("prompt_tokens", pyarrow.int64()),
    ("completion_tokens", pyarrow.int64()),
    ("error", pyarrow.string()),
])


class Replicas:
    """The servers, and until when each of them is left alone."""

    def __init__(self, servers):
        self.rests_until = dict.fromkeys(servers, 0.0)
        self.failures = dict.fromkeys(servers, 0)
        self.lock = threading.Lock()

    def pick(self, deadline):
        """Any that may be asked, or none if that would be too late."""
        while (now := time.monotonic()) < deadline:
            with self.lock:
                ready = [server for server, until in self.rests_until.items() if until <= now]
                first = min(self.rests_until.values())
            if ready:
                return random.choice(ready)
            # Not all at the same moment.
            time.sleep(max(0, min(first + random.uniform(0, 0.25), deadline) - now))
        return None

    def failed(self, server, retry_after=None):
        with self.lock:
            now = time.monotonic()
            if self.rests_until[server] <= now:  # Requests that fail together are one failure.
                self.failures[server] = min(self.failures[server] + 1, MOST_FAILURES)
            rest = 2.0 ** (self.failures[server] - 2) * random.uniform(0.5, 1.5)
            if retry_after is not None:
                rest = retry_after * random.uniform(1, 1.25)
            self.rests_until[server] = max(self.rests_until[server], now + rest)

    def answered(self, server):
        with self.lock:
            self.failures[server] = 0


def retry_after(response):
    """Seconds, which the header has as a number or as a date."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        wait = email.utils.parsedate_to_datetime(value) - datetime.datetime.now(datetime.timezone.utc)
        return max(0.0, wait.total_seconds())
    except (ValueError, TypeError):
        return None


def message(response):
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


class Refused(Exception):
    """What no other image or replica would change."""


class Captioner:
    """A worker: asks for the captions of one block of images after another."""

    def __init__(self, job, key):
        self.job, self.replicas = job, Replicas(job.server)
        self.threads = -(-job.concurrency // job.workers)
        self.session = requests.Session()
        self.session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=self.threads))
        self.session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=self.threads))
        if key:
            self.session.headers["Authorization"] = f"Bearer {key}"

    def __call__(self, block):
        images = [str(image) for image in block["images"]]
        # The same images have the same name: whoever is given the block again, because a worker has died,
        # finds the part or replaces it.
        part = self.job.out / f"part-{hashlib.sha256(json.dumps(images).encode()).hexdigest()[:24]}.{self.job.format}"
        rows, refusal = [], ""
        if part.exists():
            rows = read_part(part)
        else:
            try:
                with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
                    rows = [row for row in pool.map(self.caption, images) if row]
            except Refused as error:
                refusal = str(error)
            if rows:
                write_part(part, rows)
        errors = sum(row["error"] is not None for row in rows)
        counts = {"captions": len(rows) - errors, "errors": errors, "unanswered": len(images) - len(rows)}
        return {**counts, "refusal": refusal}

    def caption(self, image):
        """The row of an image, or nothing if no replica has answered in time."""
        try:
            data = (self.job.images / image).read_bytes()
        except OSError as error:
            return row(image, error=f"cannot be read: {error.strerror}")
        uri = f"data:image/{TYPES[pathlib.Path(image).suffix.lower()]};base64,{base64.b64encode(data).decode()}"
        content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": self.job.prompt}]
        messages = [{"role": "user", "content": content}]
        request = {"messages": messages, "max_tokens": self.job.max_tokens, "temperature": 0}
        if self.job.model:
            request["model"] = self.job.model
        deadline = time.monotonic() + self.job.patience
        while server := self.replicas.pick(deadline):
            longest = max(1, min(self.job.timeout, deadline - time.monotonic()))
            try:
                response = self.session.post(
                    f"{server}/v1/chat/completions", json=request, timeout=(5, longest), allow_redirects=False
                )
                if response.status_code == 200:
                    answer = response.json()
                    text, usage = answer["choices"][0]["message"]["content"], answer["usage"]
                    self.replicas.answered(server)
                    return row(image, text, usage["prompt_tokens"], usage["completion_tokens"])
            except (requests.RequestException, ValueError, KeyError, IndexError, TypeError):
                self.replicas.failed(server)
                continue
            status = response.status_code
            if status in PASSING or status >= 500:
                self.replicas.failed(server, retry_after(response))
            elif status in REFUSING or status < 400:
                raise Refused(f"{server} says {status}: {message(response)}")
            else:
                self.replicas.answered(server)
                return row(image, error=f"{status}: {message(response)}")
        return None


def row(image, caption=None, prompt_tokens=None, completion_tokens=None, error=None):
    return dict(zip(COLUMNS.names, [image, caption, prompt_tokens, completion_tokens, error]))


def write_part(part, rows):
    """The whole file, or none."""
    # Of another name for each try, and none that anyone reads.
    new = part.with_name(f".{part.name}.{uuid.uuid4().hex}")
    with new.open("wb") as file:
        if part.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, COLUMNS), file)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    new.replace(part)


def read_part(part):
    if part.suffix == ".parquet":
        return pyarrow.parquet.read_table(part).to_pylist()
    with part.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def finished_images(out):
    parts = [part for pattern in ("part-*.jsonl", "part-*.parquet") for part in out.glob(pattern)]
    return {row["image"] for part in parts for row in read_part(part)}


def blocks(job):
    """Lists of images that no part has."""
    images = [path for path in job.images.rglob("*") if path.suffix.lower() in TYPES and path.is_file()]
    names = {path.relative_to(job.images).as_posix() for path in images}
    finished = names & finished_images(job.out)
    # In order, so that a run after one that was cut off makes the blocks that were not finished again.
    left = sorted(names - finished)
    print(f"{len(names)} images, {len(finished)} of them finished before", file=sys.stderr)
    return [left[start : start + job.block] for start in range(0, len(left), job.block)]


def run(job, blocks):
    """Counts of images that have a caption, an error, or neither."""
    ray.init(logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # They wait most of the time, so they must fit in beside anything.
    cpus = min(1, ray.cluster_resources()["CPU"] / (2 * job.workers))
    captions = ray.data.from_items([{"images": block} for block in blocks], override_num_blocks=len(blocks)).map(
        Captioner,
        fn_constructor_args=(job, os.environ.get("OPENAI_API_KEY")),
        compute=ray.data.ActorPoolStrategy(size=min(job.workers, len(blocks))),
        num_cpus=cpus,
    )
    total, counts = sum(map(len, blocks)), collections.Counter()
    start = told = time.monotonic()
    for counted in captions.iter_rows():
        if refusal := counted.pop("refusal"):
            sys.exit(f"the job has stopped: {refusal}")
        counts.update(counted)
        now = time.monotonic()
        if now - told > 1 or counts.total() == total:
            told, rate = now, counts.total() / (now - start)
            left = f"{(total - counts.total()) / rate:.0f} s left"
            print(f"{counts.total()} of {total} images, {rate:.1f} images/s, {left}", file=sys.stderr, flush=True)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("images", type=pathlib.Path, metavar="IMAGES_FOLDER", help="also its folders are looked through")
    option("-o", "--out", type=pathlib.Path, metavar="OUT_FOLDER", required=True)
    option("--server", action="append", metavar="URL", required=True, help="a replica, without /v1")
    option("--prompt", default="Describe this image in one sentence.")
    option("--format", choices=["jsonl", "parquet"], default="jsonl")
    option("--model", metavar="NAME", help="its name, where a server has several")
    option("--max-tokens", type=int, default=128, metavar="N", help="of a caption (%(default)s)")
    option("--concurrency", type=int, metavar="N", help="requests at a time (8 for each replica)")
    option("--workers", type=int, metavar="N", help="Ray's processes that share them (one for each replica)")
    option("--block", type=int, default=32, metavar="N", help="images in a part (%(default)s)")
    option("--timeout", type=float, default=300, metavar="SECONDS", help="for a request (%(default)s)")
    option("--patience", type=float, default=900, metavar="SECONDS", help="for an image, with all tries (%(default)s)")
    job = parser.parse_args()
    job.images, job.out = job.images.resolve(), job.out.resolve()
    job.server = [server.rstrip("/") for server in job.server]
    job.concurrency = job.concurrency or 8 * len(job.server)
    job.workers = min(job.workers or len(job.server), job.concurrency)
    if not all(server.startswith(("http://", "https://")) for server in job.server):
        parser.error("a server is http://HOST:PORT or https://HOST")
    if not job.images.is_dir():
        parser.error(f"{job.images} is no folder")
    job.out.mkdir(parents=True, exist_ok=True)

    with (job.out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another job writes to {job.out}")
        for cut_off in job.out.glob(".part-*"):
            cut_off.unlink(missing_ok=True)
        unfinished = blocks(job)
        if not unfinished:
            return
        try:
            counts = run(job, unfinished)
        except ray.exceptions.RayError as error:
            sys.exit(f"the job has stopped: {error}")
    print(f"{counts['captions']} captions, {counts['errors']} errors", file=sys.stderr)
    if counts["unanswered"]:
        sys.exit(f"{counts['unanswered']} images have no answer; run it again to ask for them")


if __name__ == "__main__":
    main()
