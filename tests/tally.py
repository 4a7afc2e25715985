"""Run one part of the tests, add its counts to the file that TALLY names, and print the sum at the end.

    tally.py start                                begin a count, unless TALLY_OUTER says that one is open
    tally.py unit BINARY...                       cmocka binaries
    tally.py replay REGRESSIONS BINARY...         fuzz targets over the inputs that once failed, and tests/data
    tally.py fuzz SECONDS CORPUS BINARY...        libFuzzer binaries
    tally.py pytest PYTHON ARGUMENT...            pytest
    tally.py check NAME COMMAND...                any command: one passed or one failed
    tally.py total                                print "N passed, N failed, N skipped"

A part exits with 1 when something in it failed. It needs nothing but Python's standard library.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree

TALLY = os.environ.get("TALLY", "build/tally")
SECONDS_PER_BINARY = 900


def record(passed, failed, skipped):
    with open(TALLY, "a") as file:
        file.write("%d %d %d\n" % (passed, failed, skipped))
    return 1 if failed else 0


def run(command, timeout=SECONDS_PER_BINARY):
    """The exit status (None after the timeout) and the output of a command that must not hang."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=timeout)
        return done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="replace") + "\nstill running after %d s\n" % timeout
    except OSError as error:
        return 127, "%s\n" % error


def report(name, passed, failed, skipped, output, seconds=0):
    words = ["%d passed" % passed]
    if failed:
        words.append("%d FAILED" % failed)
    if skipped:
        words.append("%d skipped" % skipped)
    if seconds >= 10:
        words.append("%.0f s" % seconds)
    print("%-40s %s" % (name, ", ".join(words)), flush=True)
    if failed:
        print(output, flush=True)


def unit(binaries):
    total = [0, 0, 0]
    for binary in binaries:
        start = time.monotonic()
        status, output = run([binary])
        counts = [sum(int(n) for n in re.findall(r"\[ *%s *\] (\d+) test" % word, output))
                  for word in ("PASSED", "FAILED", "SKIPPED")]
        if status != 0 and counts[1] == 0:  # it crashed, or a sanitizer ended it
            counts[1] = 1
        report(os.path.basename(binary), *counts, output, time.monotonic() - start)
        if counts[2]:
            print("".join("    %s\n" % line for line in re.findall(r"\[ *SKIPPED *\] \D.*", output)), end="")
        total = [a + b for a, b in zip(total, counts)]
    return record(*total)


def replay(regressions, binaries):
    total = [0, 0, 0]
    for binary in binaries:
        name = os.path.basename(binary).replace("replay_", "", 1)
        folders = [folder for folder in (os.path.join(regressions, name), "tests/data") if os.path.isdir(folder)]
        files = sorted(os.path.join(top, file) for folder in folders for top, _, names in os.walk(folder)
                       for file in names)
        status, output = run([binary] + files)
        failed = 1 if status != 0 else 0
        report("replay %s (%d inputs)" % (name, len(files)), 1 - failed, failed, 0, output)
        total[failed] += 1
    return record(*total)


def fuzz(seconds, corpus, binaries):
    total = [0, 0, 0]
    for binary in binaries:
        name = os.path.basename(binary).replace("fuzz_", "", 1)
        found = os.path.join(corpus, name)
        os.makedirs(found, exist_ok=True)
        seeds = [folder for folder in ("tests/fuzz/seeds/" + name, "tests/fuzz/regressions/" + name, "tests/data")
                 if os.path.isdir(folder)]
        status, output = run([binary, "-max_total_time=" + seconds, "-timeout=25", "-rss_limit_mb=4096",
                              "-print_final_stats=1", "-artifact_prefix=%s/%s-" % (corpus, name), found] + seeds,
                             timeout=int(seconds) + 300)
        failed = 1 if status != 0 else 0
        runs = re.findall(r"number_of_executed_units: (\d+)", output)
        report("fuzz %s (%s runs)" % (name, runs[0] if runs else "?"), 1 - failed, failed, 0, output[-6000:])
        total[failed] += 1
    return record(*total)


def pytest(python, arguments):
    with tempfile.TemporaryDirectory() as folder:
        results = os.path.join(folder, "results.xml")
        status = subprocess.call([python, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider",
                                  "--junitxml=" + results] + arguments)
        if status == 5:  # nothing collected
            return record(0, 0, 0)
        try:
            suite = ElementTree.parse(results).getroot().find("testsuite")
            tests, failures, errors, skipped = (int(suite.get(key)) for key in
                                                ("tests", "failures", "errors", "skipped"))
        except (OSError, ElementTree.ParseError):
            return record(0, 1, 0)
        failed = failures + errors
        if status != 0 and failed == 0:
            failed = 1
        return record(max(tests - failures - errors - skipped, 0), failed, skipped)


def check(name, command):
    status, output = run(command, timeout=1800)
    failed = 1 if status != 0 else 0
    report(name, 1 - failed, failed, 0, output)
    return record(1 - failed, failed, 0)


def total():
    rows = [[int(n) for n in line.split()] for line in open(TALLY)] if os.path.exists(TALLY) else []
    passed, failed, skipped = (sum(row[i] for row in rows) for i in range(3))
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped), flush=True)
    return 1 if failed or not passed else 0


def main(arguments):
    part, rest = arguments[0], arguments[1:]
    if part == "start":
        os.makedirs(os.path.dirname(TALLY), exist_ok=True)
        if "TALLY_OUTER" not in os.environ:
            open(TALLY, "w").close()
        return 0
    if part == "unit":
        return unit(rest)
    if part == "replay":
        return replay(rest[0], rest[1:])
    if part == "fuzz":
        return fuzz(rest[0], rest[1], rest[2:])
    if part == "pytest":
        return pytest(rest[0], rest[1:])
    if part == "check":
        return check(rest[0], rest[1:])
    if part == "total":
        return total()
    print("tally.py: unknown part %r" % part, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
