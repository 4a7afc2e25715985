"""What the test and its conftest share: where things are, the driver process, the table of results."""

import subprocess
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
CORPORA = ROOT.parent / "shared" / "corpora"

STATUSES = (
    "OK BAD_REQUEST EMPTY_BODY NOT_AN_IMAGE IMAGE_TRUNCATED IMAGE_CORRUPT IMAGE_UNSUPPORTED IMAGE_TOO_LARGE "
    "MEMORY_BUDGET INPUT_SIZE DEADLINE"
).split()

# corpus -> [files, equal, listed as different, refused by both]; tests fill it
table = {}
skipped = []


class Refused(Exception):
    """The decoder's status name and sentence."""

    def __init__(self, status, text):
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class Driver:
    """pixels_driver: one process for all files."""

    def __init__(self, path):
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _send(self, *fields):
        self.process.stdin.write(("\t".join(map(str, fields)) + "\n").encode())
        self.process.stdin.flush()

    def _ask(self, dtype, *fields):
        self._send(*fields)
        line = self.process.stdout.readline().decode().rstrip("\n")
        assert line, f"pixels_driver died on {fields}"
        verdict, rest = line.split(" ", 1)
        if verdict == "fail":
            number, text = rest.split(" ", 1)
            raise Refused(STATUSES[int(number)] if int(number) < len(STATUSES) else number, text)
        size, width, height, channels, orientation, scaled = map(int, rest.split())
        data = np.frombuffer(self.process.stdout.read(size), dtype).reshape(height, width, channels)
        return data, orientation, bool(scaled)

    def limits(self, max_pixels=2**28, max_bytes=2**31, timeout_ms=0):
        self._send("limits", max_pixels, max_bytes, timeout_ms)

    def decode(self, path, orient=True, channels=3):
        return self._ask(np.uint8, "decode", path, "orient" if orient else "raw", channels)[0]

    def tensor(self, path, size, channels=3, resize=256, crop=224, fit=288, max_native_pixels=1048576):
        """float32 [H, W, C], and whether it was scaled to the pixel limit"""
        data, _, scaled = self._ask(
            np.float32, "tensor", path, size, channels, resize, crop, fit, max_native_pixels
        )
        return data, scaled

    def close(self):
        self.process.stdin.close()
        assert self.process.wait() == 0
