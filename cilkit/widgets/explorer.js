// Accuracy of each class after each task; behind a cell its images and answers; behind an image its course.
// What is chosen (runs, class, stage, filter, page, image) is in `now`; whatever changes it draws what depends on it.

const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
const fixed = (value) => (value === null || value === undefined ? "" : String(value));
const OURS = new Set(["Enter", " ", "Home", "End", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "PageUp", "PageDown"]);
const LISTED = 100; // rows of the chooser that are drawn at a time

function render({ model, el: root }) {
  root.classList.add("ck", "ck-explorer");
  // Else JupyterLab takes Enter and the arrows for itself: its shortcuts, and then the notebook that holds the output.
  root.setAttribute("data-lm-suppress-shortcuts", "true");
  root.addEventListener("keydown", (event) => OURS.has(event.key) && event.stopPropagation());
  const [line, say] = speaker();
  const known = new Map(); // label -> what the kernel said of the run
  const maps = new Map(); // "label head" -> its map
  const now = { shown: [], name: null, stage: 0, wrong: false, page: 0, image: null, find: "" };
  let urls = [];
  let turn = 0; // of the questions for images: an answer to an older one is dropped

  const chooser = el("div", { class: "ck-chooser", hidden: true });
  const bar = el("div", { class: "ck-bar" });
  const mapped = el("div", { class: "ck-maps" });
  const detail = el("div", { class: "ck-detail" });
  const story = el("div", { class: "ck-story", hidden: true, tabindex: "-1" });
  root.append(chooser, bar, line, mapped, detail, story);

  const stages = () => Math.max(...now.shown.map(([label]) => known.get(label).tasks));
  const shown = () => now.shown.map((pair) => [...pair]);

  async function tell(promise) {
    try {
      return await promise;
    } catch (error) {
      say(error.message, true);
      return null;
    }
  }

  // ---------------------------------------------------------------- which runs, which stage

  function drawBar() {
    const runs = [0, 1].map((place) => {
      const [label, head] = now.shown[place] || ["", ""];
      const options = [...known.keys()].map((name) => el("option", { value: name, selected: name === label }, name));
      if (place) options.unshift(el("option", { value: "", selected: !label }, "none"));
      const which = el("select", { "data-run": place, onchange: (event) => show(place, event.target.value) }, ...options);
      const heads = (label ? known.get(label).heads : []).map((name) => el("option", { value: name, selected: name === head }, name));
      const pick = el("select", { onchange: (event) => show(place, label, event.target.value) }, ...heads);
      return [
        el("label", {}, place ? "second run" : "first run", which),
        label && heads.length > 1 ? el("label", {}, "head", pick) : null,
      ];
    });
    const slider = el("input", {
      type: "range", min: 1, max: stages(), value: now.stage + 1, "data-stage": true,
      "aria-valuetext": `after task ${now.stage + 1}`,
      oninput: (event) => toStage(Number(event.target.value) - 1),
    });
    const wrong = el("input", { type: "checkbox", "data-wrong": true, onchange: (event) => { now.wrong = event.target.checked; now.page = 0; drawImages(); } });
    wrong.checked = now.wrong;
    const find = el("input", { type: "search", size: 14, value: now.find, "data-find": true, oninput: (event) => { now.find = event.target.value; drawMaps(); } });
    bar.replaceChildren(
      ...runs.flat().filter(Boolean),
      el("label", {}, "after task", slider, el("output", {}, String(now.stage + 1))),
      el("label", {}, wrong, "only wrong ones"),
      el("label", {}, "find class", find),
    );
    if (choose.rows.length) {
      bar.prepend(el("button", { "aria-expanded": String(!chooser.hidden), "data-choose": true, onclick: openChooser }, "choose runs"));
    }
  }

  function toStage(stage) {
    now.stage = stage;
    now.page = 0;
    const slider = bar.querySelector("[data-stage]");
    slider.value = stage + 1;
    slider.setAttribute("aria-valuetext", `after task ${stage + 1}`);
    slider.nextSibling.textContent = String(stage + 1);
    mark();
    drawImages();
  }

  async function show(place, label, head) {
    if (label) now.shown[place] = [label, head || known.get(label).head];
    else now.shown.splice(place, 1);
    now.stage = Math.min(now.stage, stages() - 1);
    now.page = 0;
    drawBar();
    await drawMaps();
    drawImages();
    if (now.image !== null) drawStory();
  }

  // ---------------------------------------------------------------- the maps

  async function drawMaps() {
    for (const [label, head] of now.shown) {
      const key = JSON.stringify([label, head]);
      if (!maps.has(key)) {
        const found = await tell(ask(model, "map", { label, head }));
        if (!found) return;
        maps.set(key, found);
      }
    }
    mapped.replaceChildren(...now.shown.map(([label, head]) => oneMap(label, head, maps.get(JSON.stringify([label, head])))));
    mark();
  }

  function oneMap(label, head, map) {
    const wanted = now.find.trim().toLowerCase();
    const rows = map.classes.map((name, place) => [name, map.accuracy[place]]).filter(([name]) => name.toLowerCase().includes(wanted));
    const heads = map.tasks.map((task, t) => el("th", { scope: "col", title: task }, String(t + 1)));
    const body = rows.map(([name, values]) => {
      const first = el("th", { scope: "row", tabindex: "-1", "data-class": name, title: `${name}: images after task …` }, name);
      const cells = values.map((value, t) => {
        const learnt = value !== null;
        const words = `${name}, after task ${t + 1}: ${learnt ? `${Math.round(value)} % right` : "not learnt yet"}`;
        const cell = el("td", { role: "gridcell", tabindex: "-1", "aria-label": words, title: words, "data-class": name, "data-t": t }, learnt ? String(Math.round(value)) : "·");
        if (learnt) cell.style.backgroundColor = `rgba(0, 114, 178, ${(0.05 + 0.0045 * value).toFixed(3)})`;
        return cell;
      });
      return el("tr", { role: "row" }, first, ...cells);
    });
    const table = el("table", { role: "grid", "aria-label": `${label}, head ${head}: accuracy of each class in percent; arrows move, Enter shows the images` },
      el("thead", {}, el("tr", { role: "row" }, el("th", { scope: "col", class: "ck-left" }, "class \\ after task"), ...heads)),
      el("tbody", {}, ...body));
    table.addEventListener("click", (event) => choosing(event.target.closest("[data-class]")));
    table.addEventListener("keydown", (event) => moved(event, table));
    const start = table.querySelector("[data-class]");
    if (start) start.tabIndex = 0;
    const none = rows.length ? null : el("p", {}, `no class holds ${JSON.stringify(now.find)}`);
    return el("div", { class: "ck-map" }, el("h4", {}, `${label}, head ${head}: accuracy in %`), el("div", { class: "ck-scroll" }, table), none);
  }

  function choosing(cell) {
    if (!cell) return;
    now.name = cell.getAttribute("data-class");
    now.page = 0;
    if (cell.hasAttribute("data-t")) toStage(Number(cell.getAttribute("data-t")));
    else toStage(now.stage);
  }

  function moved(event, table) {
    const here = event.target.closest("[data-class]");
    if (!here) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choosing(here);
      return;
    }
    const rows = [...table.tBodies[0].rows];
    let row = rows.indexOf(here.parentElement);
    let column = here.cellIndex;
    if (event.key === "ArrowDown") row += 1;
    else if (event.key === "ArrowUp") row -= 1;
    else if (event.key === "ArrowRight") column += 1;
    else if (event.key === "ArrowLeft") column -= 1;
    else if (event.key === "Home") column = 0;
    else if (event.key === "End") column = here.parentElement.cells.length - 1;
    else return;
    event.preventDefault();
    event.stopPropagation();
    const next = rows[row]?.cells[column];
    if (!next) return;
    here.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  /** What is chosen, in every map. */
  function mark() {
    for (const cell of mapped.querySelectorAll("[data-class]")) {
      const same = cell.getAttribute("data-class") === now.name;
      const t = cell.getAttribute("data-t");
      cell.setAttribute("aria-selected", String(same && (t === null || Number(t) === now.stage)));
    }
  }

  // ---------------------------------------------------------------- images and answers

  function release() {
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls = [];
  }

  function picture(buffer, words) {
    const url = pictureUrl(buffer);
    urls.push(url);
    return el("img", { src: url, alt: words });
  }

  async function drawImages() {
    if (now.name === null) return;
    const mine = ++turn;
    const found = await tell(ask(model, "images", { shown: shown(), name: now.name, stage: now.stage, wrong: now.wrong, page: now.page }));
    if (!found || mine !== turn) return;
    release();
    const title = `${now.name}, after task ${now.stage + 1}`;
    const what = now.wrong ? `${found.count} of ${found.tested} images answered wrongly` : `${found.tested} images`;
    const took = now.shown.map(([label, head], place) => confusion(label, head, found.confusions[place], found.tested));
    const cards = found.cards.map((card, place) => oneCard(card, found.buffers[place]));
    detail.replaceChildren(
      el("h4", {}, `${title}: ${what}`), ...took, ...found.notes.map((note) => el("p", {}, note)),
      el("div", { class: "ck-cards" }, ...cards), ...pager(found),
    );
    say(`${title}: ${what}. ${now.shown.map(([label], place) => tookWords(label, found.confusions[place])).join(" ")}`);
    if (now.image !== null) drawStory();
  }

  const tookWords = (label, pairs) => (pairs.length ? `${label}: most went to ${pairs[0][0]} (${pairs[0][1]}).` : "");

  function confusion(label, head, pairs, tested) {
    const items = pairs.slice(0, 8).map(([name, count]) => el("li", {}, `${name}: ${count} of ${tested}`));
    if (pairs.length > 8) items.push(el("li", {}, `and ${pairs.length - 8} more classes`));
    if (!items.length) items.push(el("li", {}, "none"));
    return el("div", {}, el("strong", {}, `taken by other classes (${label}, ${head})`), el("ul", { class: "ck-took" }, ...items));
  }

  function answered(answer) {
    if (!answer) return el("span", {}, "no answer");
    const [name, share] = answer.top[0];
    return el("span", answer.right ? {} : { class: "ck-wrong-one" }, `${answer.right ? "✓ right" : "✗ wrong"}: ${name} ${percent(share)}`);
  }

  function oneCard(card, buffer) {
    const words = `test image ${card.image} of class ${now.name}`;
    const told = card.answers.map((answer, place) => {
      const label = now.shown.length > 1 ? el("span", { class: "ck-faint" }, `${now.shown[place][0]}:`) : null;
      return [label, answered(answer)];
    });
    const second = card.answers[0]?.top[1];
    const more = now.shown.length === 1 && second ? el("span", {}, `then ${second[0]} ${percent(second[1])}`) : null;
    return el("button", {
      class: "ck-card", "data-image": card.image, "aria-pressed": String(card.image === now.image),
      title: "what was answered after each task",
      onclick: () => { now.image = card.image; drawStory(true); },
    }, buffer ? picture(buffer, words) : el("span", {}, `image ${card.image}`), ...told.flat(), more);
  }

  function pager(found) {
    if (found.pages < 2) return [];
    const turnTo = (page) => { now.page = page; drawImages(); };
    return [el("div", { class: "ck-bar" },
      el("button", { disabled: found.page === 0, onclick: () => turnTo(found.page - 1) }, "previous page"),
      `page ${found.page + 1} of ${found.pages}`,
      el("button", { disabled: found.page + 1 >= found.pages, onclick: () => turnTo(found.page + 1) }, "next page"))];
  }

  // ---------------------------------------------------------------- one image through time

  async function drawStory(focus = false) {
    const image = now.image;
    for (const card of detail.querySelectorAll("[data-image]")) {
      card.setAttribute("aria-pressed", String(Number(card.getAttribute("data-image")) === image));
    }
    const found = await tell(ask(model, "story", { shown: shown(), image }));
    if (!found || image !== now.image) return;
    const heads = ["after task", "answer", "probability", `probability of ${found.true}`];
    const tables = found.stories.map((lines, place) => {
      const rows = lines.map((said, t) => {
        const cells = said
          ? [`${said.right ? "✓" : "✗"} ${said.top[0][0]}`, percent(said.top[0][1]), percent(said.true)]
          : ["not tested yet", "", ""];
        const changed = said && t && lines[t - 1] && lines[t - 1].top[0][0] !== said.top[0][0];
        return el("tr", {}, el("th", { scope: "row" }, String(t + 1)), ...cells.map((text, c) => el("td", { class: c ? null : "ck-left" }, c || !changed ? text : `${text} (changed)`)));
      });
      const [label, head] = now.shown[place];
      return el("div", {}, el("h4", {}, `${label}, head ${head}`),
        el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((text, c) => el("th", { scope: "col", class: c === 1 ? "ck-left" : null }, text)))), el("tbody", {}, ...rows)));
    });
    const close = el("button", { onclick: () => {
      now.image = null;
      story.hidden = true;
      (detail.querySelector(`[data-image="${image}"]`) || bar.querySelector("select")).focus();
      for (const card of detail.querySelectorAll("[data-image]")) card.setAttribute("aria-pressed", "false");
    } }, "close");
    story.hidden = false;
    const words = `test image ${image} of class ${found.true}`;
    story.replaceChildren(
      el("div", { class: "ck-bar" }, found.buffers[0] ? picture(found.buffers[0], words) : null, el("h4", {}, `Test image ${image}, a ${found.true}: what was answered after each task`), close),
      el("div", { class: "ck-maps" }, ...tables),
    );
    if (focus) story.focus();
  }

  // ---------------------------------------------------------------- picking runs from the table of results

  const choose = { columns: [], rows: [], by: -1, down: true, filter: "" };

  function openChooser() {
    chooser.hidden = !chooser.hidden;
    bar.querySelector("[data-choose]").setAttribute("aria-expanded", String(!chooser.hidden));
    if (!chooser.hidden) drawChooser();
  }

  function drawChooser() {
    const filter = el("input", { type: "search", size: 30, value: choose.filter, "data-filter": true, oninput: (event) => { choose.filter = event.target.value; listRows(); } });
    const list = el("div", { class: "ck-scroll" });
    chooser.replaceChildren(el("div", { class: "ck-bar" }, el("label", {}, "rows that hold", filter), el("span", { class: "ck-count" })), list);
    listRows();
    filter.focus();
  }

  function listRows() {
    const words = choose.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = choose.rows.filter((row) => { const text = row.slice(1).map(fixed).join(" ").toLowerCase(); return words.every((word) => text.includes(word)); });
    if (choose.by >= 0) {
      const sign = choose.down ? -1 : 1;
      const column = choose.by + 1;
      rows.sort((a, b) => {
        if (a[column] === null || b[column] === null) return (a[column] === null) - (b[column] === null);
        return sign * (typeof a[column] === "number" && typeof b[column] === "number" ? a[column] - b[column] : String(a[column]).localeCompare(String(b[column])));
      });
    }
    const texts = choose.columns.map((_, place) => choose.rows.some((row) => typeof row[place + 1] === "string"));
    const heads = choose.columns.map((name, place) => el("th", { scope: "col", class: texts[place] ? "ck-left" : null, "aria-sort": place !== choose.by ? "none" : choose.down ? "descending" : "ascending" },
      el("button", { "data-sort": name, onclick: () => { choose.down = choose.by === place ? !choose.down : true; choose.by = place; listRows(); chooser.querySelector(`[data-sort="${CSS.escape(name)}"]`).focus(); } },
        `${name}${place !== choose.by ? "" : choose.down ? " ▼" : " ▲"}`)));
    const body = rows.slice(0, LISTED).map((row) => el("tr", {},
      el("td", {}, ...[0, 1].map((place) => el("button", { "aria-label": `${place ? "second" : "first"} run: ${row.slice(1).map(fixed).join(", ")}`, onclick: () => pick(row[0], place) }, place ? "second" : "first"))),
      ...row.slice(1).map((value) => el("td", { class: typeof value === "number" ? null : "ck-left" }, fixed(value)))));
    chooser.querySelector(".ck-count").textContent = rows.length > LISTED ? `${LISTED} of ${rows.length} runs are listed; filter for the others` : `${rows.length} ${rows.length === 1 ? "run" : "runs"}`;
    chooser.querySelector(".ck-scroll").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "show as"), ...heads)), el("tbody", {}, ...body)));
  }

  async function pick(place, which) {
    const found = await tell(ask(model, "pick", { place }));
    if (!found) return;
    known.set(found.run.label, found.run);
    await show(Math.min(which, now.shown.length), found.run.label);
    say(`${found.run.label} is shown.`);
  }

  (async () => {
    const found = await tell(ask(model, "start"));
    if (!found) return;
    found.runs.forEach((run) => known.set(run.label, run));
    now.shown = found.runs.slice(0, 2).map((run) => [run.label, run.head]);
    now.stage = stages() - 1;
    Object.assign(choose, { columns: found.columns, rows: found.rows });
    drawBar();
    await drawMaps();
    say("Choose a class or a number: its images and the answers to them appear below.");
  })();

  return release;
}

export default { render };
