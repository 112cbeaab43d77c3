"""Answers a file of requests with `lfm2vl batch`, kills it twice, and compares with a run that was left alone.

    python3 batch_file.py LFM2VL_PROGRAM MODEL_FOLDER [--seed N]

The file has bodies and lines of OpenAI's batch format, and lines that are wrong. Fails unless the answers are the
same but for ids and times, one for each line and in order, with the faults of lines in their places, and unless a
half-written answer is repaired and files that belong to something else are refused and left as they are.
Prints one line of JSON: what it saw.
"""

import argparse
import json
import pathlib
import random
import shlex
import subprocess
import sys
import tempfile
import time

LINES = 60
URL = "/v1/chat/completions"
TIMEOUT = 300
# What differs from run to run: prefixes are shared with whatever was answered before.
VARIES = {"id", "created", "system_fingerprint", "cached_tokens"}

faults = []


def check(is_fine, fault):
    if not is_fine:
        faults.append(fault)
        print(fault, file=sys.stderr)


def requests(rng):
    """Lines, and for each the status of its answer and the words that its error must have."""
    for index in range(LINES):
        body = {
            "messages": [{"role": "user", "content": f"Tell me of the number {rng.randint(0, 99)}."}],
            "temperature": rng.choice([0, 1]),
            "seed": index,
            "max_completion_tokens": rng.randint(50, 200),
            "ignore_eos": True,
        }
        line = {"custom_id": f"request {index}", "method": "POST", "url": URL, "body": body}
        wrong = {
            3: ("this is no JSON", 400, "no JSON"),
            7: (line | {"body": body | {"model": "another"}}, 404, "no such model"),
            11: (line | {"body": body | {"stream": True}}, 400, "stream"),
            16: (body | {"stream": True}, 400, "stream"),
            21: (line | {"url": "/v1/embeddings"}, 400, URL),
            26: (line | {"method": "GET"}, 400, "POST"),
            31: ({"custom_id": "no body"}, 400, "body"),
            34: (json.dumps(line)[:-10], 400, "no JSON"),
            38: (body | {"temperature": 9}, 400, "temperature"),
            42: ([1, 2], 400, ""),
            47: (line | {"body": body | {"unknown": 1}}, 400, "unknown"),
            53: (line | {"body": body | {"messages": []}}, 400, "message"),
        }
        right = line if index % 2 else body
        yield wrong.get(index, (right, 200, None))


def custom_id(line, number):
    found = line.get("custom_id") if isinstance(line, dict) and "messages" not in line else None
    return found or f"line-{number}"


def without(value):
    """A value without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without(inner) for key, inner in value.items() if key not in VARIES}
    return [without(inner) for inner in value] if isinstance(value, list) else value


class Batch:
    def __init__(self, program, model, folder):
        self.command, self.folder = [*program, "batch", model], folder

    def start(self, source, output):
        command = list(map(str, [*self.command, source, "--output", output]))
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def run(self, source, output):
        """Exit status and what it says."""
        process = self.start(source, output)
        try:
            _, said = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        return process.returncode, said

    def kill_at(self, source, output, lines):
        """Kills it when there are so many answers; how many there are then."""
        process = self.start(source, output)
        end = time.monotonic() + TIMEOUT
        try:
            while process.poll() is None and count(output) < lines:
                assert time.monotonic() < end, f"not {lines} answers within {TIMEOUT} s"
                time.sleep(0.002)
        finally:
            process.kill()
            process.communicate()
        check(process.returncode == -9, f"it has ended with {process.returncode} before it was killed")
        return count(output)

    def refuses(self, what, source, output):
        """Checks that it does not touch a file of something else."""
        before = output.read_bytes()
        status, said = self.run(source, output)
        check(status not in (0, -9), f"{what}: exit status {status}, where it had to refuse")
        check(output.read_bytes() == before, f"{what}: the file was changed")
        check("panick" not in said and said.strip(), f"{what}: it says {said!r}")
        return said.strip().splitlines()[-1] if said.strip() else ""


def count(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check_answers(answers, wanted):
    check(len(answers) == len(wanted), f"{len(answers)} answers to {len(wanted)} requests")
    for number, (answer, (line, status, words)) in enumerate(zip(answers, wanted), start=1):
        what = f"line {number}"
        check(set(answer) == {"id", "custom_id", "response", "error"}, f"{what}: fields {sorted(answer)}")
        known = custom_id(line, number)
        check(answer["custom_id"] == known, f"{what}: the answer is that of {answer['custom_id']!r}, not of {known!r}")
        found, body = answer["response"]["status_code"], answer["response"]["body"]
        check(found == status, f"{what}: status {found} and not {status}: {body}")
        if found != 200:
            check(set(body["error"]) == {"message", "type", "param", "code"}, f"{what}: fields of an error: {body}")
            check(words is not None and words in json.dumps(body), f"{what}: it does not tell of {words!r}: {body}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=shlex.split)
    parser.add_argument("model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, start = random.Random(arguments.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        batch = Batch(arguments.program, arguments.model, folder)
        wanted = list(requests(rng))
        lines = [line if isinstance(line, str) else json.dumps(line) for line, _, _ in wanted]
        source, whole, output = folder / "in.jsonl", folder / "whole.jsonl", folder / "out.jsonl"
        # Empty lines are none.
        source.write_text("\n\n".join(lines) + "\n  \n")

        status, said = batch.run(source, whole)
        assert status == 0, f"exit status {status}: {said}"
        answers = [json.loads(line) for line in whole.read_text().splitlines()]
        check_answers(answers, wanted)
        refused = sum(status != 200 for _, status, _ in wanted)
        check(f"{LINES} requests, {refused} failed" in said, f"it does not say that {refused} have failed: {said!r}")

        killed = [batch.kill_at(source, output, rng.randint(*between)) for between in [(1, 20), (30, 50)]]
        # As where it is killed while it writes.
        data = output.read_bytes()
        last = data.rstrip(b"\n").rfind(b"\n") + 1
        output.write_bytes(data[: rng.randrange(last + 1, len(data))])
        status, said = batch.run(source, output)
        check(status == 0, f"exit status {status} when it goes on: {said}")
        again = [json.loads(line) for line in output.read_text().splitlines()]
        check_answers(again, wanted)
        pairs = enumerate(zip(answers, again), start=1)
        different = [number for number, (one, other) in pairs if without(one) != without(other)]
        check(not different, f"lines {different} have other answers than when nothing was killed")

        finished = output.read_bytes()
        status, said = batch.run(source, output)
        check(status == 0 and output.read_bytes() == finished, f"a finished file is answered again: {status}, {said!r}")

        shorter, other, words = folder / "shorter.jsonl", folder / "other.jsonl", folder / "words.txt"
        shorter.write_text("\n".join(lines[:10]) + "\n")
        renamed = [line.replace("request ", "question ") for line in lines]
        other.write_text("\n".join(renamed) + "\n")
        words.write_text("These are no answers.\n")
        some = folder / "some.jsonl"
        some.write_bytes(b"".join(finished.splitlines(keepends=True)[:20]))
        reasons = [
            batch.refuses("answers to more requests", shorter, output),
            batch.refuses("the input as the output", source, source),
            batch.refuses("a file of something else", source, words),
            batch.refuses("answers to other requests", other, some),
        ]
    report = {
        "lines": LINES,
        "wrong": refused,
        "killed_after": killed,
        "different": len(different),
        "refusals": reasons,
        "seconds": round(time.monotonic() - start, 1),
        "faults": len(faults),
    }
    print(json.dumps(report))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
