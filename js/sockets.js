// Colours for our sockets and wires, in both renderers; a palette of the user's may have others.

import { app } from "../../scripts/app.js";

const COLOURS = { SARA_DELTA: "#e8a13a", SARA_OPTIONS: "#7fb0c4", SARA_SAMPLES: "#b48ad6" };

app.registerExtension({
  name: "SaRA.Sockets",
  setup() {
    const byType = app.canvas?.default_connection_color_byType;
    const ofLinks = globalThis.LGraphCanvas?.link_type_colors;
    for (const [type, colour] of Object.entries(COLOURS)) {
      if (byType) byType[type] ??= colour;
      if (ofLinks) ofLinks[type] ??= colour;
      document.documentElement.style.setProperty(`--color-datatype-${type}`, byType?.[type] || colour);
    }
  },
});
