"""What the benchmark's parts share: processes that take turns, statistics, tables."""

import ctypes
import json
import os
import pathlib
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = ROOT / "build" / "bench"
DESCRIPTION = ROOT / "config" / "models" / "resnet50.json"
LABELS = ROOT / "config" / "labels" / "imagenet-1k.tsv"
WEIGHTS = OUT / "resnet50.pth"
ONNX = OUT / "resnet50.onnx"
NPM = OUT / "npm"
PHOTO = OUT / "photo-500x375.jpg"
ORT = "onnxruntime"


class Missing(Exception):
    """A peer or a kernel table that cannot run here, and why."""


# A workstation's settings for other programs' sake, which would slow OpenBLAS or limit the peers' threads.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def environment(**extra):
    return {
        **{key: value for key, value in os.environ.items() if key not in UNSET and not key.startswith("RESNETD_")},
        **extra,
    }


def die_with_parent():
    """In the child: end when this process does, however it ends; a stopped child would stay for ever."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def spawn(command, **streams):
    return subprocess.Popen([str(part) for part in command], env=environment(), preexec_fn=die_with_parent, **streams)


class Peer:
    """A process that measures when told to: one line in, one JSON line out.

    Between its turns it is stopped, so that no thread of it that spins or cleans up takes a core from the one
    whose turn it is.
    """

    def __init__(self, name, command, timeout=180, **attributes):
        self.name = name
        self.attributes = attributes
        self.timeout = timeout
        self.stderr = tempfile.TemporaryFile()
        self.process = spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr)
        try:
            self.ready = self._read()
        except Missing:
            self.close()
            raise
        if not self.ready.get("ready"):
            self.close()
            raise Missing(f"{name}: {self.ready.get('error', 'did not start')}")
        self._signal(signal.SIGSTOP)

    def _signal(self, number):
        if self.process.poll() is None:
            self.process.send_signal(number)

    def _read(self):
        """Lines up to the end of one JSON value: bench_engine breaks its longest ones."""
        text = b""
        deadline = time.monotonic() + self.timeout
        while True:
            if not select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise Missing(f"{self.name}: no answer in {self.timeout} s")
            chunk = os.read(self.process.stdout.fileno(), 1 << 20)
            if not chunk:
                self.stderr.seek(0)
                lines = self.stderr.read().decode(errors="replace").strip().splitlines()
                raise Missing(f"{self.name}: ended" + (f", its last words: {lines[-1][:200]}" if lines else ""))
            text += chunk
            if text.endswith(b"\n"):
                try:
                    return json.loads(text)
                except ValueError:
                    pass

    def ask(self, line):
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
            answer = self._read()
        except (BrokenPipeError, OSError) as error:
            raise Missing(f"{self.name}: {error}") from error
        self._signal(signal.SIGSTOP)
        if "error" in answer:
            raise Missing(f"{self.name}: {answer['error']}")
        return answer

    def close(self):
        self._signal(signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.stderr):
            try:
                stream.close()
            except BrokenPipeError:
                pass


def percentile(values, share):
    ordered = sorted(values)
    return ordered[int((len(ordered) - 1) * share + 0.5)]


def median(values):
    return statistics.median(values)


def line_through(xs, ys):
    """Least squares y = a + b x: (a, b, R^2)."""
    mean_x, mean_y = statistics.fmean(xs), statistics.fmean(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys)) / spread
    offset = mean_y - slope * mean_x
    left = sum((y - offset - slope * x) ** 2 for x, y in zip(xs, ys))
    total = sum((y - mean_y) ** 2 for y in ys)
    return offset, slope, 1 - left / total if total else 1.0


def shown(entry, key, form=".2f", scale=1, unit=""):
    """A figure as a cell of a table; None where there is none."""
    value = entry.get(key)
    return None if value is None else f"{value * scale:{form}}{unit}"


class Report:
    """Prints, and keeps what it printed."""

    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8")

    def say(self, text=""):
        print(text, flush=True)
        print(text, file=self.file, flush=True)

    def title(self, text):
        self.say()
        self.say(text)
        self.say("-" * len(text))

    def table(self, heads, rows):
        """The first column to the left, the others to the right; None is a dash."""
        cells = [[str(head) for head in heads]] + [["-" if cell is None else str(cell) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
        for row in cells:
            self.say(
                "  ".join(
                    cell.ljust(width) if i == 0 else cell.rjust(width)
                    for i, (cell, width) in enumerate(zip(row, widths))
                ).rstrip()
            )


def note(text):
    """Progress, for who waits; not part of the report."""
    print(f"  ... {text}", file=sys.stderr, flush=True)
