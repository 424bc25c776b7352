"use strict";
// A mixer: every signal is an AudioBuffer, all of them start from one clock, so they stay together to the sample.

const $ = id => document.getElementById(id);
const [play, seek, clock, original, loop, status, times] = ["play", "seek", "clock", "original", "loop", "status", "times"].map($);
const duration = Number(seek.max);
const LEAD = 0.03;  // seconds between asking for a start and the start

const context = new (window.AudioContext || window.webkitAudioContext)();
const tracks = [...document.querySelectorAll(".track")].map(section => {
  const part = name => section.querySelector(`[data-do="${name}"]`);
  const data = JSON.parse(section.querySelector("script").textContent);
  // A page in several files finds its sounds in `sounds`, filled by scripts: a browser reads no other files from a disk.
  const sound = key => key && (key.startsWith("data:") ? key : window.sounds[key]);
  const voices = [data.sound, data.reference].map(sound).map(
    source => source && { source, buffer: null, gain: context.createGain(), node: null });
  for (const voice of voices) if (voice) voice.gain.connect(context.destination);
  return {
    section, name: section.dataset.track, voices, solo: part("solo"), mute: part("mute"), reference: part("reference"),
    volume: part("volume"), save: part("save"), picture: section.querySelector(".picture"), spectrogram: section.querySelector(".spectrogram"),
    waveform: section.querySelector(".waveform"), head: section.querySelector("b"), mark: section.querySelector("em"), image: null,
  };
});
const [recording, ...stems] = tracks;

let startedAt = null;  // the context's time at which position `from` sounds; null while paused
let from = 0;
let view = [0, duration];
let region = null;  // [start, end] of the loop

const pressed = button => button !== null && button.getAttribute("aria-pressed") === "true";
const press = (button, value) => button.setAttribute("aria-pressed", String(value));
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const text = s => Math.floor(s / 60) + ":" + String(Math.floor(s % 60)).padStart(2, "0");
const looping = () => pressed(loop) ? region || [0, duration] : null;

function position() {
  if (startedAt === null) return from;
  const at = from + Math.max(0, context.currentTime - startedAt);
  const marked = looping();
  if (!marked || at < marked[1] || from >= marked[1]) return Math.min(at, duration);
  return marked[0] + (at - marked[0]) % (marked[1] - marked[0]);
}

function silence() {
  for (const { voices } of tracks) for (const voice of voices) {
    if (voice && voice.node) { voice.node.onended = null; voice.node.stop(); voice.node.disconnect(); voice.node = null; }
  }
}

function start(at) {
  silence();
  from = at >= duration - 0.005 ? 0 : at;
  startedAt = context.currentTime + LEAD;
  const marked = looping();
  for (const { voices } of tracks) for (const voice of voices) {
    if (!voice || !voice.buffer) continue;
    const node = context.createBufferSource();
    node.buffer = voice.buffer;
    node.connect(voice.gain);
    if (marked && from < marked[1]) { node.loop = true; node.loopStart = marked[0]; node.loopEnd = marked[1]; }
    node.start(startedAt, from);
    voice.node = node;
  }
  play.textContent = "Pause";
}

function pause() {
  from = position();
  startedAt = null;
  silence();
  play.textContent = "Play";
}

async function toggle() {
  if (play.disabled) return;
  if (startedAt !== null) return pause();
  await context.resume();
  start(from);
}

function go(at) {
  at = clamp(at, 0, duration);
  if (startedAt === null) from = at; else start(at);
  show();
}

// The original alone; or the stems that are soloed; or, if none is, those that are not muted.
function mix() {
  const soloed = stems.some(track => pressed(track.solo));
  const heard = [];
  for (const track of tracks) {
    const on = pressed(original) ? track === recording
      : track !== recording && (soloed ? pressed(track.solo) : !pressed(track.mute));
    const level = track.volume ? 10 ** (Number(track.volume.value) / 20) : 1;
    const other = pressed(track.reference);
    track.voices.forEach((voice, index) => {
      if (voice) voice.gain.gain.setTargetAtTime(on && other === (index === 1) ? level : 0, context.currentTime, 0.005);
    });
    track.section.classList.toggle("off", !on);
    if (on) heard.push((other ? "true " : "") + track.name);
  }
  status.textContent = "Heard: " + (heard.join(", ") || "nothing");
}

function show() {
  const at = position();
  const [low, high] = view;
  if (startedAt !== null && (at < low || at > high) && high - low < duration) look(at, high - low);
  for (const { head, mark } of tracks) {
    head.style.left = 100 * (at - view[0]) / (view[1] - view[0]) + "%";
    if (region) {
      mark.style.left = 100 * (region[0] - view[0]) / (view[1] - view[0]) + "%";
      mark.style.width = 100 * (region[1] - region[0]) / (view[1] - view[0]) + "%";
    } else mark.style.width = 0;
  }
  if (document.activeElement !== seek || startedAt !== null) seek.value = at;
  seek.setAttribute("aria-valuetext", text(at) + " of " + text(duration));
  clock.textContent = text(at) + " / " + text(duration);
}

function follow() {
  if (startedAt !== null && !looping() && position() >= duration) { pause(); from = 0; }
  show();
  requestAnimationFrame(follow);
}

function look(low, length) {
  length = clamp(length, Math.min(1, duration), duration);
  low = clamp(low, 0, duration - length);
  view = [low, low + length];
  draw();
}

function zoom(factor) {
  const length = clamp((view[1] - view[0]) / factor, Math.min(1, duration), duration);
  look(position() - length / 2, length);
}

function draw() {
  const [low, high] = view;
  const style = getComputedStyle(document.documentElement);
  for (const track of tracks) {
    const { spectrogram, waveform, image } = track;
    for (const canvas of [spectrogram, waveform]) {
      canvas.width = canvas.clientWidth * devicePixelRatio;
      canvas.height = canvas.clientHeight * devicePixelRatio;
    }
    if (image) {
      spectrogram.getContext("2d").drawImage(
        image, image.width * low / duration, 0, image.width * (high - low) / duration, image.height,
        0, 0, spectrogram.width, spectrogram.height);
    }
    const voice = track.voices[pressed(track.reference) ? 1 : 0];
    if (voice.buffer) drawWave(waveform, voice.buffer, low, high, style.getPropertyValue("--wave"));
  }
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600].find(s => (high - low) / s <= 10) || 1800;
  const marks = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) {
    const at = 100 * (k * step - low) / (high - low);
    const label = step < 1 ? text(k * step) + (k * step % 1).toFixed(1).slice(1) : text(k * step);
    const shift = at < 4 ? 0 : at > 96 ? -100 : -50;  // percent of the label's own width
    marks.push(`<span style="left:${at}%;transform:translateX(${shift}%)">${label}</span>`);
  }
  times.innerHTML = marks.join("");
  show();
}

function drawWave(canvas, buffer, low, high, colour) {
  const { width, height } = canvas;
  const paper = canvas.getContext("2d");
  const samples = Array.from({ length: buffer.numberOfChannels }, (_, channel) => buffer.getChannelData(channel));
  const first = low * buffer.sampleRate, each = (high - low) * buffer.sampleRate / width;
  const skip = Math.max(1, Math.floor(each / 200));
  paper.clearRect(0, 0, width, height);
  paper.fillStyle = colour;
  for (let x = 0; x < width; x++) {
    let least = 0, most = 0;
    for (const signal of samples) {
      const end = Math.min(signal.length, first + (x + 1) * each);
      for (let i = Math.floor(first + x * each); i < end; i += skip) {
        if (signal[i] < least) least = signal[i]; else if (signal[i] > most) most = signal[i];
      }
    }
    const top = height / 2 * (1 - Math.min(1, most)), bottom = height / 2 * (1 - Math.max(-1, least));
    paper.fillRect(x, top, 1, Math.max(1, bottom - top));
  }
}

async function load() {
  await Promise.all(tracks.flatMap(track => [
    ...track.voices.filter(Boolean).map(async (voice, index) => {
      const file = await (await fetch(voice.source)).blob();
      if (index === 0 && !track.save.hasAttribute("href")) track.save.href = URL.createObjectURL(file);
      voice.buffer = await context.decodeAudioData(await file.arrayBuffer());
      voice.source = null;
    }),
    (async () => {
      const image = new Image();
      image.src = track.spectrogram.dataset.picture;
      await image.decode();
      track.image = image;
    })(),
  ]));
  play.disabled = false;
  draw();
}

for (const track of tracks) {
  for (const button of [track.solo, track.mute, track.reference]) {
    button?.addEventListener("click", () => {
      press(button, !pressed(button));
      if (button !== track.reference) press(original, false);
      mix();
      if (button === track.reference) draw();
    });
  }
  track.volume?.addEventListener("input", mix);
  track.volume?.addEventListener("dblclick", () => { track.volume.value = 0; mix(); });
  let drag = null;
  const at = event => {
    const box = track.picture.getBoundingClientRect();
    return clamp(view[0] + (event.clientX - box.left) / box.width * (view[1] - view[0]), 0, duration);
  };
  track.picture.addEventListener("pointerdown", event => { drag = { x: event.clientX, at: at(event) }; });
  track.picture.addEventListener("pointermove", event => {
    if (!drag || Math.abs(event.clientX - drag.x) < 6) return;
    track.picture.setPointerCapture(event.pointerId);
    region = [Math.min(drag.at, at(event)), Math.max(drag.at, at(event))];
    show();
  });
  track.picture.addEventListener("pointerup", event => {
    if (!drag) return;
    if (Math.abs(event.clientX - drag.x) < 6) { go(at(event)); } else {
      region = [Math.min(drag.at, at(event)), Math.max(drag.at, at(event))];
      if (region[1] - region[0] < 0.05) region = null;
      press(loop, region !== null);
      go(region ? region[0] : at(event));
    }
    drag = null;
  });
  track.picture.addEventListener("pointercancel", () => { drag = null; });
  track.picture.addEventListener("wheel", event => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.25 : 0.8);
  }, { passive: false });
}
play.addEventListener("click", toggle);
seek.addEventListener("input", () => go(Number(seek.value)));
original.addEventListener("click", () => { press(original, !pressed(original)); mix(); });
loop.addEventListener("click", () => {
  press(loop, !pressed(loop));
  if (!pressed(loop)) region = null;
  go(position());
});
$("in").addEventListener("click", () => zoom(2));
$("out").addEventListener("click", () => zoom(0.5));
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inSlider = event.target.type === "range";
  const inControl = event.target.closest("button, a");
  const digit = stems[Number(event.key) - 1];
  if (event.key === " " && !inControl) toggle();
  else if (event.key === "ArrowLeft" && !inSlider) go(position() - 5);
  else if (event.key === "ArrowRight" && !inSlider) go(position() + 5);
  else if (event.key === "o") original.click();
  else if (event.key === "l") loop.click();
  else if (event.key === "+" || event.key === "=") zoom(2);
  else if (event.key === "-") zoom(0.5);
  else if (digit) digit.solo.click();
  else return;
  event.preventDefault();
});
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

mix();
show();
load().then(follow, error => {
  $("problem").hidden = false;
  $("problem").textContent = "This browser cannot play the page: " + error.message + ".";
});
