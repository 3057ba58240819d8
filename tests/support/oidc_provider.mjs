/*
 * An OpenID Connect provider for tests: `oidc-provider`, with its own forms. Whoever signs in is in the
 * group of the same name, and in none as `nobody`.
 *
 * Arguments: the folder of packages, the port, the client's redirect address, its secret.
 */

import { pathToFileURL } from "node:url";

const [modules, port, redirect, secret] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(`${modules}/oidc-provider/lib/index.js`).href);

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{ client_id: "routecast", client_secret: secret, redirect_uris: [redirect] }],
  claims: { openid: ["sub"], email: ["email"], groups: ["groups"] },
  pkce: { required: () => true },
  cookies: { keys: ["a key for tests"] },
  async findAccount(_, login) {
    const groups = login === "nobody" ? [] : [login];
    return { accountId: login, claims: async () => ({ sub: login, email: `${login}@test.example`, groups }) };
  },
});
provider.listen(Number(port), "127.0.0.1", () => console.log("listening"));
