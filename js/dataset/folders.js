// The text of the widget `folders`: a folder a line, each perhaps with its repeats: "dog | 3".

const REPEATS = /^(.*\S)\s*\|\s*(\d+)$/;

// "dog | 3\n/mnt/cats" → [{ line: "dog | 3", name: "dog" }, { line: "/mnt/cats", name: "/mnt/cats" }]
export function foldersOf(text) {
  return String(text ?? "").split("\n").map((line) => line.trim()).filter(Boolean)
    .map((line) => ({ line, name: (line.match(REPEATS)?.[1] ?? line).replace(/\/+$/, "") }));
}

// The text with one folder more, unless it is there.
export function withFolder(text, name) {
  const folders = foldersOf(text);
  return folders.some((folder) => folder.name === name) ? text : [...folders.map(({ line }) => line), name].join("\n");
}

// The text without that folder.
export function withoutFolder(text, name) {
  return foldersOf(text).filter((folder) => folder.name !== name).map(({ line }) => line).join("\n");
}
