// A real OpenID Connect issuer on loopback: discovery, a key set, and tokens for one client.
//
// First line on stdout: {"issuer", "client_id", "client_secret", "kids"}. Then one command a line on
// stdin: "rotate" makes new signing keys, and the old ones vanish from the key set; the answer is a line
// {"kids"}. The end of stdin is the end of the issuer, so it never outlives the test that started it.
//
// The token endpoint takes the grant client_credentials with `resource` (the audience) and three
// parameters of this script's own: `alg`, `typ` ("" for none) and `claims`, a JSON object that is laid
// over the token's claims.

import { createPrivateKey, generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';

import { Provider } from 'oidc-provider';

// stdout is for the caller; what the library has to say goes beside it.
console.info = console.error;
console.log = console.error;

const ALGORITHMS = ['RS256', 'PS256', 'ES256', 'ES384', 'EdDSA'];
const CLIENT = { client_id: 'workload', client_secret: randomBytes(24).toString('base64url') };

function signingKey(alg, type, options) {
  // Through PEM: the two key objects of one pair share a lock in Node 20, and exporting one of them while
  // the other is collected waits for ever.
  const { privateKey } = generateKeyPairSync(type, {
    ...options,
    publicKeyEncoding: { type: 'spki', format: 'pem' },
    privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
  });
  const kid = `${alg.toLowerCase()}-${randomBytes(6).toString('hex')}`;
  return { ...createPrivateKey(privateKey).export({ format: 'jwk' }), kid, alg, use: 'sig' };
}

function signingKeys() {
  return [
    signingKey('RS256', 'rsa', { modulusLength: 2048 }),
    signingKey('PS256', 'rsa', { modulusLength: 2048 }),
    signingKey('ES256', 'ec', { namedCurve: 'P-256' }),
    signingKey('ES384', 'ec', { namedCurve: 'P-384' }),
    signingKey('EdDSA', 'ed25519', {}),
  ];
}

function asked(ctx, name, otherwise) {
  const value = ctx.oidc.body?.[name];
  return value === undefined ? otherwise : value;
}

function makeProvider(issuer, keys) {
  return new Provider(issuer, {
    clients: [{
      ...CLIENT,
      grant_types: ['client_credentials'],
      response_types: [],
      redirect_uris: [],
    }],
    jwks: { keys },
    ttl: { ClientCredentials: 600 },
    enabledJWA: {
      idTokenSigningAlgValues: ALGORITHMS,
      requestObjectSigningAlgValues: ALGORITHMS,
      userinfoSigningAlgValues: ALGORITHMS,
    },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, resource) => ({
          scope: '',
          audience: resource,
          accessTokenFormat: 'jwt',
          accessTokenTTL: 600,
          jwt: { sign: { alg: asked(ctx, 'alg', 'RS256') } },
        }),
      },
    },
    formats: {
      customizers: {
        jwt(ctx, token, jwt) {
          // An access token's type would be at+jwt; what issuers of workload identities make is plain.
          jwt.header = { typ: asked(ctx, 'typ', 'JWT') || undefined };
          Object.assign(jwt.payload, JSON.parse(asked(ctx, 'claims', '{}')));
        },
      },
    },
  });
}

function say(value) {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

let answer;
const server = createServer((request, response) => answer(request, response));
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const issuer = `http://127.0.0.1:${server.address().port}`;

function useNewKeys() {
  const keys = signingKeys();
  answer = makeProvider(issuer, keys).callback();
  return keys.map(({ kid }) => kid);
}

say({ issuer, ...CLIENT, kids: useNewKeys() });

const commands = createInterface({ input: process.stdin });
commands.on('line', (line) => {
  if (line === 'rotate') say({ kids: useNewKeys() });
});
commands.on('close', () => process.exit(0));
