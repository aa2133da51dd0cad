"""The figures of ``benchmarks/gpu.sh`` as lines of text, and as rows for ``docs/results/data/gpu.jsonl``.

python -m benchmarks.gpu.table build/gpu/results >> docs/results/data/gpu.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.output import recorded

Row = dict[str, Any]
GIB = 2**30
HEADINGS = ("step", "row", "prefill", "of matmul", "decode", "of memory", "peak+weights", "x transformers")


def lines(rows: Sequence[Row], done: Sequence[Row]) -> list[str]:
    """The table: speeds, then what the other steps found, then how each step ended."""
    table = [HEADINGS, *(cells(row, rows) for row in rows if "prefill_tps" in row)]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADINGS))]
    found = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    found += list(others(rows))
    found += growth(rows)
    ends = {row["step"]: row for row in done}
    for name, row in ends.items():
        end = {0: "done", None: "no time left", 124: "ended by the clock"}.get(row["code"], f"FAILED ({row['code']})")
        found.append(f"{name}: {end} after {row['seconds']} s")
    return found


def cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """A measured row; ratios are to transformers at the same length in the same step."""
    base = next((r for r in rows if same_run(r, row) and r["recipe"] == "transformers"), None)
    times = ""
    if base is not None and base is not row:
        times = f"{base['prefill_s'] / row['prefill_s']:.2f} · {row['decode_tps'] / base['decode_tps']:.2f}"
    return (
        row["step"],
        row["key"],
        f"{row['prefill_tps']:,.0f}/s",
        f"{row['matmul_share']:.0%}",
        f"{row['decode_tps']:,.1f}/s",
        f"{row['bandwidth_share']:.0%}",
        f"{peak(row) / GIB:.2f} GiB" if row.get("peak_bytes") is not None else "?",
        times,
    )


def same_run(one: Row, other: Row) -> bool:
    return "prefill_tps" in one and (one["step"], one["tokens"]) == (other["step"], other["tokens"])


def peak(row: Row) -> int:
    """Bytes at the peak, weights included."""
    total: int = row["peak_bytes"] + row["weight_bytes"]
    return total


def others(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if "check_error" in row:
            yield f"{row['step']}: {row['key']}: CHECK FAILED: {row['check_error'][:200]}"
        if "error" in row:
            yield f"{row['step']}: {row['key']}: {row['error'][:200]}"
        elif "ok" in row and not row["ok"]:
            yield f"{row['step']}: {row['key']}: differs from the CPU: {json.dumps(row)[:200]}"
        elif "failures" in row and row["code"]:
            failed = f"{row.get('failed', 0)} failed: {row['failures'][:3]}"
            yield f"{row['step']}: {row['key']}: code {row['code']}, {failed}"
        elif "kernels" in row:
            top = ", ".join(f"{k['name'][:40]} {k['share']:.0%}" for k in row["kernels"][:6])
            yield f"{row['step']}: {row['phase']}: GPU busy {row['busy']:.0%}: {top}"
        elif row.get("key") == "steps":
            for name, speed in row["steps"].items():
                ratios = " · ".join(f"{value} x {base}" for base, value in speed["times_as_fast_as"].items())
                there, here = (f"{speed[f'{place}_bytes'] / GIB:.2f} GiB" for place in ("device", "host"))
                sizes = f"{there} on the device, {here} on the host"
                yield f"{row['step']}: {name}: {1000 * speed['median_s']:.2f} ms a token, {ratios}, {sizes}"
        elif row.get("key") == "training":
            yield f"{row['step']}: {json.dumps(row)}"
    good = sum(row.get("ok", False) for row in rows)
    if good:
        yield f"recipes that agree with the CPU: {good} of {sum('ok' in row for row in rows)}"


def growth(rows: Sequence[Row]) -> list[str]:
    """Memory of one recipe at its greatest length, compared with 128K."""
    found, sizes = [], {}
    for row in rows:
        if row.get("peak_bytes") is not None and not row.get("graph"):
            sizes.setdefault((row["shape"], row["weights"], row["recipe"]), {})[row["tokens"]] = peak(row)
    for (shape, weights, recipe), of in sizes.items():
        most = max(of)
        if 2**17 in of and most > 2**17:
            times = f"{of[most] / of[2**17]:.3f} times the memory at {most:,} as at 131,072 tokens"
            found.append(f"{shape} {weights}, {recipe}: {times}")
    return found


def to_rows(rows: Sequence[Row], done: Sequence[Row]) -> Iterator[Row]:
    """Rows for ``docs/results/data``, each with its origin."""
    origin = {
        row["step"]: {"command": f"sh benchmarks/gpu.sh --only '{row['step']}'", "date": row["date"][:10]}
        for row in done
    }
    machine = next((row["machine"] for row in rows if "machine" in row), "")
    for row in rows:
        if row["step"] not in origin or "error" in row or "check_error" in row:
            continue
        end = {"n": row.get("repeat", row.get("rounds", 1)), **origin[row["step"]], "machine": machine}
        if "prefill_tps" in row:
            base = next((r for r in rows if same_run(r, row) and r["recipe"] == "transformers"), row)
            speeds = {
                "prefill_tps": round(row["prefill_tps"]),
                "matmul_percent": round(100 * row["matmul_share"]),
                "decode_tps": row["decode_tps"],
                "memory_percent": round(100 * row["bandwidth_share"]),
                "peak_gib": round(peak(row) / GIB, 2) if row.get("peak_bytes") is not None else None,
            }
            if base is not row:
                speeds |= {
                    "prefill_times": round(base["prefill_s"] / row["prefill_s"], 2),
                    "decode_times": round(row["decode_tps"] / base["decode_tps"], 2),
                }
            known = {"model": row["shape"], "weights": row["weights"], "graph": row["graph"], "step": row["step"]}
            yield {"table": "gpu-speed", "recipe": row["recipe"], "tokens": row["tokens"], **known, **speeds, **end}
        elif row.get("key") == "steps":
            for name, speed in row["steps"].items():
                sizes = {key: round(speed[f"{key}_bytes"] / GIB, 2) for key in ("device", "host")}
                ratios = {f"times_{base}": value for base, value in speed["times_as_fast_as"].items()}
                times = {"ms": round(1000 * speed["median_s"], 2), **ratios}
                yield {"table": "gpu-host", "storage": name, "tokens": row["tokens"], **times, **sizes, **end}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for row in to_rows(recorded(folder / "rows.jsonl"), recorded(folder / "done.jsonl")):
        print(json.dumps(row, ensure_ascii=False))
