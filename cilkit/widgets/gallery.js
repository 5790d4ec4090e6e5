// A gallery: a toolbar, a page of thumbnails, a closer look. What is decided is the kernel's; nothing is kept here.

const SIGNS = { undecided: "·", accepted: "✓", rejected: "✗" };
const DONE = { accept: "accepted", reject: "rejected", withdrawn: "set back to undecided" };
const VERBS = { accept: "Accept", reject: "Reject", withdrawn: "Set back" };
const GONE = "The kernel that this gallery asks is gone: run the cell again. What was decided is in the file.";
const KEYS = [
  ["← → ↑ ↓", "move"],
  ["a, r", "accept, reject; the next image comes up"],
  ["1 … 9", "reject for the reason of that number"],
  ["w", "set back to undecided"],
  ["u", "undo the last step, also one of many images"],
  ["Space, Enter", "look closely; Esc closes"],
  ["Shift with an arrow or a click", "select several; Ctrl with a click: one more"],
  ["s, Esc", "select the whole page, or none"],
  ["n, p", "next page, page before"],
  ["?", "show or hide these keys"],
];

const number = (value) => value.toLocaleString("en-US");
const rounded = (value) => (Number.isInteger(value) ? String(value) : value.toPrecision(4));
const images = (count) => `${number(count)} image${count === 1 ? "" : "s"}`;

function choice(name, texts, chosen, changed) {
  const options = texts.map(([value, text]) => el("option", { value, selected: value === chosen }, text));
  const select = el("select", { "aria-label": name, onchange: () => changed(select.value) }, ...options);
  return [el("label", { class: "ckg-field" }, el("span", {}, name), select), select];
}

function field(name, attributes) {
  const input = el("input", { "aria-label": name, ...attributes });
  return [el("label", { class: "ckg-field" }, el("span", {}, name), input), input];
}

/** The toolbar's parts, each a function of what the kernel offers. */
function filters(offer, query, changed) {
  const set = (key) => (value) => changed({ [key]: value });
  const plain = (texts) => texts.map((text) => [text, text]);
  const directions = [["", "ascending"], ["1", "descending"]];
  return [
    choice("Order", plain(offer.sorts), query.sort, set("sort"))[0],
    choice("Direction", directions, query.descending ? "1" : "", (v) => changed({ descending: v === "1" }))[0],
    choice("Class", [["", "all classes"], ...plain(offer.classes)], query.class_name, set("class_name"))[0],
    choice("Decision", [["", "any"], ...plain(offer.states)], query.decision, set("decision"))[0],
    offer.verdicts.length
      ? choice("Rules say", [["", "anything"], ...plain(offer.verdicts)], query.verdict, set("verdict"))[0]
      : null,
  ];
}

/** Progress: one line and bar for all, and a table with a line and a bar a class. */
function progressOf(classes) {
  const line = el("span", {});
  const bar = el("progress", { max: 1, value: 0, "aria-label": "decided, of all images" });
  const body = el("tbody", {});
  const head = ["Class", "Decided", "", "Accepted", "Rejected"].map((text) => el("th", { scope: "col" }, text));
  const table = el("table", { class: "ckg-progress" }, el("thead", {}, el("tr", {}, ...head)), body);
  const rows = classes.map((name) => {
    const cells = { decided: el("td", {}), accepted: el("td", {}), rejected: el("td", {}) };
    const part = el("progress", { max: 1, value: 0, "aria-label": `decided, of ${name}` });
    const last = [el("td", {}, part), cells.accepted, cells.rejected];
    body.append(el("tr", {}, el("th", { scope: "row" }, name), cells.decided, ...last));
    return { ...cells, part };
  });
  const update = (counts) => {
    const sums = [0, 0, 0];
    counts.forEach((states, place) => {
      const [open, accepted, rejected] = states;
      states.forEach((count, state) => (sums[state] += count));
      const row = rows[place];
      row.decided.textContent = `${number(accepted + rejected)} of ${number(open + accepted + rejected)}`;
      row.accepted.textContent = number(accepted);
      row.rejected.textContent = number(rejected);
      row.part.value = (accepted + rejected) / (open + accepted + rejected);
    });
    const [open, accepted, rejected] = sums;
    const all = open + accepted + rejected;
    line.textContent =
      `${number(accepted + rejected)} of ${number(all)} decided: ` +
      `${number(accepted)} accepted, ${number(rejected)} rejected`;
    bar.value = (accepted + rejected) / all;
  };
  const wrap = el("div", { class: "ckg-scroll", tabindex: 0, role: "region", "aria-label": "progress by class" }, table);
  const classwise = el("details", {}, el("summary", {}, "Progress by class"), wrap);
  return [el("div", { class: "ckg-row" }, line, bar), classwise, update];
}

/** One picture of the page with its state in words, in a sign and in its border. */
function tileOf(told, url, does) {
  const state = el("span", { class: "ckg-state" });
  const more = el("span", { class: "ckg-more" });
  const picture = el("img", { src: url, alt: `${told.class}, ${told.id}`, draggable: "false" });
  // For the mouse only: the same is on the keys and in the toolbar, so these are no stops of their own.
  const quick = ["accept", "reject"].map((decision) =>
    el(
      "button",
      {
        class: `ckg-quick ckg-${decision}`,
        tabindex: -1,
        "aria-hidden": "true",
        title: VERBS[decision],
        onclick: (event) => does.quick(event, decision, told.place),
      },
      SIGNS[DONE[decision]],
    ),
  );
  const node = el(
    "div",
    { class: "ckg-tile", role: "option", tabindex: -1, "aria-selected": "false" },
    el("span", { class: "ckg-frame" }, picture),
    el("span", { class: "ckg-name" }, told.class),
    state,
    more,
    ...quick,
  );
  const tile = { node, place: told.place };
  tile.update = (now) => {
    const score = told.score === null ? "" : `${told.scored} ${rounded(told.score)}`;
    const left = told.verdict && !["kept", "not scored"].includes(told.verdict) ? `rules: ${told.verdict}` : "";
    const decided = now.state === "undecided" ? "" : `${now.by ? ` by ${now.by}` : ""}${now.why ? `: ${now.why}` : ""}`;
    node.dataset.state = now.state;
    const short = now.why ? `: ${now.why}` : decided; // the tile is narrow; the rest is in its title and label
    state.textContent = `${SIGNS[now.state]} ${now.state}${short}`;
    more.textContent = [left, score].filter(Boolean).join(", ");
    const lines = [told.class, `${now.state}${decided}`, left, score].filter(Boolean);
    node.title = lines.join("\n");
    node.setAttribute("aria-label", lines.join(", "));
  };
  tile.update(told);
  return tile;
}

function facts(found) {
  const body = el("tbody", {});
  const tell = (name, value) => {
    if (value === null || value === undefined || value === "") return;
    const text = typeof value === "number" ? rounded(value) : String(value);
    body.append(el("tr", {}, el("th", { scope: "row" }, name.replaceAll("_", " ")), el("td", {}, text)));
  };
  tell("class", found.class_name);
  tell("decision", `${SIGNS[found.state]} ${found.state}`);
  const line = found.decision || {};
  for (const [name, key] of [["reviewer", "by"], ["reason", "why"], ["when", "when"], ["rubric", "rubric"]])
    tell(name, line[key]);
  tell("rules say", found.verdict);
  for (const [name, value] of Object.entries(found.scores)) tell(name, value);
  const row = found.manifest;
  const first = ["prompt", "negative_prompt", "seed", "generator_id", "generator_digest", "settings"];
  for (const name of first) tell(name, row[name]);
  tell("image_id", found.image_id);
  const shown = ["image_id", "class_name", ...first];
  for (const name of Object.keys(row)) if (!shown.includes(name)) tell(name, row[name]);
  return el("table", { class: "ckg-facts" }, body);
}

/** The closer look: a dialog that shows one image, what is known of it, and real images beside it. */
function closeLook(model, offer, does) {
  const picture = el("img", { class: "ckg-large" });
  const title = el("h3", { id: `ckg-${Math.random().toString(36).slice(2)}` });
  const told = el("div", {});
  const real = el("div", { class: "ckg-real" });
  const [line, say] = speaker();
  const act = (decision) =>
    el("button", { onclick: () => does.decide(decision), disabled: !offer.file }, `${VERBS[decision]} (${decision[0]})`);
  const buttons = [
    el("button", { onclick: () => does.move(-1) }, "← Before"),
    el("button", { onclick: () => does.move(1) }, "Next →"),
    act("accept"),
    act("reject"),
    el("button", { onclick: () => does.undo(), disabled: !offer.file }, "Undo (u)"),
    el("button", { onclick: () => dialog.close() }, "Close (Esc)"),
  ];
  const dialog = el(
    "dialog",
    { class: "ckg-look", "aria-labelledby": title.id },
    title,
    el("div", { class: "ckg-row" }, ...buttons),
    line,
    el("div", { class: "ckg-sides" }, el("div", {}, picture), told),
    real,
  );
  picture.addEventListener("load", () => picture.classList.toggle("ckg-pixels", picture.naturalWidth <= 128));
  let urls = [];
  let at = null;
  const empty = () => {
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls = [];
    real.replaceChildren();
  };
  const url = (buffer) => (urls.push(pictureUrl(buffer, "")), urls.at(-1));
  const showReal = async (place) => {
    if (!offer.real) return;
    real.append(el("p", {}, "Looking for the nearest real images …"));
    let found;
    try {
      found = await ask(model, "real", { place }, 600000);
    } catch (error) {
      found = { wrong: error.message };
    }
    if (at !== place || !dialog.open) return;
    if (found.wrong) return real.replaceChildren(el("p", {}, found.wrong));
    const searched = found.searched < found.all ? `${number(found.searched)} of ${number(found.all)}` : number(found.all);
    const figures = found.found.map((one, k) => {
      const shown = el("img", { src: url(found.buffers[k]), alt: `real: ${one.class}, ${one.image_id}` });
      return el("figure", {}, shown, el("figcaption", {}, one.class, el("br"), `distance ${rounded(one.distance)}`));
    });
    real.replaceChildren(el("h4", {}, `Nearest of ${searched} real images`), el("div", { class: "ckg-figures" }, ...figures));
  };
  const show = async (place, wanted = true) => {
    at = place;
    try {
      const found = await ask(model, "zoom", { place });
      if (at !== place) return;
      if (wanted) {
        empty();
        picture.src = url(found.buffers[0]);
        picture.alt = [found.class_name, found.manifest.prompt].filter(Boolean).join(": ");
      }
      title.textContent = `${found.class_name} — ${SIGNS[found.state]} ${found.state}`;
      told.replaceChildren(facts(found));
      say("");
      if (!dialog.open) dialog.showModal();
      if (wanted) showReal(place);
    } catch (error) {
      does.wrong(error);
    }
  };
  dialog.addEventListener("close", () => {
    at = null;
    empty();
    does.closed();
  });
  return { dialog, show, say, again: (places) => at !== null && places.includes(at) && show(at, false), empty };
}

/** Many at once: what and where, then how many that would be, and only then a button that does it. */
function many(model, offer, does) {
  if (!offer.file || !offer.scores.length) return null;
  const plain = (texts) => texts.map((text) => [text, text]);
  const answer = el("div", { class: "ckg-row", role: "status", "aria-live": "polite" });
  const clear = () => answer.replaceChildren();
  const verbs = ["reject", "accept", "withdrawn"].map((decision) => [decision, VERBS[decision]]);
  const [what, decision] = choice("Do", verbs, "reject", clear);
  const [of, score] = choice("all with", plain(offer.scores), offer.scores[0], clear);
  const [how, comparison] = choice("that is", plain(["<", "<=", ">", ">="]), "<", clear);
  const [than, threshold] = field("than", { type: "number", step: "any", required: true });
  const again = el("input", { type: "checkbox", onchange: clear });
  threshold.addEventListener("input", clear);
  const count = async (event) => {
    event.preventDefault();
    const asked = { score: score.value, comparison: comparison.value, threshold: Number(threshold.value) };
    const given = { ...asked, decision: decision.value, again: again.checked, query: does.query() };
    try {
      const found = await ask(model, "count", given);
      const spared = found.spared ? ` ${images(found.spared)} that somebody decided about are left as they are.` : "";
      const which = `${asked.score} ${asked.comparison} ${asked.threshold}`;
      const text = `${images(found.count)} under the present filter: ${which}.${spared} Nothing is done yet.`;
      const apply = el(
        "button",
        { type: "button", class: "ckg-strong", disabled: !found.count },
        `${VERBS[given.decision]} ${images(found.count)}`,
      );
      apply.addEventListener("click", () => (clear(), does.apply(found.plan, given.decision)));
      const cancel = el("button", { type: "button", onclick: clear }, "Cancel");
      answer.replaceChildren(el("span", {}, text), apply, cancel);
    } catch (error) {
      does.wrong(error);
    }
  };
  const form = el(
    "form",
    { class: "ckg-row", onsubmit: count },
    ...[what, of, how, than],
    el("label", {}, again, " also those already decided"),
    el("button", { type: "submit" }, "Count them"),
  );
  return el("details", {}, el("summary", {}, "Many at once"), form, answer);
}

async function start(model, root) {
  const [line, say] = speaker();
  root.replaceChildren(line);
  const offer = await ask(model, "hello", {}, 15000);
  let query = offer.query;
  let at = { number: 0, pages: 1, focus: 0, anchor: 0 };
  let tiles = [];
  let urls = [];
  let latest = 0;
  const wrong = (error) => say(/does not answer/.test(error.message) ? GONE : error.message, true);

  const grid = el("div", { class: "ckg-grid", role: "listbox", "aria-multiselectable": "true", "aria-label": "images" });
  const where = el("span", { class: "ckg-where" });
  const [reviewerField, reviewer] = field("Reviewer", { value: offer.reviewer, size: 14, autocomplete: "off" });
  const [reasonField, reason] = field("Reason to reject", { size: 14, autocomplete: "off" });
  const reasons = el("datalist", { id: `ckg-${Math.random().toString(36).slice(2)}` });
  reasons.append(...offer.reasons.map((text) => el("option", { value: text })));
  reason.setAttribute("list", reasons.id);
  const [progressLine, classwise, progress] = progressOf(offer.classes);

  const shownPlaces = () => tiles.map((tile) => tile.place);
  const selected = () => tiles.filter((tile) => tile.node.getAttribute("aria-selected") === "true");
  const select = (chosen) => {
    tiles.forEach((tile, k) => tile.node.setAttribute("aria-selected", String(chosen(k))));
    const count = selected().length;
    if (count > 1) say(`${images(count)} selected`);
  };
  const focus = (k, take = true) => {
    if (!tiles.length) return;
    at.focus = Math.max(0, Math.min(k, tiles.length - 1));
    tiles.forEach((tile, place) => (tile.node.tabIndex = place === at.focus ? 0 : -1));
    if (take) tiles[at.focus].node.focus();
  };
  const only = (k, take = true) => {
    focus(k, take);
    at.anchor = at.focus;
    select((place) => place === at.focus);
  };
  const until = (k) => {
    focus(k);
    const [low, high] = [Math.min(at.anchor, at.focus), Math.max(at.anchor, at.focus)];
    select((place) => place >= low && place <= high);
  };

  const heard = (told) => {
    progress(told.progress);
    undoButton.disabled = !told.steps;
    const places = new Map(tiles.map((tile) => [tile.place, tile]));
    for (const now of told.tiles || []) places.get(now.place)?.update(now);
    look.again((told.tiles || []).map((now) => now.place));
  };
  const load = async (wanted, anew = false, take = false) => {
    const turn = ++latest;
    try {
      const told = await ask(model, "page", { query, number: wanted, anew });
      if (turn !== latest) return;
      urls.forEach((url) => URL.revokeObjectURL(url));
      urls = told.buffers.map((buffer) => pictureUrl(buffer, ""));
      at = { number: told.number, pages: told.pages, focus: 0, anchor: 0 };
      tiles = told.tiles.map((one, k) => tileOf(one, urls[k], { quick }));
      grid.replaceChildren(...tiles.map((tile) => tile.node));
      if (!tiles.length) grid.append(el("p", {}, "No image is under this filter."));
      only(0, take);
      const first = told.number * offer.page + 1;
      where.textContent = tiles.length
        ? `Page ${number(told.number + 1)} of ${number(told.pages)}: images ${number(first)} to ` +
          `${number(first + tiles.length - 1)} of ${number(told.total)}`
        : "No images";
      before.disabled = told.number === 0;
      next.disabled = told.number >= told.pages - 1;
      progress(told.progress);
      undoButton.disabled = !told.steps;
    } catch (error) {
      wrong(error);
    }
  };
  const decide = async (decision, places, why) => {
    if (!places.length) return;
    if (!offer.file) return say('This gallery is to look only: name a file in decisions="…" and run the cell again.', true);
    const because = decision === "reject" ? (why ?? reason.value) : "";
    try {
      const told = await ask(model, "decide", { places, decision, by: reviewer.value, why: because });
      heard(told);
      const words = `${images(told.count)} ${DONE[decision]}${because ? `: ${because}` : ""}`;
      say(words);
      look.say(words);
    } catch (error) {
      wrong(error);
    }
  };
  /** Decide about what is selected, or about the image in focus; after one image, the next comes up. */
  const act = (decision, why) => {
    const chosen = selected();
    const several = chosen.length > 1;
    const places = several ? chosen.map((tile) => tile.place) : tiles.length ? [tiles[at.focus].place] : [];
    decide(decision, places, why);
    if (!several && at.focus < tiles.length - 1) only(at.focus + 1, grid.contains(document.activeElement));
  };
  function quick(event, decision, place) {
    event.stopPropagation();
    only(tiles.findIndex((tile) => tile.place === place));
    decide(decision, [place]);
  }
  const undo = async () => {
    try {
      const told = await ask(model, "undo", { by: reviewer.value, shown: shownPlaces() });
      heard(told);
      say(told.count ? `Undone: ${images(told.count)} as before` : "Nothing to undo");
    } catch (error) {
      wrong(error);
    }
  };
  const turn = (step) => {
    const wanted = at.number + step;
    if (wanted >= 0 && wanted < at.pages) load(wanted, false, true);
    else say(step > 0 ? "This is the last page." : "This is the first page.");
  };

  const look = closeLook(model, offer, {
    wrong,
    undo,
    decide: (decision) => decide(decision, [tiles[at.focus].place]),
    move: (step) => {
      const wanted = at.focus + step;
      if (wanted < 0 || wanted >= tiles.length) return look.say("No further image on this page.");
      only(wanted, false);
      look.show(tiles[at.focus].place);
    },
    closed: () => focus(at.focus),
  });

  const button = (text, does, more = {}) => el("button", { onclick: does, ...more }, text);
  const before = button("← Page before (p)", () => turn(-1));
  const next = button("Next page (n) →", () => turn(1));
  const undoButton = button("Undo (u)", undo);
  const table = el("table", {}, el("caption", {}, "Keys, while the focus is among the images"));
  table.append(...KEYS.map(([keys, does]) => el("tr", {}, el("td", {}, el("kbd", {}, keys)), el("td", {}, does))));
  const numbered = offer.reasons.slice(0, 9).map((text, k) => `${k + 1} ${text}`).join(", ");
  const help = el("div", { class: "ckg-help", hidden: true }, table, numbered ? el("p", {}, `Reasons: ${numbered}`) : null);
  const helpButton = button("Keys (?)", () => toggle(), { "aria-expanded": "false" });
  const toggle = () => {
    help.hidden = !help.hidden;
    helpButton.setAttribute("aria-expanded", String(!help.hidden));
  };
  const bulk = many(model, offer, {
    wrong,
    query: () => query,
    apply: async (plan, decision) => {
      try {
        const given = { plan, by: reviewer.value, why: decision === "reject" ? reason.value : "" };
        const told = await ask(model, "apply", { ...given, shown: shownPlaces() });
        heard(told);
        say(`${images(told.count)} ${DONE[decision]}; one undo takes all of them back`);
      } catch (error) {
        wrong(error);
      }
    },
  });
  const refilter = (change) => {
    query = { ...query, ...change };
    load(0, true);
  };

  const columns = () => {
    const top = tiles[0]?.node.offsetTop;
    return Math.max(1, tiles.filter((tile) => tile.node.offsetTop === top).length);
  };
  const keys = {
    ArrowLeft: (go) => go(at.focus - 1),
    ArrowRight: (go) => go(at.focus + 1),
    ArrowUp: (go) => go(at.focus - columns() < 0 ? at.focus : at.focus - columns()),
    ArrowDown: (go) => go(at.focus + columns() >= tiles.length ? at.focus : at.focus + columns()),
    Home: (go) => go(0),
    End: (go) => go(tiles.length - 1),
    a: () => act("accept"),
    r: () => act("reject"),
    w: () => act("withdrawn"),
    u: undo,
    s: () => select(() => true),
    Escape: () => only(at.focus),
    Enter: () => tiles.length && look.show(tiles[at.focus].place),
    " ": () => tiles.length && look.show(tiles[at.focus].place),
    n: () => turn(1),
    p: () => turn(-1),
    PageDown: () => turn(1),
    PageUp: () => turn(-1),
    "?": toggle,
  };
  grid.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const picked = /^[1-9]$/.test(event.key) ? offer.reasons[Number(event.key) - 1] : undefined;
    const does = picked === undefined ? keys[event.key] : () => act("reject", picked);
    if (!does) return;
    event.preventDefault();
    event.stopPropagation();
    does(event.shiftKey ? until : only);
  });
  grid.addEventListener("click", (event) => {
    const k = tiles.findIndex((tile) => tile.node.contains(event.target));
    if (k < 0) return;
    if (event.shiftKey) until(k);
    else if (event.ctrlKey || event.metaKey) {
      focus(k);
      const now = new Set([...selected().map((tile) => tiles.indexOf(tile))]);
      if (!now.delete(k)) now.add(k);
      select((place) => now.has(place));
    } else only(k);
  });
  grid.addEventListener("dblclick", () => tiles.length && look.show(tiles[at.focus].place));
  look.dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const does = {
      a: () => decide("accept", [tiles[at.focus].place]),
      r: () => decide("reject", [tiles[at.focus].place]),
      w: () => decide("withdrawn", [tiles[at.focus].place]),
      u: undo,
      ArrowLeft: () => tiles[at.focus - 1] && (only(at.focus - 1, false), look.show(tiles[at.focus].place)),
      ArrowRight: () => tiles[at.focus + 1] && (only(at.focus + 1, false), look.show(tiles[at.focus].place)),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
  });

  const fileLine = offer.file ? `Decisions are appended to ${offer.file}` : 'To look only: name a file in decisions="…" to decide.';
  const group = (name, ...parts) => el("div", { class: "ckg-row", role: "group", "aria-label": name }, ...parts);
  const lookOnly = { disabled: !offer.file };
  root.replaceChildren(
    group("filters", ...filters(offer, query, refilter), button("Filter again", () => load(0, true))),
    group(
      "decisions",
      button("Accept (a)", () => act("accept"), lookOnly),
      button("Reject (r)", () => act("reject"), lookOnly),
      button("Set back (w)", () => act("withdrawn"), lookOnly),
      undoButton,
      button("Look closely (Space)", () => keys.Enter()),
      reviewerField,
      reasonField,
      reasons,
    ),
    ...[bulk, progressLine, classwise].filter(Boolean),
    line,
    grid,
    group("pages", before, where, next, helpButton),
    help,
    el("div", { class: "ckg-file" }, fileLine),
    look.dialog,
  );
  progress(offer.progress);
  await load(0);
  return {
    check: () => ask(model, "hello", {}, 3000).catch(() => say(GONE, true)),
    end: () => {
      urls.forEach((url) => URL.revokeObjectURL(url));
      look.empty();
    },
  };
}

export default {
  render({ model, el: root }) {
    root.classList.add("ck", "ckg");
    root.setAttribute("data-lm-suppress-shortcuts", "true"); // else Lab takes a, r, n … for its own commands
    let view = null;
    let closed = false;
    const check = () => view && view.check();
    model.on("comm_live_update", check);
    start(model, root).then(
      (made) => (closed ? made.end() : (view = made)),
      (error) => {
        const [line, say] = speaker();
        root.replaceChildren(line);
        say(/does not answer/.test(error.message) ? GONE : error.message, true);
      },
    );
    return () => {
      closed = true;
      model.off("comm_live_update", check);
      if (view) view.end();
    };
  },
};
