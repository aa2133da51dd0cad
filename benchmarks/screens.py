"""What a user sees of kvcli's commands on a terminal of 80 columns, and when: recordings made in tmux.

    python -m benchmarks.screens TEXT [PDF] [--out screens.md]
    python -m benchmarks.screens TEXT PDF --rest       # the other commands of README and docs, without recordings

Each command runs in a terminal of its own (tmux, 80 × 24), with an empty cache at first. Prints one row for each:
seconds from Enter to the first sign, to the first word of the answer, and to the end, and the exit code. ``--out``
writes the screens as Markdown: what was new on them, and when.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.provenance import provenance

COLUMNS, ROWS = 80, 24
POLL_S, TIMEOUT_S = 0.05, 900.0
QUESTION = "Who tells the story?"
NOTES = re.compile(
    r"(starting|loading|download|convert|document|model|engine|heads|prefill|cached|resumed|reread|text|chat) "
    r"| {4}|.*\b(stabilizers|keeping)\b"
)
"""Rows that are about the work, not of the answer."""


@dataclass
class Recording:
    """A command on a terminal: screens, as rows, with the seconds since Enter."""

    command: str
    screens: list[tuple[float, list[str]]] = field(default_factory=list)
    end_s: float = 0.0
    code: int | None = None

    @property
    def first_sign_s(self) -> float | None:
        """Seconds until anything is on the screen."""
        return next((s for s, rows in self.screens if any(rows)), None)

    @property
    def first_word_s(self) -> float | None:
        """Seconds until a row that is not a note."""
        return next((s for s, rows in self.screens if any(row and not NOTES.match(row) for row in rows)), None)


class Terminal:
    """A terminal in tmux with a server of its own."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.socket = f"kvcli-walk-{os.getpid()}"
        self.status = folder / "status"
        shell = ["env", "-i", *(f"{k}={v}" for k, v in environment.items()), "bash", "--norc", "--noprofile"]
        size = ["-x", str(COLUMNS), "-y", str(ROWS)]
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, "-c", str(folder), shlex.join(shell))
        self._tmux("set-option", "-g", "history-limit", "10000")

    def _tmux(self, *words: str) -> str:
        return subprocess.run(["tmux", "-L", self.socket, *words], check=True, capture_output=True, text=True).stdout

    def screen(self) -> list[str]:
        """The rows, those that have left the screen included, without empty ones at the end."""
        return self._tmux("capture-pane", "-p", "-S", "-").rstrip().split("\n")

    def run(self, command: str, typed: Sequence[tuple[str, str]] = ()) -> Recording:
        """Run a command until it ends. Each of ``typed`` is a text that is waited for, and what is typed then."""
        self.status.unlink(missing_ok=True)
        self._tmux("send-keys", "clear; stty -echo; PS1=", "Enter")
        time.sleep(1)
        self._tmux("send-keys", "-l", f"clear; {command}; echo $? > {self.status}")
        self._tmux("clear-history")
        self._tmux("send-keys", "Enter")
        start, recording, left = time.perf_counter(), Recording(command), list(typed)
        seen = 0
        while time.perf_counter() - start < TIMEOUT_S:
            rows, seconds = self.screen(), time.perf_counter() - start
            if any("echo $? >" in row for row in rows):
                rows = []  # the command itself, before the screen is cleared
            if not recording.screens or rows != recording.screens[-1][1]:
                recording.screens.append((seconds, rows))
            text = "\n".join(rows)
            if left and left[0][0] in text[seen:]:
                seen = len(text)
                self._tmux("send-keys", "-l", left.pop(0)[1])
                self._tmux("send-keys", "Enter")
            if self.status.exists() and self.status.read_text().strip():
                recording.code, recording.end_s = int(self.status.read_text()), seconds
                return recording
            time.sleep(POLL_S)
        raise RuntimeError(f"{command} did not end in {TIMEOUT_S:.0f} s:\n" + "\n".join(self.screen()))

    def close(self) -> None:
        """End tmux."""
        subprocess.run(["tmux", "-L", self.socket, "kill-server"], check=False, capture_output=True)


def commands(text: str, pdf: str | None) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Names, commands, and what is typed into them."""
    ask = f'kvcli ask {text} "{QUESTION}"'
    alone = f"KVCLI_KEEP_ALIVE=0 {ask}"
    yield "kvcli --help", "kvcli --help", []
    yield "ask, the very first time", alone, []
    yield "ask again", alone, []
    yield "ask, the engine is started", ask, []
    yield "ask, by the engine", ask, []
    yield "ask in a pipe", f'cat {text} | kvcli ask -q "{QUESTION}" -n 20 | head -1', []
    if pdf:
        yield "ask, pages of a PDF", f'kvcli ask {pdf} "How is a package orphaned?" --pages 20-22 --cite', []
        yield "extract", f"kvcli extract {pdf} --pages 20 | head -5", []
    yield "ask, an unknown model", f'kvcli ask {text} "{QUESTION}" -m nosuch', []
    yield "ask, a missing file", f'kvcli ask nosuch.txt "{QUESTION}"', []
    yield "plan", f"kvcli plan {text}", []
    yield "recipes", "kvcli recipes", []
    yield "cache ls", "kvcli cache ls", []
    yield "chat", f"kvcli chat {text}", [("\n>", QUESTION), ("\n>", "/quit")]
    yield "stop", "kvcli stop", []


def rest(text: str, pdf: str | None) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """The other commands, in order: later ones use what earlier ones made. A first one makes files to ask about."""
    ask, quit_chat = f"kvcli ask {text}", [("\n>", "/quit")]
    files = f"mkdir src; head -c 2000 {text} > other.txt; cp other.txt src/one.txt; cp {text} src/two.txt"
    yield "(files)", f"{files}; printf 'Who speaks?\\nWhere is it?\\n' > questions.txt", []
    yield "--version", "kvcli --version", []
    yield "ask --help", "kvcli ask --help | tail -5", []
    yield "doctor", "kvcli doctor | tail -20", []
    yield "ask --budget --stats", f'{ask} "{QUESTION}" -n 20 --budget 256 --stats', []
    yield "ask, two questions, --json", f'{ask} -e "{QUESTION}" -e "Where is it?" -n 20 --json | jq -r .answer', []
    yield "ask a directory", f'kvcli ask src "{QUESTION}" -n 20', []
    yield "ask about two files, --cite strict", f'kvcli ask {text} other.txt "Where do they differ?" --cite strict', []
    yield "ask --each", f'kvcli ask --each {text} other.txt "{QUESTION}" -n 20', []
    yield "ask without a document", 'kvcli ask "What is the capital of France?"', []
    yield "ask --policy full+quest", f'{ask} "{QUESTION}" -n 20 --policy full+quest', []
    yield "ask --kv-bits 4", f'{ask} "{QUESTION}" -n 20 --kv-bits 4', []
    yield "ask --query-aware", f'{ask} "{QUESTION}" -n 20 --query-aware', []
    yield "ask -t quote", f'{ask} "{QUESTION}" -t quote', []
    yield "ask --export", f'{ask} "{QUESTION}" -n 20 --export answer.html && head -c 60 answer.html', []
    yield "ask -c", 'kvcli ask -c "And where?" -n 20', []
    yield "open 1 --link", "kvcli open 1 --link", []
    yield "prefill -o", f"kvcli prefill {text} -o text.kv", []
    yield "ask a .kv file", f'kvcli ask text.kv "{QUESTION}" -n 20', []
    yield "kv", f"kvcli kv {text} --budget 256", []
    yield "map", f"kvcli map {text} other.txt -Q questions.txt -o answers.jsonl -n 20", []
    yield "summarise", f"kvcli summarise {text} --words 40", []
    if pdf:
        yield "extract --report", f"kvcli extract {pdf} --report | tail -5", []
    yield "models ls", "kvcli models ls", []
    yield "models show", "kvcli models show smollm2-135m", []
    yield "models suggest", "kvcli models suggest", []
    yield "cache verify", "kvcli cache verify", []
    yield "config show --origin", "kvcli config show --origin", []
    yield "logs", "kvcli logs -n 3", []
    yield "bench", "kvcli bench -p 512 -g 8 --budget 256", []
    yield "eval needle", f"kvcli eval needle {text} --lengths 512 --cases 1 --budget 256", []
    yield "calibrate", f"kvcli calibrate --tokens 256 {text}", []
    yield "ask --policy full+infinigen", f'{ask} "{QUESTION}" -n 20 --policy "full+infinigen(skew=file)"', []
    yield "train, two steps", f"kvcli train {text} --steps 2 --tokens 128-256 -o heads.safetensors", []
    yield "chat --session", f"kvcli chat {text} --session walk", [("\n>", QUESTION), *quit_chat]
    yield "chat -c", "kvcli chat -c", quit_chat
    yield "questions in a pipe to chat", f"echo '{QUESTION}' | kvcli chat {text} -n 20", []
    yield "ask, an unknown option", f'{ask} "{QUESTION}" --buget 5', []
    yield "stop", "kvcli stop", []


def markdown(recordings: dict[str, Recording], frames: int = 6) -> Iterator[str]:
    """The recordings, each as what was new on its screens; of many screens ``frames``."""
    yield (
        "# Recordings\n\n"
        f"What commands show on a terminal of {COLUMNS} columns, and when. `python -m benchmarks.screens book.txt "
        "manual.pdf --out docs/recordings.md`\nmakes this page in tmux. A line `--- 3.2 s` says when the rows after it "
        f"were new; of many screens at most {frames} are here.\n"
    )
    for name, recording in recordings.items():
        yield f"## {name}\n"
        yield f"```\n$ {recording.command}"
        screens = [(s, rows) for s, rows in recording.screens if any(rows)]
        step = max(1, -(-len(screens) // frames))
        chosen = sorted({*range(0, len(screens), step), len(screens) - 1}) if screens else []
        before: list[str] = []
        for i in chosen:
            seconds, rows = screens[i]
            both = min(len(rows), len(before))
            same = next((k for k in range(both) if rows[k] != before[k]), both)
            yield f"--- {seconds:.1f} s"
            yield "\n".join(rows[same:][: ROWS // 2])
            before = rows
        yield f"--- {recording.end_s:.1f} s, exit code {recording.code}\n```\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("pdf", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rest", action="store_true", help="the other commands of README and docs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvcli-walk-") as name:
        folder = Path(name)
        names = []
        for path in filter(None, (args.text, args.pdf)):
            (folder / path.name).write_bytes(path.read_bytes())
            names.append(path.name)
        environment = {
            **{key: value for key, value in os.environ.items() if key in ("HOME", "LANG") or key.startswith("PIP_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TERM": "screen-256color",
            "LC_ALL": "C.UTF-8",
            "KVCLI_CACHE_DIR": str(folder / "cache"),
            "KVCLI_DATA_DIR": str(folder / "data"),
            "KVCLI_CONFIG": str(folder / "config.toml"),
            "XDG_RUNTIME_DIR": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
        }
        terminal = Terminal(environment, folder)
        recordings = {}
        try:
            chosen = rest if args.rest else commands
            for name, command, typed in chosen(names[0], names[1] if len(names) > 1 else None):
                recording = recordings[name] = terminal.run(command, typed)
                row = {
                    "task": "walk",
                    "recipe": name,
                    "first_sign_s": recording.first_sign_s,
                    "first_word_s": recording.first_word_s,
                    "end_s": recording.end_s,
                    "code": recording.code,
                    "load": os.getloadavg()[0],
                }
                row = {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}
                print(
                    json.dumps(
                        row
                        | provenance("python -m benchmarks.screens book.txt manual.pdf" + " --rest" * args.rest, n=1)
                    )
                )
                sys.stdout.flush()
        finally:
            terminal.close()
            if args.out:
                args.out.write_text("\n".join(markdown(recordings)))


if __name__ == "__main__":
    main()
