"""Asks `lfm2vl serve` with `llm`, a program for the command line.

    python3 llm_client.py BASE_URL SAMPLES_FOLDER

BASE_URL is like http://127.0.0.1:8080/v1, of a server with the sample model in float32 and default settings, which
nobody else asks meanwhile; SAMPLES_FOLDER has samples.json and its images. Prints one line of JSON: what was seen.
Needs llm 0.36 and openai 3.57.0.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

FUNCTION = """
def weather(city: str) -> str:
    "How the weather is in a city."
    return "clear"
"""
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


def fetched(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def main(base_url, samples, folder):
    model = json.loads(fetched(f"{base_url}/models"))["data"][0]["id"]
    # JSON is YAML.
    entry = {"model_id": "tiny", "model_name": model, "api_base": base_url}
    entry |= {"vision": True, "supports_schema": True, "supports_tools": True}
    (folder / "extra-openai-models.yaml").write_text(json.dumps([entry]), encoding="utf-8")
    known = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "LLM_"))}
    environment = known | {"LLM_USER_PATH": str(folder), "PYTHONIOENCODING": "utf-8"}

    def llm(prompt, *arguments):
        """What it prints: the answer, and what it says besides."""
        command = [sys.executable, "-m", "llm", prompt, *arguments, "-o", "temperature", "0", "-o", "max_tokens", "100"]
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=60)
        assert done.returncode == 0, f"{prompt}: {done.stderr}"
        return done.stdout.rstrip("\n"), done.stderr

    def streams():
        lines = fetched(base_url.removesuffix("/v1") + "/metrics").splitlines()
        name = "lfm2vl_time_to_first_token_seconds_count "
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    questions = json.loads((samples / "samples.json").read_text(encoding="utf-8"))
    emoji = next(question for question in questions if "🙂" in question["answer"])
    photo, many = questions[0], next(question for question in questions if len(question["images"]) == 2)

    before = streams()
    answer, usage = llm(emoji["prompt"], "-m", "tiny", "--usage")
    assert answer == emoji["answer"] and "input" in usage and "output" in usage, f"{answer}, {usage}"
    assert streams() == before + 1, "it was not streamed"
    whole, same_usage = llm(emoji["prompt"], "-m", "tiny", "--usage", "--no-stream")
    assert (whole, same_usage) == (answer, usage), f"{whole}, {same_usage}"
    assert streams() == before + 1, "it was streamed"

    for question in (photo, many):
        images = [word for name in question["images"] for word in ("-a", str(samples / name))]
        seen, _ = llm(question["prompt"], "-m", "tiny", *images)
        assert seen == question["answer"], f"{question}: {seen}"
    # The conversation goes on.
    llm(photo["prompt"], "-m", "tiny", "-a", str(samples / photo["images"][0]))
    later, _ = llm(questions[1]["prompt"], "-c")
    assert later == questions[1]["answer"], f"{later}"

    shaped, _ = llm("Hello", "-m", "tiny", "--schema", json.dumps(SCHEMA))
    found = json.loads(shaped)
    assert found["colour"] in ("red", "blue") and 0 <= found["count"] <= 9 and len(found) == 2, f"{shaped}"
    with_function, _ = llm("Hello", "-m", "tiny", "--functions", FUNCTION)
    assert with_function, "no answer with a function"
    return {"answer": answer, "usage": usage.strip(), "photo": seen, "later": later, "schema": found}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        report = main(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(temporary))
    print(json.dumps(report, ensure_ascii=False))
