// Pictures and captions that were dropped or chosen → files in a folder of the host's input folder.

import { api } from "../../../scripts/api.js";
import { ask } from "../common/server.js";
import { say } from "../common/words.js";

const AT_ONCE = 3;
const CAPTION = /\.txt$/i;

// Pictures go by the host's own route. endings: of the pictures that can be read; told(done, of) hears how far it is.
// Returns the sentences on files that were not taken.
export async function upload(files, folder, endings, told) {
  const isPicture = (file) => endings.some((ending) => file.name.toLowerCase().endsWith(ending));
  const pictures = files.filter(isPicture), captions = files.filter((file) => CAPTION.test(file.name));
  const others = files.filter((file) => !isPicture(file) && !CAPTION.test(file.name));
  const left = (name) => say("{name} is left out: it is no picture that can be read here.", { name });
  const refused = others.map(({ name }) => left(name));
  const waiting = [...pictures];
  let done = 0;
  const work = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) {
      const reason = await sent(file, folder);
      if (reason) refused.push(reason);
      told(++done, pictures.length);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  return [...refused, ...await saveCaptions(captions, folder)];
}

async function sent(file, folder) {
  const form = new FormData();
  form.append("image", file);
  form.append("subfolder", folder);
  form.append("type", "input");
  try {
    const answer = await api.fetchApi("/upload/image", { method: "POST", body: form });
    if (answer.ok) return undefined;
    return say("{name} was not taken: ComfyUI answered {status}.", { name: file.name, status: answer.status });
  } catch {
    return say("{name} was not taken: ComfyUI did not answer.", { name: file.name });
  }
}

async function saveCaptions(files, folder) {
  if (!files.length) return [];
  const { pictures } = await ask(`dataset?${new URLSearchParams({ folder, resolution: "512" })}`);
  const byStem = new Map(pictures.map((picture) => [stem(picture.name), picture]));
  const refused = [];
  for (const file of files) {
    const picture = byStem.get(stem(file.name));
    if (!picture) {
      refused.push(say("{name} is left out: there is no picture of that name.", { name: file.name }));
      continue;
    }
    try {
      const caption = await textOf(file);
      await ask("dataset/caption", { folder, name: picture.name, caption, before: picture.caption });
    } catch (error) {
      refused.push(`${file.name}: ${error.message}`);
    }
  }
  return refused;
}

// As the server reads caption files, and not with a sign in place of whatever is none.
async function textOf(file) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(say("it is not UTF-8 text: save it as UTF-8."));
  }
}

function stem(name) {
  return name.replace(/\.[^.]*$/, "").normalize("NFC");
}
