// (CSS selector) => what is wrong with what is shown in these elements, a line each. Read by accessible.py.
(scope) => {
  const CLICKS =
    "button, input:not([type=hidden]), select, textarea, a[href], summary, [role=button], [role=slider], [role=option]";
  const MOVES_WITHIN = "[role=grid], [role=listbox], [role=radiogroup], [role=tablist], [role=toolbar]"; // arrow keys
  const found = [];

  const named = (e) => {
    const classes = [...e.classList].map((c) => "." + c).join("");
    const text = JSON.stringify((e.textContent || "").trim().slice(0, 40));
    return `${e.tagName.toLowerCase()}${e.id ? "#" + e.id : ""}${classes} ${text}`;
  };
  const shown = (e) =>
    e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && e.getClientRects().length > 0;

  // ---- contrast
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    // any CSS colour as [r, g, b, a], 0 to 255 and 0 to 1
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
  const schemes = getComputedStyle(document.documentElement).colorScheme;
  const isDark = schemes.includes("dark") && matchMedia("(prefers-color-scheme: dark)").matches;
  const paper = isDark ? [18, 18, 18] : [255, 255, 255];
  const ground = (e) => {
    // what is painted beneath e's text; null: a picture
    const layers = [];
    for (let at = e; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.backgroundImage !== "none") return null;
      layers.push(rgba(style.backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reduceRight((under, layer) => over(layer, under), paper);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const opacity = (e) => (e ? Number(getComputedStyle(e).opacity) * opacity(e.parentElement) : 1);
  const judge = (e) => {
    const under = ground(e);
    if (!under) return;
    const style = getComputedStyle(e);
    const [r, g, b, a] = rgba(style.color);
    const [x, y] = [light(over([r, g, b, a * opacity(e)], under)), light(under)].sort((p, q) => q - p);
    const ratio = (x + 0.05) / (y + 0.05);
    const pixels = parseFloat(style.fontSize);
    const needed = pixels >= 24 || (pixels >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    if (ratio < needed - 0.01) found.push(`contrast ${ratio.toFixed(2)}, not ${needed}: ${named(e)}`);
  };

  // ---- names
  const textOf = (ids) => ids.split(/\s+/).map((id) => document.getElementById(id)?.textContent || "").join("");
  const name = (e) => {
    const field = e.matches("input, select, textarea");
    const parts = [textOf(e.getAttribute("aria-labelledby") || ""), e.getAttribute("aria-label"), e.title];
    parts.push(...[...(e.labels || [])].map((label) => label.textContent));
    if (!field) parts.push(e.textContent, ...[...e.querySelectorAll("img")].map((image) => image.alt));
    if (e.matches("input[type=submit], input[type=button], input[type=reset]")) parts.push(e.value);
    return parts.join("").trim();
  };

  for (const root of document.querySelectorAll(scope)) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    const judged = new Set();
    while (walker.nextNode()) {
      const e = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || judged.has(e) || !shown(e)) continue;
      judged.add(e);
      if (!e.closest("option, [disabled], [aria-disabled=true], svg, script, style")) judge(e);
    }
    for (const e of [root, ...root.querySelectorAll("*")].filter(shown)) {
      const silent = !e.hasAttribute("alt") && !e.getAttribute("aria-label") && !e.closest("[aria-hidden=true]");
      if (e.matches("img, canvas, [role=img]") && silent) found.push(`a picture without words: ${named(e)}`);
      if (e.tabIndex > 0) found.push(`tabindex ${e.tabIndex} leaves the page's order: ${named(e)}`);
      if (!e.matches(CLICKS)) continue;
      if (!name(e)) found.push(`no name: ${named(e)}`);
      if (!e.disabled && e.tabIndex < 0 && !e.closest(MOVES_WITHIN)) found.push(`not reached by Tab: ${named(e)}`);
    }
  }
  return found;
}
