(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");

  // One place that shows the figures of what is pointed at, for a mouse and for a keyboard.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);

  let shown = null;
  const hide = () => { shown = null; tip.hidden = true; };
  const place = () => {
    if (!shown) return;
    const at = (shown.querySelector(".marker") || shown).getBoundingClientRect();
    if (at.bottom < 0 || at.top > innerHeight) { hide(); return; }
    const own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left + at.width / 2 - own.width / 2), root.clientWidth - own.width - 8);
    const above = at.top - own.height - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 8 ? at.bottom + 8 : above}px`;
  };
  const show = (mark) => {
    const name = `${mark.dataset.step}: `;
    const named = mark.tipText.startsWith(name);
    const head = document.createElement("b");
    const rest = document.createElement("span");
    head.textContent = mark.dataset.step;
    rest.textContent = named ? mark.tipText.slice(name.length) : mark.tipText;
    tip.replaceChildren(head, rest);
    tip.hidden = false;
    shown = mark;
    place();
  };

  // The bar at the foot says what is picked out, and lets go of it.
  const bar = document.createElement("div");
  bar.id = "picked";
  bar.hidden = true;
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  const clear = document.createElement("button");
  clear.type = "button";
  clear.textContent = "Clear (Esc)";
  bar.append(said, clear);
  document.body.append(bar);

  const marks = [...document.querySelectorAll("[data-step]")];
  const stages = marks.filter((mark) => mark.matches("g.stage, tr"));
  let picked = null;
  const pick = (step) => {
    picked = step === picked ? null : step;
    root.classList.toggle("picking", picked !== null);
    for (const mark of marks) mark.classList.toggle("picked", mark.dataset.step === picked);
    for (const stage of stages) {
      const on = stage.dataset.step === picked;
      if (stage.matches("g")) stage.setAttribute("aria-pressed", String(on));
      else if (on) stage.setAttribute("aria-current", "true");
      else stage.removeAttribute("aria-current");
    }
    bar.hidden = picked === null;
    said.textContent = picked === null ? "" : `${picked} is picked out`;
  };
  clear.addEventListener("click", () => pick(picked));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    hide();
    if (picked !== null) pick(picked);
  });

  // Each figure and each table is one stop of the Tab key; arrows go from stage to stage within it.
  for (const group of document.querySelectorAll("svg.plot, tbody")) {
    const own = stages.filter((stage) => group.contains(stage));
    if (!own.length) continue;
    const svg = group.matches("svg");
    if (svg) group.setAttribute("role", "group");
    else group.closest(".scroll")?.removeAttribute("tabindex");
    own.forEach((stage, place) => {
      stage.tabIndex = place ? -1 : 0;
      if (svg) {
        const title = stage.querySelector("title");
        stage.tipText = title ? title.textContent : stage.dataset.step;
        title?.remove();
        stage.setAttribute("role", "button");
        stage.setAttribute("aria-label", stage.tipText);
        stage.setAttribute("aria-pressed", "false");
        stage.addEventListener("pointerenter", () => show(stage));
        stage.addEventListener("pointerleave", hide);
        stage.addEventListener("blur", hide);
      }
      stage.addEventListener("focus", () => {
        for (const other of own) other.tabIndex = other === stage ? 0 : -1;
        if (svg && stage.matches(":focus-visible")) show(stage);
      });
      stage.addEventListener("click", () => {
        if (!String(getSelection())) pick(stage.dataset.step);
      });
      stage.addEventListener("keydown", (event) => {
        const move = { ArrowDown: 1, ArrowUp: -1, ...(svg && { ArrowRight: 1, ArrowLeft: -1 }) }[event.key];
        const there = event.key === "Home" ? 0 : event.key === "End" ? own.length - 1 : move ? place + move : -1;
        if (event.key === "Enter" || event.key === " ") pick(stage.dataset.step);
        else if (own[there]) own[there].focus();
        else return;
        event.preventDefault();
      });
    });
  }
  addEventListener("scroll", place, { passive: true });

  // The table of contents follows the reader.
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const seen = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target.id);
    let first = true;
    for (const [id, link] of links) {
      if (first && seen.has(id)) { link.setAttribute("aria-current", "true"); first = false; }
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-10% 0px -55% 0px" });
  for (const id of links.keys()) { const section = document.getElementById(id); if (section) watch.observe(section); }
})();
