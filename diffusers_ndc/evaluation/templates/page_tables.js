// Tables that are sorted by their heads and shown page by page, and what they show: classes and images.

const PAGE_SIZE = 50;
const ALPHABET = new Intl.Collator("en", { numeric: true });

// Values in ascending order, numbers before text; what is unknown comes last in both directions.
function compareValues(a, b, direction) {
  const unknown = (value) => value === null || value === undefined;
  if (unknown(a) || unknown(b)) {
    return unknown(a) - unknown(b);
  }
  if (typeof a === "number" && typeof b === "number") {
    return direction * (a - b);
  }
  return direction * ALPHABET.compare(a, b);
}

// Columns have a label, the value by which to sort, and what a cell shows (text or an element); those of text have a kind,
// the class of their cells.
function dataTable(container, columns, label) {
  const body = element("tbody");
  const told = element("output", { "aria-live": "polite" });
  const back = element("button", { type: "button" }, "Previous");
  const on = element("button", { type: "button" }, "Next");
  let rows = [];
  let sorted = { column: columns[0], direction: 1 };
  let page = 0;

  const heads = columns.map((column) => {
    const button = element("button", { type: "button", class: "plain" }, column.label);
    const head = element("th", { scope: "col", class: column.kind || "" }, column.value ? button : column.label);
    button.addEventListener("click", () => {
      const again = sorted.column === column;
      // numbers are of most interest from the largest one
      sorted = { column: column, direction: again ? -sorted.direction : column.kind ? 1 : -1 };
      page = 0;
      draw();
    });
    return head;
  });

  function draw() {
    const { column, direction } = sorted;
    rows.sort((a, b) => compareValues(column.value(a), column.value(b), direction));
    heads.forEach((head, number) => {
      const mine = columns[number] === column;
      head.setAttribute("aria-sort", mine ? (direction > 0 ? "ascending" : "descending") : "none");
      const button = head.querySelector("button");
      if (button) {
        button.textContent = columns[number].label + (mine ? (direction > 0 ? " ▲" : " ▼") : "");
      }
    });
    const first = page * PAGE_SIZE;
    const visible = rows.slice(first, first + PAGE_SIZE);
    body.replaceChildren(...visible.map((row) => {
      const cells = columns.map((column) => {
        return element("td", { class: column.kind || "" }, column.cell(row));
      });
      return element("tr", {}, ...cells);
    }));
    const range = rows.length > PAGE_SIZE ? first + 1 + " to " + (first + visible.length) + " of " : "";
    told.textContent = range + count(rows.length) + " " + label;
    back.hidden = on.hidden = rows.length <= PAGE_SIZE;
    back.disabled = page === 0;
    on.disabled = first + PAGE_SIZE >= rows.length;
  }

  for (const [button, change] of [[back, -1], [on, 1]]) {
    button.addEventListener("click", () => {
      page += change;
      draw();
    });
  }
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
  const wide = element("div", { class: "wide", role: "region", "aria-label": label, tabindex: "0" }, table);
  container.replaceChildren(wide, element("div", { class: "pager" }, told, back, on));
  return (shown) => {
    rows = [...shown];
    page = 0;
    sorted.column = sorted.column.value ? sorted.column : columns.find((column) => column.value);
    draw();
  };
}

function numberColumn(label, value, digits) {
  return { label: label, value: value, cell: (row) => fixed(value(row), digits) };
}

function shareColumn(label, value) {
  const cell = (row) => {
    const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("i"));
    bar.firstChild.style.width = 100 * value(row) + "%";
    return element("span", {}, percent(value(row)), bar);
  };
  return { label: label, value: value, cell: cell };
}

function showClasses() {
  const run = data.runs[byId("class-run").value];
  const columns = [
    { label: "class", kind: "text", value: (row) => className(run, row.label), cell: (row) => className(run, row.label) },
    numberColumn("images", (row) => row.images, 0),
  ];
  run.radii.forEach((radius, number) => {
    const label = radius > 0 ? "certified at " + radius : "correct";
    columns.push(shareColumn(label, (row) => row.correct[number] / row.images));
  });
  if (run.certified) {
    columns.push(numberColumn("average radius", (row) => row.average_radius, 3));
  }
  columns.push(numberColumn("evaluations, mean", (row) => row.evaluations, 0));
  columns.push(numberColumn("seconds, mean", (row) => row.seconds, 2));
  dataTable(byId("class-table"), columns, "classes")(run.classes);
}

// What a record shows: words, and whether that is good, neither or bad.
function verdict(run, row) {
  if (row.predicted === null) {
    return ["○ abstained", "middle"];
  }
  if (row.predicted !== row.label) {
    return ["✕ wrong", "bad"];
  }
  const reached = run.radii.filter((radius) => radius > 0 && radius <= row.radius);
  if (reached.length) {
    return ["✓ certified at " + reached.at(-1), "good"];
  }
  const smallest = run.radii.find((radius) => radius > 0);
  return smallest === undefined ? ["✓ correct", "good"] : ["✓ correct, below " + smallest, "middle"];
}

// The choices of the verdict filter: words, and which images they keep.
function verdicts(run) {
  const choices = [
    ["all", () => true],
    ["correct", (row) => row.proved >= 0],
    ["wrong", (row) => row.predicted !== null && row.predicted !== row.label],
  ];
  if (run.certified) {
    choices.push(["abstained", (row) => row.predicted === null]);
  }
  for (const radius of run.radii.filter((radius) => radius > 0)) {
    choices.push(["certified at " + radius, (row) => row.proved >= radius]);
    choices.push(["correct, not certified at " + radius, (row) => row.proved >= 0 && row.proved < radius]);
  }
  return choices;
}

function votesCell(run, row) {
  if (!row.copies) {
    return "–";
  }
  const [label, votes] = row.votes[0];
  const shown = element("span", {}, count(votes) + " of " + count(row.copies) + " for " + className(run, label));
  if (row.votes.length > 1) {
    const others = row.votes.slice(1).map(([other, number]) => className(run, other) + ": " + count(number));
    shown.append(element("small", {}, others.join(", ")));
  }
  return shown;
}

function imageColumns(run) {
  const columns = [{ label: "index", value: (row) => row.index, cell: (row) => String(row.index) }];
  if (run.images.picture) {
    columns.push({ label: "image", kind: "text", cell: thumbnail });
  }
  const named = (label) => (label === null ? "–" : className(run, label));
  columns.push({ label: "true class", kind: "text", value: (row) => named(row.label), cell: (row) => named(row.label) });
  columns.push({
    label: "predicted",
    kind: "text",
    value: (row) => (row.predicted === null ? null : named(row.predicted)),
    cell: (row) => named(row.predicted),
  });
  const outcome = (row) => {
    const [words, kind] = verdict(run, row);
    return element("span", { class: kind }, words);
  };
  columns.push({ label: "verdict", kind: "text", value: (row) => verdict(run, row)[0], cell: outcome });
  if (run.certified) {
    columns.push({ label: "radius", value: (row) => row.radius, cell: (row) => radiusText(row.radius) });
    const share = (row) => (row.copies ? row.votes[0][1] / row.copies : null);
    columns.push({ label: "votes", kind: "text votes", value: share, cell: (row) => votesCell(run, row) });
  }
  columns.push(numberColumn("evaluations", (row) => row.evaluations, 0));
  columns.push(numberColumn("seconds", (row) => row.seconds, 2));
  return columns;
}

let showImageRows = () => {};

function filterImages() {
  const run = data.runs[byId("image-run").value];
  const [, keeps] = verdicts(run)[byId("verdict").value];
  const label = byId("true-class").value;
  const predicted = byId("predicted-class").value;
  const index = byId("index").value.trim();
  showImageRows(run.rows.filter((row) => {
    const classes = (!label || row.label === Number(label)) && (!predicted || row.predicted === Number(predicted));
    return keeps(row) && classes && (!index || String(row.index) === index);
  }));
}

// Shows a run's images with the filters as they are at first, or one image alone.
function showImages(index) {
  const run = data.runs[byId("image-run").value];
  const classes = (labels) => {
    const known = [...new Set(labels)].filter((label) => label !== null).sort((a, b) => a - b);
    return [["", "all"], ...known.map((label) => [label, className(run, label)])];
  };
  fillSelect(byId("verdict"), verdicts(run).map(([words], number) => [number, words]));
  fillSelect(byId("true-class"), classes(run.images.label));
  fillSelect(byId("predicted-class"), classes(run.images.predicted));
  byId("index").value = index === undefined ? "" : index;
  showImageRows = dataTable(byId("image-table"), imageColumns(run), "images");
  filterImages();
}
