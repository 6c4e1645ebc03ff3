const RATE = 24000;
const $ = (id) => document.getElementById(id);
const { talk, canned, worklet } = document.querySelector("main").dataset;

let recording = null;

$("canned").onclick = () => guarded(async () => ask(await (await fetch(canned)).blob()));
$("record").onclick = () => guarded(recording ? stop : start);

async function guarded(action) {
  try {
    await action();
  } catch (error) {
    $("state").textContent = `That failed: ${error.message}`;
  }
}

async function start() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const context = new AudioContext({ sampleRate: RATE });
  await context.audioWorklet.addModule(worklet);
  const node = new AudioWorkletNode(context, "recorder");
  const chunks = [];
  node.port.onmessage = ({ data }) => {
    chunks.push(data);
    $("state").textContent = `Recording: ${(chunks.length * data.length / RATE).toFixed(1)} s`;
  };
  context.createMediaStreamSource(stream).connect(node);
  recording = { stream, context, node, chunks };
  $("record").textContent = "Stop and ask";
  $("record").ariaPressed = "true";
}

async function stop() {
  const { stream, context, node, chunks } = recording;
  recording = null;
  $("record").textContent = "Record";
  $("record").ariaPressed = "false";
  node.port.onmessage = null;
  stream.getTracks().forEach((track) => track.stop());
  await context.close();
  await ask(wav(chunks));
}

// A WAV of 16 bits, mono.
function wav(chunks) {
  const count = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const chunk of chunks)
    for (const sample of chunk) {
      view.setInt16(at, Math.max(-1, Math.min(1, sample)) * 32767, true);
      at += 2;
    }
  return new Blob([view], { type: "audio/wav" });
}

async function ask(question) {
  $("state").textContent = "Waiting for the answer…";
  const response = await fetch(talk, { method: "POST", body: question, headers: { "Content-Type": "audio/wav" } });
  if (!response.ok) throw new Error((await response.json()).error);
  $("said").textContent = decodeURIComponent(response.headers.get("X-Said"));
  URL.revokeObjectURL($("answer").src);
  $("answer").src = URL.createObjectURL(await response.blob());
  $("answer").onended = () => { $("state").textContent = "Answered."; };
  $("state").textContent = "Playing the answer.";
  await $("answer").play();
}
