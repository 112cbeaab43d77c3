"""Asks `lfm2vl serve --api-key-file` with OpenAI's own client, with keys and without, and as browsers do.

    python3 server_keys.py BASE_URL KEY [ORIGIN]

BASE_URL is like http://127.0.0.1:8080/v1; KEY is one of the server's. With an ORIGIN, such as https://example.com,
it must be that of --cors-origin; without one, the server must have none. Prints one line of JSON: what each check
saw. Fails when one of them did; the others are made all the same.
Needs openai 3.57.0.
"""

import json
import sys
import traceback
import urllib.error
import urllib.request

from openai import AuthenticationError, OpenAI

BASE_URL, KEY, ORIGIN = [*sys.argv[1:], None][:3]
# What OpenAI's client for JavaScript sends from a web page.
OF_CLIENT = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version"
OF_CLIENT += ",x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"


def client(key):
    return OpenAI(base_url=BASE_URL, api_key=key, max_retries=0, timeout=30)


def response(path, method="GET", **headers):
    """Status and headers, with names in small letters."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(BASE_URL.removesuffix("/v1") + path, method=method, headers=named)
    try:
        found = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        found = error
    with found:
        return found.status, {name.lower(): value for name, value in found.headers.items()}


def keys():
    hello = [{"role": "user", "content": "Hello"}]
    for key in ("wrong", KEY + "x", "x" + KEY):
        for ask in (
            lambda chat: chat.models.list(),
            lambda chat: chat.chat.completions.create(model="any", messages=hello),
            lambda chat: chat.chat.completions.create(model="any", messages=hello, stream=True),
        ):
            try:
                ask(client(key))
                raise AssertionError(f"'{key}' was let in")
            except AuthenticationError as error:
                assert (error.code, error.type) == ("invalid_api_key", "authentication_error"), f"{error.body}"
                assert KEY not in str(error.body)
    model = client(KEY).models.list().data[0].id
    answer = client(KEY).chat.completions.create(model=model, messages=hello, temperature=0)
    assert answer.choices[0].message.content
    open_paths = {path: response(path)[0] for path in ("/healthz", "/readyz", "/metrics", "/openapi.json")}
    assert set(open_paths.values()) == {200}, f"{open_paths}"
    return {"answer": answer.choices[0].message.content, "open": sorted(open_paths)}


def schemes():
    """What RFC 9110 says: a 401 tells how to get in (11.6.1), and the scheme's letters may be small (11.1)."""
    for headers in ({}, {"Authorization": KEY}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {KEY}"}):
        assert response("/v1/models", **headers)[0] == 401, f"{headers}"
    asked = response("/v1/models")[1].get("www-authenticate")
    problems = [] if asked and asked.startswith("Bearer") else [f"WWW-Authenticate: {asked}"]
    for scheme in ("Bearer", "bearer"):
        if (status := response("/v1/models", Authorization=f"{scheme} {KEY}")[0]) != 200:
            problems.append(f"Authorization: {scheme} KEY: {status}")
    assert not problems, "; ".join(problems)
    return {"www_authenticate": asked}


def preflight(origin):
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": OF_CLIENT}
    return response("/v1/chat/completions", "OPTIONS", Origin=origin, **asked)[1]


def origins():
    other = "https://other.example.org"
    key = {"Authorization": f"Bearer {KEY}"}
    for path, more in (("/v1/models", key), ("/v1/models", {}), ("/healthz", {})):
        for origin in (ORIGIN or other, other, "null"):
            _, found = response(path, **more, Origin=origin)
            expected = origin if origin == ORIGIN else None
            assert found.get("access-control-allow-origin") == expected, f"{path} for {origin}: {found}"
            assert "access-control-allow-credentials" not in found
    for origin in (ORIGIN or other, other):
        allowed = preflight(origin).get("access-control-allow-origin")
        assert allowed == (origin if origin == ORIGIN else None), f"{origin}: {allowed}"
    return {"allowed": ORIGIN}


def web_client():
    """OpenAI's client in a web page of the origin."""
    if not ORIGIN:
        return None
    found = preflight(ORIGIN)
    assert "POST" in found["access-control-allow-methods"], f"{found}"
    allowed = found["access-control-allow-headers"].lower().replace(" ", "").split(",")
    missing = sorted(set(OF_CLIENT.split(",")) - set(allowed))
    assert not missing, f"it may not send {missing}"
    _, found = response("/v1/models", Authorization=f"Bearer {KEY}", Origin=ORIGIN)
    exposed = found.get("access-control-expose-headers", "").lower()
    assert "x-request-id" in exposed and "retry-after" in exposed, f"{found}"
    return {"may_send": allowed}


if __name__ == "__main__":
    seen, failed = {}, []
    for check in (keys, schemes, origins, web_client):
        try:
            seen[check.__name__] = check()
        except Exception:
            traceback.print_exc()
            failed.append(check.__name__)
    print(json.dumps({**seen, "failed": failed}, ensure_ascii=False))
    sys.exit(bool(failed))
