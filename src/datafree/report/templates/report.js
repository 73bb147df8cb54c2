"use strict";
// Draws every plot of the page with Observable Plot, in the colours of the page and its width, and
// lets tables be sorted. Everything else of the page works without.
(() => {
  document.getElementById("no-script").remove();
  const data = JSON.parse(document.getElementById("data").textContent);
  const colour = name => `var(--${name})`;
  const symbols = { synthetic: "circle", noise: "square", real: "diamond" };
  const base = width => ({ width, marginLeft: 44, marginBottom: 34, marginTop: 24, marginRight: 12 });

  // Bins as rectangles, the grid behind them. Square roots keep small counts visible.
  function histogram(one, width) {
    const bins = one.counts.map((count, i) => (
      { x1: one.start + i * one.width, x2: one.start + (i + 1) * one.width, y: Math.sqrt(count) }));
    const half = one.step / 2;
    const [first, second] = bins.map(bin => bin.y).sort(d3.descending);
    const top = Math.min(first, 1.6 * second);
    const levels = one.bits > 4 ? [] : d3.range(2 ** one.bits)
      .map(i => one.low + i * one.step).filter(x => x <= one.high + half);
    return Plot.plot({
      ...base(width), height: 112, marginLeft: 10, marginTop: 4,
      x: { label: one.codes ? "code" : "value", ticks: 5, nice: false },
      y: { axis: null, domain: [0, top || 1], clamp: true },
      marks: [
        Plot.rect([one], { x1: one.low - half, x2: one.high + half, fill: colour("grid") }),
        Plot.ruleX(levels, { stroke: colour("muted"), strokeOpacity: 0.35, strokeWidth: 0.7 }),
        Plot.rectY(bins, { x1: "x1", x2: "x2", y: "y", fill: colour("synthetic"), inset: 0 }),
        Plot.ruleY([0], { stroke: colour("muted") }),
      ],
    });
  }

  // What arrives at a batch norm, a line for each set, and its normal distribution.
  function values(one, width) {
    const lines = Object.entries(one.shares).flatMap(([set, shares]) => shares.map((share, i) => (
      { set, x: one.start + (i + 0.5) * one.width, y: share / one.width })));
    const normal = d3.range(one.start, one.start + one.width * 60, one.width / 2).map(x => (
      { x, y: Math.exp(-0.5 * ((x - one.mean) / one.std) ** 2) / (one.std * Math.sqrt(2 * Math.PI)) }));
    // A spike at one value would hide everything else.
    const top = 2.5 * d3.max(normal, d => d.y);
    return Plot.plot({
      ...base(width), height: 200,
      x: { label: "value" }, y: { label: "density", ticks: 4, domain: [0, top], clamp: true },
      marks: [
        Plot.areaY(normal, { x: "x", y: "y", fill: colour("muted"), fillOpacity: 0.22 }),
        ...Object.keys(one.shares).map(set => Plot.lineY(lines.filter(d => d.set === set), {
          x: "x", y: "y", stroke: colour(set), strokeWidth: 1.8,
          strokeDasharray: set === "noise" ? "5 3" : null, curve: "step",
        })),
        Plot.ruleY([0], { stroke: colour("muted") }),
      ],
    });
  }

  function dots(points, x, y) {
    return Object.entries(points).map(([set, pairs]) => Plot.dot(pairs, {
      x, y, symbol: symbols[set], r: 2.7, fill: colour(set), fillOpacity: 0.6,
      stroke: colour(set), strokeWidth: 0.6,
    }));
  }

  function points(one, width) {
    return Plot.plot({
      ...base(width), height: 210, grid: true,
      x: { label: "mean", nice: true, ticks: 5 }, y: { label: "deviation", nice: true, ticks: 5 },
      marks: [
        Plot.ruleX([one.mean], { stroke: colour("ink"), strokeWidth: 1.2 }),
        Plot.ruleY([one.std], { stroke: colour("ink"), strokeWidth: 1.2 }),
        ...dots(one.points, d => d[0], d => d[1]),
      ],
    });
  }

  function plane(one, width) {
    return Plot.plot({
      ...base(width), height: 280, grid: true,
      x: { label: "first component", nice: true, ticks: 5 },
      y: { label: "second component", nice: true, ticks: 5 },
      marks: dots(one.points, d => d[0], d => d[1]),
    });
  }

  function frontier(one, width) {
    const shown = one.line.filter(d => d[1] > 0);
    return Plot.plot({
      ...base(width), height: 320, marginLeft: 52, grid: true,
      x: { label: one.unit, nice: true, ticks: Math.min(8, width / 80) },
      y: { type: "log", label: "expected loss (nats)", ticks: 4 },
      marks: [
        Plot.line(shown, { x: d => d[0], y: d => d[1], stroke: colour("synthetic"), strokeWidth: 2 }),
        Plot.dot(one.uniform, { x: d => d[1], y: d => d[2], stroke: colour("ink"), r: 4 }),
        Plot.text(one.uniform, {
          x: d => d[1], y: d => d[2], text: d => `${d[0]} bits`, dx: 8, dy: -8,
          textAnchor: "start", fill: colour("ink"),
        }),
        Plot.dot([one.chosen], { x: d => d[0], y: d => d[1], fill: colour("noise"), r: 6 }),
        Plot.text([one.chosen], {
          x: d => d[0], y: d => d[1], text: () => "chosen", dx: -10, dy: 12, textAnchor: "end",
          fill: colour("noise"), fontWeight: "bold",
        }),
      ],
    });
  }

  const draw = { histogram, values, points, plane, frontier };

  function fill(place) {
    const width = Math.floor(place.clientWidth);
    if (!width || place.drawn === width) return;
    place.drawn = width;
    const one = data[place.dataset.plot];
    place.replaceChildren(draw[one.kind](one, width));
    place.style.minHeight = "0";
  }

  const watch = new ResizeObserver(found => found.forEach(entry => fill(entry.target)));
  for (const place of document.querySelectorAll(".plot")) watch.observe(place);

  // A link to a layer opens what it lies in.
  function show() {
    const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const closed = place && place.closest("details:not([open])");
    if (closed) {
      closed.open = true;
      place.scrollIntoView();
    }
  }
  addEventListener("hashchange", show);
  show();
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => {
    one.open = true;
  }));

  // Buttons in the heads of a table sort its rows; keys reach them as any other button.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        const key = row => {
          const cell = row.cells[column];
          return head.dataset.sort === "number" ? Number(cell.dataset.value) : cell.textContent.trim();
        };
        const rows = [...table.tBodies[0].rows].sort((a, b) => d3.ascending(key(a), key(b)));
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        table.tBodies[0].append(...(up ? rows : rows.reverse()));
      });
    });
  }
})();
