// The gallery inside SaRA Dataset: folders, a place to drop pictures, and their pictures with the captions.

import { element } from "../common/dom.js";
import { ask } from "../common/server.js";
import { say, told } from "../common/words.js";
import { Card } from "./card.js";
import { foldersOf, withFolder, withoutFolder } from "./folders.js";
import { upload } from "./upload.js";

const FIRST_FOLDER = "sara_pictures";
const PAUSE = 250;  // milliseconds after the last letter that is typed into a widget

// values: { get(name), set(name, value) } of the node's widgets
export class Gallery {
  constructor(values) {
    this.values = values;
    this.cards = [];
    this.endings = [];
    this.shown = undefined;
    this.counts = element("div", { class: "sara-dataset-counts", role: "status", "aria-live": "polite" });
    this.notes = element("div", { class: "sara-dataset-notes", role: "status", "aria-live": "polite" });
    this.chips = element("div", { class: "sara-dataset-chips" });
    this.list = element("ul", { class: "sara-dataset-list", "aria-label": say("Pictures and their captions") });
    this.scroller = element("div", { class: "sara-dataset-scroll", onwheel: scrolled });
    this.input = element("input", {
      type: "file", multiple: true, hidden: true, accept: "image/*,.txt", "aria-hidden": "true", tabindex: "-1",
      onchange: () => this.take([...this.input.files]).finally(() => (this.input.value = "")),
    });
    const choose = say("Drop pictures here, or click to choose files");
    this.drop = button("sara-dataset-drop", choose, () => this.input.click());
    this.menu = element("select", {
      class: "sara-dataset-menu", "aria-label": say("Add a folder of ComfyUI's input folder"),
      onchange: () => this.chosen(this.menu.value), onfocus: () => this.fillMenu(), onpointerdown: stop,
    });
    this.name = element("input", {
      type: "text", class: "sara-dataset-name", hidden: true, placeholder: say("name of the new folder"),
      "aria-label": say("Name of the new folder"), onkeydown: (event) => this.named(event),
      onblur: () => this.hideName(),
    });
    this.scroller.append(this.list);
    this.inside = element(
      "div", { class: "sara-dataset", ondragover: (event) => this.over(event), ondragleave: () => this.left(),
        ondrop: (event) => this.dropped(event) },
      element("div", { class: "sara-dataset-bar" }, this.menu, this.name,
        button("sara-dataset-button", say("Refresh"), () => this.load())),
      this.chips, this.drop, this.input, this.counts, this.notes, this.scroller,
    );
    // The node decides how high this is, and not what is in it.
    this.element = element("div", { class: "sara-dataset-place" }, this.inside);
    this.fillMenu();
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
  }

  // The node's widgets have other values, perhaps.
  valuesChanged() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const key = JSON.stringify(["folders", "resolution", "buckets"].map((name) => this.values.get(name)));
      if (key !== this.shown) this.load();
      else this.wordsChanged();
    }, PAUSE);
  }

  words() {
    const text = (name) => String(this.values.get(name) ?? "").trim();
    return { trigger: text("trigger"), forAll: text("caption") };
  }

  wordsChanged() {
    for (const card of this.cards) card.wordsChanged();
    this.count();
  }

  async load(notes = []) {
    if (this.closed) return;
    const [text, resolution, buckets] = ["folders", "resolution", "buckets"].map((name) => this.values.get(name));
    this.shown = JSON.stringify([text, resolution, buckets]);
    const mine = (this.loading = Symbol());
    await Promise.allSettled(this.cards.map((card) => card.save()));  // what is being written is not to be lost
    const folders = foldersOf(text);
    this.showChips(folders);
    const cards = [], said = [...notes];
    for (const { name } of folders) {
      try {
        const asked = new URLSearchParams({ folder: name, resolution, buckets });
        const found = await ask(`dataset?${asked}`);
        if (mine !== this.loading) return;
        this.endings = found.endings;
        cards.push(...found.pictures.map((picture) => this.card(name, picture)));
        said.push(...found.lines.map(told));
        const hidden = { count: found.more, folder: name };
        if (found.more) said.push(say("{count} more pictures in {folder} are trained and not shown.", hidden));
      } catch (error) {
        if (mine !== this.loading) return;
        said.push(error.message);
      }
    }
    this.cards = cards;
    this.list.replaceChildren(...cards.map((card) => card.element));
    if (text !== this.listed) this.scroller.scrollTop = 0;
    this.listed = text;
    this.tell(said);
    this.count();
  }

  card(folder, picture) {
    return new Card(folder, picture, () => this.words(), () => this.count());
  }

  count() {
    const without = this.cards.filter((card) => !card.hasCaption).length;
    const bare = this.cards.length && this.words().trigger && !this.words().forAll
      ? this.cards.filter((card) => !card.picture.caption).length : 0;
    const unreadable = this.cards.filter(({ picture }) => picture.problem || picture.caption_problem).length;
    const parts = [
      this.cards.length === 1 ? say("1 picture") : say("{count} pictures", { count: this.cards.length }),
      without && say("{count} without caption", { count: without }),
      bare && say("{count} with the trigger word alone", { count: bare }),
      unreadable && say("{count} unreadable", { count: unreadable }),
    ];
    this.counts.textContent = this.cards.length ? parts.filter(Boolean).join(say(", ")) : "";
    this.inside.classList.toggle("sara-dataset-empty", !this.cards.length);
  }

  tell(sentences) {
    this.notes.replaceChildren(...sentences.map((sentence) => element("p", {}, sentence)));
  }

  showChips(folders) {
    const leaveOut = (name) => this.values.set("folders", withoutFolder(this.values.get("folders"), name));
    this.chips.replaceChildren(...folders.map(({ name, line }) => element(
      "span", { class: "sara-dataset-chip" }, line,
      button("sara-dataset-remove", "×", () => leaveOut(name), say("Leave out the folder {name}", { name })),
    )));
  }

  async fillMenu() {
    const names = await ask("dataset/folders").then((answer) => answer.folders, () => []);
    const option = (value, text = value) => element("option", { value }, text);
    this.menu.replaceChildren(
      option("", say("Add a folder …")), option("/", say("New folder …")), ...names.map((name) => option(name)),
    );
  }

  chosen(name) {
    this.menu.value = "";
    if (name === "/") {
      this.menu.hidden = true;
      this.name.hidden = false;
      this.name.focus();
    } else if (name) {
      this.values.set("folders", withFolder(this.values.get("folders"), name));
    }
  }

  async named(event) {
    event.stopPropagation();
    if (event.key === "Escape") this.hideName();
    if (event.key !== "Enter" || !this.name.value.trim()) return;
    try {
      const { folder } = await ask("dataset/folder", { name: this.name.value });
      this.values.set("folders", withFolder(this.values.get("folders"), folder));
      this.hideName();
    } catch (error) {
      this.tell([error.message]);
    }
  }

  hideName() {
    this.name.hidden = true;
    this.name.value = "";
    this.menu.hidden = false;
  }

  over(event) {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    event.stopPropagation();
    this.inside.classList.add("sara-dataset-over");
  }

  left() {
    this.inside.classList.remove("sara-dataset-over");
  }

  dropped(event) {
    event.preventDefault();
    event.stopPropagation();  // the graph would open the picture as a workflow
    this.left();
    this.take([...event.dataTransfer.files]);
  }

  // Into the last folder of the input folder that is named; into a new one where there is none.
  async take(files) {
    if (!files.length) return;
    const refused = [];
    try {
      const known = new Set((await ask("dataset/folders")).folders);
      const named = foldersOf(this.values.get("folders")).map(({ name }) => name);
      const folder = named.filter((name) => known.has(name)).at(-1)
        ?? (await ask("dataset/folder", { name: freeName(known) })).folder;
      this.endings = (await ask(`dataset?${new URLSearchParams({ folder, resolution: "512" })}`)).endings;
      const told = (done, of) => { this.counts.textContent = say("{done} of {of} pictures copied", { done, of }); };
      refused.push(...await upload(files, folder, this.endings, told));
      this.values.set("folders", withFolder(this.values.get("folders"), folder));
    } catch (error) {
      refused.push(error.message);
    }
    await this.load(refused);
  }
}

function freeName(known) {
  for (let number = 1; ; number++) {
    const name = number === 1 ? FIRST_FOLDER : `${FIRST_FOLDER}_${number}`;
    if (!known.has(name)) return name;
  }
}

function button(kind, text, onclick, label = text) {
  return element("button", { type: "button", class: kind, "aria-label": label, title: label, onclick }, text);
}

// The list scrolls; only where it cannot does the wheel go to the graph, which zooms.
function scrolled(event) {
  const list = event.currentTarget;
  if (!event.ctrlKey && list.scrollHeight > list.clientHeight) event.stopPropagation();
}

function stop(event) {
  event.stopPropagation();
}
