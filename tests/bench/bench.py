#!/usr/bin/python3
"""Speed and memory of resnetd beside ONNX Runtime, PyTorch and a small Node server, measured in one run.

    bench.py [--quick] [--build FOLDER] [--only engine,ops,scale,http,memory]
             [--inputs NxHxW,...] [--peers NAME,...] [--threads N,...] [--seconds S]

The whole takes about half an hour, --quick about four minutes.

Everything that is compared takes turns (A B C A B C ...), and a ratio is the median of the ratios pair by pair, so
that a neighbour on the machine slows both sides alike. Prints tables; writes results.json and results.txt to
build/bench. Figures never fail it: a number that is not reached is printed as such.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import engine
import serving
from harness import (
    DESCRIPTION,
    HERE,
    NPM,
    ONNX,
    ORT,
    OUT,
    PHOTO,
    ROOT,
    WEIGHTS,
    Missing,
    Peer,
    Report,
    environment,
    note,
)


class Bench:
    def __init__(self, arguments):
        self.quick = arguments.quick
        self.inputs = arguments.inputs
        self.peers = arguments.peers and arguments.peers.split(",")
        self.threads = arguments.threads
        self.seconds = arguments.seconds
        self.build = pathlib.Path(arguments.build).resolve()
        self.missing = []
        self.results = {"quick": self.quick}
        OUT.mkdir(parents=True, exist_ok=True)
        self.report = Report(OUT / "results.txt")
        self.say, self.title, self.table = self.report.say, self.report.title, self.report.table

    def tool(self, name):
        return self.build / "tests" / "bench" / name

    def miss(self, text):
        text = str(text)
        if text not in self.missing:
            self.missing.append(text)
            self.say(f"missing: {text}")

    def save(self):
        self.results["missing"] = self.missing
        part = OUT / "results.json.part"
        part.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        part.replace(OUT / "results.json")

    # ---------------------------------------------------------------------------------------------- set-up

    def set_up(self):
        maker = HERE / "make_model.py"
        stamp = OUT / "model.stamp"
        digest = hashlib.sha256(maker.read_bytes()).hexdigest()
        if not (stamp.is_file() and stamp.read_text() == digest and WEIGHTS.is_file() and ONNX.is_file()):
            note("making ResNet-50 with seeded weights")
            if subprocess.run([sys.executable, maker, OUT], env=environment()).returncode:
                sys.exit(
                    "bench: the network's weights cannot be made, which needs python3-torch and "
                    "python3-torchvision (make deps-bench installs them)"
                )
            stamp.write_text(digest)
        self.has_node = self.set_up_npm()
        self.set_up_photo()

    def set_up_npm(self):
        if not shutil.which("node") or not shutil.which("npm"):
            self.miss("ONNX Runtime and the Node server: there is no node or no npm here")
            return False
        NPM.mkdir(exist_ok=True)
        for peer in (HERE / "peers").glob("*.mjs"):
            shutil.copy(peer, NPM)
        lock = (HERE / "package-lock.json").read_bytes()
        stamp = NPM / "stamp"
        digest = hashlib.sha256(lock).hexdigest()
        if stamp.is_file() and stamp.read_text() == digest:
            return True
        note("installing ONNX Runtime and sharp from npm")
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(HERE / name, NPM)
        # The packages carry their CPU libraries; onnxruntime-node's install script would only fetch CUDA's.
        try:
            done = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=60000"],
                cwd=NPM,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
                env=environment(ONNXRUNTIME_NODE_INSTALL_CUDA="skip"),
            )
            failure = None
            if done.returncode:
                # Its first sentence: the lines before are codes, those after are advice.
                said = re.findall(r"npm (?:error|ERR!) (?!code |errno |syscall |A complete log)(\S.*)", done.stdout)
                failure = said[0] if said else "npm ci failed"
        except subprocess.TimeoutExpired:
            failure = "npm ci took more than 300 s"
        if failure:
            self.miss(f"ONNX Runtime and the Node server: npm cannot install them ({failure})")
            return False
        stamp.write_text(digest)
        return True

    def set_up_photo(self):
        from PIL import Image

        if not PHOTO.is_file():
            Image.open(ROOT / "tests" / "data" / "chelsea.png").convert("RGB").resize((500, 375)).save(
                PHOTO, quality=90
            )

    # --------------------------------------------------------------------------------------------- machine

    def look_at_machine(self):
        listing = subprocess.run(
            [self.build / "resnetd", "kernels"], env=environment(), stdout=subprocess.PIPE, text=True, check=True
        ).stdout.splitlines()
        self.tables, self.cores = [], 1
        for line in listing:
            words = line.split()
            if words[0] == "threads":
                self.cores = int(words[1])
            else:
                self.tables.append((words[0], words[1]))
                if "not here: " in line:
                    self.miss(f"kernel table {words[0]}: {line.split('not here: ')[1].strip()}")
        absent = [text.split()[2].rstrip(":") for text in self.missing if text.startswith("kernel table")]
        self.tables = [(name, precision) for name, precision in self.tables if name not in absent]
        self.precision = dict(self.tables)
        cpu = "unknown"
        for line in open("/proc/cpuinfo", encoding="ascii", errors="replace"):
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
        load = os.getloadavg()[0]
        commit = subprocess.run(
            ["git", "-C", ROOT, "describe", "--always", "--dirty"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ).stdout.strip()
        self.results["machine"] = {
            "cpu": cpu,
            "threads": self.cores,
            "load_at_start": load,
            "commit": commit,
            "kernels": [name for name, _ in self.tables],
        }
        self.say(f"CPU       {cpu}, {self.cores} threads for this process")
        self.say(f"kernels   {', '.join(f'{name} ({precision})' for name, precision in self.tables)}")
        self.say(f"commit    {commit or 'unknown'}")
        if load > 0.5:
            self.say(
                f"load      {load:.1f} at the start: others use this machine, so trust the ratios more than the times"
            )

    def thread_counts(self):
        return sorted({1, self.cores})

    def fastest(self, precision, default=None):
        """The table that `auto` would take, by the order of kernels_all."""
        names = [name for name, of in self.tables if of == precision]
        return names[-1] if names else default

    # ---------------------------------------------------------------------------------------------- engine

    def start(self, name, command, **attributes):
        try:
            return Peer(name, command, **attributes)
        except (Missing, OSError) as error:
            self.miss(error)
            return None

    def engine(self, table, threads):
        return self.start(
            table,
            [
                self.tool("bench_engine"),
                "--model",
                DESCRIPTION,
                "--weights",
                WEIGHTS,
                "--kernels",
                table,
                "--threads",
                threads,
            ],
            precision=self.precision[table],
        )

    def case_of(self, threads, shape, name):
        for case in self.results.get("engine", []):
            if case["threads"] == threads and case["shape"] == shape:
                return case["peers"].get(name)
        return None

    # --------------------------------------------------------------------------------------------- verdict

    def verdict(self):
        """The numbers that the project set itself, and where this run stands."""
        rows = []

        def row(what, value, limit, unit="", at_least=False, digits=3):
            if value is not None:
                met = value >= limit if at_least else value <= limit
                rows.append(
                    [
                        what,
                        f"{value:.{digits}f}{unit}",
                        f"{'>=' if at_least else '<='} {limit:.{digits}f}{unit}",
                        "reached" if met else "not yet",
                    ]
                )

        shape = [1, 3, 224, 224]
        for threads in self.thread_counts():
            for table, limit in (("openblas", 1.4), ("avx512", 0.85), ("amx", 0.125)):
                entry = self.case_of(threads, shape, table) or {}
                name = f"{table} / ONNX Runtime, 224x224, {threads} thread{'s' * (threads > 1)}"
                row(name, entry.get("ratio_to_" + ORT), limit)
                row(f"{name}, quiet turns", entry.get("quiet_ratio_to_" + ORT), limit)
        entry = self.case_of(1, shape, "avx2") or {}
        share = entry.get("share_of_peak")
        row("avx2, share of its own peak, 224x224, 1 thread", share and 100 * share, 75, "%", at_least=True, digits=0)
        http = self.results.get("http", {})
        for name, entry in http.get("one_client", {}).get("native", {}).items():
            row(f"HTTP overhead, one client, {name}", entry.get("overhead_p50_ms"), 2, " ms", digits=2)
        for name, entry in http.get("saturated", {}).get("native", {}).items():
            share = entry.get("share_of_engine")
            row(
                f"saturated, share of the engine's images/s, {name}",
                share and 100 * share,
                90,
                "%",
                at_least=True,
                digits=0,
            )
        memory = self.results.get("memory", {}).get(self.fastest("fp32"))
        if memory and "rss_bytes" in memory:
            row(f"RSS, {self.fastest('fp32')}, 224x224, 2 workers", memory["rss_bytes"] / 1e6, 350, " MB", digits=0)
            row(f"start to ready, {self.fastest('fp32')}", memory["start_s"], 1, " s", digits=2)
        if rows:
            self.title("numbers to hold")
            self.table(["", "measured", "to reach", ""], rows)
        load = os.getloadavg()[0]
        self.results["machine"]["load_at_end"] = load
        if self.missing:
            self.title("missing from this run")
            for text in self.missing:
                self.say(text)
        self.save()
        self.say()
        self.say(f"written: {(OUT / 'results.json').relative_to(ROOT)}, {(OUT / 'results.txt').relative_to(ROOT)}")


def inputs(text):
    return [tuple(int(number) for number in item.split("x")) for item in text.split(",")]


def counts(text):
    return [int(number) for number in text.split(",")]


def main():
    parts = {
        "engine": engine.measure_engine,
        "ops": engine.measure_operations,
        "scale": engine.measure_scale,
        "http": serving.measure_http,
        "memory": serving.measure_memory,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few runs of few cases, within about four minutes")
    parser.add_argument(
        "--build", default=os.environ.get("B", "build/release"), help="where make built (build/release)"
    )
    parser.add_argument("--only", default=",".join(parts), help="parts to measure: " + ", ".join(parts))
    parser.add_argument("--inputs", type=inputs, help="engine: only these, such as 1x224x224,8x375x500")
    parser.add_argument("--peers", help="engine: only these, such as onnxruntime,amx")
    parser.add_argument("--threads", type=counts, help="engine: only these numbers of threads, such as 2")
    parser.add_argument("--seconds", type=float, help="engine: for each input and number of threads")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if not set(chosen) <= set(parts):
        parser.error("--only takes " + ", ".join(parts))
    begin = time.monotonic()
    bench = Bench(arguments)
    bench.set_up()
    bench.look_at_machine()
    for name in chosen:
        parts[name](bench)
    bench.results["seconds"] = time.monotonic() - begin
    bench.verdict()
    note(f"{bench.results['seconds']:.0f} s")


if __name__ == "__main__":
    main()
