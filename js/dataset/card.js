// One picture of the gallery: what is trained of it, its marks, and its caption, which is saved when its field is left.

import { api } from "../../../scripts/api.js";
import { element } from "../common/dom.js";
import { ask } from "../common/server.js";
import { say, told } from "../common/words.js";

// picture: as GET /sara/dataset has it; words(): the trigger and the caption for all; changed(): when it has been saved
export class Card {
  constructor(folder, picture, words, changed) {
    Object.assign(this, { folder, picture, words, changed });
    this.marks = element("div", { class: "sara-dataset-marks" });
    this.prefix = element("span", { class: "sara-dataset-prefix" });
    this.state = element("span", { class: "sara-dataset-state", role: "status", "aria-live": "polite" });
    this.field = element("textarea", {
      rows: "2", spellcheck: "false", "aria-label": say("Caption of {name}", { name: picture.name }),
      onblur: () => this.save(), onkeydown: (event) => this.keyed(event), oninput: () => this.typed(),
      oncopy: stop, oncut: stop, onpaste: stop,  // the graph would take them for its nodes
    });
    this.field.value = picture.caption ?? "";
    this.element = element(
      "li", { class: "sara-dataset-card" }, this.frame(), this.marks,
      element("div", { class: "sara-dataset-caption" }, this.prefix, this.field, this.state),
    );
    this.wordsChanged();
  }

  get hasCaption() {
    const { trigger, forAll } = this.words();
    return Boolean(this.picture.caption || trigger || forAll);
  }

  frame() {
    const { name, version, size, bucket, box } = this.picture;
    const address = new URLSearchParams({ folder: this.folder, name, v: version });
    const image = element("img", {
      loading: "lazy", decoding: "async", draggable: "false", alt: "", onerror: () => this.broken(),
      src: api.apiURL(`/sara/dataset/thumbnail?${address}`),
    });
    const inside = this.inside = element("div", { class: "sara-dataset-inside" }, image);
    if (size) inside.style.aspectRatio = `${size[0]} / ${size[1]}`;
    if (size && size[0] < size[1]) inside.classList.add("sara-dataset-upright");
    if (box) inside.append(element("div", { class: "sara-dataset-box", style: placed(box) }));
    const label = bucket ? say("{width} × {height}", { width: bucket[0], height: bucket[1] }) : "";
    return element(
      "div", { class: "sara-dataset-frame", title: size ? `${name}\n${size[0]} × ${size[1]} → ${label}` : name },
      inside, label && element("span", { class: "sara-dataset-bucket" }, label),
    );
  }

  // A file whose beginning is sound, and the rest is not, is known only now; the server has the sentence.
  async broken() {
    this.inside.hidden = true;
    if (this.picture.problem) return;
    const address = new URLSearchParams({ folder: this.folder, name: this.picture.name, v: this.picture.version });
    this.picture.problem = await ask(`dataset/thumbnail?${address}`).then(() => null, (error) => error.message);
    this.wordsChanged();
    this.changed();
  }

  // When trigger, caption for all, or this caption are others.
  wordsChanged() {
    const { trigger, forAll } = this.words();
    const { problem, caption_problem: captionProblem, blurred, same_as: same, caption } = this.picture;
    this.prefix.textContent = trigger && !has(caption ?? "", trigger) ? `${trigger},` : "";
    this.field.placeholder = forAll || say("Write what is on it");
    this.field.readOnly = Boolean(captionProblem);
    this.marks.replaceChildren(...[
      problem && mark("bad", say("unreadable"), told(problem)),
      captionProblem && mark("bad", say("caption unreadable"), told(captionProblem)),
      !problem && !captionProblem && !this.hasCaption && mark("bad", say("no caption"), say("It is trained without words.")),
      blurred && mark("odd", say("tiny"), say("There is less in it than is trained: it is enlarged, and blurred.")),
      same && mark("odd", say("copy"), say("The same file as {name}: it is shown twice as often.", { name: same })),
    ].filter(Boolean));
    this.element.classList.toggle("sara-dataset-lacking", !this.hasCaption || Boolean(problem ?? captionProblem));
  }

  keyed(event) {
    event.stopPropagation();  // letters are shortcuts of the graph
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.save();
    } else if (event.key === "Escape") {
      this.field.value = this.picture.caption ?? "";
      this.tell("", "");
    }
  }

  typed() {
    if (this.field.value.trim() !== (this.picture.caption ?? "")) this.tell("", say("not saved yet"));
    else this.tell("", "");
  }

  // `saving` is over when what was typed is in the file, or cannot be.
  save() {
    if (!this.saving && this.field.value.trim() !== (this.picture.caption ?? "")) {
      this.saving = this.saved().finally(() => (this.saving = undefined));
    }
    return this.saving;
  }

  async saved() {
    const caption = this.field.value.trim(), before = this.picture.caption;
    this.tell("", say("saving …"));
    try {
      const answer = await ask("dataset/caption", { folder: this.folder, name: this.picture.name, caption, before });
      this.picture.caption = answer.caption;
      this.tell("good", say("saved"));
      this.wordsChanged();
      this.changed();
    } catch (error) {
      this.tell("bad", error.message);
      return;
    }
    // What was typed while it was being saved.
    if (this.field.value.trim() !== caption && document.activeElement !== this.field) await this.saved();
  }

  tell(kind, text) {
    this.state.textContent = text;
    this.state.className = `sara-dataset-state sara-dataset-${kind || "plain"}`;
  }
}

function mark(kind, text, title) {
  const classes = `sara-dataset-mark sara-dataset-${kind}`;
  return element("span", { class: classes, title, "aria-label": `${text}: ${title}` }, text);
}

function placed([left, top, right, bottom]) {
  const share = (part) => `${100 * part}%`;
  return { left: share(left), top: share(top), width: share(right - left), height: share(bottom - top) };
}

// As sara_core/data/captioning.py has it: the words as they are, not as a part of others.
function has(text, words) {
  const sign = "[\\p{L}\\p{N}_]";
  const literal = words.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&");
  return new RegExp(`(?<!${sign})${literal}(?!${sign})`, "iu").test(text);
}

function stop(event) {
  event.stopPropagation();
}
