// The choices of our nodes' inputs in the page's language. Workflows and prompts keep the English ones.

import { app } from "../../../scripts/app.js";
import { wordFor } from "./words.js";

app.registerExtension({
  name: "SaRA.Choices",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("SaRA")) return;
    for (const widget of node.widgets ?? []) {
      const choices = widget.type === "combo" && widget.options?.values;
      // With labels of their own menus have no search, so that an untranslated one gets none.
      if (!Array.isArray(choices) || !choices.some(wordFor)) continue;
      widget.options.getOptionLabel = (choice) => wordFor(choice) ?? String(choice ?? "");
    }
  },
});
