// Step curves with bands, and a table of their values at the position under the pointer or the keys.

const DASHES = ["", "8 4", "9 3 2 3", "2 3"];
const MARGIN = { left: 48, right: 14, top: 12, bottom: 42 };

// The share of a series at a position: it holds from the position before. A series says nothing beyond its limit.
function shareAt(series, x) {
  let step = series.steps.x.findIndex((end) => end >= x);
  if (step < 0) {
    step = series.steps.x.length;
  }
  return { count: series.steps.count[step], low: series.steps.low[step], high: series.steps.high[step] };
}

function chart(figure, options) {
  const svg = figure.querySelector("svg");
  const shown = options.series.map(() => true);
  let at = options.start;
  let width = 0;
  let height = 0;

  function draw(name, attributes, text) {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) {
      made.setAttribute(key, value);
    }
    made.textContent = text || "";
    return made;
  }

  function toX(x) {
    return MARGIN.left + ((x - options.from) / (options.to - options.from)) * (width - MARGIN.left - MARGIN.right);
  }

  function toY(share) {
    return height - MARGIN.bottom - share * (height - MARGIN.top - MARGIN.bottom);
  }

  function axes() {
    const parts = [];
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      const y = toY(share);
      parts.push(draw("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
      parts.push(draw("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, 100 * share + "%"));
    }
    let free = -Infinity;
    for (const [x, label] of options.ticks) {
      const place = toX(x);
      parts.push(draw("line", { class: "grid", x1: place, x2: place, y1: toY(0), y2: toY(0) + 5 }));
      if (place - free >= 4 * label.length + 10) {
        parts.push(draw("text", { x: place, y: toY(0) + 18, "text-anchor": "middle" }, label));
        free = place + 4 * label.length;
      }
    }
    const middle = (MARGIN.left + width - MARGIN.right) / 2;
    parts.push(draw("text", { x: middle, y: height - 6, "text-anchor": "middle" }, options.label));
    return parts;
  }

  function points(series, shares) {
    const end = Math.max(options.to, series.steps.x.at(-1));
    const all = [];
    let x = options.from;
    [...series.steps.x, end].forEach((step, number) => {
      const next = Math.min(step, options.to, series.limit);
      if (next > x || number === 0) {
        all.push([toX(x), toY(shares[number])], [toX(next), toY(shares[number])]);
        x = next;
      }
    });
    return all;
  }

  function path(all) {
    return all.map(([x, y], number) => (number ? "L" : "M") + x.toFixed(1) + " " + y.toFixed(1)).join("");
  }

  function curve(series) {
    const group = draw("g", { class: "s" + (series.slot % 7) });
    if (series.point) {
      const share = shareAt(series, 0);
      const x = toX(options.from);
      group.append(draw("path", { class: "curve", d: "M" + x + " " + toY(share.low) + "V" + toY(share.high) }));
      group.append(draw("rect", { class: "at", x: x - 5, y: toY(share.count / series.total) - 5, width: 10, height: 10 }));
      return group;
    }
    const low = points(series, series.steps.low);
    const high = points(series, series.steps.high);
    const middle = points(series, series.steps.count.map((number) => number / Math.max(series.total, 1)));
    group.append(draw("path", { class: "band", d: path([...high, ...low.reverse()]) + "Z" }));
    const dashes = DASHES[series.slot % DASHES.length];
    group.append(draw("path", { class: "curve", d: path(middle), "stroke-dasharray": dashes }));
    return group;
  }

  function cursor() {
    const x = toX(at);
    const parts = [draw("line", { class: "cursor", x1: x, x2: x, y1: toY(0), y2: toY(1) })];
    for (const series of options.series.filter((one, number) => shown[number] && !one.point && at <= one.limit)) {
      const y = toY(shareAt(series, at).count / Math.max(series.total, 1));
      parts.push(draw("circle", { class: "at s" + (series.slot % 7), cx: x, cy: y, r: 5 }));
    }
    return parts;
  }

  function swatch(series) {
    const made = draw("svg", { class: "swatch s" + (series.slot % 7), viewBox: "0 0 34 10", "aria-hidden": "true" });
    if (series.point) {
      made.append(draw("rect", { x: 12, y: 0, width: 10, height: 10, fill: "currentColor" }));
    } else {
      const dashes = DASHES[series.slot % DASHES.length];
      made.append(draw("line", { x1: 0, x2: 34, y1: 5, y2: 5, "stroke-dasharray": dashes }));
    }
    return made;
  }

  const cells = options.series.map(() => [element("td"), element("td")]);
  const head = element("th", { scope: "col", class: "text" });

  function legend() {
    const rows = options.series.map((series, number) => {
      const button = element("button", { type: "button", class: "plain toggle", "aria-pressed": "true" });
      const name = element("span", {}, series.name);
      if (series.note) {
        name.append(element("small", {}, series.note));
      }
      button.append(swatch(series), name);
      const row = element("tr", {}, element("th", { scope: "row" }, button), ...cells[number]);
      button.addEventListener("click", () => {
        shown[number] = !shown[number];
        button.setAttribute("aria-pressed", shown[number]);
        row.classList.toggle("off", !shown[number]);
        redraw();
      });
      return row;
    });
    const titles = ["share", "95% interval"].map((title) => element("th", { scope: "col" }, title));
    const table = element("table", { class: "legend" }, element("thead", {}, element("tr", {}, head, ...titles)));
    table.append(element("tbody", {}, ...rows));
    figure.querySelector(".wide").append(table);
  }

  const behind = draw("g", {});
  const before = draw("g", {});

  function tell() {
    head.textContent = "at " + options.describe(at);
    const spoken = [];
    options.series.forEach((series, number) => {
      const [value, interval] = cells[number];
      if (at > series.limit) {
        value.textContent = "–";
        interval.textContent = "not sought";
        return;
      }
      const share = shareAt(series, at);
      const words = percent(share.count / Math.max(series.total, 1));
      value.replaceChildren(words, element("small", {}, count(share.count) + " of " + count(series.total)));
      interval.textContent = (100 * share.low).toFixed(1) + " to " + percent(share.high);
      spoken.push(series.name + " " + words + ", " + interval.textContent);
    });
    svg.setAttribute("aria-valuenow", at);
    svg.setAttribute("aria-valuetext", options.describe(at) + ": " + spoken.join(", "));
  }

  function redraw() {
    width = svg.clientWidth;
    height = svg.clientHeight;
    svg.setAttribute("viewBox", "0 0 " + width + " " + height);
    const curves = options.series.filter((one, number) => shown[number]).map(curve);
    behind.replaceChildren(...axes(), ...curves);
    svg.replaceChildren(behind, before);
    point();
  }

  // The curves stay as they are while the pointer moves.
  function point() {
    before.replaceChildren(...cursor());
    tell();
  }

  function move(x) {
    const rounded = options.from + Math.round((x - options.from) / options.step) * options.step;
    at = Number(Math.min(Math.max(rounded, options.from), options.to).toPrecision(12));
    point();
  }

  function follow(event) {
    const left = svg.getBoundingClientRect().left;
    const inside = (event.clientX - left - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
    move(options.from + inside * (options.to - options.from));
  }

  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
    if (event.key in moves) {
      move(at + moves[event.key] * options.step);
    } else if (event.key === "Home") {
      move(options.from);
    } else if (event.key === "End") {
      move(options.to);
    } else {
      return;
    }
    event.preventDefault();
  });
  const role = { role: "slider", "aria-label": options.label, "aria-valuemin": options.from, "aria-valuemax": options.to };
  for (const [key, value] of Object.entries(role)) {
    svg.setAttribute(key, value);
  }
  legend();
  new ResizeObserver(redraw).observe(svg);
  redraw();
}

// A round number near an hundredth part of a length.
function roundStep(length) {
  const power = 10 ** Math.floor(Math.log10(length / 100));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= length / 100);
}

function radiusChart() {
  const series = data.runs.map((run, slot) => {
    const one = { name: run.name, slot: slot, steps: run.radius, total: run.total, limit: Infinity };
    if (!run.certified) {
      return { ...one, point: true, limit: 0, note: "clean images" };
    }
    if (run.sought !== null) {
      return { ...one, limit: run.sought, note: "σ " + run.sigma + ", sought up to " + run.sought };
    }
    return { ...one, note: "σ " + run.sigma };
  });
  const end = 1.05 * Math.max(0.1, ...data.runs.map((run) => run.radius.x.at(-1)));
  const step = roundStep(end);
  const ticks = [];
  for (let number = 0; 10 * step * number <= end; number += 1) {
    ticks.push([10 * step * number, String(Number((10 * step * number).toPrecision(6)))]);
  }
  const wanted = data.runs.flatMap((run) => run.radii).filter((radius) => radius > 0 && radius < end);
  chart(byId("radius-chart"), {
    series: series,
    from: 0,
    to: Math.ceil(end / step) * step,
    step: step,
    start: wanted.length ? Math.min(...wanted) : 0,
    ticks: ticks,
    label: "l2 radius (pixel units)",
    describe: (x) => "radius " + Number(x.toPrecision(6)),
  });
}

function lowerBoundChart() {
  const certified = data.runs.map((run, slot) => ({ run: run, slot: slot })).filter((one) => one.run.certified);
  if (!certified.length) {
    byId("p-lower-chart").hidden = true;
    return;
  }
  const series = certified.map(({ run, slot }) => {
    const note = "σ " + run.sigma + (run.sought === null ? "" : ", stopped early");
    return { name: run.name, slot: slot, steps: run.p_lower, total: run.total, limit: Infinity, note: note };
  });
  const end = Math.max(2, ...series.map((one) => one.steps.x.at(-1))) + 0.3;
  const ticks = [[Math.log10(2), "0.5"]];
  for (let nines = 1; nines <= end; nines += 1) {
    ticks.push([nines, "0." + "9".repeat(nines)]);
  }
  const digits = (x) => Math.min(15, Math.ceil(x) + 2);
  chart(byId("p-lower-chart"), {
    series: series,
    from: Math.log10(2),
    to: end,
    step: (end - Math.log10(2)) / 100,
    start: 1,
    ticks: ticks,
    label: "lower bound on p_A (logarithmic in 1 - p_A)",
    describe: (x) => "p_A ≥ " + (1 - 10 ** -x).toFixed(digits(x)),
  });
}
