"""The results as files: latest.json with every round, README.md with medians, ratios and goals, plots."""

import json

from lib import goals
from lib.rounds import median, ratio, spread, values
from lib.svg import bars

BASES = {"floor-l4": "÷ floor l4", "haproxy-h2": "÷ HAProxy h2"}
OURS = ["countersign", "countersign-split"]


def write(directory, run, pairs, scenarios):
    """Writes all of them. `run` holds machine, versions, command, settings and results."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "latest.json").write_text(json.dumps(run, indent=1) + "\n")
    results = run["results"]
    plots = draw(directory, results, pairs, [scenario.NAME for scenario in scenarios])
    parts = [heading(run), *(table(results, pairs, scenario) for scenario in scenarios)]
    parts += [judged(results, pair) for pair in pairs if pair.name in OURS]
    parts += ["## Plots\n", *(f"![{title}]({name})" for name, title in plots)] if plots else []
    (directory / "README.md").write_text("\n".join(parts) + "\n")


def heading(run):
    """What was run, on what."""
    facts = run["machine"] | {"rounds": run["rounds"], "seconds per point": run["settings"]["seconds"]}
    lines = ["# Results of `bench/run`", "", "Made by `bench/run`, not by hand. What is measured and how to read it: "
             "[bench/README.md](../README.md). Figures are medians of the rounds, ratios are medians of the ratios "
             "within each round: **compare ratios, not absolute figures of two runs.** Configurations: "
             "[configs/](configs/).",
             "", f"    {run['command']}", ""]
    if run["quick"]:
        lines += ["**A smoke test (`--quick`): its figures mean nothing.**", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {what} | {value} |" for what, value in facts.items()]
    lines += [f"| {name} | {version} |" for name, version in run["versions"].items()]
    return "\n".join([*lines, ""])


def table(results, pairs, scenario):
    """One scenario: a row for each pair, a column for each key, and of the first key its ratios and its spread."""
    lead = scenario.COLUMNS[0][0]
    bases = {base: text for base, text in BASES.items() if any(pair.name == base for pair in pairs)}
    heads = ["pair", *(text for _, text, _ in scenario.COLUMNS), *bases.values(), "max ÷ min"]
    lines = [f"## {scenario.TITLE}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    errors = []
    for pair in pairs:
        rounds = results[pair.name][scenario.NAME]
        if not any(rounds):
            continue
        cells = [number(median(values(results, pair.name, scenario.NAME, key)), decimals)
                 for key, _, decimals in scenario.COLUMNS]
        cells += [number(ratio(results, pair.name, base, scenario.NAME, lead), 2) for base in bases]
        cells.append(number(spread(values(results, pair.name, scenario.NAME, lead)), 2))
        lines.append(f"| {pair.title} | " + " | ".join(cells) + " |")
        errors += [f"- {pair.title}: {value['error']}" for value in rounds if value and "error" in value]
    lines += ["", f"The last columns are of *{scenario.COLUMNS[0][1]}*; max ÷ min is over the rounds."]
    if errors:
        lines += ["", "Measurements that failed:", "", *errors]
    return "\n".join([*lines, ""])


def judged(results, pair):
    """The goals beside what a pair of ours reached."""
    heads = ["what", "reached", "goal", "limit in this run", "", "beyond", "limit in this run", ""]
    lines = [f"## Goals: {pair.title}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for goal in goals.GOALS:
        for position in range(max(len(goal.first), len(goal.beyond))):
            cells = [number(median(values(results, pair.name, goal.scenario, goal.key)), goal.decimals)]
            for bounds in [goal.first, goal.beyond]:
                bound = bounds[position] if position < len(bounds) else None
                found = goals.judge(results, pair.name, goal, bound) if bound else None
                sign = "≥" if goal.at_least else "≤"
                cells += [f"{sign} {bound.text}" if bound else "", number(found[0], goal.decimals) if found else "",
                          ("met" if found[1] else "**missed**") if found else "not measured" if bound else ""]
            lines.append(f"| {goal.what} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", goals.NOT_MEASURED, ""])


def draw(directory, results, pairs, scenarios):
    """The plots of what was measured, as (file, title)."""
    plots = [
        ("cpu.svg", "CPU per request, A+B", "µs", {
            "busy, 32 connections": ("busy", "cpu_us"), "1,000 req/s": ("open", "cpu_us_1000"),
            "4,000 req/s": ("open", "cpu_us_4000")}),
        ("latency.svg", "Added latency at a fixed rate", "µs", {
            f"{quantile} at {rate:,}/s": ("open", f"added_{quantile}_{rate}")
            for rate in [1000, 4000] for quantile in ["p50", "p99"]}),
        ("memory.svg", "Memory per idle connection", "KiB", {
            "plain, at A": ("idle", "plain_kib"), "mTLS, at B": ("idle", "mtls_kib")}),
    ]
    drawn = []
    for name, title, unit, series in plots:
        series = {text: place for text, place in series.items() if place[0] in scenarios}
        rows = [(pair.title, [median(values(results, pair.name, *at)) for at in series.values()]) for pair in pairs]
        rows = [row for row in rows if any(value is not None for value in row[1])]
        if rows:
            (directory / name).write_text(bars(title, unit, list(series), rows))
            drawn.append((name, title))
    return drawn


def number(value, decimals):
    """A cell of a table."""
    if value is None:
        return "–"
    return value if decimals is None else f"{value:,.{decimals}f}"
