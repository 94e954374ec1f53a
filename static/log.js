/*
 * The conversation: the entries of the log, how they are grouped, and where the log is scrolled to.
 * What others write, and what they call themselves, is only ever set as text, never as markup.
 */

const MAX_ENTRIES = 1000; // that stay in the log
const MAX_AT_ONCE = 30_000; // characters of HTML added in one step: a flood must not stall the page
const MAX_LINKS = 50; // links and mentions in a message: thousands of elements would stall the page
const MAX_CHANGES = 100; // in one notice
const MAX_NAMES = 3; // listed of people who did the same
const GROUP_TIME = 5 * 60_000; // milliseconds after which an entry is not continued
const COLOURS = 10; // of names; with more of them, neighbours look the same
// A full stop or a bracket after an address is not part of it, unless the bracket was opened in it.
const LINK =
  /https?:\/\/(?:\([^\s()<>]*\)|[^\s()<>])*(?:\([^\s()<>]*\)|[^\s()<>\p{P}]|[/_#%&@*\-])/u;

export const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const calendar = new Intl.DateTimeFormat("en-GB", { dateStyle: "full" });
const list = new Intl.ListFormat("en-GB");
const log = document.getElementById("log");
const newMessages = document.getElementById("new-messages");

// Entries

const waiting = []; // entries on their way into the log
let last = {}; // the newest entry: { entry, day, since }, and the user or the changes it shows

/** Show an entry made of a template and of strings and elements; return it. */
export function show(kind, ...parts) {
  const now = new Date();
  const [day, dayBefore] = [calendar.format(now), last.day];
  last.day = day;
  if (dayBefore && dayBefore !== day) show("line", day);
  const template = document.getElementById(`${kind}-template`);
  const entry = template.content.firstElementChild.cloneNode(true);
  const time = entry.querySelector("time");
  time.dateTime = now.toISOString();
  time.textContent = clock.format(now);
  time.title = `${day}, ${time.textContent}`;
  entry.querySelector(".text").append(...parts);
  last = { entry, day, since: Date.now() };
  // To lay out the page for each entry is slow. requestAnimationFrame() waits in a hidden tab.
  if (waiting.push(entry) === 1) setTimeout(addWaiting, 20);
  return entry;
}

/** Show a message; return whether it mentions the nickname of the page's user. */
export function showMessage(user, text, nick, isOwn = false) {
  const isMore = user === last.user && isRecent();
  const since = isMore ? last.since : Date.now();
  const entry = show("message", ...enrich(text, nick));
  Object.assign(last, { user, since });
  entry.classList.add(isOwn ? "own" : "others", isMore ? "more" : "first");
  entry.querySelector(".head").prepend(nameOf(user), isOwn ? " (you) " : " ");
  return entry.querySelector("mark") !== null;
}

/** Show that a user did a deed, or else changed names, in one notice with the changes before. */
export function showChange(name, newName, deed) {
  if (!isRecent() || !last.changes || last.changes.size === MAX_CHANGES) {
    show("notice");
    last.changes = new Map(); // { who, deed } by each user's present name
  }
  const { entry, changes } = last;
  const before = changes.get(name);
  const isNew = before?.deed === "joined"; // under a random name, which is of no interest
  changes.delete(name);
  changes.set(newName, {
    who: isNew ? newName : (before?.who ?? name),
    deed: deed ?? (isNew ? "joined" : nameOf(newName)),
  });
  entry.querySelector(".text").replaceChildren(...describe(changes));
}

/** Return the parts of a sentence such as "Ann, Bob and 13 others joined; Eve is now Eva". */
function describe(changes) {
  const groups = new Map(); // the names of those who did the same, by their deed or new name
  for (const { who, deed } of changes.values()) {
    if (!groups.has(deed)) groups.set(deed, []);
    groups.get(deed).push(who);
  }
  return [...groups].flatMap(([deed, names], index) => {
    const rest = names.length > MAX_NAMES ? names.splice(MAX_NAMES - 1) : [];
    const people = [...names.map(nameOf), ...(rest.length ? [`${rest.length} others`] : [])];
    const parts = list.formatToParts(people.map(String));
    const sentence = parts.map(({ type, value }) => (type === "element" ? people.shift() : value));
    return [index ? "; " : "", ...sentence, typeof deed === "string" ? " " : " is now ", deed];
  });
}

const isRecent = () => Date.now() - last.since < GROUP_TIME;

// Texts

/** Return a name in its colour, isolated so that right-to-left names do not reorder the others. */
export function nameOf(name) {
  const element = document.createElement("bdi");
  element.textContent = thin(name);
  const hash = [...name].reduce((sum, letter) => (7 * sum + letter.codePointAt()) % 9973, 0);
  element.style.setProperty("--hue", (hash % COLOURS) * (360 / COLOURS));
  return element;
}

/** Return the parts of a message, in which addresses are links and mentions are marked. */
function enrich(text, nick) {
  const name = nick.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
  const mention = `(^|[^\\p{L}\\p{N}_])(@?${name})(?![\\p{L}\\p{N}_])`;
  const parts = thin(text).split(new RegExp(`(${LINK.source})|${mention}`, "giu"));
  const tags = [null, "a", null, "mark"]; // a text, a link, what stands before a mention, a mention
  const rest = parts.splice(tags.length * MAX_LINKS + 1).join("");
  const nodes = parts.map((part = "", index) => {
    const tag = part && tags[index % tags.length];
    if (!tag) return part;
    const element = document.createElement(tag);
    element.textContent = part;
    const link = { href: part, target: "_blank", rel: "noopener noreferrer" };
    return tag === "a" ? Object.assign(element, link) : element;
  });
  return [...nodes, rest];
}

/** Leave at most 16 accents and the like on a letter: thousands of them would stall the page. */
const thin = (text) => text.replace(/([\p{M}\p{Cf}]{16})[\p{M}\p{Cf}]+/gu, "$1");

// Scrolling

let following = true; // whether the end of the log stays in view
let place = 0; // where the log was scrolled to

function addWaiting() {
  waiting.splice(0, waiting.length - MAX_ENTRIES);
  const entries = [];
  for (let space = MAX_AT_ONCE; waiting.length && space > 0;) {
    entries.push(waiting.shift());
    space -= entries.at(-1).outerHTML.length;
  }
  if (waiting.length) setTimeout(addWaiting, 20);
  following ||= entries.some((entry) => entry.matches(".own"));
  log.append(...entries);
  const [top, height] = [log.scrollTop, log.scrollHeight];
  while (log.childElementCount > MAX_ENTRIES) log.firstElementChild.remove();
  if (following) return scrollToEnd();
  log.scrollTop = top - (height - log.scrollHeight); // the same lines stay in view
  if (entries.some((entry) => entry.matches(".message"))) newMessages.hidden = false;
}

function scrollToEnd() {
  log.scrollTop = log.scrollHeight;
  newMessages.hidden = true;
}

/** Scroll up (-1) or down (1) by almost a page. */
export const scrollPage = (direction) => log.scrollBy(0, direction * 0.9 * log.clientHeight);

log.onscroll = () => {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 30; // about a line
  // Where the log only gets smaller, nobody has scrolled it.
  following = isAtEnd || (following && log.scrollTop >= place);
  place = log.scrollTop;
  if (following) newMessages.hidden = true;
};

newMessages.onclick = scrollToEnd;
new ResizeObserver(() => following && scrollToEnd()).observe(log);
