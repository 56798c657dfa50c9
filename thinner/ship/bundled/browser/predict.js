// The network of this bundle in a browser: onnxruntime-web, and nothing of Python's.
//
//     npm install onnxruntime-web                     in the bundle's folder
//     python -m http.server --bind 127.0.0.1          or any other server of files, there too
//     http://127.0.0.1:8000/browser/                  in a browser
//
// index.html is a page around it.

import * as ort from "../node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more would need a page that is isolated from other origins

const bundle = new URL("../", import.meta.url);

async function fetched(name) {
  const answer = await fetch(new URL(name, bundle));
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return answer;
}

/** model.onnx and what labels.json says of it. */
export async function open() {
  const about = await (await fetched("labels.json")).json();
  const model = await (await fetched("model.onnx")).arrayBuffer();
  return { about, session: await ort.InferenceSession.create(model, { executionProviders: ["wasm"] }) };
}

/** Logits (Float32Array [batch * classes]) of uint8 pictures; shape: [batch, height, width, channels], any size. */
export async function logits({ about, session }, pixels, shape) {
  if (!(pixels instanceof Uint8Array) || shape.length !== 4 || shape[3] !== about.input.channels) {
    throw new Error(`pixels: give a Uint8Array of [batch, height, width, ${about.input.channels}]`);
  }
  const results = await session.run({ [about.input.name]: new ort.Tensor("uint8", pixels, shape) });
  return results[about.output.name].data;
}

/** { label, probability } of a picture's file, or 'unsure' below the operating point: atLeast is 98 for 98 %. */
export async function name(network, file, atLeast = null) {
  const { about } = network;
  const { pixels, shape } = await decode(about, file);
  const found = Array.from(await logits(network, pixels, shape));
  const top = found.indexOf(Math.max(...found));
  const probability = softmax(found.map((logit) => logit / about.temperature))[top];
  return { label: isSure(about, found, top, atLeast) ? about.classes[top] : "unsure", probability };
}

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

function isSure(about, logits, top, atLeast) {
  if (atLeast === null) return true;
  const point = about.operating_points.find((each) => Math.abs(100 * each.at_least - atLeast) < 1e-9);
  if (!point) throw new Error(`${atLeast} %: this bundle has no such operating point`);
  const rest = logits.filter((_, k) => k !== top);
  const most = Math.max(...rest);
  const logOdds = logits[top] - most - Math.log(rest.reduce((sum, logit) => sum + Math.exp(logit - most), 0));
  return point.log_odds !== null && logOdds >= point.log_odds;
}

/**
 * A picture as the network takes it: upright, on white paper, square, of the side that its data were stored at. The
 * browser decodes and scales: not to the bit as Pillow.
 */
async function decode(about, file) {
  const bitmap = await createImageBitmap(file); // which turns it as its EXIF says
  const { width, height } = bitmap;
  const { fit, image_size: side, max_pixels: most } = about.picture;
  if (width * height > most) throw new Error(`has ${width * height} pixels; max_pixels in labels.json is ${most}`);
  const scale = side / (fit === "pad" ? Math.max(width, height) : Math.min(width, height));
  const [across, down] = fit === "stretch" ? [side, side] : [width, height].map((sides) => Math.max(1, Math.round(sides * scale)));
  const canvas = new OffscreenCanvas(side, side);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high"; // what is made smaller is averaged, as the data were
  pen.fillStyle = fit === "pad" ? "black" : "white";
  pen.fillRect(0, 0, side, side);
  const [left, top] = [Math.round((side - across) / 2), Math.round((side - down) / 2)];
  pen.fillStyle = "white";
  pen.fillRect(left, top, across, down);
  pen.drawImage(bitmap, left, top, across, down);
  const rgba = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  const channels = about.input.channels;
  const pixels = new Uint8Array(canvas.width * canvas.height * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const [red, green, blue] = [rgba[from], rgba[from + 1], rgba[from + 2]];
    if (channels === 3) {
      pixels[to++] = red;
      pixels[to++] = green;
      pixels[to++] = blue;
    } else {
      pixels[to++] = Math.round(0.299 * red + 0.587 * green + 0.114 * blue); // ITU-R BT.601
    }
  }
  return { pixels, shape: [1, canvas.height, canvas.width, channels] };
}

/** The maker's logits for the pictures in golden.npz against those computed here. */
export async function selftest(network) {
  const golden = readNpz(await (await fetched("golden.npz")).arrayBuffer());
  const found = { pictures: 0, sizes: 0, same: 0, difference: 0, allowed: network.about.golden_tolerance };
  for (const [name, pictures] of Object.entries(golden)) {
    if (!name.startsWith("pictures_")) continue;
    const expected = golden[name.replace("pictures_", "logits_")];
    const got = await logits(network, pictures.data, pictures.shape);
    const [count, classes] = expected.shape;
    for (let k = 0; k < count; k++) {
      const mine = Array.from(got.slice(k * classes, (k + 1) * classes));
      const its = Array.from(expected.data.slice(k * classes, (k + 1) * classes));
      mine.forEach((logit, i) => {
        found.difference = Math.max(found.difference, Math.abs(logit - its[i])); // keeps NaN
      });
      found.same += mine.indexOf(Math.max(...mine)) === its.indexOf(Math.max(...its)) ? 1 : 0;
    }
    found.pictures += count;
    found.sizes += 1;
  }
  return { ...found, holds: found.pictures > 0 && found.difference <= found.allowed };
}

/** The arrays of a NumPy archive that is not compressed: uint8 and float32. */
function readNpz(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22; // the last record, which says where the list of files is
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("golden.npz: is no zip archive");
  const arrays = {};
  let at = view.getUint32(end + 16, true);
  for (let entries = view.getUint16(end + 10, true); entries > 0; entries--) {
    const [method, size] = [view.getUint16(at + 10, true), view.getUint32(at + 20, true)];
    const [named, extra, said] = [28, 30, 32].map((place) => view.getUint16(at + place, true));
    const name = new TextDecoder().decode(new Uint8Array(buffer, at + 46, named));
    const header = view.getUint32(at + 42, true);
    const start = header + 30 + view.getUint16(header + 26, true) + view.getUint16(header + 28, true);
    if (method !== 0) throw new Error(`golden.npz: ${name} is compressed`);
    arrays[name.replace(/\.npy$/, "")] = readNpy(buffer.slice(start, start + size));
    at += 46 + named + extra + said;
  }
  return arrays;
}

function readNpy(buffer) {
  const length = new DataView(buffer).getUint16(8, true);
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, 10, length));
  const shape = header.match(/'shape': \(([^)]*)\)/)[1].split(",").filter((size) => size.trim()).map(Number);
  const kinds = { "|u1": Uint8Array, "<f4": Float32Array };
  const kind = kinds[header.match(/'descr': '([^']*)'/)[1]];
  if (!kind || header.includes("'fortran_order': True")) throw new Error(`golden.npz: ${header}`);
  return { shape, data: new kind(buffer.slice(10 + length)) };
}
