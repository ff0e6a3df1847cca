#!/usr/bin/env python3
"""Draws what `lab-fec-link --json` printed, as an SVG picture on stdout.

    ./scripts/lab-fec-link --json | ./scripts/lab-fec-link.d/plot.py >link.svg

Three panels: TCP goodput; the share of requests that took longer than a time; the share of datagrams that
had not come after a time, in which those that never came stay. Shares are on logarithmic axes, and times
where they differ much: what FEC changes is the tail.
"""

import json
import math
import sys

WIDTH, HEIGHT = 960, 330
TOP, BOTTOM = 62, 274
CASES = [(False, "plain", "without FEC"), (True, "fec", "with FEC")]
CONTROLS = ["cubic", "bbr"]

STYLE = """
  .paper { fill: #ffffff } text { fill: #24292f; font: 12px system-ui, "DejaVu Sans", sans-serif }
  .title { font-size: 13px; font-weight: 600 } .axis { stroke: #57606a } .grid { stroke: #d8dee4 }
  .curve { fill: none; stroke-width: 2 } .value { font-weight: 600 }
  .curve.plain { stroke: #bc4c00 } .bar.plain, text.plain { fill: #bc4c00 }
  .curve.fec { stroke: #0969da } .bar.fec, text.fec { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } text { fill: #e6edf3 } .axis { stroke: #8b949e } .grid { stroke: #30363d }
    .curve.plain { stroke: #f0883e } .bar.plain, text.plain { fill: #f0883e }
    .curve.fec { stroke: #58a6ff } .bar.fec, text.fec { fill: #58a6ff }
  }
"""


class Picture:
    def __init__(self):
        self.parts = []

    def line(self, x1, y1, x2, y2, kind):
        self.parts.append(
            f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        )

    def text(self, x, y, text, kind="", anchor="start", turned=False):
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{text}</text>'
        )

    def bar(self, x, y, width, height, kind):
        self.parts.append(
            f'<rect class="bar {kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
        )

    def curve(self, points, kind):
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="curve {kind}" points="{corners}"/>')

    def svg(self, title):
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n"
            f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>\n{body}\n</svg>\n'
        )


def nice_step(most, steps):
    """A round distance of which at most `steps` reach `most`."""
    rough = most / steps
    power = 10 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def goodput(picture, runs, left, right, what):
    controls = [name for name in CONTROLS if (f"tcp_{name}", True) in runs]
    value = lambda name, fec: runs[f"tcp_{name}", fec]["goodput_mbit"]
    most = max(value(name, fec) for name in controls for fec, _, _ in CASES)
    step = nice_step(most, 5)
    top = step * math.ceil(most * 1.05 / step)
    y = lambda mbit: BOTTOM - (BOTTOM - TOP) * mbit / top
    for tick in range(round(top / step) + 1):
        picture.line(left, y(tick * step), right, y(tick * step), "axis" if tick == 0 else "grid")
        picture.text(left - 6, y(tick * step) + 4, f"{tick * step:g}", anchor="end")
    picture.text(left - 42, (TOP + BOTTOM) / 2, "Mbit/s", anchor="middle", turned=True)
    slot = (right - left) / max(1, len(controls))
    for number, name in enumerate(controls):
        for at, (fec, kind, _) in enumerate(CASES):
            width = slot * 0.36
            x = left + slot * (number + 0.12 + 0.4 * at)
            picture.bar(x, y(value(name, fec)), width, BOTTOM - y(value(name, fec)), kind)
            shown = f"{value(name, fec):.3g}"
            picture.text(x + width / 2, y(value(name, fec)) - 5, shown, f"value {kind}", "middle")
        picture.text(left + slot * (number + 0.5), BOTTOM + 18, name, anchor="middle")
    picture.text((left + right) / 2, BOTTOM + 38, what, anchor="middle")


def time_axis(least, most, left, right):
    """Where a time stands, and which are named; logarithmic if the times differ much."""
    if most > 5 * least:
        named = [factor * 10**power for power in range(6) for factor in (1, 2, 5)]
        first = max([ms for ms in named if ms <= least], default=1)
        last = most * 1.15
        x = lambda ms: left + (right - left) * math.log(ms / first) / math.log(last / first)
        return x, [ms for ms in named if first <= ms <= last]
    step = nice_step(max(1, most - least), 7)
    first = step * math.floor(least / step)
    last = max(most + step / 2, first + step)
    x = lambda ms: left + (right - left) * (ms - first) / (last - first)
    return x, [first + step * at for at in range(int((last - first) / step) + 1)]


def tails(picture, runs, run, left, right, what):
    """One panel of shares that are later than a time."""
    both = {fec: runs[run, fec] for fec, _, _ in CASES}
    times = [point[0] for result in both.values() for point in result["later_than"]]
    decades = math.ceil(math.log10(max(result["sent"] for result in both.values())))
    x, ticks = time_axis(max(1, min(times) - 1), max(times), left, right)
    y = lambda share: TOP + (BOTTOM - TOP) * min(1, -math.log10(max(share, 1e-12)) / decades)
    for power in range(decades + 1):
        picture.line(left, y(10**-power), right, y(10**-power), "grid")
        percent = 10 ** (2 - power)
        picture.text(left - 6, y(10**-power) + 4, f"{percent:g} %", anchor="end")
    for ms in ticks:
        picture.line(x(ms), TOP, x(ms), BOTTOM, "grid")
        picture.text(x(ms), BOTTOM + 18, f"{ms:g}", anchor="middle")
    picture.line(left, BOTTOM, right, BOTTOM, "axis")
    picture.text((left + right) / 2, BOTTOM + 38, what, anchor="middle")
    for fec, kind, _ in CASES:
        result = both[fec]
        points, share = [(left, y(1))], 1.0
        for ms, later in result["later_than"]:
            # A step, not a slope: nothing is known between.
            points += [(x(ms), y(share)), (x(ms), y(later))]
            share = later
        if result["missing"]:
            points.append((right, y(share)))
            text = f"{share * 100:.2g} % never came"
            # Above the one curve and below the other, which comes down from the left.
            picture.text(right - 4, y(share) + (17 if fec else -6), text, f"value {kind}", "end")
        picture.curve(points, kind)


def legend(picture):
    x = 20
    for _, kind, name in CASES:
        picture.bar(x, 13, 12, 12, kind)
        picture.text(x + 18, 23, name)
        x += 112


def main():
    rows, last = [], {}
    for row in (json.loads(line) for line in sys.stdin if line.startswith("{")):
        if "run" in row:
            rows.append(row)
        else:
            last = row
    runs = {(row["run"], row["fec"]): row for row in rows}
    if not last.get("ok") or not {("datagrams", True), ("requests", True), ("tcp_cubic", True)} <= set(runs):
        sys.exit("error: expected the output of a good run of `lab-fec-link --json` on stdin")
    picture = Picture()
    legend(picture)
    link = f'{last["delay_ms"]} ms one way, {last["loss"] * 100:g} % lost; FEC {last["k"]}+{last["m"]}'
    picture.text(WIDTH - 20, 23, link, anchor="end")
    for left, title in [(70, "TCP goodput"), (350, "Requests over TCP"), (690, "Datagrams")]:
        picture.text(left - 50, 48, title, "title")
    goodput(picture, runs, 70, 280, f'sender paced to {last["rate_mbit"]} Mbit/s')
    tails(picture, runs, "requests", 358, 612, "share not answered after … ms")
    tails(picture, runs, "datagrams", 692, 940, "share that had not come after … ms")
    sys.stdout.write(picture.svg(f"TCP, requests and datagrams without and with FEC: {link}"))


if __name__ == "__main__":
    main()
