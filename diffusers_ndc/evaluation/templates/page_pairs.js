// Two runs side by side: what one certifies at a radius and the other does not. The p-values come with the data.

const MOST_CHIPS = 200;

// The comparison of the chosen runs, as seen from the first one.
function chosenPair() {
  const first = Number(byId("first").value);
  const second = Number(byId("second").value);
  const pair = data.pairs.find((one) => one.first === Math.min(first, second) && one.second === Math.max(first, second));
  const rows = pair.rows.map((values) => {
    const row = {};
    pair.columns.forEach((name, number) => {
      row[name] = values[number];
    });
    if (first > second) {
      [row.only_first, row.only_second] = [row.only_second, row.only_first];
    }
    return row;
  });
  return { first: first, second: second, shared: new Set(pair.shared), differing: pair.differing, rows: rows };
}

function chip(number, row) {
  const run = data.runs[number];
  let result = "abstained";
  if (row.predicted === row.label) {
    result = "radius " + radiusText(row.radius);
  } else if (row.predicted !== null) {
    result = "predicted " + className(run, row.predicted);
  }
  const title = row.index + ": " + className(run, row.label);
  const words = element("span", {}, title, element("small", {}, result));
  const made = element("button", { type: "button", class: "chip", title: title + ", " + result }, thumbnail(row), words);
  made.addEventListener("click", () => {
    byId("image-run").value = number;
    showImages(row.index);
    byId("images").scrollIntoView();
    byId("index").focus({ preventScroll: true });
  });
  return made;
}

// The images that one run certifies and the other does not, as the second one has them: it says what went wrong.
function onlyList(certifies, other, shared, radius) {
  const proved = new Map(data.runs[certifies].rows.map((row) => [row.index, row.proved]));
  const found = data.runs[other].rows.filter((row) => {
    return shared.has(row.index) && proved.get(row.index) >= radius && row.proved < radius;
  });
  const name = data.runs[certifies].name;
  const list = element("div", {}, element("h3", {}, "Only " + name + ": " + count(found.length)));
  if (found.length) {
    list.append(element("p", { class: "note" }, "With what " + data.runs[other].name + " says of them."));
  }
  const chips = found.slice(0, MOST_CHIPS).map((row) => chip(other, row));
  list.append(element("div", { class: "chips", tabindex: "0", role: "region", "aria-label": name }, ...chips));
  if (found.length > MOST_CHIPS) {
    list.append(element("p", { class: "note" }, "and " + count(found.length - MOST_CHIPS) + " more"));
  }
  return list;
}

function showPair() {
  const { first, second, shared, rows } = chosenPair();
  const row = rows[Math.min(byId("radius").value, rows.length - 1)];
  const radius = row.radius;
  byId("compare-radius").textContent = String(radius);
  byId("radius").setAttribute("aria-valuetext", "radius " + radius);
  const names = [data.runs[first].name, data.runs[second].name];
  const boxes = [
    [row.both, "both"],
    [row.only_first, "only " + names[0]],
    [row.only_second, "only " + names[1]],
    [row.neither, "neither"],
  ].map(([number, words]) => element("div", {}, element("b", {}, count(number)), element("span", {}, words)));
  const differing = row.only_first + row.only_second;
  const question = radius > 0 ? "correctly certified at radius " + radius : "correct";
  const sentence = differing
    ? "Exact McNemar test over the " + count(differing) + " images on which they differ: p = " + row.p_value + "."
    : "The runs do not differ on any image: p = 1.";
  byId("compare-result").replaceChildren(
    element("p", {}, "Images that are " + question + ":"),
    element("div", { class: "four" }, ...boxes),
    element("p", { class: "p-value" }, sentence),
    element("p", { class: "note" }, "The p-value is of one comparison at a radius that was fixed before looking."),
    element("div", { class: "lists" }, onlyList(first, second, shared, radius), onlyList(second, first, shared, radius)),
  );
}

// Takes up two other runs, at the radius nearest to the one before.
function choosePair(changed, other) {
  if (changed.value === other.value) {
    other.value = changed.value === "0" ? "1" : "0";
  }
  const { shared, differing, rows } = chosenPair();
  const before = Number(byId("compare-radius").textContent);
  const distances = rows.map((row) => Math.abs(row.radius - before));
  byId("radius").max = rows.length - 1;
  byId("radius").disabled = rows.length < 2;
  byId("radius").value = distances.indexOf(Math.min(...distances));
  const others = differing ? " " + count(differing) + " images that differ or have no hash are left out." : "";
  byId("compare-basis").textContent =
    "Over the " + count(shared.size) + " images that both runs have, by hash and true class." + others +
    " The radii are those that both runs answer for.";
  showPair();
}

function start() {
  for (const section of document.querySelectorAll(".scripted")) {
    section.hidden = section.classList.contains("several") && data.runs.length < 2;
  }
  if (data.runs.length < 2) {
    document.querySelector("nav .several").hidden = true;
  }
  radiusChart();
  lowerBoundChart();
  const certified = [...data.runs.keys()].filter((number) => data.runs[number].certified);
  const order = [...certified, ...data.runs.keys()]; // what has certificates has more to show
  for (const id of ["class-run", "image-run", "first", "second"]) {
    fillSelect(byId(id), runOptions());
    byId(id).value = order[0];
  }
  byId("class-run").addEventListener("change", showClasses);
  showClasses();
  byId("image-run").addEventListener("change", () => showImages());
  byId("all-images").addEventListener("click", () => showImages());
  for (const id of ["verdict", "true-class", "predicted-class", "index"]) {
    byId(id).addEventListener("input", filterImages);
  }
  showImages();
  if (data.runs.length > 1) {
    const [first, second] = [byId("first"), byId("second")];
    second.value = order.find((number) => number !== order[0]);
    byId("compare-radius").textContent = data.runs[order[0]].radii.find((radius) => radius > 0) ?? 0;
    first.addEventListener("change", () => choosePair(first, second));
    second.addEventListener("change", () => choosePair(second, first));
    byId("radius").addEventListener("input", showPair);
    choosePair(first, second);
  }
}

start();
