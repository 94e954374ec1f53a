/*
 * The chat in a browser: one WebSocket, and the page that shows what comes through it. Two ideas carry it:
 * - Responses come in the order of the requests but don't repeat all of what was asked, so `pending` remembers it.
 * - The address names the room, as #room, and the tab remembers the nickname. After every connect, and when a link
 *   changes the address, the page asks for what differs, and then sets the address to what the server made of it.
 */

const MAX_FRAME = 64 * 1024; // bytes; the server ends a connection that sends more at once
const MAX_ENTRIES = 1000; // messages and notices that stay on the page
const MAX_AT_ONCE = 100; // entries that are put into the page in one step, so that it stays quick in a flood
const MAX_NAMES = 3; // how many a notice names, of all who do the same in a row
const HEAD_LIFE = 5 * 60_000; // milliseconds until the next message of the same user has a head of its own
const PATIENCE = 10_000; // milliseconds until a server that owes a response counts as gone
// A full stop or a bracket behind an address does not belong to it, unless the bracket was opened within.
const LINK = /https?:\/\/(?:\([^\s()<>]*\)|[^\s()<>])*(?:\([^\s()<>]*\)|[^\s()<>\p{P}]|[\/_#%&@*\-])/u;
const [SHORTEST_PAUSE, LONGEST_PAUSE] = [1_000, 30_000]; // milliseconds until the next try, twice as long after each

const find = (id) => document.getElementById(id);
const isMoving = () => pending.some(({ action }) => action === "join_room" || action === "set_nick");
const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const [statusLine, userList, log, newMessages] = ["status", "users", "log", "new-messages"].map(find);
const [userCount, messageField] = ["user-count", "message"].map(find);

// For each request, what the protocol calls its text, and the field where people enter it and see it refused.
const KEYS = { join_room: "room", set_nick: "nick", chat_message: "message", user_list: "room" };
const FIELDS = { join_room: find("room"), set_nick: find("nick"), chat_message: messageField };
// What has to be a text in a broadcast; where it is not named, the user.
const TEXTS = {
  connecting: ["room", "user"],
  nick_changed: ["from_user", "to_user"],
  chat_message: ["user", "message"],
};

const me = { room: "", nick: "" }; // as the server confirmed it
const shown = { ...me }; // as the page says it
// The nickname that one wants, as memory.nick: a reload keeps it, if the browser lets pages store anything.
const memory = navigator.cookieEnabled ? sessionStorage : {};
const pending = []; // the requests without a response yet, oldest first: { action, text }
const users = new Map(); // the list item of each nickname
const waiting = []; // entries on their way into the log
let socket, state;
let timer; // until the server counts as gone, or until the next try to connect
let pause = SHORTEST_PAUSE;
let lastHeard, awaySince; // when the last frame came; when the connection was lost, until it is back
let last = {}; // the last entry, and what decides whether the next one is put under the same head
let following = true; // whether the end of the log is to stay in view
let place = 0; // where the log was scrolled to
let unseen = 0; // messages below what is in view
let unread = 0; // messages since the tab was hidden
let mentions = 0; // those of them that name oneself

// The connection

function connect() {
  state = "Connecting";
  socket = new WebSocket("chat"); // next to the page, and encrypted as the page is
  socket.onmessage = (event) => hear(event.data);
  // Nobody knows how long a connection was of no use that ends without a close frame.
  socket.onclose = (event) => disconnect(event.wasClean ? Date.now() : lastHeard);
  awaitFrame();
}

/** Give up the connection, whoever ended it, and come back later; `since` is when it was still of use. */
function disconnect(since) {
  socket.onmessage = socket.onclose = null; // a server that was silent for too long may still wake up
  socket.close();
  if (state === "Connected") awaySince = since;
  for (const request of pending.splice(0).reverse()) {
    giveBack(request, "The connection broke before the server confirmed this. It may have arrived.");
  }
  const delay = pause * (1 - Math.random() / 4); // or all pages would come back to a new server in the same instant
  pause = Math.min(2 * pause, LONGEST_PAUSE);
  clearTimeout(timer);
  timer = setTimeout(connect, delay);
  showState("Disconnected", ". Trying to come back; what you type is kept.");
}

/** Watch the clock while the server owes a frame: a network can vanish without a word, and a page can't ping. */
function awaitFrame() {
  clearTimeout(timer);
  if (state === "Connecting" || pending.length) timer = setTimeout(() => disconnect(lastHeard), PATIENCE);
}

/** Come back at once, or see whether the connection is still there. */
function checkConnection() {
  if (state === "Disconnected") connect();
  else if (state === "Connected") ask("user_list", me.room);
}

// Requests

/** Send a request; return a sentence if it can't be sent, else an empty text. */
function ask(action, text) {
  const frame = JSON.stringify({ action, [KEYS[action]]: text });
  const size = new TextEncoder().encode(frame).length;
  if (size > MAX_FRAME) return `This is too long: it takes ${size} bytes to send, and ${MAX_FRAME} is the limit.`;
  socket.send(frame);
  pending.push({ action, text });
  awaitFrame();
  return "";
}

/** Ask for what somebody entered into a field. */
function submit(event, action, field) {
  event.preventDefault();
  const name = field.value.trim();
  if (field !== messageField) field.value = name;
  if (field !== messageField && pending.some((request) => request.action === action)) return; // who clicks twice
  if (name === field.defaultValue && field === FIELDS.join_room) messageField.focus(); // one has come, and clicks again
  if (name === field.defaultValue) return showRefusal(field, ""); // the name that one has, or no message
  const problem = state === "Connected" ? ask(action, field.value) : "This was not sent, as there was no connection.";
  showRefusal(field, problem);
  if (!problem && field === messageField) field.value = "";
}

/** Say next to its field why a request failed, and let nobody type it again. */
function giveBack({ action, text }, sentence, isInvalid = false) {
  const field = FIELDS[action];
  if (!field) return; // nobody entered it
  if (field.value === field.defaultValue) field.value = text;
  else if (field === messageField) field.value = `${text}\n${field.value}`;
  showRefusal(field, sentence, isInvalid);
}

/** Ask for the room that the address names, and for the nickname that one wants. */
function goToAddress() {
  let room = location.hash.slice(1) || "default";
  try {
    room = decodeURIComponent(room);
  } catch {} // somebody typed a lone % into the address
  const problem = room !== me.room && ask("join_room", room);
  if (problem) showRefusal(FIELDS.join_room, problem);
  if (memory.nick !== me.nick) ask("set_nick", memory.nick);
  settle();
}

// What arrives

function hear(data) {
  lastHeard = Date.now();
  const body = readBody(data);
  (typeof body.success === "boolean" ? hearResponse : hearBroadcast)(body);
  awaitFrame();
}

/** Return the body in a frame, an empty one if the frame makes no sense. */
function readBody(data) {
  try {
    const body = JSON.parse(data);
    const { action, success, users } = body;
    const keys = typeof success === "boolean" ? ["action", "message"] : TEXTS[action] ?? ["user"];
    const texts = action === "user_list" ? users : keys.map((key) => body[key]);
    if (texts.every((text) => typeof text === "string")) return body;
  } catch {} // no JSON, no object, no such action, or no list of users
  return {};
}

function hearBroadcast({ action, room, user, message, shame, from_user: from, to_user: to }) {
  if (action === "chat_message") showMessage(user, message);
  else if (action === "joined") showChange(user, user, "joined");
  else if (action === "left") showChange(user, "", shame ? "left without a goodbye" : "left");
  else if (action === "nick_changed") showChange(from, to);
  else if (action === "connecting") {
    Object.assign(me, { room, nick: user });
    memory.nick ??= user;
    goToAddress();
  }
}

function hearResponse({ action, success, message, users: nicks }) {
  if (action !== pending[0]?.action) return; // nobody asked for it
  const request = pending.shift();
  const field = FIELDS[action];
  if (action === "user_list") {
    if (request.text === me.room) showUsers(nicks);
  } else if (!success) {
    settle(); // the field shows what one has, and then what was refused
    const isForProgrammers = message.startsWith(action); // it names what the page calls otherwise
    giveBack(request, isForProgrammers ? "A name has 1 to 32 characters, none of them invisible." : message, true);
  } else if (action === "chat_message") {
    showMessage(me.nick, request.text, true);
  } else {
    me[KEYS[action]] = request.text;
    if (action === "set_nick") memory.nick = request.text;
    if (field.getAttribute("aria-invalid") === "true") field.value = field.defaultValue; // another one, refused before
    showRefusal(field, "");
  }
  settle();
}

/** Show where one is and as whom, once the server has answered all that could change it. */
function settle() {
  if (isMoving()) return;
  pause = SHORTEST_PAUSE;
  history.replaceState(null, "", `#${encodeURIComponent(me.room)}`);
  if (state === "Connected" && me.room === shown.room && me.nick === shown.nick) return; // all was refused
  showState("Connected");
  for (const [field, name] of [[FIELDS.join_room, me.room], [FIELDS.set_nick, me.nick]]) {
    if (field.value === field.defaultValue) field.value = name; // or else somebody is entering another one
    field.defaultValue = name;
  }
  if (awaySince) showNotice(`You were away for ${spell(awaySince)}. What was said meanwhile is missing.`);
  awaySince = undefined;
  if (me.room !== shown.room) {
    showNotice("You are ", nameOf(me.nick), " in ", nameOf(me.room)).classList.add("arrival");
    messageField.focus();
  } else if (me.nick !== shown.nick) {
    showNotice("You are ", nameOf(me.nick), " now");
  }
  Object.assign(shown, me);
  showTitle();
  ask("user_list", me.room);
}

// The page: what others say and call themselves is only ever set as text, never as markup

/** Return a name in its colour, and isolated, so that one that runs from right to left does not turn its neighbours. */
function nameOf(name) {
  const element = Object.assign(document.createElement("bdi"), { textContent: thin(name) });
  const sum = [...name].reduce((sum, letter) => (31 * sum + letter.codePointAt()) % 360, 0);
  element.style.setProperty("--hue", (137 * sum) % 360); // far apart for User1 and User2
  return element;
}

/** Leave at most 16 accents and the like on a letter: thousands of them would freeze the page. */
const thin = (text) => text.replace(/([\p{M}\p{Cf}]{16})[\p{M}\p{Cf}]+/gu, "$1");

/** Return the nodes of a text in which addresses are links, and what names oneself is marked. */
function enrich(text) {
  const nick = me.nick.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
  const pattern = new RegExp(`(${LINK.source})|((?<![\\p{L}\\p{N}])@${nick}(?![\\p{L}\\p{N}]))`, "giu");
  return thin(text).split(pattern).map((part = "", index) => {
    const tag = part && [null, "a", "mark"][index % 3]; // between two texts stand a link and a name, one of them empty
    if (!tag) return part;
    const element = Object.assign(document.createElement(tag), { textContent: part });
    if (tag === "a") Object.assign(element, { href: part, target: "_blank", rel: "noopener noreferrer" });
    return element;
  });
}

/** Spell how long ago a moment was. */
function spell(moment) {
  const seconds = Math.round((Date.now() - moment) / 1000);
  if (seconds < 100) return `${seconds} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function showState(name, details = "") {
  state = name;
  if (statusLine.textContent === name + details) return; // a screen reader would say it again
  statusLine.textContent = name + details;
  document.body.dataset.state = name;
}

function showTitle() {
  const counts = [mentions && `@${mentions}`, unread].filter(Boolean).join(", ");
  document.title = (counts && `(${counts}) `) + (me.room && `${me.room} - `) + "aiohttp chat";
}

function showRefusal(field, sentence, isInvalid = false) {
  field.setAttribute("aria-invalid", isInvalid);
  find(`${field.id}-refusal`).textContent = sentence;
}

function showUsers(nicks) {
  users.clear();
  userList.replaceChildren();
  nicks.forEach(addUser);
  userCount.textContent = users.size;
  const isFirst = last.entry?.matches(".arrival");
  if (isFirst && users.size === 1) showNotice("Nobody else is here. Send somebody the address of this page.");
}

function addUser(nick) {
  users.get(nick)?.remove(); // no name twice, whatever the server says
  const item = document.createElement("li");
  item.append(nameOf(nick), nick === me.nick ? " (you)" : "");
  userList.append(item);
  users.set(nick, item);
}

function showMessage(user, text, own = false) {
  const { user: speaker, since } = last;
  const entry = showEntry("message-template", enrich(text));
  const isMore = user === speaker && Date.now() - since < HEAD_LIFE;
  Object.assign(last, { user, since: isMore ? since : Date.now() });
  entry.classList.add(own ? "own" : "others", isMore ? "more" : "first");
  entry.querySelector(".head").prepend(nameOf(user), own ? " (you) " : " ");
  if (own || !document.hidden) return;
  unread += 1;
  if (entry.querySelector("mark")) mentions += 1;
  showTitle();
}

const showNotice = (...parts) => showEntry("notice-template", parts);

/** Show that somebody came, has another name, or went, in one notice with the changes just before. */
function showChange(user, nick, deed) {
  users.get(user)?.remove();
  users.delete(user);
  if (nick) addUser(nick);
  userCount.textContent = users.size;
  // One's own name is free again; often one's own broken connection had it.
  if (user === memory.nick && user !== me.nick && !isMoving()) ask("set_nick", user);
  const { entry, changes = new Map() } = last.changes ? last : {};
  const { who, deed: before } = changes.get(user) ?? { who: user };
  const isNew = before === "joined"; // under a random name, which tells nobody anything
  changes.delete(user);
  const name = nick || user;
  changes.set(name, { name, who: isNew ? name : who, deed: isNew && deed ? `joined and ${deed}` : deed || before });
  showEntry("notice-template", tell([...changes.values()]), entry);
  last.changes = changes;
}

/** Return the nodes of a sentence such as "Ann, Bob and 13 others joined; Eve is now Eva". */
function tell(changes) {
  const renamed = changes.length > MAX_NAMES && "changed names";
  const groups = Map.groupBy(changes, ({ name, deed }) => deed || renamed || ["is now ", nameOf(name)]);
  return [...groups].flatMap(([deed, group], index) => {
    const names = group.slice(0, MAX_NAMES).map(({ who }) => nameOf(who));
    if (group.length > MAX_NAMES) names.splice(2, 1, `${group.length - 2} others`);
    const list = names.flatMap((name, at) => [at === 0 ? "" : at < names.length - 1 ? ", " : " and ", name]);
    return [index ? "; " : "", ...list, " ", deed].flat();
  });
}

/** Show an entry soon, with others that come until then: to measure the page once for each would be slow. */
function showEntry(template, parts, entry = find(template).content.firstElementChild.cloneNode(true)) {
  Object.assign(entry.querySelector("time"), { dateTime: new Date().toISOString(), textContent: clock.format() });
  entry.querySelector(".text").replaceChildren(...parts);
  // requestAnimationFrame sounds right, but it stands still in a hidden tab.
  if (waiting.at(-1) !== entry && waiting.push(entry) === 1) setTimeout(showWaiting, 20);
  last = { entry };
  return entry;
}

function showWaiting() {
  waiting.splice(0, waiting.length - MAX_ENTRIES);
  const entries = waiting.splice(0, MAX_AT_ONCE);
  if (waiting.length) setTimeout(showWaiting, 20);
  following ||= entries.some((entry) => entry.matches(".own"));
  log.append(...entries);
  const [top, height] = [log.scrollTop, log.scrollHeight];
  while (log.childElementCount > MAX_ENTRIES) log.firstElementChild.remove();
  if (following) return scrollToEnd();
  log.scrollTop = top - (height - log.scrollHeight); // the same lines stay in view
  showUnseen(unseen + entries.filter((entry) => entry.matches(".message")).length);
}

function scrollToEnd() {
  log.scrollTop = log.scrollHeight;
  showUnseen(0);
}

function showUnseen(count) {
  unseen = count;
  newMessages.hidden = count === 0;
  newMessages.textContent = `${count} new message${count === 1 ? "" : "s"}`;
}

// What people do

for (const [action, field] of Object.entries(FIELDS)) {
  field.form.onsubmit = (event) => submit(event, action, field);
  field.oninput = () => showRefusal(field, "");
}

messageField.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // a new line, or a Japanese word
  event.preventDefault();
  messageField.form.requestSubmit();
};

log.onscroll = () => {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 30; // pixels, about a line
  following = isAtEnd || (following && log.scrollTop >= place); // who only gets a smaller log did not leave its end
  place = log.scrollTop;
  if (following) showUnseen(0);
};

newMessages.onclick = () => {
  scrollToEnd();
  messageField.focus(); // the button is gone, and the focus with it
};

document.onvisibilitychange = () => {
  if (document.hidden) return;
  unread = mentions = 0;
  showTitle();
  checkConnection();
};

new ResizeObserver(() => following && scrollToEnd()).observe(log); // a phone's keyboard makes it smaller
window.onhashchange = () => state === "Connected" && goToAddress();
window.ononline = window.onoffline = checkConnection;
window.onpagehide = () => disconnect(Date.now()); // a goodbye
window.onpageshow = (event) => event.persisted && checkConnection(); // the Back button led to the page as it was

showState("Connecting", "…");
connect();
