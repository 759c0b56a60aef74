// SaRA Dataset in the page: a gallery inside the node. It writes the node's widget `folders`, captions and new
// pictures; in the workflow there is nothing of it but the widgets' values.

import { useStyle } from "../common/dom.js";
import { addPanel, onNode, widgetOf } from "../common/nodes.js";
import { onEvent } from "../common/server.js";
import { deciding } from "../common/wires.js";
import { say } from "../common/words.js";
import { Gallery } from "./gallery.js";

const SHOWN = ["folders", "trigger", "caption", "resolution", "buckets"];  // widgets that change what the gallery shows
const HEIGHT = 460, WIDTH = 460;

onNode("Dataset", "SaRADataset", (node) => {
  useStyle("dataset.css", import.meta.url);
  const values = {
    get: (name) => (deciding(node, name) ?? widgetOf(node, name))?.value,
    set(name, value) {
      const widget = widgetOf(node, name);
      widget.value = value;
      widget.callback?.(value);
      node.graph?.setDirtyCanvas?.(true, true);
    },
  };
  const gallery = new Gallery(values);
  addPanel(node, "gallery", gallery.element, HEIGHT).label = say("Pictures and their captions");
  const folders = widgetOf(node, "folders");
  if (folders?.options) folders.options.getMaxHeight = () => 60;  // what is left is for the pictures
  for (const name of SHOWN) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    const before = widget.callback;
    widget.callback = function (...given) {
      const result = before?.apply(this, given);
      gallery.valuesChanged();
      return result;
    };
  }
  const configured = node.onConfigure;
  node.onConfigure = function (...given) {
    const result = configured?.apply(this, given);
    gallery.valuesChanged();
    return result;
  };
  const removed = node.onRemoved;
  const end = onEvent("graphChanged", () => gallery.valuesChanged());  // a primitive's value, too
  node.onRemoved = function (...given) {
    end();
    gallery.close();
    return removed?.apply(this, given);
  };
  node.setSize?.([Math.max(node.size[0], WIDTH), Math.max(node.size[1], node.computeSize()[1])]);
  gallery.valuesChanged();
});
