// The authorization server of the tests: npm oidc-provider, which approves everything by itself. Rotating refresh
// tokens, reuse kills the family, unless told otherwise.
//
//   node authorization_server.mjs MODULES CERTIFICATE KEY RESOURCE
//
// Prints {"port", "control"}: HTTPS for clients, plain HTTP for the test. The faults are made in front of it; what it is
// asked and what it answers is the real one's. Ends with its stdin.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";

// Nobody reads stdout after its first line.
console.info = console.error;

const [modules, certificate, key, resource] = process.argv.slice(2);
const { Provider } = await import(`${modules}/oidc-provider/lib/index.js`);

const settings = { ttl: 3600, rotate: true, deny: false, fault: null, times: 0, wait: 0 };
const log = [];
const print = (token) => (token ? createHash("sha256").update(token).digest("hex").slice(0, 12) : null);

const server = https.createServer({ cert: readFileSync(certificate), key: readFileSync(key) });
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const origin = `https://localhost:${server.address().port}`;
const native = {
  application_type: "native",
  response_types: ["code"],
  redirect_uris: ["http://127.0.0.1/callback"],
  grant_types: ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"],
};
const provider = new Provider(origin, {
  clients: [
    { ...native, client_id: "public", token_endpoint_auth_method: "none" },
    { ...native, client_id: "secret", client_secret: "s:+/ %", token_endpoint_auth_method: "client_secret_basic" },
  ],
  scopes: ["openid", "offline_access", "mcp:read", "mcp:write"],
  features: {
    devInteractions: { enabled: false },
    registration: { enabled: true },
    registrationManagement: { enabled: true },
    revocation: { enabled: true },
    deviceFlow: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: () => ({ scope: "mcp:read mcp:write", accessTokenTTL: settings.ttl }),
    },
  },
  clientAuthMethods: ["none", "client_secret_basic", "client_secret_post"],
  interactions: { url: (_, interaction) => `/approve/${interaction.uid}` },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  issueRefreshToken: (_, client) => client.grantTypeAllowed("refresh_token"),
  rotateRefreshToken: () => settings.rotate,
  pkce: { required: () => true },
  cookies: { keys: ["tests"] },
});
for (const [event, ok] of [["grant.success", true], ["grant.error", false]]) {
  provider.on(event, (ctx, error) => {
    const { grant_type, refresh_token, resource: asked, code } = ctx.oidc.params ?? {};
    log.push({ kind: grant_type, spent: print(refresh_token ?? code), resource: asked, ok, error: error?.error });
  });
}
provider.on("authorization.success", (ctx) => log.push({ kind: "authorization", ok: true, resource: ctx.oidc.params.resource }));

// Whatever must be nowhere but here and in moat: given, or shown.
const secrets = new Map();
const SECRET = /^(access_token|refresh_token|id_token|code|code_verifier|device_code|client_secret|registration_access_token)$/;
const note = (fields) => {
  for (const [kind, value] of Object.entries(fields ?? {})) if (SECRET.test(kind) && value) secrets.set(String(value), kind);
};
provider.use(async (ctx, next) => {
  await next();
  note(ctx.oidc?.params);
  if (ctx.body && typeof ctx.body === "object") note(ctx.body);
  const location = ctx.response.get("location");
  if (location) note({ code: new URL(location, origin).searchParams.get("code") });
});

async function approve(request, response) {
  const { prompt, params, session } = await provider.interactionDetails(request, response);
  if (settings.deny) {
    return provider.interactionFinished(request, response, { error: "access_denied", error_description: "not today" });
  }
  const accountId = session?.accountId ?? "somebody";
  if (prompt.name === "login") {
    return provider.interactionFinished(request, response, { login: { accountId } }, { mergeWithLastSubmission: false });
  }
  const grant = new provider.Grant({ accountId, clientId: params.client_id });
  grant.addOIDCScope("openid offline_access mcp:read mcp:write");
  grant.addResourceScope(resource, "mcp:read mcp:write");
  const grantId = await grant.save();
  return provider.interactionFinished(request, response, { consent: { grantId } }, { mergeWithLastSubmission: true });
}

const callback = provider.callback();
server.on("request", async (request, response) => {
  try {
    if (request.url.startsWith("/.well-known/")) log.push({ kind: "metadata", ok: true });
    if (request.url === "/token/revocation") log.push({ kind: "revocation", ok: true });
    if (request.url.startsWith("/approve/")) return await approve(request, response);
    if (request.url !== "/token" || settings.times === 0) return callback(request, response);
    settings.times -= 1;
    const fault = settings.fault;
    log.push({ kind: "fault", fault });
    if (!["slow", "lost"].includes(fault)) {
      // The provider never sees this one.
      let form = "";
      for await (const chunk of request) form += chunk;
      note(Object.fromEntries(new URLSearchParams(form)));
    }
    if (fault === "before") return request.socket.destroy();
    if (fault === "unavailable") return void response.writeHead(503).end("SECRET-MARKER");
    if (fault === "throttled") return void response.writeHead(429, { "Retry-After": "1" }).end("SECRET-MARKER");
    if (fault === "redirect") return void response.writeHead(307, { Location: `${origin}/elsewhere` }).end();
    if (fault === "empty") {
      response.writeHead(200, { "Content-Type": "application/json" });
      return void response.end(JSON.stringify({ access_token: "", token_type: "bearer", marker: "SECRET-MARKER" }));
    }
    if (fault === "slow") {
      // Taken at once; the answer comes late.
      const end = response.end.bind(response);
      response.end = (...rest) => (setTimeout(() => end(...rest), settings.wait), response);
    }
    if (fault === "lost") {
      // Taken, and the answer never arrives.
      response.end = () => (request.socket.destroy(), response);
      response.write = () => true;
    }
    return callback(request, response);
  } catch (error) {
    log.push({ kind: "failed", error: String(error) });
    response.writeHead(500).end();
  }
});

const control = http.createServer(async (request, response) => {
  const url = new URL(request.url, "http://control");
  const answer = (status, body) => response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body ?? null));
  const given = Object.fromEntries(url.searchParams);
  switch (url.pathname) {
    case "/active": {
      const token = await provider.AccessToken.find(given.token);
      return answer(token && token.isValid && [token.aud].flat().includes(resource) ? 200 : 401, { scope: token?.scope });
    }
    case "/set":
      if (given.ttl) settings.ttl = Number(given.ttl);
      if (given.deny) settings.deny = given.deny === "true";
      if (given.rotate) settings.rotate = given.rotate === "true";
      if (given.fault) Object.assign(settings, { fault: given.fault, times: Number(given.times ?? 1), wait: Number(given.wait ?? 0) });
      return answer(200);
    case "/kill": {
      const token = await provider.AccessToken.find(given.token);
      await token?.destroy();
      return answer(200);
    }
    case "/secrets":
      return answer(200, [...secrets].map(([value, kind]) => ({ kind, value })));
    case "/log":
      return answer(200, log);
    default:
      return answer(404);
  }
});
await new Promise((done) => control.listen(0, "127.0.0.1", done));
console.log(JSON.stringify({ port: server.address().port, control: control.address().port }));
process.stdin.resume().on("end", () => process.exit(0));
