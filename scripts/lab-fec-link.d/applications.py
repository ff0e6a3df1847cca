#!/usr/bin/env python3
"""The applications of lab-fec-link: numbered datagrams, and requests with answers.

    applications.py receive ADDRESS PORT COUNT            takes datagrams, prints what came of them
    applications.py send ADDRESS PORT COUNT RATE BYTES    sends them at a steady rate
    applications.py answer ADDRESS PORT                   answers requests until it is ended
    applications.py request ADDRESS PORT CONNECTIONS INTERVAL_MS SECONDS

Both sides run on one machine, so that its monotonic clock is theirs and a delay one way can be measured. What
is measured includes what a process waits for a core, as with any application. Prints one line of JSON.
"""

import json
import math
import selectors
import socket
import struct
import sys
import time

# Number of the datagram, and when it was sent (ns).
STAMP = struct.Struct("!IQ")
REQUEST_BYTES = 128
ANSWER_BYTES = 1000
# Nothing for so long: all that can come has come.
IDLE_S = 2.0
# A request that is not answered by then is given up.
PATIENCE_S = 20.0
NS_PER_MS = 1e6
# Of Linux, asm-generic/socket.h; the module has no name for it.
SO_RCVBUFFORCE = 33


def percentile_ms(sorted_ns, share, of_count):
    """The delay within which `share` of `of_count` came; None when so many did not come."""
    rank = max(1, math.ceil(share * of_count))
    return round(sorted_ns[rank - 1] / NS_PER_MS, 3) if rank <= len(sorted_ns) else None


def later_than(sorted_ns, of_count):
    """Pairs [ms, share that had not come by then], a step of a millisecond or more each."""
    points = []
    done = 0
    while done < len(sorted_ns):
        edge_ms = int(sorted_ns[done] / NS_PER_MS) + 1
        while done < len(sorted_ns) and sorted_ns[done] < edge_ms * NS_PER_MS:
            done += 1
        points.append([edge_ms, round((of_count - done) / of_count, 7)])
    return points


def summary(delays_ns, of_count):
    """What is said about delays; `of_count` of them should have come."""
    delays_ns = sorted(delays_ns)
    came = len(delays_ns)
    return {
        "sent": of_count,
        "missing": of_count - came,
        "p50_ms": percentile_ms(delays_ns, 0.5, came) if came else None,
        "p99_ms": percentile_ms(delays_ns, 0.99, came) if came else None,
        "p99_of_sent_ms": percentile_ms(delays_ns, 0.99, of_count),
        "max_ms": round(delays_ns[-1] / NS_PER_MS, 3) if came else None,
        "later_than": later_than(delays_ns, of_count),
    }


def receive(address, port, count):
    delays_ns = {}
    twice = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        sock.bind((address, port))
        # The first may have to wait for its sender.
        sock.settimeout(30.0)
        while len(delays_ns) < count:
            try:
                datagram = sock.recv(2048)
            except TimeoutError:
                break
            now_ns = time.monotonic_ns()
            sock.settimeout(IDLE_S)
            number, sent_ns = STAMP.unpack_from(datagram)
            twice += number in delays_ns
            delays_ns.setdefault(number, now_ns - sent_ns)
    return {**summary(delays_ns.values(), count), "twice": twice}


def send(address, port, count, rate, size):
    filler = bytes(size - STAMP.size)
    begin_ns = time.monotonic_ns()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        for number in range(count):
            ahead_s = (begin_ns + number * 1_000_000_000 // rate - time.monotonic_ns()) / 1e9
            if ahead_s > 0:
                time.sleep(ahead_s)
            sock.send(STAMP.pack(number, time.monotonic_ns()) + filler)
    return {"sent": count, "seconds": round((time.monotonic_ns() - begin_ns) / 1e9, 3)}


def answer(address, port):
    events = selectors.DefaultSelector()
    listener = socket.create_server((address, port), backlog=1024)
    events.register(listener, selectors.EVENT_READ, None)
    reply = bytes(ANSWER_BYTES)
    while True:
        for key, _ in events.select():
            if key.data is None:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                events.register(connection, selectors.EVENT_READ, [0])
                continue
            try:
                got = key.fileobj.recv(65536)
                key.data[0] += len(got)
                while key.data[0] >= REQUEST_BYTES:
                    key.data[0] -= REQUEST_BYTES
                    key.fileobj.sendall(reply)
            except OSError:
                got = b""
            if not got:
                events.unregister(key.fileobj)
                key.fileobj.close()


class Requests:
    """Connections that ask at fixed times, whether or not the last answer has come.

    A request's time runs from when it was due, so that one that has to wait behind another is not
    counted as quick.
    """

    def __init__(self, address, port, connections, interval_ms):
        self.events = selectors.DefaultSelector()
        self.interval_ns = interval_ms * 1_000_000
        self.took_ns = []
        self.asked = 0
        self.lanes = []
        for _ in range(connections):
            sock = socket.create_connection((address, port), timeout=30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            lane = {"sock": sock, "due_ns": 0, "asked_ns": [], "got": 0}
            self.events.register(sock, selectors.EVENT_READ, lane)
            self.lanes.append(lane)

    def run(self, seconds):
        begin_ns = time.monotonic_ns()
        end_ns = begin_ns + seconds * 1_000_000_000
        for number, lane in enumerate(self.lanes):
            # Not all at once.
            lane["due_ns"] = begin_ns + number * self.interval_ns // len(self.lanes)
        while (now_ns := time.monotonic_ns()) < end_ns:
            self.ask(now_ns)
            self.take((min(lane["due_ns"] for lane in self.lanes) - time.monotonic_ns()) / 1e9)
        while len(self.took_ns) < self.asked and time.monotonic_ns() < end_ns + PATIENCE_S * 1e9:
            self.take(0.1)

    def ask(self, now_ns):
        for lane in self.lanes:
            if lane["due_ns"] <= now_ns:
                lane["sock"].sendall(bytes(REQUEST_BYTES))
                lane["asked_ns"].append(lane["due_ns"])
                lane["due_ns"] += self.interval_ns
                self.asked += 1

    def take(self, wait_s):
        for key, _ in self.events.select(max(0.0, wait_s)):
            lane = key.data
            got = len(lane["sock"].recv(65536))
            if got == 0:
                raise ConnectionError("the server closed a connection")
            lane["got"] += got
            now_ns = time.monotonic_ns()
            while lane["got"] >= ANSWER_BYTES:
                lane["got"] -= ANSWER_BYTES
                self.took_ns.append(now_ns - lane["asked_ns"].pop(0))


def request(address, port, connections, interval_ms, seconds):
    requests = Requests(address, port, connections, interval_ms)
    requests.run(seconds)
    return summary(requests.took_ns, requests.asked)


def main():
    actions = {"receive": receive, "send": send, "answer": answer, "request": request}
    if len(sys.argv) < 4 or sys.argv[1] not in actions:
        sys.exit("error: expected " + " or ".join(actions) + ", an address and a port")
    try:
        result = actions[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))
    except OSError as error:
        sys.exit(f"error: {sys.argv[1]}: {error}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
