// Numbers of a training as a person reads them, and the arithmetic of its curve. Nothing here knows the page.

export const GB = 1e9, MB = 1e6;

// 3723 → "1:02:03", 160 → "2:40"
export function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

// Three digits: 0.0412, 1.23, 3e-5
export function short(value) {
  const rounded = Number(value.toPrecision(3));
  return rounded !== 0 && Math.abs(rounded) < 0.001 ? rounded.toExponential() : String(rounded);
}

// 0.0002 → "2e-4"
export function rate(value) {
  return value === 0 ? "0" : Number(value.toPrecision(3)).toExponential();
}

export function gigabytes(bytes) {
  return (bytes / GB).toFixed(1);
}

// Exponential means of [[step, value], …], over a twentieth of the points but at least 6 and at most 50 of them; the first
// ones are not drawn towards 0.
export function smoothed(points) {
  const keep = 1 - 1 / Math.min(50, Math.max(6, points.length / 20));
  let mean = 0, weight = 0;
  return points.map(([step, value]) => {
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return [step, mean / weight];
  });
}

// The least and the greatest value that a curve's axis must show. Of the raw values one in fifty may lie beyond it at
// either end: a single loss ten times the others would press all of them flat.
export function valueRange(raw, others) {
  const sorted = raw.map(([, value]) => value).sort((a, b) => a - b);
  const trimmed = Math.floor(sorted.length / 50);
  let [low, high] = [sorted[trimmed], sorted[sorted.length - 1 - trimmed]];
  for (const [, value] of others) [low, high] = [Math.min(low, value), Math.max(high, value)];
  // Equal values have means that differ in the last bit: numbers that a label cannot tell apart have no ticks between.
  const size = Math.max(Math.abs(low), Math.abs(high)) || 1;
  return high - low < size * 0.001 ? [low - size * 0.1, high + size * 0.1] : [low, high];
}

// Round values between two, about `count` of them.
export function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-6; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

// Values 1, 2, 5, 10 … between two that are greater than 0.
export function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    found.push(...[1, 2, 5].map((factor) => factor * 10 ** power).filter((value) => value >= low && value <= high));
  }
  return found.length >= 2 ? found : ticks(low, high, 3).filter((value) => value > 0);
}

// Points of [[x, y], …] that a line of so many pixels can show: of each pixel's column the first, lowest, highest, last.
export function decimated(points, pixels) {
  if (points.length <= pixels * 4) return points;
  const columns = new Map();
  for (const point of points) {
    const at = Math.round(point[0]), column = columns.get(at);
    if (!column) columns.set(at, { first: point, low: point, high: point, last: point });
    else {
      if (point[1] < column.low[1]) column.low = point;
      if (point[1] > column.high[1]) column.high = point;
      column.last = point;
    }
  }
  return [...columns.values()].flatMap(({ first, low, high, last }) => [first, ...(low[0] < high[0] ? [low, high] : [high, low]), last]);
}
