"""The projection of `cargo bench --bench drain` on Umari: the same orders, the same sums, read from its SQLite file.

In: UmaDB's address, Umari's address, its data folder, its command line, the module, the two servers' process ids, events, customers,
repeats. Out: one line of JSON for each drain, and one for latency at 200 events a second. A wrong sum fails the run.
"""

import bisect
import datetime
import itertools
import json
import math
import os
import sqlite3
import subprocess
import sys
import time
import uuid

import umadb

BODY_BYTES, BATCH = 256, 1000
LIVE_PER_SECOND, LIVE_EVENTS = 200, 2000
MASK = 2**64 - 1


def scatter(index):
    mixed = (index + 1) * 0x9E3779B97F4A7C15 & MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & MASK
    return mixed ^ mixed >> 31


class Shop:
    """The orders of `host/benches/drain/shop.rs`: customer n orders in proportion to 1/n."""

    def __init__(self, customers):
        total = sum(1 / n for n in range(1, customers + 1))
        self.shares = list(itertools.accumulate(1 / n / total for n in range(1, customers + 1)))

    def order(self, index):
        dice = scatter(index)
        customer = bisect.bisect_right(self.shares, (dice >> 11) / 2**53)
        return f"C{min(customer, len(self.shares) - 1)}", 100 + dice % 9900


def event(customer, cents):
    """An event as Umari's own commands store it."""
    body = {"customer": customer, "cents": cents, "note": ""}
    body["note"] = "x" * (BODY_BYTES - len(json.dumps(body, separators=(",", ":"))))
    stored = {
        "timestamp": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "correlation_id": str(uuid.uuid4()),
        "causation_id": str(uuid.uuid4()),
        "triggering_event_id": None,
        "idempotency_key": None,
        "data": body,
    }
    data = json.dumps(stored, separators=(",", ":")).encode()
    return umadb.Event("OrderPlaced", data, [f"customer:{customer}"], str(uuid.uuid4()))


def cpu_seconds(process):
    """User and system time of a process so far."""
    with open(f"/proc/{process}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    store, address, folder, cli, module, server, database = sys.argv[1:8]
    events, customers, repeats = map(int, sys.argv[8:11])
    client, shop, sums = umadb.Client(store), Shop(customers), {}
    for first in range(0, events, BATCH):
        batch = [shop.order(index) for index in range(first, min(first + BATCH, events))]
        for customer, cents in batch:
            orders, sum_ = sums.get(customer, (0, 0))
            sums[customer] = orders + 1, sum_ + cents
        client.append([event(*order) for order in batch])

    def umari(*words):
        subprocess.run([cli, "--url", address, "projectors", *words], check=True, stdout=subprocess.DEVNULL)

    def projector(name):
        """Its SQLite file, opened for reading, once there is one."""
        path = f"{folder}/projector-{name}.sqlite"
        while True:
            try:
                file = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
                file.execute("SELECT last_position FROM module_meta").fetchone()
                return file
            except sqlite3.OperationalError:
                time.sleep(0.01)

    def until(file, position):
        """When its position is known for the first time, and when it has got there."""
        first = None
        while True:
            (now,) = file.execute("SELECT last_position FROM module_meta").fetchone() or (None,)
            if now is not None and first is None:
                first = time.perf_counter(), now
            if now is not None and now >= position:
                return first, time.perf_counter()
            time.sleep(0.01)

    head = client.head()
    for repeat in range(repeats):
        name, before = f"spend{repeat}", (cpu_seconds(server), cpu_seconds(database))
        begun = time.perf_counter()
        umari("upload", name, "0.1.0", module, "--activate")
        file = projector(name)
        (seen, position), ended = until(file, head)
        found = {row[0]: row[1:] for row in file.execute("SELECT customer, orders, cents FROM spend")}
        assert found == sums, f"{name}: wrong sums"
        after = (cpu_seconds(server), cpu_seconds(database))
        print(json.dumps({
            "events": events,
            "customers": customers,
            "per_second": (head - position) / (ended - seen) if ended > seen and head > position else None,
            "seconds_with_deployment": ended - begun,
            "host_us_per_event": 1e6 * (after[0] - before[0]) / events,
            "store_us_per_event": 1e6 * (after[1] - before[1]) / events,
        }), flush=True)
        if repeat + 1 < repeats:
            umari("deactivate", name)

    latencies, begun = [], time.perf_counter()
    for number in range(LIVE_EVENTS):
        due = begun + number / LIVE_PER_SECOND
        time.sleep(max(0, due - time.perf_counter()))
        one = event("live", 100)
        asked = time.perf_counter()
        position = client.append([one])
        while file.execute("SELECT last_position FROM module_meta").fetchone()[0] < position:
            pass
        latencies.append(1000 * (time.perf_counter() - asked))
    latencies.sort()
    p50, p99 = (latencies[math.floor(LIVE_EVENTS * share)] for share in (0.5, 0.99))
    print(json.dumps({"events": LIVE_EVENTS, "per_second": LIVE_PER_SECOND, "p50_ms": p50, "p99_ms": p99}), flush=True)


main()
