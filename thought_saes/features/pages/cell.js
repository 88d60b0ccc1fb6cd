"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const list = document.getElementById("halves");
  const detail = document.getElementById("detail");
  const search = document.getElementById("search");
  const sort = document.getElementById("sort");

  function element(name, text, parent, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    if (parent) parent.append(made);
    return made;
  }

  function unpack() {
    const bytes = Uint8Array.from(atob(data.packed), character => character.charCodeAt(0));
    const words = new DataView(bytes.buffer);
    let place = 0;
    const next = () => { const word = words.getUint16(2 * place, true); place += 1; return word; };
    const many = count => Array.from({ length: count }, next);
    return data.halves.map(([name, density, max, mean, precision, recall, threshold, concepts, matches, effect, lens]) => {
      const [nBins, nTop, nQuantile, nSilent] = many(4);
      const bins = many(nBins), rows = many(nTop + nQuantile + nSilent);
      const activations = many(nTop + nQuantile).map(word => word / 65535 * max);
      return {
        name, density, max, mean, precision, recall, threshold, matches, bins, effect, lens,
        sign: name.endsWith("-") ? -1 : 1,
        concepts: concepts.map(([concept, f1]) => ({ name: data.concepts[concept], f1 })),
        top: rows.slice(0, nTop).map((row, index) => ({ row, activation: activations[index] })),
        quantile: rows.slice(nTop, nTop + nQuantile).map((row, index) => ({ row, activation: activations[nTop + index] })),
        silent: rows.slice(nTop + nQuantile).map(row => ({ row, activation: 0 })),
      };
    });
  }

  const halves = unpack();
  const f1 = half => half.concepts.length && half.concepts[0].f1 !== null ? half.concepts[0].f1 : -1;
  const ORDERS = {
    f1: (one, other) => f1(other) - f1(one),
    density: (one, other) => other.density - one.density,
    rare: (one, other) => one.density - other.density,
    max: (one, other) => other.max - one.max,
    name: (one, other) => parseInt(one.name) - parseInt(other.name),
  };
  let shown = [], chosen = null;

  function words(half) {
    half.words ??= [half.name, ...half.concepts.slice(0, 1).map(concept => concept.name), ...half.top.map(({ row }) => data.rows[row][0])].join(" \n").toLowerCase();
    return half.words;
  }

  function fits(half, query) {
    let rest = query.toLowerCase().replace(/(f1|density)\s*([<>])\s*([\d.]+)/g, "\u0000$1$2$3 ");
    for (const [, name, sign, bound] of rest.matchAll(/\u0000(f1|density)([<>])([\d.]+)/g)) {
      const value = name === "f1" ? f1(half) : half.density;
      if (sign === ">" ? !(value > bound) : !(value < bound)) return false;
    }
    rest = rest.replace(/\u0000\S+/g, "").trim();
    return !rest || words(half).includes(rest) || rest.split(/\s+/).every(word => words(half).includes(word));
  }

  const percent = share => share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(1)}%`;
  const number = value => value === null || value === undefined ? "–" : value.toFixed(2);

  function fill() {
    shown = halves.filter(half => fits(half, search.value)).sort(ORDERS[sort.value]);
    list.replaceChildren();
    const head = element("div", undefined, list, "head");
    ["feature", "best concept", "fires", "F1"].forEach((title, index) => element("span", title, head, index > 1 ? "number" : ""));
    shown.forEach(half => {
      const button = element("button", undefined, list);
      button.type = "button";
      button.setAttribute("role", "option");
      button.dataset.half = half.name;
      element("span", half.name, button);
      element("span", half.concepts.length ? half.concepts[0].name : "", button);
      element("span", percent(half.density), button, "number");
      element("span", f1(half) < 0 ? "–" : number(f1(half)), button, "number");
      button.addEventListener("click", () => choose(half));
    });
    document.getElementById("count").textContent = `${shown.length.toLocaleString("en")} of ${halves.length.toLocaleString("en")} features that fire`;
    mark();
  }

  function mark() {
    for (const button of list.querySelectorAll("button")) {
      const here = chosen !== null && button.dataset.half === chosen.name;
      button.setAttribute("aria-selected", here);
      if (here) button.scrollIntoView({ block: "nearest" });
    }
  }

  function histogram(half, parent) {
    element("h2", "Activations", parent);
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", `0 0 ${half.bins.length * 10} 100`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", "histogram of the activations");
    const highest = Math.max(...half.bins);
    half.bins.forEach((count, index) => {
      const rect = document.createElementNS(space, "rect");
      const height = count ? Math.max(1.5, 98 * count / highest) : 0;
      Object.entries({ x: index * 10 + 1, y: 100 - height, width: 8, height }).forEach(([key, value]) => rect.setAttribute(key, value));
      svg.append(rect);
    });
    if (half.threshold) {
      const line = document.createElementNS(space, "line");
      const x = half.threshold * half.bins.length * 10;
      Object.entries({ x1: x, x2: x, y1: 0, y2: 100 }).forEach(([key, value]) => line.setAttribute(key, value));
      svg.append(line);
    }
    parent.append(svg);
    element("p", `0 to ${signed(half, half.max)}; fires on ${percent(half.density)} of the questions, ${signed(half, half.mean)} on average` + (half.threshold ? `; the line is the concept's threshold` : ""), parent, "muted");
  }

  const signed = (half, value) => (half.sign * value).toFixed(2).replace("-", "−");

  function concepts(half, parent) {
    element("h2", "Concepts, by F1 on validation questions", parent);
    half.concepts.forEach(concept => {
      const bar = element("div", undefined, parent, "bar");
      element("span", concept.name, bar);
      const track = element("div", undefined, bar, "track");
      element("div", undefined, track, "fill").style.width = `${100 * (concept.f1 ?? 0)}%`;
      element("span", number(concept.f1), bar, "number");
    });
    if (half.concepts.length) element("p", `Of the first: precision ${number(half.precision)}, recall ${number(half.recall)}.`, parent, "muted");
  }

  function examples(half, title, members, parent) {
    if (!members.length) return;
    element("h2", title, parent);
    members.forEach(({ row, activation }) => {
      const [question, steps, split, said, right] = data.rows[row];
      const example = element("div", undefined, parent, activation ? "example fires" : "example");
      const above = element("div", undefined, example, "above");
      element("strong", activation ? signed(half, activation) : "0", above);
      if (split) element("span", split, above);
      if (said) element("span", `the model says ${said}${right ? ` (${right})` : ""}`, above);
      element("p", question, example, "question");
      if (steps) element("p", steps, example, "steps");
    });
  }

  function matches(half, parent) {
    if (!half.matches.length) return;
    element("h2", "Fires on the same questions", parent);
    const members = element("p", undefined, parent);
    half.matches.forEach(([place, other, correlation], index) => {
      if (index) members.append(", ");
      const where = data.places[place];
      const label = where.replace(/pos(\d+)_layer(\d+)/, "position $1, layer $2");
      const text = `${other} at ${label} (r ${number(correlation)})`;
      if (where.includes(" ")) { members.append(text); return; }
      element("a", text, members).href = `${where}.html#${other}`;
    });
  }

  function causes(half, parent) {
    if (!half.effect) return;
    const [questions, agreement, low, high, random] = half.effect;
    element("h2", "Taken out of the loop", parent);
    element("p", `${percent(1 - agreement)} of the answers change (95 %: ${percent(1 - high)} to ${percent(1 - low)}), over the ${questions.toLocaleString("en")} questions on which it fires`
      + (random === null ? "." : `; a random direction of the same length changes ${percent(1 - random)}.`), parent);
  }

  function lenses(half, parent) {
    if (!half.lens) return;
    element("h2", "What its direction says to the model", parent);
    ["makes likelier", "makes less likely", "the thought moves towards"].forEach((title, index) => {
      if (!half.lens[index].length) return;
      const line = element("p", `${title}: `, parent, "lens");
      half.lens[index].forEach(token => { element("code", token, line); line.append(" "); });
    });
  }

  function choose(half) {
    chosen = half;
    detail.replaceChildren();
    element("h2", `Feature ${half.name}` + (half.concepts.length ? `: ${half.concepts[0].name}` : ""), detail);
    const columns = element("div", undefined, detail, "columns");
    histogram(half, element("section", undefined, columns));
    concepts(half, element("section", undefined, columns));
    causes(half, detail);
    lenses(half, detail);
    matches(half, detail);
    examples(half, "Strongest", half.top, detail);
    const quarter = Math.ceil(half.quantile.length / 4);
    ["Strongest quarter", "Second quarter", "Third quarter", "Weakest quarter"].forEach((title, index) =>
      examples(half, title, half.quantile.slice(index * quarter, (index + 1) * quarter), detail));
    examples(half, "Silent", half.silent, detail);
    history.replaceState(null, "", `#${half.name}`);
    mark();
  }

  function step(by) {
    if (!shown.length) return;
    const place = shown.indexOf(chosen);
    choose(shown[Math.min(Math.max(place + by, 0), shown.length - 1)]);
  }

  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") { document.activeElement.blur(); return; }
    if (event.target.matches("input, select")) {
      if (event.key === "Enter" && shown.length) { choose(shown[0]); event.target.blur(); }
      return;
    }
    const actions = { j: () => step(1), ArrowRight: () => step(1), k: () => step(-1), ArrowLeft: () => step(-1), "/": () => search.focus() };
    if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
  });
  search.addEventListener("input", fill);
  sort.addEventListener("change", fill);
  window.addEventListener("hashchange", openHash);

  function openHash() {
    const name = decodeURIComponent(location.hash.slice(1));
    const half = halves.find(one => one.name === name) ?? shown[0];
    if (half && half !== chosen) choose(half);
  }

  const facts = document.getElementById("facts");
  data.facts.forEach(([name, value]) => {
    const pair = element("div", undefined, facts);
    element("dt", name, pair);
    element("dd", value, pair);
  });
  fill();
  openHash();
})();
