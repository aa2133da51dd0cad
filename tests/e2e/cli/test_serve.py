"""``kvcli serve`` as a process: what it prints, how it stops, and what it refuses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from kvcli.server.run import bind
from tests.e2e import forked
from tests.e2e.conftest import PROGRAM, Call

TEXT = "".join(f"House {n} is blue and the sky above it is number {n}. " for n in range(40))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--host", "0.0.0.0"], 2),
        (["--keep-alive", "soon"], 2),
        (["--memory", "much"], 2),
        (["--policy", "snapkv"], 2),
        (["--port", "70000"], 2),
        (["-"], 2),
        (["missing.txt"], 3),
    ],
)
def test_wrong_options_are_said_before_the_model_is_loaded(call: Call, options: list[str], code: int) -> None:
    outcome = call("serve", "-m", "no/such-model", *options)
    assert (outcome.code, outcome.out) == (code, "")


def test_a_port_in_use_is_said_before_the_model_is_loaded(call: Call) -> None:
    with bind("127.0.0.1", 0) as listening:
        outcome = call("serve", "-m", "no/such-model", "--port", str(listening.getsockname()[1]))
    assert outcome.code == 5


@pytest.mark.parametrize(("number", "more"), [(signal.SIGINT, []), (signal.SIGTERM, ["-v"])])
def test_it_serves_the_named_file_until_a_signal_and_writes_no_text_down(
    tiny_model: Path, folder: Path, environment: dict[str, str], number: signal.Signals, more: list[str]
) -> None:
    (folder / "house.txt").write_text(TEXT)
    options = ["-m", str(tiny_model), "--port", "0", "--policy", "keydiff(budget=64)", "house.txt"]
    with forked.Popen(
        [*PROGRAM, "serve", *options, *more],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        said, url = b"", None
        while url is None:
            line = process.stderr.readline()
            assert line, said
            said += line
            url = re.search(rb"http://127\.0\.0\.1:\d+", line)
        address = url[0].decode()
        file = httpx.get(f"{address}/v1/files", timeout=300).json()["data"][0]
        assert file["filename"] == "house.txt"
        message = {"role": "user", "content": "Who hid the lantern?"}
        question = {"messages": [message], "max_tokens": 4, "documents": [file["id"]]}
        answer = httpx.post(f"{address}/v1/chat/completions", json=question, timeout=300).json()
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == answer["kvcli"]["context"]["tokens"]
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (0, b""), err
    assert b"lantern" not in said + err
    assert (b"/v1/chat/completions" in err) is bool(more)


def test_in_the_background(tiny_model: Path, folder: Path, environment: dict[str, str]) -> None:
    (folder / "house.txt").write_text(TEXT)
    environment["XDG_RUNTIME_DIR"] = str(folder)

    def kvcli(*args: str) -> subprocess.CompletedProcess[str]:
        command = [*PROGRAM, "serve", *args]
        return forked.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)

    options = ["-m", str(tiny_model), "--port", "0", "--policy", "keydiff(budget=64)", "house.txt"]
    started = kvcli("--background", *options)
    assert started.returncode == 0, started.stderr
    (server,) = json.loads(kvcli("--status", "--json").stdout)["servers"]
    assert server["address"] in started.stderr
    assert server["documents"] == 1
    assert httpx.get(f"{server['address']}/v1/files", timeout=300).json()["data"][0]["filename"] == "house.txt"
    stopped = kvcli("--stop", "--port", str(server["port"]))
    assert stopped.returncode == 0
    assert server["address"] in stopped.stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(server["address"], timeout=5)


def test_in_the_background_an_error_is_that_of_the_foreground(call: Call, environment: dict[str, str]) -> None:
    words = ["serve", "-m", "no/such-model", "--port", "0"]
    command = [*PROGRAM, *words, "--background"]
    behind = forked.run(command, env=environment, capture_output=True, timeout=300)
    assert behind.returncode == call(*words).code == 4
    assert call("serve", "--background", "--stop").code == 2
    assert call("serve", "--status", "file.txt").code == 2
    assert call("serve", "--json").code == 2
