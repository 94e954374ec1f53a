/*
 * A WebSocket that notices when the network is gone, and that reconnects by itself.
 *
 * The server sends a response to each request, in the same order, and broadcasts in between. A page
 * cannot send pings: so the connection is given up when a response is overdue, and after a silence
 * the page is asked to check it by any request.
 */

const ADDRESS = new URL("chat", location.href.replace(/^http/, "ws")).href; // wss for https
const MAX_FRAME = 64 * 1024; // bytes; the server closes a connection that sends a larger frame
const PATIENCE = 10_000; // milliseconds to wait for a connection, or for a response
const SILENCE = 30_000; // milliseconds without a frame until the connection is checked
const SHORTEST_PAUSE = 1_000; // milliseconds before the first try to reconnect; then it doubles
const LONGEST_PAUSE = 30_000;

/**
 * What the page has to set: `receive(body)` gets the broadcasts, `check()` sends any request, and
 * `lose(since)` learns that the connection is lost, and when the last frame arrived.
 */
export const handlers = {};
export let isConnected = false; // from the first frame of a connection until its loss is noticed
const pending = []; // the requests without a response, oldest first: { action, resolve }
let socket; // null between two tries to connect
let timer; // until the connection is checked, given up, or tried again
let pause = SHORTEST_PAUSE;
let lastFrame; // when it arrived

export function connect() {
  socket = new WebSocket(ADDRESS);
  socket.onmessage = (event) => receive(event.data);
  socket.onclose = disconnect;
  watch();
}

/** Give up the connection, and try again after a pause. */
export function disconnect() {
  socket.onmessage = socket.onclose = null; // a server that was frozen may wake up again
  socket.close();
  socket = null;
  if (isConnected) handlers.lose(lastFrame);
  isConnected = false;
  const result = failure("The connection broke before a response came. This may have arrived.");
  for (const { resolve } of pending.splice(0).reverse()) resolve(result);
  // The random part keeps all pages from reconnecting at the same instant.
  restartTimer(connect, pause * (1 - Math.random() / 4));
  pause = Math.min(2 * pause, LONGEST_PAUSE);
}

/** Reconnect at once, or find out whether the connection still works. */
export function check() {
  if (isConnected) handlers.check();
  else if (!socket) connect();
}

/** Send a request. Return a promise of its response, or of a failure: see below. */
export async function request(body) {
  const frame = JSON.stringify(body);
  const size = new TextEncoder().encode(frame).length;
  if (!isConnected) return failure("This was not sent, because there is no connection.");
  if (size > MAX_FRAME) return failure(`This is too long: ${size} bytes of at most ${MAX_FRAME}.`);
  socket.send(frame);
  const response = new Promise((resolve) => pending.push({ action: body.action, resolve }));
  watch();
  return response;
}

/** Return what stands for a response that does not come: like a refusal, but without an action. */
const failure = (message) => ({ success: false, message });

function receive(data) {
  isConnected = true;
  lastFrame = Date.now();
  pause = SHORTEST_PAUSE;
  const body = JSON.parse(data);
  if (!("success" in body)) handlers.receive(body);
  else if (body.action === pending[0]?.action) pending.shift().resolve(body);
  watch();
}

/** Wait for the next frame: not for ever if a response is due, else until there was a silence. */
function watch() {
  const isDue = !isConnected || pending.length > 0;
  if (isDue) restartTimer(disconnect, PATIENCE);
  else restartTimer(check, SILENCE);
}

function restartTimer(action, delay) {
  clearTimeout(timer);
  timer = setTimeout(action, delay);
}
