// Makes one long, silent call with the official TypeScript SDK, over Node's own fetch (undici), and prints as JSON what
// came and how often a stream was interrupted. A limit of undici's idle time is its default (300 s) unless one is given.
// The SDK's modules lie in the directory that the second argument names.
import { pathToFileURL } from "node:url";

const [url, modules, seconds, limit] = process.argv.slice(2);
if (limit) {
    await fetch("data:,");
    const dispatcher = Symbol.for("undici.globalDispatcher.1");
    const Agent = globalThis[dispatcher].constructor;
    globalThis[dispatcher] = new Agent({ bodyTimeout: Number(limit) * 1000 });
}
const sdk = (path) => import(pathToFileURL(`${modules}/@modelcontextprotocol/sdk/dist/esm/client/${path}`).href);
const { Client } = await sdk("index.js");
const { StreamableHTTPClientTransport } = await sdk("streamableHttp.js");

let interrupted = 0;
const transport = new StreamableHTTPClientTransport(new URL(url));
const client = new Client({ name: "typescript-client", version: "1.0.0" });
await client.connect(transport);
transport.onerror = () => (interrupted += 1);
const call = { name: "steps", arguments: { count: 2, every_ms: Number(seconds) * 1000 } };
const patience = { timeout: Number(seconds) * 3000 };
const said = await client.callTool(call, undefined, patience).then(
    (result) => result.content[0].text,
    (error) => `${error}`,
);
console.log(JSON.stringify({ text: said, interrupted }));
await client.close();
