// Colours for our sockets and wires, in both renderers; a palette of the user's may have others.

import { app } from "../../scripts/app.js";

const COLOURS = { SARA_DELTA: "#e8a13a", SARA_OPTIONS: "#7fb0c4", SARA_SAMPLES: "#b48ad6" };

// A palette that has none for a type makes it "", for every type that a node has.
function colour() {
  const ofSlots = app.canvas?.default_connection_color_byType ?? {};
  const ofLinks = (globalThis.LGraphCanvas ?? app.canvas?.constructor)?.link_type_colors ?? {};
  for (const [type, ours] of Object.entries(COLOURS)) {
    const chosen = ofLinks[type] || ours;
    ofSlots[type] = ofLinks[type] = chosen;
    document.documentElement.style.setProperty(`--color-datatype-${type}`, chosen);
  }
  app.canvas?.setDirty?.(true, true);
}

app.registerExtension({
  name: "SaRA.Sockets",
  setup() {
    colour();
    // The page takes a palette up after it has said so, and at its start after this.
    const soon = () => setTimeout(colour, 500);
    soon();
    app.ui?.settings?.addEventListener?.("Comfy.ColorPalette.change", soon);
  },
});
