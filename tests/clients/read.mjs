// Reads request bodies as Node's JSON.parse does: base64 lines in, one view of each out (see moat_tests::corpus).
import { readFileSync } from "node:fs";

const units = (text) => `"${[...Array(text.length).keys()].map((at) => text.charCodeAt(at).toString(16).padStart(4, "0")).join("")}"`;

const bits = (number) => {
  const bytes = Buffer.alloc(8);
  bytes.writeDoubleBE(number);
  return bytes.toString("hex");
};

const view = (value) => {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") return units(value);
  if (typeof value === "number") return Number.isInteger(value) ? `i${BigInt(value)}` : `f${bits(value)}`;
  if (Array.isArray(value)) return `[${value.map(view).join(",")}]`;
  return `{${Object.keys(value).map((key) => `${units(key)}:${view(value[key])}`).sort().join(",")}}`;
};

const read = (body) => {
  try {
    return view(JSON.parse(body.toString("utf8")));
  } catch {
    return "unreadable";
  }
};

for (const line of readFileSync(0, "utf8").split("\n").slice(0, -1)) console.log(read(Buffer.from(line, "base64")));
