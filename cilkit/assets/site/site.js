/* Filters and sorting. Every page can be read without this file. */
"use strict";

// A row, a group of rows, a board or an entry of the contents shows when every chosen filter that it knows fits.
const form = document.querySelector(".filters");
if (form) {
  const selects = [...form.querySelectorAll("select")];
  for (const select of selects) {
    const found = [...document.querySelectorAll(`[data-${select.name}]`)].map((one) => one.dataset[select.name]);
    const values = [...new Set(found)].filter(Boolean).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    for (const value of values) {
      const option = document.createElement("option");
      option.value = option.textContent = value;
      select.append(option);
    }
    select.closest("label").hidden = values.length < 2;
  }
  const known = selects.map((select) => `[data-${select.name}]`).join(",");
  const apply = () => {
    const chosen = selects.filter((select) => select.value);
    for (const one of document.querySelectorAll(known)) {
      one.hidden = chosen.some((select) => select.name in one.dataset && one.dataset[select.name] !== select.value);
    }
    // An arm without any run of the chosen seed, and a board without any arm left, are not shown either.
    for (const group of document.querySelectorAll("table.grouped > tbody")) {
      group.hidden ||= !group.querySelector("tr[data-seed]:not([hidden])");
      if (form.elements.seed.value) group.querySelector("details").open = true;
    }
    for (const board of document.querySelectorAll(".board")) {
      board.hidden ||= !board.querySelector("table.grouped > tbody:not([hidden])");
    }
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = !selects.some((select) => !select.closest("label").hidden);
  apply();
}

// Headers become buttons that sort: numbers by value, texts by letter, what is missing last.
const key = (row, place) => {
  const cell = row.cells[place];
  const text = cell.dataset.sort ?? cell.textContent.trim();
  const number = text === "" ? NaN : Number(text.replace("−", "-").replace(/ ± .*/, ""));
  return { text: text === "nan" ? "" : text, number };
};
const compare = (a, b) => {
  if (!Number.isNaN(a.number) && !Number.isNaN(b.number)) return a.number - b.number;
  return a.text.localeCompare(b.text, "en", { numeric: true });
};
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const falls = header.getAttribute("aria-sort") === "none" && header.classList.contains("number");
      const descending = falls || header.getAttribute("aria-sort") === "ascending";
      headers.forEach((other) => other.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const grouped = table.classList.contains("grouped");
      const rows = grouped ? [...table.tBodies] : [...table.tBodies[0].rows];
      const keyed = rows.map((row) => ({ row, key: key(grouped ? row.rows[0] : row, place) }));
      const missing = (one) => (one.key.text === "" ? 1 : 0);
      keyed.sort((a, b) => missing(a) - missing(b) || (descending ? -1 : 1) * compare(a.key, b.key));
      (grouped ? table : table.tBodies[0]).append(...keyed.map((one) => one.row));
    });
  });
}
