"use strict";
// Sorts, filters and turns pages over all slides. Lists never mix: what is not ranked stays
// below what is, whatever it is sorted by. Without this script the page shows the first slides.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const AT = { list: 0, stem: 1, name: 2, whole: 3, rank: 4, score: 5, grade: 6, cells: 7, unreadable: 8, counts: 9, qc: 10 };
  const PAGE = 200;
  const table = document.getElementById("slides-table");
  const [tools, find, list, grade, told, turn, where, before, after] =
    ["tools", "find", "list", "grade", "told", "turn", "where", "before", "after"]
      .map((id) => document.getElementById(id));
  const heads = [...table.tHead.rows[0].cells];
  const state = { key: "rank", down: false, page: 0 };
  const number = (value) => value === null ? "–" : value.toLocaleString("en-US");

  function make(tag, content, set = {}) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(set)) element.setAttribute(name, value);
    element.append(...[].concat(content));
    return element;
  }

  function option(value, text) { return make("option", text, { value }); }
  list.append(option("", "All"), ...data.lists.map(([key, title]) => option(key, title)));
  if (data.rows.some((row) => row[AT.qc])) list.append(option("qc", "Quality control"));
  grade.append(option("", "All"), ...data.grades.map((name, at) => option(String(at), name)));

  function value(row, key) {
    if (key.startsWith("group-")) return row[AT.counts][Number(key.slice(6))] ?? null;
    if (key === "grade") return row[AT.grade] === null ? null : data.grades[row[AT.grade]];
    return row[AT[key]];
  }

  // What is not known comes last in either direction.
  function order(one, other) {
    const a = value(one, state.key), b = value(other, state.key);
    if (a === null || b === null) return (a === null) - (b === null);
    const difference = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return state.down ? -difference : difference;
  }

  function chosen() {
    const wanted = find.value.trim().toLowerCase();
    const rows = data.rows.filter((row) =>
      (!wanted || (row[AT.whole] || row[AT.name]).toLowerCase().includes(wanted)) &&
      (!list.value || (list.value === "qc" ? row[AT.qc] : data.lists[row[AT.list]][0] === list.value)) &&
      (!grade.value || row[AT.grade] === Number(grade.value)));
    return rows.map((row, at) => [row, at])
      .sort(([a, at], [b, bt]) => a[AT.list] - b[AT.list] || order(a, b) || at - bt)
      .map(([row]) => row);
  }

  function slide(row) {
    const link = make("a", make("bdi", row[AT.name]), { href: `slides/${row[AT.stem]}.html` });
    if (row[AT.whole]) link.title = row[AT.whole];
    const name = make("th", link, { scope: "row" });
    if (row[AT.qc]) name.append(" ", make("span", "QC", { class: "tag" }));
    const score = make("td", [], { class: "n score" });
    if (row[AT.score] !== null) score.append(meter(row[AT.score]), ` ${row[AT.score].toFixed(2)}`);
    else score.append("–");
    const atLeast = ["urgent_incomplete", "incomplete"].includes(data.lists[row[AT.list]][0]) ? "≥ " : "";
    const groups = heads.filter((head) => head.dataset.key.startsWith("group-"));
    return make("tr", [
      make("td", row[AT.rank] === null ? "" : number(row[AT.rank]), { class: "n" }),
      name, score,
      make("td", value(row, "grade") ?? "–"),
      make("td", number(row[AT.cells]), { class: "n" }),
      ...groups.map((head) => {
        const count = value(row, head.dataset.key);
        return make("td", (count === null ? "" : atLeast) + number(count), { class: "n" });
      }),
      make("td", number(row[AT.unreadable]), { class: "n" }),
    ]);
  }

  function meter(score) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    const set = { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" };
    for (const [name, text] of Object.entries(set)) svg.setAttribute(name, text);
    for (const [name, width] of [["track", 100], ["fill", (100 * score).toFixed(1)]]) {
      const rect = document.createElementNS(space, "rect");
      rect.setAttribute("class", name);
      rect.setAttribute("width", width);
      rect.setAttribute("height", 6);
      svg.append(rect);
    }
    return svg;
  }

  function heading(at, count) {
    const [, title, about] = data.lists[at];
    const cell = make("th", [`${title} `, make("span", number(count), { class: "pill" }), " ",
      make("span", about, { class: "about" })], { scope: "rowgroup", colspan: heads.length });
    return make("tr", cell, { class: "list" });
  }

  function show() {
    const rows = chosen();
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const counts = new Map();
    for (const row of rows) counts.set(row[AT.list], (counts.get(row[AT.list]) ?? 0) + 1);
    const bodies = new Map();
    for (const row of rows.slice(state.page * PAGE, (state.page + 1) * PAGE)) {
      const at = row[AT.list];
      if (!bodies.has(at)) bodies.set(at, make("tbody", heading(at, counts.get(at))));
      bodies.get(at).append(slide(row));
    }
    for (const body of [...table.tBodies]) body.remove();
    table.append(...bodies.values());
    told.textContent = rows.length ? `${number(rows.length)} of ${number(data.rows.length)} slides` : "No slide is like that";
    where.textContent = `Page ${state.page + 1} of ${pages}`;
    turn.hidden = pages === 1;
    before.disabled = state.page === 0;
    after.disabled = state.page === pages - 1;
    for (const head of heads) {
      if (head.dataset.key !== state.key) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    }
  }

  function go(page) { state.page = page; show(); table.scrollIntoView({ block: "start" }); }
  function again() { state.page = 0; show(); }

  for (const head of heads) {
    const button = make("button", head.textContent, { type: "button" });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const first = !["rank", "name"].includes(head.dataset.key);
      state.down = head.dataset.key === state.key ? !state.down : first;
      state.key = head.dataset.key;
      again();
    });
  }
  for (const input of [find, list, grade]) input.addEventListener("input", again);
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.addEventListener("reset", () => setTimeout(() => {
    Object.assign(state, { key: "rank", down: false });
    again();
  }));
  before.addEventListener("click", () => go(state.page - 1));
  after.addEventListener("click", () => go(state.page + 1));
  // Back from a slide, the browser has kept what was typed.
  for (const links of document.querySelectorAll("nav.pager:not(#turn)")) links.hidden = true;
  tools.hidden = false;
  show();
})();
