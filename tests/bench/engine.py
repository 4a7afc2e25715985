"""The engine by itself: latency of every kernel table and peer, layer by layer, and as images grow."""

import math
import re
import sys
import time

from harness import HERE, NPM, ONNX, ORT, WEIGHTS, Missing, line_through, median, note, percentile, shown

WARM_UP_BELOW_MS = 300  # the first pass of a turn finds the caches full of the others' data; a long one hardly cares


def engine_peers(bench, threads):
    wanted = bench.peers or [ORT, "pytorch", "pytorch-bf16"] + [table for table, _ in bench.tables]
    peers = []
    if bench.has_node and ORT in wanted:
        peers.append(bench.start(ORT, ["node", NPM / "onnxruntime_peer.mjs", ONNX, threads], precision="fp32"))
    for precision in ("fp32",) if bench.quick else ("fp32", "bf16"):
        name = "pytorch" if precision == "fp32" else "pytorch-bf16"
        if name in wanted:
            command = [sys.executable, HERE / "peers" / "torch_peer.py", WEIGHTS, threads, precision]
            peers.append(bench.start(name, command, precision=precision))
    peers += [bench.engine(table, threads) for table, _ in bench.tables if table in wanted]
    return [peer for peer in peers if peer]


def measure_engine(bench):
    """Latency of every table and every peer, at every size, batch and number of threads."""
    cases = [(1, 224, 224), (8, 224, 224), (1, 375, 500)]
    if not bench.quick:
        cases = [(1, 64, 64), (1, 224, 224), (1, 375, 500), (1, 640, 480), (8, 224, 224), (8, 375, 500), (8, 640, 480)]
    cases = bench.inputs or cases
    bench.results["engine"] = []
    for threads in bench.threads or bench.thread_counts():
        peers = engine_peers(bench, threads)
        meter = bench.start("peak", [bench.tool("bench_peak"), threads])
        quiet = Quiet(meter)
        for n, height, width in cases:
            try:
                measure_case(bench, threads, n, height, width, peers, meter, quiet)
            except Missing as error:
                bench.miss(error)
        for peer in peers + [meter] if meter else peers:
            peer.close()
        bench.save()


def prepare(bench, peers, n, height, width):
    """Give everyone the input; what they answered, and how far each is from the first one's logits."""
    answers, ready = {}, []
    for peer in peers:
        try:
            answers[peer.name] = peer.ask(f"shape {n} {height} {width}")
            answers[peer.name]["once_ms"] = min(peer.ask(f"run {2 if n == 1 else 1}")["ms"])
            ready.append(peer)
        except Missing as error:
            bench.miss(f"{n}x3x{height}x{width}: {error}")
    exact = answers[ready[0].name]["logits"] if ready else []
    for answer in answers.values():
        logits = answer.pop("logits")
        answer["difference"] = max(abs(a - b) for a, b in zip(logits, exact)) / (max(exact) - min(exact))
    return ready, answers


class Quiet:
    """Tells whether the cores are this machine's alone at the moment.

    A virtual machine's core may share a physical one with a neighbour's, which comes and goes within seconds and
    slows some instructions more than others (tile products by more than half, float32 by a third). Each turn
    is therefore bracketed by probes of some milliseconds; it counts as quiet when the slowest of each comes near the
    best that was ever seen.
    """

    ENOUGH = 0.9
    PATIENCE_S = 1.5

    def __init__(self, meter):
        self.meter = meter
        self.best = max((self._probe() for _ in range(20)), default=0) if meter else 0

    def _probe(self):
        return self.meter.ask("probe")["probe"]

    def now(self):
        if not self.best:
            return False
        value = self._probe()
        self.best = max(self.best, value)
        return value >= self.ENOUGH * self.best

    def wait(self, until):
        """For a quiet moment, but not for ever: true when there is one."""
        until = min(until, time.monotonic() + self.PATIENCE_S)
        while not self.now():
            if not self.best or time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True


def measure_case(bench, threads, n, height, width, peers, meter, quiet):
    # The specification is no competitor: plain C, so slow that it would take the time of all others.
    peers = [peer for peer in peers if peer.name != "ref" or (n == 1 and height * width <= 64 * 64)]
    note(f"{n}x3x{height}x{width}, {threads} thread(s)")
    peers, answers = prepare(bench, peers, n, height, width)
    if not peers:
        return
    turn_ms = 40 if bench.quick else 100
    budget_s = bench.seconds or (8 if bench.quick else 40 if n == 1 else 30)
    rounds = {peer.name: [] for peer in peers}
    samples = {peer.name: [] for peer in peers}
    peaks = {"avx2": [], "avx512": [], "amx": []}
    calm = {peer.name: [] for peer in peers}
    until = time.monotonic() + budget_s
    most = math.inf if bench.seconds else 40
    while len(rounds[peers[0].name]) < 2 or (time.monotonic() < until and len(rounds[peers[0].name]) < most):
        for peer in peers:
            once_ms = answers[peer.name]["once_ms"]
            count = max(1, min(20, math.ceil(turn_ms / once_ms)))
            warm = int(once_ms < WARM_UP_BELOW_MS)
            before = quiet.wait(until)
            times = peer.ask(f"run {count + warm}")["ms"][warm:]
            rounds[peer.name].append(median(times))
            samples[peer.name] += times
            if before and quiet.now():
                calm[peer.name].append(median(times))
        for name, value in (meter.ask("run") if meter else {}).items():
            if value:
                peaks[name].append(value)
    peak = {name: median(values) for name, values in peaks.items() if values}
    peak["fp32"] = max(peak.get("avx2", 0), peak.get("avx512", 0)) or None
    multiply_adds = next((a["multiply_adds"] for a in answers.values() if "multiply_adds" in a), None)
    case = {
        "threads": threads,
        "shape": [n, 3, height, width],
        "rounds": len(rounds[peers[0].name]),
        "multiply_adds": multiply_adds,
        "peak_gflops": peak,
        "peers": {},
    }
    rows = []
    for peer in peers:
        name, times = peer.name, samples[peer.name]
        isa = "amx" if peer.attributes["precision"] == "bf16" else "avx2" if name == "avx2" else "fp32"
        best = peak.get(isa)
        middle = median(times)
        gflops = 2 * multiply_adds / middle / 1e6 if multiply_adds else None
        entry = {
            "precision": peer.attributes["precision"],
            "median_ms": middle,
            "min_ms": min(times),
            "p99_ms": percentile(times, 0.99),
            "samples": len(times),
            "gflops": gflops,
            "share_of_peak": gflops / best if gflops and best else None,
            "round_ms": rounds[name],
            "quiet_round_ms": calm[name],
            "quiet_ms": median(calm[name]) if calm[name] else None,
            **answers[name],
        }
        for other in (ORT, "pytorch"):
            if other in rounds:
                entry[f"ratio_to_{other}"] = median([a / b for a, b in zip(rounds[name], rounds[other])])
                if calm[name] and calm[other]:
                    entry[f"quiet_ratio_to_{other}"] = entry["quiet_ms"] / median(calm[other])
        case["peers"][name] = entry
        rows.append(
            [
                name,
                entry["precision"],
                shown(entry, "median_ms"),
                shown(entry, "min_ms"),
                shown(entry, "p99_ms"),
                shown(entry, "gflops", ".0f"),
                shown(entry, "share_of_peak", ".0f", 100, "%"),
                shown(entry, f"ratio_to_{ORT}", ".3f"),
                shown(entry, "ratio_to_pytorch", ".3f"),
                len(calm[name]),
                shown(entry, "quiet_ms"),
                shown(entry, f"quiet_ratio_to_{ORT}", ".3f"),
                shown(entry, "difference", ".1e"),
                shown(entry, "activation_bytes", ".1f", 1e-6),
                shown(entry, "packed_bytes", ".0f", 1e-6),
            ]
        )
    bench.results["engine"].append(case)
    bench.title(
        f"{n}x3x{height}x{width}, {threads} thread{'s' * (threads > 1)}: "
        f"{multiply_adds / 1e9:.2f} G multiply-adds; peak "
        + ", ".join(f"{name} {value:.0f}" for name, value in peak.items() if name != "fp32")
        + f" GFLOP/s; {case['rounds']} rounds"
    )
    bench.table(
        [
            "",
            "",
            "ms",
            "fastest",
            "p99",
            "GFLOP/s",
            "of peak",
            "/ORT",
            "/torch",
            "quiet turns",
            "ms",
            "/ORT",
            "differs",
            "act. MB",
            "weights MB",
        ],
        rows,
    )


# ------------------------------------------------------------------------------------------ operations


def measure_operations(bench):
    """Where the time of one 224x224 image goes, layer by layer, on one thread and on all."""
    bench.results["operations"] = {}
    meter = bench.start("peak", [bench.tool("bench_peak"), 1])
    for table in filter(None, (bench.fastest("fp32"), bench.fastest("bf16"))):
        note(f"layer by layer, {table}")
        ops, peak = {}, {}
        for threads in bench.thread_counts():
            peer = bench.engine(table, threads)
            if not peer:
                break
            peer.ask("shape 1 224 224")
            peer.ask("run 5")
            if meter and threads == 1:
                peak = meter.ask("run")
            ops[threads] = peer.ask(f"ops {10 if bench.quick else 40}")["ops"]
            peer.close()
        if len(ops) == len(bench.thread_counts()):
            best = peak.get("amx") if bench.precision[table] == "bf16" else peak.get(table) or peak.get("avx512")
            bench.results["operations"][table] = {"peak_gflops": best, "ops": ops}
            print_operations(bench, table, ops, best)
    if meter:
        meter.close()
    bench.save()


def print_operations(bench, table, ops, peak):
    groups = {}
    for i, op in enumerate(ops[1]):
        stage = re.sub(r"^(layer\d)\.([1-9]\d*)\.", r"\1.n.", op["name"])
        groups.setdefault((stage, op["kernel"], op["multiply_adds"]), []).append(i)
    total = sum(op["ms"] for op in ops[1])
    rows = []
    for (stage, kernel, multiply_adds), members in groups.items():
        ms = {threads: sum(ops[threads][i]["ms"] for i in members) for threads in ops}
        gflops = 2 * multiply_adds * len(members) / ms[1] / 1e6 if multiply_adds and ms[1] else None
        rows.append(
            [
                stage or "-",
                kernel or "-",
                len(members),
                f"{multiply_adds / 1e6:.0f}",
                f"{ms[1]:.3f}",
                f"{100 * ms[1] / total:.1f}%",
                f"{gflops:.0f}" if gflops else None,
                f"{100 * gflops / peak:.0f}%" if gflops and peak else None,
                f"{ms[bench.cores]:.3f}",
                f"{ms[1] / ms[bench.cores]:.2f}" if ms[bench.cores] else None,
            ]
        )
    bench.title(
        f"layer by layer: {table}, 1x3x224x224, {total:.2f} ms on 1 thread"
        + (f", peak {peak:.0f} GFLOP/s" if peak else "")
        + " (layerN.n: all blocks but the first)"
    )
    bench.table(
        [
            "",
            "kernel",
            "times",
            "M mult-adds",
            "ms",
            "of all",
            "GFLOP/s",
            "of peak",
            f"ms, {bench.cores} threads",
            "faster",
        ],
        rows,
    )


# ----------------------------------------------------------------------------------------------- scale


def measure_scale(bench):
    """Latency and memory as the image grows; both should follow the multiply-adds."""
    sizes = (
        [64, 256, 512, 1024] if bench.quick else [64, 96, 128, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024]
    )
    bench.results["scale"] = {}
    for table in filter(None, (bench.fastest("fp32"), bench.fastest("bf16"))):
        peer = bench.engine(table, 1)
        if not peer:
            continue
        note(f"sizes up to {sizes[-1]}x{sizes[-1]}, {table}")
        rows, points = [], []
        for size in sizes:
            answer = peer.ask(f"shape 1 {size} {size}")
            once = peer.ask("run 2")["ms"][1]
            times = peer.ask(f"run {max(3, min(20, int((300 if bench.quick else 1500) / once)))}")["ms"]
            point = {key: answer[key] for key in ("multiply_adds", "activation_bytes", "scratch_bytes", "rss_bytes")}
            point.update(size=size, median_ms=median(times), min_ms=min(times))
            points.append(point)
        peer.close()
        offset, slope, fit = line_through([p["multiply_adds"] / 1e9 for p in points], [p["median_ms"] for p in points])
        for p in points:
            expected = offset + slope * p["multiply_adds"] / 1e9
            rows.append(
                [
                    f"{p['size']}x{p['size']}",
                    f"{p['multiply_adds'] / 1e9:.3f}",
                    f"{p['median_ms']:.2f}",
                    f"{p['min_ms']:.2f}",
                    f"{p['median_ms'] / p['multiply_adds'] * 1e9:.2f}",
                    f"{100 * (p['median_ms'] / expected - 1):+.0f}%" if expected > 0 else None,
                    f"{p['activation_bytes'] / 1e6:.1f}",
                    f"{p['activation_bytes'] / p['multiply_adds'] * 1e3:.2f}",
                    f"{p['rss_bytes'] / 1e6:.0f}",
                ]
            )
        bench.results["scale"][table] = {"points": points, "offset_ms": offset, "ms_per_gmac": slope, "r_squared": fit}
        bench.title(
            f"growing image: {table}, 1 thread; ms = {offset:.2f} + {slope:.2f} * G multiply-adds, R^2 = {fit:.5f}"
        )
        bench.table(["", "G mult-adds", "ms", "fastest", "ms/G", "off line", "act. MB", "MB/G", "RSS MB"], rows)
    bench.save()
