// What every view shares. Texts reach the page through textContent and attributes only, so that markup in a class
// name, a prompt or an answer stays text.

/** An element: el("button", {class: "a", onclick: f, "aria-label": "b"}, "text", child …). */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

let asked = 0;

/** Ask the kernel: a promise of {…answer, buffers}, rejected with the kernel's one sentence or after `patience` ms. */
function ask(model, kind, data = {}, patience = 60000) {
  const id = `${Date.now()}-${++asked}`;
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => done(() => reject(new Error("the kernel does not answer; is a cell running?"))), patience);
    const done = (then) => {
      clearTimeout(late);
      model.off("msg:custom", heard);
      then();
    };
    const heard = (answer, buffers) => {
      if (!answer || answer.id !== id) return;
      done(() => (answer.error ? reject(new Error(answer.error)) : resolve({ ...answer, buffers: buffers || [] })));
    };
    model.on("msg:custom", heard);
    model.send({ kind, id, ...data });
  });
}

/** A line that is read aloud when its text changes; say(text) for news, say(text, true) for what went wrong. */
function speaker() {
  const line = el("div", { class: "ck-say", role: "status", "aria-live": "polite" });
  const say = (text, wrong = false) => {
    line.textContent = text;
    line.classList.toggle("ck-wrong", wrong);
  };
  return [line, say];
}

/** An object URL of a picture that came as a buffer. Revoke it when its place is emptied. */
function pictureUrl(buffer, type = "image/webp") {
  return URL.createObjectURL(new Blob([buffer], { type }));
}
