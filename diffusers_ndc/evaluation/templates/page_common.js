"use strict";

// Names and other words of the records only ever become text here, never HTML.

const data = JSON.parse(document.getElementById("data").textContent);

function byId(id) {
  return document.getElementById(id);
}

// An element of HTML with attributes and children; strings become text.
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function percent(share) {
  return (100 * share).toFixed(1) + "%";
}

function count(number) {
  return number.toLocaleString("en-US");
}

function fixed(number, digits) {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return number === null ? "–" : number.toLocaleString("en-US", options);
}

// At most four digits, rounded down: what is proved does not grow.
function radiusText(radius) {
  return (Math.floor(radius * 1e4 + 1e-6) / 1e4).toString();
}

function className(run, label) {
  return Object.hasOwn(run.names, label) ? run.names[label] : String(label);
}

function fillSelect(select, options) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value: value }, text)));
}

function runOptions() {
  return data.runs.map((run, number) => [number, run.name]);
}

// The rows of a run's images, with the radius that is proved for the true class: -1 if the class is another one.
function imageRows(run) {
  const columns = run.images;
  return columns.index.map((index, number) => {
    const row = { number: number };
    for (const name of Object.keys(columns)) {
      row[name] = columns[name][number];
    }
    row.proved = row.predicted === row.label ? row.radius : -1;
    return row;
  });
}

for (const run of data.runs) {
  run.rows = imageRows(run);
}

function thumbnail(row) {
  if (row.picture === undefined || row.picture === null) {
    return "";
  }
  const source = "data:image/png;base64," + data.pictures[row.picture];
  return element("img", { class: "thumbnail", src: source, alt: "image " + row.index });
}
