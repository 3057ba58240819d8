/**
 * Formatting of numbers for people. An unknown value is a dash, never a zero, and a share that is not
 * exactly 0 or 1 is not rounded to 0 % or 100 %.
 */

/** The page is in English, and so are its numbers. */
const LOCALE = "en";

export const UNKNOWN = "–";

const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const percent = fixed(1, { style: "percent" });
const ratio = fixed(3);

/**
 * @param {number} digits
 * @param {Intl.NumberFormatOptions} [options]
 */
function fixed(digits, options = {}) {
  return new Intl.NumberFormat(LOCALE, {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
    ...options,
  });
}

/** @type {Map<number, Intl.NumberFormat>} */
const moneyFormats = new Map();

/** @param {number} digits */
function moneyFormat(digits) {
  const format = moneyFormats.get(digits) ?? fixed(digits, { style: "currency", currency: "USD" });
  moneyFormats.set(digits, format);
  return format;
}

const rateFormats = { small: fixed(2), medium: fixed(1), large: whole };
const latency = new Intl.NumberFormat(LOCALE, { maximumSignificantDigits: 3 });

/** @param {number | null | undefined} value */
export function formatCount(value) {
  return value == null ? UNKNOWN : whole.format(value);
}

/**
 * A count with its noun, as in "1 decision" or "2,000 decisions".
 *
 * @param {number} count
 * @param {string} noun
 */
export function formatCounted(count, noun) {
  return `${whole.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** @param {number | null | undefined} value 0 to 1 */
export function formatConfidence(value) {
  return value == null ? UNKNOWN : ratio.format(value);
}

/**
 * A part of a whole, to a tenth of a percent.
 *
 * @param {number | null | undefined} value 0 to 1
 */
export function formatShare(value) {
  if (value == null || Number.isNaN(value)) return UNKNOWN;
  if (value > 0 && value < 0.0005) return "<0.1%";
  if (value < 1 && value >= 0.9995) return ">99.9%";
  return percent.format(value);
}

/** @param {number | null | undefined} value events per second */
export function formatRate(value) {
  if (value == null) return UNKNOWN;
  if (value > 0 && value < 0.005) return "<0.01";
  const { small, medium, large } = rateFormats;
  return (value < 1 ? small : value < 100 ? medium : large).format(value);
}

/**
 * The number of decimals that shows three significant digits of each amount, without trailing zeros:
 * a column formatted with it is aligned and shows its small amounts.
 *
 * @param {(number | null | undefined)[]} amounts in dollars
 */
export function moneyDigits(amounts) {
  let digits = 2;
  for (const amount of amounts) {
    if (!amount || amount >= 1) continue;
    const [mantissa = "", exponent] = amount.toExponential(2).split("e");
    const significant = mantissa.replace(".", "").replace(/0+$/, "").length;
    digits = Math.max(digits, significant - 1 - Number(exponent));
  }
  return Math.min(digits, 9);
}

/**
 * @param {number | null | undefined} amount in dollars
 * @param {number} [digits] decimals, those of the amount itself unless it is one of a column
 */
export function formatMoney(amount, digits = moneyDigits([amount])) {
  return amount == null ? UNKNOWN : moneyFormat(digits).format(amount);
}

/** @param {number | null | undefined} ms */
export function formatLatency(ms) {
  if (ms == null) return UNKNOWN;
  return ms < 999.5 ? `${latency.format(ms)} ms` : `${latency.format(ms / 1_000)} s`;
}

const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** @param {number | null | undefined} bytes */
export function formatBytes(bytes) {
  if (bytes == null) return UNKNOWN;
  let [value, unit] = [bytes, 0];
  while (value >= 999.5 && unit < UNITS.length - 1) [value, unit] = [value / 1_000, unit + 1];
  return `${unit ? latency.format(value) : whole.format(value)} ${UNITS[unit]}`;
}

/** @param {number} ms a duration, as in "3 s" or "2 min" */
export function formatAge(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1_000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7_200) return `${Math.floor(seconds / 60)} min`;
  return `${whole.format(Math.floor(seconds / 3_600))} h`;
}

/**
 * A name from an unknown sender. Characters that are invisible, or reverse the text after them, could
 * make one name look like another; they are shown as codes.
 *
 * @param {string} name
 */
export function formatName(name) {
  return name.replace(/[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu, "\ufffd");
}
