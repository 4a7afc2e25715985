"""The fixtures, and the table printed after the run."""

import os

import pytest
import torch
import torchvision

from networks_support import ROWS, available_tables


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    terminalreporter.section("logits against PyTorch %s, torchvision %s" % (torch.__version__, torchvision.__version__))
    columns = sorted({(row["size"], row["table"]) for row in ROWS}, key=lambda key: (key[1], key[0][0] * key[0][1]))
    tables = sorted({table for _, table in columns})
    networks = list(dict.fromkeys(row["network"] for row in ROWS))
    for table in tables:
        sizes = [size for size, name in columns if name == table]
        terminalreporter.write_line("%s: largest difference, relative to the range of the logits" % table)
        terminalreporter.write_line("%-18s" % "" + "".join("%10s" % ("%dx%d" % size) for size in sizes))
        for network in networks:
            cells = {row["size"]: row["difference"] for row in ROWS
                     if row["network"] == network and row["table"] == table}
            terminalreporter.write_line("%-18s" % network + "".join(
                "%10s" % ("%.1e" % cells[size] if size in cells else "-") for size in sizes))


@pytest.fixture(scope="session")
def tables():
    return available_tables()


@pytest.fixture(autouse=True)
def one_reference():
    """The reference computes with as many threads as there are cores, in float32."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
