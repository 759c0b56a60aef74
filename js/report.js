// A command of ComfyUI's page, also in its menu under Help: copies a problem report, to be pasted into an issue.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { say } from "./common/words.js";

const FILE = "sara-report.md";

async function report() {
  const answer = await api.fetchApi("/sara/report", { cache: "no-store" });
  if (!answer.ok) throw new Error(`ComfyUI answered ${answer.status} ${answer.statusText}`);
  return answer.text();
}

function download(text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/markdown" }));
  link.download = FILE;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);  // once it has certainly been read
}

function tell(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "SaRA", detail, life: 8000 });
}

async function copyReport() {
  let text;
  try {
    text = await report();
  } catch (error) {
    tell("error", say("There is no problem report: {why}. Is ComfyUI still running?", { why: error.message }));
    return;
  }
  try {
    await navigator.clipboard.writeText(text);
    tell("success", say("The problem report is in the clipboard: paste it into an issue, and say what happened."));
  } catch {
    // Pages that come from another computer without https have no clipboard.
    download(text);
    tell("info", say("The problem report has been downloaded as {file}: put its text into an issue, and say what happened.", { file: FILE }));
  }
}

app.registerExtension({
  name: "SaRA.Report",
  commands: [
    { id: "SaRA.CopyReport", label: "SaRA: copy a problem report", icon: "pi pi-copy", function: copyReport },
  ],
  menuCommands: [{ path: ["Help"], commands: ["SaRA.CopyReport"] }],
});
