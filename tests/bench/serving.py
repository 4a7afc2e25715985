"""The server: HTTP latency and throughput beside a Node server, memory, start."""

import json
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request

from harness import DESCRIPTION, LABELS, NPM, ONNX, OUT, PHOTO, WEIGHTS, Missing, median, note, shown, spawn

# ------------------------------------------------------------------------------------------------ HTTP


def load(bench, server, target, clients, seconds, rate=0):
    """One measurement of one server while the others are stopped."""
    server.resume()
    done = subprocess.run(
        [
            bench.tool("bench_http"),
            "--port",
            str(server.port),
            "--target",
            target,
            "--file",
            PHOTO,
            "--clients",
            str(clients),
            "--seconds",
            f"{seconds:.2f}",
            "--rate",
            f"{rate:.3f}",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    server.pause()
    answer = json.loads(done.stdout)
    if "error" in answer or not answer["requests"]:
        raise Missing(f"{server.name}: {answer.get('error', 'no request was answered')}")
    return answer


def measure_http(bench):
    servers = []
    for table in filter(None, (bench.fastest("fp32"), bench.fastest("bf16"))):
        servers.append(Server.resnetd(bench, table, bench.cores))
    if bench.has_node:
        servers.append(Server("node", ["node", NPM / "node_server.mjs", ONNX, LABELS], "fp32"))
    running = []
    for server in servers:
        try:
            server.start()
            server.pause()
            running.append(server)
        except Missing as error:
            bench.miss(error)
    bench.results["http"] = {"one_client": {}, "saturated": {}, "open_loop": {}, "clients": {}}
    engines = {server.name: bench.engine(server.table, 1) for server in running if server.table}
    try:
        for size in ("native",) if bench.quick else ("native", "crop"):
            http_one_client(bench, running, size)
            http_saturated(bench, running, engines, size)
        http_open_loop(bench, running)
        http_clients(bench, running, engines)
    except Missing as error:
        bench.miss(error)
    finally:
        for server in running:
            server.stop()
        for engine in filter(None, engines.values()):
            engine.close()
    bench.save()


def http_rounds(bench, servers, target_of, clients, seconds, rounds, also=None):
    """Interleaved loads: {server: [answers]}. The first, shorter load of each warms up and does not count."""
    answers = {server.name: [] for server in servers}
    for i in range(-1, rounds):
        for server in servers:
            answer = load(bench, server, target_of(server), clients, seconds if i >= 0 else min(seconds, 0.5))
            if also and i >= 0:
                also(server)
            if i >= 0:
                answers[server.name].append(answer)
    return answers


def http_one_client(bench, servers, size):
    note(f"HTTP, one client, size={size}")
    answers = http_rounds(
        bench, servers, lambda server: server.target(size), 1, 1.5 if bench.quick else 3, 2 if bench.quick else 5
    )
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
        rows.append(
            [server.name]
            + [shown(entry, f"{key}_ms") for key in ("p50", "p90", "p99", "decode", "preprocess", "inference")]
            + [shown(entry, "overhead_p50_ms"), shown(entry, "overhead_p99_ms")]
            + [shown(entry, "ratio_to_node", ".3f"), entry["failures"]]
        )
    bench.results["http"]["one_client"][size] = summary
    bench.title(
        f"HTTP: one client, JPEG 500x375, size={size} (ms; overhead = latency - decode - preprocess - inference)"
    )
    bench.table(
        ["", "p50", "p90", "p99", "decode", "preproc.", "inference", "overhead", "ov. p99", "/node", "failed"], rows
    )


def http_saturated(bench, servers, engines, size):
    height, width = (375, 500) if size == "native" else (224, 224)
    note(f"HTTP, saturated, size={size}")
    seconds = 2 if bench.quick else 5
    rates = {name: [] for name in engines}
    for name, engine in engines.items():
        if engine:
            engine.ask(f"shape 1 {height} {width}")

    def measure_rate(server):
        if engines.get(server.name):
            rates[server.name].append(engines[server.name].ask(f"throughput {bench.cores} {seconds}")["images_per_s"])

    answers = http_rounds(
        bench,
        servers,
        lambda server: server.target(size),
        4 * bench.cores,
        seconds,
        2 if bench.quick else 4,
        also=measure_rate,
    )
    rows, summary = [], {}
    for server in servers:
        mine = answers[server.name]
        entry = {
            "images_per_s": median([a["images_per_s"] for a in mine]),
            "p50_ms": median([a["p50_ms"] for a in mine]),
            "p99_ms": max(a["p99_ms"] for a in mine),
            "failures": sum(a["failures"] for a in mine),
        }
        if rates.get(server.name):
            entry["engine_images_per_s"] = median(rates[server.name])
            entry["share_of_engine"] = median([a["images_per_s"] / b for a, b in zip(mine, rates[server.name])])
            # What is left when decoding and preprocessing take their time of the same cores.
            around = median([(a["decode_ms"] + a["preprocess_ms"]) / a["inference_ms"] for a in mine])
            entry["share_of_engine_with_decoding"] = entry["share_of_engine"] * (1 + around)
        if "node" in answers:
            entry["ratio_to_node"] = median(
                [a["images_per_s"] / b["images_per_s"] for a, b in zip(mine, answers["node"])]
            )
        summary[server.name] = entry
        rows.append(
            [
                server.name,
                shown(entry, "images_per_s", ".1f"),
                shown(entry, "p50_ms", ".1f"),
                shown(entry, "p99_ms", ".1f"),
                shown(entry, "engine_images_per_s", ".1f"),
                shown(entry, "share_of_engine", ".0f", 100, "%"),
                shown(entry, "share_of_engine_with_decoding", ".0f", 100, "%"),
                shown(entry, "ratio_to_node"),
                entry["failures"],
            ]
        )
    bench.results["http"]["saturated"][size] = summary
    bench.title(f"HTTP: saturated by {4 * bench.cores} clients, JPEG 500x375, size={size}")
    bench.table(
        ["", "images/s", "p50 ms", "p99 ms", "engine im./s", "of engine", "of engine + decode", "/node", "failed"], rows
    )


def http_open_loop(bench, servers):
    note("HTTP, open loop")
    rows = []
    for server in servers:
        full = bench.results["http"]["saturated"]["native"][server.name]["images_per_s"]
        summary = bench.results["http"]["open_loop"][server.name] = {}
        for share in (0.7,) if bench.quick else (0.3, 0.5, 0.7, 0.9):
            answer = load(bench, server, server.target("native"), 64, 3 if bench.quick else 10, rate=share * full)
            summary[str(share)] = answer
            rows.append(
                [server.name, f"{100 * share:.0f}%", f"{share * full:.1f}"]
                + [shown(answer, f"{key}_ms", ".1f") for key in ("p50", "p90", "p99", "max")]
                + [answer["failures"]]
            )
    bench.title("HTTP: open loop, random arrivals at a share of what each server carried saturated (ms from arrival)")
    bench.table(["", "load", "arrivals/s", "p50", "p90", "p99", "slowest", "failed"], rows)


def http_clients(bench, servers, engines):
    """Between one image on all cores and one image a core, a load should never fare worse than under the better
    of the two, which the engine alone shows: `of better` is the share of that one's images per second."""
    note("HTTP, by number of clients")
    counts = (1, bench.cores, 4 * bench.cores) if bench.quick else (1, 2, 3, 4, 8, 16)
    together = {server.name: bench.engine(server.table, bench.cores) for server in servers if server.table}
    for engine in filter(None, [*together.values(), *engines.values()]):
        engine.ask("shape 1 375 500")
    rows = []
    for count in sorted(set(counts)):
        better = {name: [] for name in together}

        def measure_engine(server):
            one, all_cores = engines.get(server.name), together.get(server.name)
            if one and all_cores:
                apart = one.ask(f"throughput {min(count, bench.cores)} 1")["images_per_s"]
                better[server.name].append(max(apart, 1e3 / median(all_cores.ask("run 5")["ms"])))

        answers = http_rounds(
            bench,
            servers,
            lambda server: server.target("native"),
            count,
            1.5 if bench.quick else 3,
            1 if bench.quick else 3,
            also=measure_engine,
        )
        row = [count]
        for server in servers:
            mine = answers[server.name]
            entry = {
                "images_per_s": median([a["images_per_s"] for a in mine]),
                "p50_ms": median([a["p50_ms"] for a in mine]),
            }
            if better.get(server.name):
                entry["share_of_better"] = median([a["images_per_s"] / b for a, b in zip(mine, better[server.name])])
            bench.results["http"]["clients"].setdefault(server.name, {})[str(count)] = entry
            row += [shown(entry, "images_per_s", ".1f"), shown(entry, "p50_ms", ".1f")]
            if server.table:
                row.append(shown(entry, "share_of_better", ".0f", 100, "%"))
        rows.append(row)
    for engine in filter(None, together.values()):
        engine.close()
    heads = ["clients"]
    for server in servers:
        heads += [f"{server.name} im./s", "ms"] + (["of better"] if server.table else [])
    bench.title("HTTP: images per second and median ms by number of clients, size=native")
    bench.table(heads, rows)


# ---------------------------------------------------------------------------------------- memory, start


def measure_memory(bench):
    """Resident memory with two workers at 224x224, and the time from start to ready, weights in page cache."""
    bench.results["memory"] = {}
    WEIGHTS.read_bytes()
    rows = []
    for table, precision in bench.tables:
        if table == "ref":
            continue
        note(f"memory and start, {table}")
        starts, entry = [], {}
        for i in range(2 if bench.quick else 5):
            server = Server.resnetd(bench, table, 2)
            try:
                starts.append(server.start())
                if i == 0:
                    at_start = server.memory("VmRSS")
                    for clients in (1, 2):
                        load(bench, server, server.target("crop"), clients, 1 if bench.quick else 5)
                    server.resume()
                    entry = {
                        "ready_rss_bytes": at_start,
                        "rss_bytes": server.memory("VmRSS"),
                        "peak_rss_bytes": server.memory("VmHWM"),
                    }
            except Missing as error:
                bench.miss(error)
            finally:
                server.stop()
        if starts:
            entry["start_s"] = median(starts)
            bench.results["memory"][table] = entry
            rows.append(
                [table, precision]
                + [shown(entry, f"{key}_bytes", ".0f", 1e-6) for key in ("ready_rss", "rss", "peak_rss")]
                + [shown(entry, "start_s", ".0f", 1e3)]
            )
    bench.title("serving ResNet-50 at 224x224 with 2 workers: resident memory (MB), and start to ready (ms)")
    bench.table(["", "", "ready", "after load", "peak", "start ms"], rows)
    bench.save()


class Server:
    """An HTTP server under load, stopped while another has its turn."""

    def __init__(self, name, command, precision, table=None):
        self.name, self.command, self.precision, self.table = name, command, precision, table
        self.process = self.port = None

    @staticmethod
    def resnetd(bench, table, workers):
        return Server(
            f"resnetd {table}",
            [
                bench.build / "resnetd",
                "serve",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--workers",
                workers,
                "--kernels",
                table,
                "--model-description",
                DESCRIPTION,
                "--weights",
                WEIGHTS,
                "--log-level",
                "info",
            ],
            bench.precision[table],
            table,
        )

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
