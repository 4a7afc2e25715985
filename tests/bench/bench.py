#!/usr/bin/python3
"""Speed and memory of resnetd beside ONNX Runtime, PyTorch and a small Node server, measured in one run.

    bench.py [--quick] [--build FOLDER] [--only engine,ops,scale,http,memory]

Everything that is compared takes turns (A B C A B C ...), and a ratio is the median of the ratios pair by pair, so
that a neighbour on the machine slows both sides alike. Prints tables; writes results.json and results.txt to
build/bench. Figures never fail it: a number that is not reached is printed as such.
"""

import argparse
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

from harness import Missing, Peer, Report, environment, line_through, median, note, percentile, spawn

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


class Bench:
    def __init__(self, arguments):
        self.quick = arguments.quick
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
                sys.exit("bench: the network's weights cannot be made, which needs python3-torch and "
                         "python3-torchvision (make deps-bench installs them)")
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
            done = subprocess.run(["npm", "ci", "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=60000"], cwd=NPM,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
                                  env=environment(ONNXRUNTIME_NODE_INSTALL_CUDA="skip"))
            failure = None if done.returncode == 0 else (
                re.findall(r"npm (?:error|ERR!) (?!A complete log)(\S.*)", done.stdout) or ["npm ci failed"])[0]
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
            Image.open(ROOT / "tests" / "data" / "chelsea.png").convert("RGB").resize((500, 375)).save(PHOTO, quality=90)

    # --------------------------------------------------------------------------------------------- machine

    def look_at_machine(self):
        listing = subprocess.run([self.build / "resnetd", "kernels"], env=environment(), stdout=subprocess.PIPE, text=True,
                                 check=True).stdout.splitlines()
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
        commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True).stdout.strip()
        self.results["machine"] = {"cpu": cpu, "threads": self.cores, "load_at_start": load, "commit": commit,
                                   "kernels": [name for name, _ in self.tables]}
        self.say(f"CPU       {cpu}, {self.cores} threads for this process")
        self.say(f"kernels   {', '.join(f'{name} ({precision})' for name, precision in self.tables)}")
        self.say(f"commit    {commit or 'unknown'}")
        if load > 0.5:
            self.say(f"load      {load:.1f} at the start: others use this machine, so trust the ratios more than the times")

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
        return self.start(table, [self.tool("bench_engine"), "--model", DESCRIPTION, "--weights", WEIGHTS, "--kernels", table,
                                  "--threads", threads], precision=self.precision[table])

    def engine_peers(self, threads):
        peers = []
        if self.has_node:
            peers.append(self.start(ORT, ["node", NPM / "onnxruntime_peer.mjs", ONNX, threads], precision="fp32"))
        for precision in ("fp32",) if self.quick else ("fp32", "bf16"):
            name = "pytorch" if precision == "fp32" else "pytorch-bf16"
            peers.append(self.start(name, [sys.executable, HERE / "peers" / "torch_peer.py", WEIGHTS, threads, precision],
                                    precision=precision))
        peers += [self.engine(table, threads) for table, _ in self.tables]
        return [peer for peer in peers if peer]

    def measure_engine(self):
        """Latency of every table and every peer, at every size, batch and number of threads."""
        cases = [(1, 224, 224), (8, 224, 224), (1, 375, 500)]
        if not self.quick:
            cases = [(1, 64, 64), (1, 224, 224), (1, 375, 500), (1, 640, 480), (8, 224, 224), (8, 375, 500), (8, 640, 480)]
        self.results["engine"] = []
        for threads in self.thread_counts():
            peers = self.engine_peers(threads)
            meter = self.start("peak", [self.tool("bench_peak"), threads])
            for n, height, width in cases:
                self.measure_case(threads, n, height, width, peers, meter)
            for peer in peers + [meter] if meter else peers:
                peer.close()
            self.save()

    def prepare(self, peers, n, height, width):
        """Give everyone the input; what they answered, and how far each is from the first one's logits."""
        answers, ready = {}, []
        for peer in peers:
            try:
                answers[peer.name] = peer.ask(f"shape {n} {height} {width}")
                answers[peer.name]["once_ms"] = median(peer.ask("run 2")["ms"])
                ready.append(peer)
            except Missing as error:
                self.miss(f"{n}x3x{height}x{width}: {error}")
        exact = answers[ready[0].name]["logits"] if ready else []
        for answer in answers.values():
            logits = answer.pop("logits")
            answer["difference"] = (max(abs(a - b) for a, b in zip(logits, exact)) / (max(exact) - min(exact)))
        return ready, answers

    def measure_case(self, threads, n, height, width, peers, meter):
        # The specification is no competitor: plain C, so slow that it would take the time of all others.
        peers = [peer for peer in peers if peer.name != "ref" or (n == 1 and height * width <= 64 * 64)]
        note(f"{n}x3x{height}x{width}, {threads} thread(s)")
        peers, answers = self.prepare(peers, n, height, width)
        if not peers:
            return
        turn_ms = 40 if self.quick else 100
        budget_s = (5 if self.quick else 25) if n == 1 else (4 if self.quick else 20)
        rounds = {peer.name: [] for peer in peers}
        samples = {peer.name: [] for peer in peers}
        peaks = {"avx2": [], "avx512": [], "amx": []}
        until = time.monotonic() + budget_s
        while len(rounds[peers[0].name]) < 2 or (time.monotonic() < until and len(rounds[peers[0].name]) < 40):
            for peer in peers:
                count = max(1, min(20, math.ceil(turn_ms / answers[peer.name]["once_ms"])))
                times = peer.ask(f"run {count + 1}")["ms"][1:]  # the first finds the caches full of the others' data
                rounds[peer.name].append(median(times))
                samples[peer.name] += times
            for name, value in (meter.ask("run") if meter else {}).items():
                if value:
                    peaks[name].append(value)
        peak = {name: median(values) for name, values in peaks.items() if values}
        fp32_peak = max(peak.get("avx2", 0), peak.get("avx512", 0)) or None
        multiply_adds = next((a["multiply_adds"] for a in answers.values() if "multiply_adds" in a), None)
        case = {"threads": threads, "shape": [n, 3, height, width], "rounds": len(rounds[peers[0].name]),
                "multiply_adds": multiply_adds, "peak_gflops": peak, "peers": {}}
        rows = []
        for peer in peers:
            name, times = peer.name, samples[peer.name]
            best = peak.get("amx") if peer.attributes["precision"] == "bf16" else \
                peak.get("avx2") if name == "avx2" else fp32_peak
            middle = median(times)
            gflops = 2 * multiply_adds / middle / 1e6 if multiply_adds else None
            entry = {"precision": peer.attributes["precision"], "median_ms": middle, "min_ms": min(times),
                     "p99_ms": percentile(times, 0.99), "samples": len(times), "gflops": gflops,
                     "share_of_peak": gflops / best if gflops and best else None,
                     "round_ms": rounds[name], **answers[name]}
            for other in (ORT, "pytorch"):
                if other in rounds:
                    entry[f"ratio_to_{other}"] = median([a / b for a, b in zip(rounds[name], rounds[other])])
            case["peers"][name] = entry
            rows.append([name, entry["precision"], f"{middle:.2f}", f"{min(times):.2f}", f"{entry['p99_ms']:.2f}",
                         f"{gflops:.0f}" if gflops else None,
                         f"{100 * entry['share_of_peak']:.0f}%" if entry["share_of_peak"] else None,
                         f"{entry['ratio_to_' + ORT]:.3f}" if "ratio_to_" + ORT in entry else None,
                         f"{entry['ratio_to_pytorch']:.3f}" if "ratio_to_pytorch" in entry else None,
                         f"{entry['difference']:.1e}",
                         f"{entry['activation_bytes'] / 1e6:.1f}" if "activation_bytes" in entry else None,
                         f"{entry['packed_bytes'] / 1e6:.0f}" if "packed_bytes" in entry else None])
        self.results["engine"].append(case)
        self.title(f"{n}x3x{height}x{width}, {threads} thread{'s' * (threads > 1)}: "
                   f"{multiply_adds / 1e9:.2f} G multiply-adds; peak "
                   + ", ".join(f"{name} {value:.0f}" for name, value in peak.items()) + f" GFLOP/s; {case['rounds']} rounds")
        self.table(["", "", "ms", "fastest", "p99", "GFLOP/s", "of peak", "/ORT", "/torch", "differs", "act. MB", "weights MB"],
                   rows)

    def case_of(self, threads, shape, name):
        for case in self.results.get("engine", []):
            if case["threads"] == threads and case["shape"] == shape:
                return case["peers"].get(name)
        return None

    # ------------------------------------------------------------------------------------------ operations

    def measure_operations(self):
        """Where the time of one 224x224 image goes, layer by layer."""
        self.results["operations"] = {}
        meter = self.start("peak", [self.tool("bench_peak"), 1])
        for table in filter(None, (self.fastest("fp32"), self.fastest("bf16"))):
            peer = self.engine(table, 1)
            if not peer:
                continue
            peer.ask("shape 1 224 224")
            peer.ask("run 5")
            peak = meter.ask("run") if meter else {}
            ops = peer.ask(f"ops {10 if self.quick else 40}")["ops"]
            peer.close()
            best = peak.get("amx") if self.precision[table] == "bf16" else peak.get(table) or peak.get("avx512")
            self.results["operations"][table] = {"peak_gflops": best, "ops": ops}
            self.print_operations(table, ops, best)
        if meter:
            meter.close()
        self.save()

    def print_operations(self, table, ops, peak):
        groups = {}
        for op in ops:
            stage = re.sub(r"^(layer\d)\.([1-9]\d*)\.", r"\1.n.", op["name"])
            groups.setdefault((stage, op["kernel"], op["multiply_adds"]), []).append(op["ms"])
        total = sum(op["ms"] for op in ops)
        rows = []
        for (stage, kernel, multiply_adds), times in groups.items():
            ms = sum(times)
            gflops = 2 * multiply_adds * len(times) / ms / 1e6 if multiply_adds and ms else None
            rows.append([stage or "-", kernel or "-", len(times), f"{multiply_adds / 1e6:.0f}", f"{ms:.3f}",
                         f"{100 * ms / total:.1f}%", f"{gflops:.0f}" if gflops else None,
                         f"{100 * gflops / peak:.0f}%" if gflops and peak else None])
        self.title(f"layer by layer: {table}, 1x3x224x224, 1 thread, {total:.2f} ms in all"
                   + (f", peak {peak:.0f} GFLOP/s" if peak else "") + " (layerN.n: all blocks but the first)")
        self.table(["", "kernel", "times", "M mult-adds", "ms", "of all", "GFLOP/s", "of peak"], rows)

    # ----------------------------------------------------------------------------------------------- scale

    def measure_scale(self):
        """Latency and memory as the image grows; both should follow the multiply-adds."""
        sizes = [64, 256, 512, 1024] if self.quick else [64, 96, 128, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024]
        self.results["scale"] = {}
        for table in filter(None, (self.fastest("fp32"), self.fastest("bf16"))):
            peer = self.engine(table, 1)
            if not peer:
                continue
            note(f"sizes up to {sizes[-1]}x{sizes[-1]}, {table}")
            rows, points = [], []
            for size in sizes:
                answer = peer.ask(f"shape 1 {size} {size}")
                once = peer.ask("run 2")["ms"][1]
                times = peer.ask(f"run {max(3, min(20, int((300 if self.quick else 1500) / once)))}")["ms"]
                point = {key: answer[key] for key in ("multiply_adds", "activation_bytes", "scratch_bytes", "rss_bytes")}
                point.update(size=size, median_ms=median(times), min_ms=min(times))
                points.append(point)
            peer.close()
            offset, slope, fit = line_through([p["multiply_adds"] / 1e9 for p in points], [p["median_ms"] for p in points])
            for p in points:
                expected = offset + slope * p["multiply_adds"] / 1e9
                rows.append([f"{p['size']}x{p['size']}", f"{p['multiply_adds'] / 1e9:.3f}", f"{p['median_ms']:.2f}",
                             f"{p['min_ms']:.2f}", f"{p['median_ms'] / p['multiply_adds'] * 1e9:.2f}",
                             f"{100 * (p['median_ms'] / expected - 1):+.0f}%" if expected > 0 else None,
                             f"{p['activation_bytes'] / 1e6:.1f}", f"{p['activation_bytes'] / p['multiply_adds'] * 1e3:.2f}",
                             f"{p['rss_bytes'] / 1e6:.0f}"])
            self.results["scale"][table] = {"points": points, "offset_ms": offset, "ms_per_gmac": slope, "r_squared": fit}
            self.title(f"growing image: {table}, 1 thread; ms = {offset:.2f} + {slope:.2f} * G multiply-adds, R^2 = {fit:.5f}")
            self.table(["", "G mult-adds", "ms", "fastest", "ms/G", "off line", "act. MB", "MB/G", "RSS MB"], rows)
        self.save()

    # ------------------------------------------------------------------------------------------------ HTTP

    def load(self, server, target, clients, seconds, rate=0):
        """One measurement of one server while the others are stopped."""
        server.resume()
        done = subprocess.run([self.tool("bench_http"), "--port", str(server.port), "--target", target, "--file", PHOTO,
                               "--clients", str(clients), "--seconds", f"{seconds:.2f}", "--rate", f"{rate:.3f}"],
                              stdout=subprocess.PIPE, text=True)
        server.pause()
        answer = json.loads(done.stdout)
        if "error" in answer or not answer["requests"]:
            raise Missing(f"{server.name}: {answer.get('error', 'no request was answered')}")
        return answer

    def measure_http(self):
        servers = []
        for table in filter(None, (self.fastest("fp32"), self.fastest("bf16"))):
            servers.append(Server.resnetd(self, table, self.cores))
        if self.has_node:
            servers.append(Server("node", ["node", NPM / "node_server.mjs", ONNX, LABELS], "fp32"))
        running = []
        for server in servers:
            try:
                server.start()
                server.pause()
                running.append(server)
            except Missing as error:
                self.miss(error)
        self.results["http"] = {"one_client": {}, "saturated": {}, "open_loop": {}, "clients": {}}
        engines = {server.name: self.engine(server.table, 1) for server in running if server.table}
        try:
            for size in ("native",) if self.quick else ("native", "crop"):
                self.http_one_client(running, size)
                self.http_saturated(running, engines, size)
            self.http_open_loop(running)
            self.http_clients(running)
        except Missing as error:
            self.miss(error)
        finally:
            for server in running:
                server.stop()
            for engine in filter(None, engines.values()):
                engine.close()
        self.save()

    def http_rounds(self, servers, target_of, clients, seconds, rounds, also=None):
        """Interleaved loads: {server: [answers]}. The first, shorter load of each warms up and does not count."""
        answers = {server.name: [] for server in servers}
        for i in range(-1, rounds):
            for server in servers:
                answer = self.load(server, target_of(server), clients, seconds if i >= 0 else min(seconds, 0.5))
                if also and i >= 0:
                    also(server)
                if i >= 0:
                    answers[server.name].append(answer)
        return answers

    def http_one_client(self, servers, size):
        note(f"HTTP, one client, size={size}")
        answers = self.http_rounds(servers, lambda server: server.target(size), 1, 1.5 if self.quick else 3,
                                   2 if self.quick else 5)
        rows = []
        summary = {}
        for server in servers:
            mine = answers[server.name]
            entry = {key: median([a[key] for a in mine]) for key in mine[0] if key.endswith("_ms")}
            entry["p99_ms"] = max(a["p99_ms"] for a in mine)
            entry["failures"] = sum(a["failures"] for a in mine)
            if "node" in answers:
                entry["ratio_to_node"] = median([a["p50_ms"] / b["p50_ms"] for a, b in zip(mine, answers["node"])])
            summary[server.name] = entry
            rows.append([server.name] + [f"{entry[key]:.2f}" if key in entry else None for key in
                                         ("p50_ms", "p90_ms", "p99_ms", "decode_ms", "preprocess_ms", "inference_ms",
                                          "overhead_p50_ms", "overhead_p99_ms")]
                        + [f"{entry['ratio_to_node']:.3f}" if "ratio_to_node" in entry else None, entry["failures"]])
        self.results["http"]["one_client"][size] = summary
        self.title(f"HTTP: one client, JPEG 500x375, size={size} (ms; overhead = latency - decode - preprocess - inference)")
        self.table(["", "p50", "p90", "p99", "decode", "preproc.", "inference", "overhead", "ov. p99", "/node", "failed"], rows)

    def http_saturated(self, servers, engines, size):
        height, width = (375, 500) if size == "native" else (224, 224)
        note(f"HTTP, saturated, size={size}")
        seconds = 2 if self.quick else 5
        rates = {name: [] for name in engines}
        for name, engine in engines.items():
            if engine:
                engine.ask(f"shape 1 {height} {width}")

        def measure_rate(server):
            if engines.get(server.name):
                rates[server.name].append(engines[server.name].ask(f"throughput {self.cores} {seconds}")["images_per_s"])

        answers = self.http_rounds(servers, lambda server: server.target(size), 4 * self.cores, seconds,
                                   2 if self.quick else 4, also=measure_rate)
        rows, summary = [], {}
        for server in servers:
            mine = answers[server.name]
            entry = {"images_per_s": median([a["images_per_s"] for a in mine]), "p50_ms": median([a["p50_ms"] for a in mine]),
                     "p99_ms": max(a["p99_ms"] for a in mine), "failures": sum(a["failures"] for a in mine)}
            if rates.get(server.name):
                entry["engine_images_per_s"] = median(rates[server.name])
                entry["share_of_engine"] = median([a["images_per_s"] / b for a, b in zip(mine, rates[server.name])])
                # What is left when decoding and preprocessing take their time of the same cores.
                around = median([(a["decode_ms"] + a["preprocess_ms"]) / a["inference_ms"] for a in mine])
                entry["share_of_engine_with_decoding"] = entry["share_of_engine"] * (1 + around)
            if "node" in answers:
                entry["ratio_to_node"] = median([a["images_per_s"] / b["images_per_s"] for a, b in zip(mine, answers["node"])])
            summary[server.name] = entry
            rows.append([server.name, f"{entry['images_per_s']:.1f}", f"{entry['p50_ms']:.1f}", f"{entry['p99_ms']:.1f}",
                         f"{entry['engine_images_per_s']:.1f}" if "engine_images_per_s" in entry else None,
                         f"{100 * entry['share_of_engine']:.0f}%" if "share_of_engine" in entry else None,
                         f"{100 * entry['share_of_engine_with_decoding']:.0f}%" if "share_of_engine" in entry else None,
                         f"{entry['ratio_to_node']:.2f}" if "ratio_to_node" in entry else None, entry["failures"]])
        self.results["http"]["saturated"][size] = summary
        self.title(f"HTTP: saturated by {4 * self.cores} clients, JPEG 500x375, size={size}")
        self.table(["", "images/s", "p50 ms", "p99 ms", "engine im./s", "of engine", "of engine + decode", "/node", "failed"], rows)

    def http_open_loop(self, servers):
        note("HTTP, open loop")
        rows = []
        for server in servers:
            full = self.results["http"]["saturated"]["native"][server.name]["images_per_s"]
            summary = self.results["http"]["open_loop"][server.name] = {}
            for share in (0.7,) if self.quick else (0.3, 0.5, 0.7, 0.9):
                answer = self.load(server, server.target("native"), 64, 3 if self.quick else 10, rate=share * full)
                summary[str(share)] = answer
                rows.append([server.name, f"{100 * share:.0f}%", f"{share * full:.1f}"]
                            + [f"{answer[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms", "max_ms")] + [answer["failures"]])
        self.title("HTTP: open loop, random arrivals at a share of what each server carried saturated (ms from arrival)")
        self.table(["", "load", "arrivals/s", "p50", "p90", "p99", "slowest", "failed"], rows)

    def http_clients(self, servers):
        """Between one image on all cores and one image a core: no worse than the better of the two."""
        note("HTTP, by number of clients")
        counts = (1, self.cores, 4 * self.cores) if self.quick else (1, 2, 3, 4, 6, 8, 16)
        rows = []
        for count in sorted(set(counts)):
            answers = self.http_rounds(servers, lambda server: server.target("native"), count, 1.5 if self.quick else 3,
                                       1 if self.quick else 3)
            row = [count]
            for server in servers:
                mine = answers[server.name]
                entry = {"images_per_s": median([a["images_per_s"] for a in mine]), "p50_ms": median([a["p50_ms"] for a in mine])}
                self.results["http"]["clients"].setdefault(server.name, {})[str(count)] = entry
                row += [f"{entry['images_per_s']:.1f}", f"{entry['p50_ms']:.1f}"]
            rows.append(row)
        self.title("HTTP: images per second and median ms by number of clients, size=native")
        self.table(["clients"] + [f"{server.name} {what}" for server in servers for what in ("im./s", "ms")], rows)

    # ---------------------------------------------------------------------------------------- memory, start

    def measure_memory(self):
        """Resident memory with two workers at 224x224, and the time from start to ready, weights in page cache."""
        self.results["memory"] = {}
        WEIGHTS.read_bytes()
        rows = []
        for table, precision in self.tables:
            if table == "ref":
                continue
            note(f"memory and start, {table}")
            starts = []
            for i in range(2 if self.quick else 5):
                server = Server.resnetd(self, table, 2)
                try:
                    starts.append(server.start())
                    if i == 0:
                        at_start = server.memory("VmRSS")
                        for clients in (1, 2):
                            self.load(server, server.target("crop"), clients, 1 if self.quick else 5)
                        server.resume()
                        entry = {"ready_rss_bytes": at_start, "rss_bytes": server.memory("VmRSS"),
                                 "peak_rss_bytes": server.memory("VmHWM")}
                except Missing as error:
                    self.miss(error)
                finally:
                    server.stop()
            if starts:
                entry["start_s"] = median(starts)
                self.results["memory"][table] = entry
                rows.append([table, precision] + [f"{entry[key] / 1e6:.0f}" for key in ("ready_rss_bytes", "rss_bytes",
                                                                                        "peak_rss_bytes")]
                            + [f"{entry['start_s'] * 1e3:.0f}"])
        self.title("serving ResNet-50 at 224x224 with 2 workers: resident memory (MB), and start to ready (ms)")
        self.table(["", "", "ready", "after load", "peak", "start ms"], rows)
        self.save()

    # --------------------------------------------------------------------------------------------- verdict

    def verdict(self):
        """The numbers that the project set itself, and where this run stands."""
        rows = []

        def row(what, value, limit, unit="", at_least=False, digits=3):
            if value is not None:
                met = value >= limit if at_least else value <= limit
                rows.append([what, f"{value:.{digits}f}{unit}", f"{'>=' if at_least else '<='} {limit:.{digits}f}{unit}",
                             "reached" if met else "not yet"])

        shape = [1, 3, 224, 224]
        for threads in self.thread_counts():
            for table, limit in (("openblas", 1.4), ("avx512", 0.85), ("amx", 0.125)):
                entry = self.case_of(threads, shape, table) or {}
                row(f"{table} / ONNX Runtime, 224x224, {threads} thread{'s' * (threads > 1)}", entry.get("ratio_to_" + ORT), limit)
        entry = self.case_of(1, shape, "avx2") or {}
        share = entry.get("share_of_peak")
        row("avx2, share of its own peak, 224x224, 1 thread", share and 100 * share, 75, "%", at_least=True, digits=0)
        http = self.results.get("http", {})
        for name, entry in http.get("one_client", {}).get("native", {}).items():
            row(f"HTTP overhead, one client, {name}", entry.get("overhead_p50_ms"), 2, " ms", digits=2)
        for name, entry in http.get("saturated", {}).get("native", {}).items():
            share = entry.get("share_of_engine")
            row(f"saturated, share of the engine's images/s, {name}", share and 100 * share, 90, "%", at_least=True, digits=0)
        memory = self.results.get("memory", {}).get(self.fastest("fp32"))
        if memory:
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


class Server:
    """An HTTP server under load, stopped while another has its turn."""

    def __init__(self, name, command, precision, table=None):
        self.name, self.command, self.precision, self.table = name, command, precision, table
        self.process = self.port = None

    @staticmethod
    def resnetd(bench, table, workers):
        return Server(f"resnetd {table}", [bench.build / "resnetd", "serve", "--host", "127.0.0.1", "--port", "0", "--workers",
                                           workers, "--kernels", table, "--model-description", DESCRIPTION, "--weights",
                                           WEIGHTS, "--log-level", "info"], bench.precision[table], table)

    def target(self, size):
        return f"/v1/classify?size={size}" if self.table else f"/?size={size}"

    def start(self):
        """Start, wait until it is ready; the seconds that took."""
        log = OUT / f"{self.name.replace(' ', '-')}.log"
        begin = time.monotonic()
        with open(log, "wb") as out:
            self.process = spawn(self.command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        pattern = re.compile(r"listening on http://127\.0\.0\.1:(\d+)|\"port\":(\d+)")
        while time.monotonic() < begin + 60 and self.process.poll() is None:
            found = pattern.search(log.read_text(errors="replace"))
            if found:
                self.port = int(found.group(1) or found.group(2))
                if not self.table or self.is_ready():
                    return time.monotonic() - begin
            time.sleep(0.002)
        self.stop()
        last = log.read_text(errors="replace").strip().splitlines()
        raise Missing(f"{self.name}: did not become ready" + (f" ({last[-1][:200]})" if last else ""))

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz/ready", timeout=5) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def memory(self, field):
        for line in open(f"/proc/{self.process.pid}/status", encoding="ascii"):
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        return 0

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.resume()
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def main():
    parts = {"engine": Bench.measure_engine, "ops": Bench.measure_operations, "scale": Bench.measure_scale,
             "http": Bench.measure_http, "memory": Bench.measure_memory}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few runs of few cases, within about three minutes")
    parser.add_argument("--build", default=os.environ.get("B", "build/release"), help="where make built (build/release)")
    parser.add_argument("--only", default=",".join(parts), help="parts to measure: " + ", ".join(parts))
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
