"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const select = document.getElementById("measure");
  const map = document.getElementById("map");
  // Viridis at nine places.
  const COLOURS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];

  function element(name, text, parent) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  function colour(share) {
    const place = Math.min(share * 8, 7.9999), low = Math.floor(place), part = place - low;
    return COLOURS[low].map((value, channel) => Math.round(value + part * (COLOURS[low + 1][channel] - value)));
  }

  function ink(rgb) {
    const [red, green, blue] = rgb.map(value => (value / 255) ** 2.2);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
  }

  function draw() {
    const measure = select.selectedIndex;
    const known = data.cells.map(cell => cell.values[measure]).filter(value => value !== null);
    const low = Math.min(...known), high = Math.max(...known);
    map.replaceChildren();
    const head = element("tr", undefined, map);
    element("th", "layer", head);
    data.positions.forEach(position => element("th", `position ${position}`, head));
    data.layers.forEach(layer => {
      const row = element("tr", undefined, map);
      element("th", layer, row);
      data.positions.forEach(position => {
        const place = element("td", undefined, row);
        const cell = data.cells.find(one => one.layer === layer && one.position === position);
        if (!cell) { place.className = "absent"; place.title = "no SAE"; return; }
        const value = cell.values[measure];
        const link = element("a", value === null ? "–" : value.toFixed(3), place);
        link.href = cell.page;
        link.setAttribute("aria-label", `layer ${layer} position ${position}: ${link.textContent}, best ${cell.best}`);
        if (data.measures[measure][0] === "coverage") element("small", cell.best, link);
        if (value === null) return;
        const rgb = colour(high > low ? (value - low) / (high - low) : 0.5);
        link.style.background = `rgb(${rgb.join(" ")})`;
        link.style.color = ink(rgb);
      });
    });
    document.getElementById("scale").textContent = known.length
      ? `${data.measures[measure][1]}: dark is ${low.toFixed(3)}, bright is ${high.toFixed(3)}.`
      : "No cell has a value.";
  }

  data.measures.forEach(([, title]) => element("option", title, select));
  select.addEventListener("change", draw);
  draw();
})();
