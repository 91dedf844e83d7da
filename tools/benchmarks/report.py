"""Tables of a comparison: every engine's medians, and the goals."""

from dataclasses import dataclass

NIWAKI, LLAMA, GENAI = "niwaki", "llama.cpp", "onnxruntime-genai"


@dataclass
class Figures:
    """Medians by (weights, threads, what, engine), and what niwaki says of itself by weights and threads."""

    medians: dict
    own: dict
    weights: list
    threads: list

    def ratio(self, weights, threads, what, other=LLAMA):
        """Niwaki's median over another's; None when one of them was not measured."""
        mine = self.medians.get((weights, threads, what, NIWAKI))
        others = self.medians.get((weights, threads, what, other))
        return mine / others if mine is not None and others else None

    def own_ratio(self, weights, threads, what, depths):
        """Niwaki's median at one depth over that at another."""
        one, other = (self.medians.get((weights, threads, what % depth, NIWAKI)) for depth in depths)
        return one / other if one and other else None


def table(titles, rows):
    """Columns aligned: the first to the left, the others to the right; Markdown."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in [titles, *rows]) for index in range(len(titles))]

    def line(cells):
        first, *others = zip(cells, widths)
        return "| " + " | ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if index else "-") for index, width in enumerate(widths)) + "|"
    return "\n".join([line(titles), rule, *map(line, rows)]) + "\n"


def number(value):
    """Three digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def speeds(figures):
    """Tokens per second and per CPU-second; time to the first token; memory."""
    rows = []
    whats = sorted({what for _, _, what, _ in figures.medians}, key=_order)
    for weights in figures.weights:
        for threads in figures.threads:
            for what in whats:
                factor, unit = _unit(what)
                values = [figures.medians.get((weights, threads, what, engine)) for engine in (NIWAKI, LLAMA, GENAI)]
                scaled = [number(value * factor if value is not None else None) for value in values]
                ratios = [number(figures.ratio(weights, threads, what, other)) for other in (LLAMA, GENAI)]
                name = what.removesuffix(" wall").removesuffix(" cpu")
                rows.append([f"{name}, {unit}", weights, threads, *scaled, *ratios])
    return table(["what", "weights", "threads", NIWAKI, LLAMA, "genai", "/ llama.cpp", "/ genai"], rows)


def goals(figures):
    """What was to be reached and what was: by wall clock and, for speeds, by CPU time."""
    rows = []

    def goal(name, value, wanted, at_least=True, by_cpu=None):
        if value is None:
            return
        reached = lambda value: value >= wanted if at_least else value <= wanted
        met = "yes" if reached(value) else "by CPU time" if by_cpu is not None and reached(by_cpu) else "no"
        sign = ">=" if at_least else "<="
        rows.append([name, f"{sign} {wanted}", number(value), number(by_cpu), met])

    def speed(name, what, wanted, weights, threads, other=LLAMA):
        values = [figures.ratio(weights, threads, f"{what} {unit}", other) for unit in ("wall", "cpu")]
        goal(name, values[0], wanted, by_cpu=values[1])

    for weights in figures.weights:
        for threads in figures.threads:
            where = f"{weights}, {threads} thread{'s' if threads > 1 else ''}"
            wanted_of_llama = {"prefill 128": 1.5, "prefill 512": 1.5, "decode at 10": 1.2, "decode at 2000": 1}
            for what, wanted in wanted_of_llama.items():
                speed(f"{what} / llama.cpp, {where}", what, wanted, weights, threads)
            for what in ("prefill 128", "prefill 512", "decode at 10"):
                speed(f"{what} / genai, {where}", what, 2, weights, threads, GENAI)
            decode = [f"decode at %d {unit}" for unit in ("wall", "cpu")]
            deep = [figures.own_ratio(weights, threads, what, (2000, 10)) for what in decode]
            goal(f"decode at 2000 / at 10, {where}", deep[0], 0.8, by_cpu=deep[1])
            first = [figures.ratio(weights, threads, f"first token {unit}") for unit in ("wall", "cpu")]
            goal(f"start to first token / llama.cpp, {where}", first[0], 0.3, at_least=False, by_cpu=first[1])
            goal(f"RssAnon / llama.cpp, {where}", figures.ratio(weights, threads, "memory"), 0.5, at_least=False)
            mine = figures.own[weights].get(threads, {})
            if mine.get("planned_anonymous_bytes"):
                measured = figures.medians[weights, threads, "memory", NIWAKI]
                off = abs(measured / mine["planned_anonymous_bytes"] - 1)
                goal(f"RssAnon off the plan, {where}", off, 0.05, at_least=False)
            if threads > 1 and mine.get("bandwidth_share"):
                goal(f"share of memory bandwidth, decode, {where}", mine["bandwidth_share"], 0.7)
        if {1, 2} <= set(figures.threads):
            for what, wanted in (("prefill 512", 1.85), ("decode at 10", 1.6)):
                two, one = (figures.medians.get((weights, count, f"{what} wall", NIWAKI)) for count in (2, 1))
                goal(f"{what}, 2 threads / 1, {weights}", two / one if two and one else None, wanted)
    return table(["goal", "wanted", "wall clock", "CPU time", "met"], rows)


def _unit(what):
    if what.startswith("first token"):
        return 1e3, "ms" if what.endswith("wall") else "ms of CPU"
    if what == "memory":
        return 1e-6, "MB"
    return 1, "tok/s" if what.endswith("wall") else "tok/CPU-s"


def _order(what):
    kinds = ["prefill 128", "prefill 512", "decode at 10 ", "decode at 2000", "first token", "memory"]
    return next(index for index, kind in enumerate(kinds) if what.startswith(kind)), what.endswith("cpu")
