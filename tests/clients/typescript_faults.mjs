// Calls a tool of each server with the official TypeScript SDK and prints, as JSON, how each call ended and after how
// long. The SDK's modules lie in the directory that the last argument names.
import { pathToFileURL } from "node:url";

const [calls, headers, patience, modules] = process.argv.slice(2);
const sdk = (path) => import(pathToFileURL(`${modules}/@modelcontextprotocol/sdk/dist/esm/client/${path}`).href);
const { Client } = await sdk("index.js");
const { StreamableHTTPClientTransport } = await sdk("streamableHttp.js");

const call = async ([url, tool]) => {
  const client = new Client({ name: "typescript-client", version: "1.0.0" });
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers: JSON.parse(headers) } }));
  const start = performance.now();
  const hangs = new Promise((done) => setTimeout(() => done("hangs"), 1000 * patience));
  const ended = client.callTool({ name: tool, arguments: {} }).then(
    (result) => `result: ${JSON.stringify(result)}`,
    (error) => `error: ${error}`,
  );
  const text = await Promise.race([ended, hangs]);
  return { ms: Math.round(performance.now() - start), text };
};
const ended = await Promise.allSettled(JSON.parse(calls).map(call));
console.log(JSON.stringify(ended.map((end) => end.value ?? { ms: -1, text: `failed: ${end.reason}` })));
process.exit(0);
