// Elements of a page, in which what comes from a file can only ever be text.

// element("button", { class: "x", title: "…", onclick: f, "aria-label": "…" }, "text", anotherElement)
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(made.style, value);
    else if (key in made && typeof value !== "string") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined && child !== null));
  return made;
}

// Adds a stylesheet of ours, which lies beside the module that asks (pass import.meta.url), once.
export function useStyle(file, moduleUrl) {
  const href = new URL(file, moduleUrl).href;
  if (document.querySelector(`link[href="${href}"]`)) return;
  document.head.append(element("link", { rel: "stylesheet", href }));
}
