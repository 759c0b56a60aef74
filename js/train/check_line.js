// The answer of /sara/check as one line: "20 pictures, 3 without caption, 1024 px, about 9.8 of 12 GB, about 40 min".

import { say } from "../common/words.js";
import { GB, gigabytes, MB } from "./numbers.js";

export function checkLine({ pictures, without_caption: without, resolution, memory, delta, seconds }) {
  const parts = [];
  if (pictures != null) parts.push(pictures === 1 ? say("1 picture") : say("{count} pictures", { count: pictures }));
  if (without) parts.push(say("{count} without caption", { count: without }));
  if (resolution != null) parts.push(say("{size} px", { size: resolution }));
  if (memory) {
    const values = { size: gigabytes(memory.size), total: gigabytes(memory.total) };
    parts.push(memory.is_least ? say("at least {size} of {total} GB", values) : say("about {size} of {total} GB", values));
  }
  if (delta != null) parts.push(say("a file of {size}", { size: fileSize(delta) }));
  parts.push(seconds == null ? say("the time is known after a few steps") : aboutTime(seconds));
  return parts.join(say(", "));
}

function fileSize(bytes) {
  return bytes < GB ? say("{size} MB", { size: Math.max(1, Math.round(bytes / MB)) }) : say("{size} GB", { size: gigabytes(bytes) });
}

function aboutTime(seconds) {
  const minutes = seconds / 60;
  if (minutes < 1) return say("less than a minute");
  if (minutes < 90) return say("about {count} min", { count: Math.round(minutes) });
  return say("about {count} h", { count: (minutes / 60).toFixed(minutes < 600 ? 1 : 0) });
}
