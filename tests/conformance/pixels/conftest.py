"""The fixtures, and the table printed after the run."""

import os
from pathlib import Path

import pytest

from pixels_support import CORPORA, ROOT, Driver, skipped, table


@pytest.fixture(scope="session")
def driver():
    binary = Path(os.environ.get("RESNETD_BINARY", ROOT / "build/release/resnetd"))
    path = binary.parent / "tests/conformance/pixels_driver"
    if not os.access(path, os.X_OK):
        pytest.fail(f"{path} is not built; `make conformance` builds it")
    process = Driver(path)
    yield process
    process.close()


@pytest.fixture
def corpus():
    """A function from a corpus's name to its files, which skips where the corpora are not there."""

    def files(name):
        folder = CORPORA / name
        if not folder.is_dir():
            skipped.append(name)
            pytest.skip(f"corpus {name} is absent: expected at {folder}")
        return sorted(path for path in folder.iterdir() if path.is_file())

    return files


def pytest_terminal_summary(terminalreporter):
    write = terminalreporter.write_line
    if table:
        write("")
        write(f"{'corpus':<28}{'files':>8}{'equal':>8}{'listed':>8}{'refused by both':>18}")
        for name, row in table.items():
            write(f"{name:<28}{row[0]:>8}{row[1]:>8}{row[2]:>8}{row[3]:>18}")
    for name in skipped:
        write(f"SKIPPED: corpus {name} is absent, its files were NOT compared")
