"""Every limit that bounds hostile or runaway input, in one place (I17).

Each constant has a test at the limit and one past it. Sizes are bytes, times are seconds unless the
name says otherwise.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# -- HTTP -------------------------------------------------------------------------------------------
MAX_BODY: Final = 1 * MIB
"""Body of any request, unless the route declares its own limit."""
MAX_UPLOAD_BODY: Final = 48 * MIB
"""Body of ``POST /v1/uploads`` and ``.../commit``: they carry lists of files."""
MAX_HEADERS: Final = 64 * KIB
MAX_URL: Final = 8 * KIB
MAX_JSON_DEPTH: Final = 32
MAX_HEADER_FIELDS: Final = 64
MAX_PAIRS: Final = 32
"""Parameters of a query or form."""
MAX_REQUEST_LINE: Final = 8190
"""Method, URL and version together: what the HTTP server takes; anything longer never gets to MAX_URL."""
IO_TIMEOUT: Final = 30
"""Seconds that a connection may be silent in the middle of a request or answer."""

# -- the agent on loopback --------------------------------------------------------------------------
MAX_AGENT_CONNECTIONS: Final = 512
"""Connections of one endpoint of the agent, each with its thread; some tools open 256."""
MAX_AGENT_BODY: Final = 256 * KIB
"""Body of a request to the agent: only lists of names are ever posted."""
MAX_AGENT_LINGER: Final = 1 * MIB
"""Bytes of a refused upload that are read away, so that the refusal reaches who sends it."""
AGENT_IDLE: Final = 120
"""Seconds that a kept-alive connection to the agent may wait for its next request."""
AGENT_SEND_TIMEOUT: Final = 300
"""Seconds that a reader of the agent may leave a piece (at most 1 MiB) of a body lying."""

# -- signed requests and tokens -----------------------------------------------------------------------
MAX_PROOF: Final = 4 * KIB
MAX_TOKEN: Final = 16 * KIB
MAX_JTI: Final = 128
MIN_JTI: Final = 16
MAX_LIMITS_LEVELS: Final = 4
"""Depth of a token's chain of exchanges (``limits`` levels)."""
MAX_DETAILS: Final = 64
"""``authorization_details`` elements per level."""
MAX_GLOBS: Final = 64
MAX_GLOB: Final = 1 * KIB
MAX_EFFECTIVE: Final = 256
"""Elements of the joined scope of a token that introspection shows."""
MAX_SCOPE_MATCHES: Final = 2_000_000
"""Paths of a selection times patterns of a token's scope that one request may cost."""
MAX_MATCH_STEPS: Final = 50_000_000
"""Segments of paths times segments of patterns that one request may cost, for scope and selection each."""
MAX_EVIDENCE_BODY: Final = 64 * KIB
"""Body of a request that is kept whole as evidence; of a larger one its digest is."""
PROOF_WINDOW: Final = 60
"""A proof is fresh when ``iat`` is within this many seconds of the broker's clock, either way."""
REPLAY_KEEP: Final = 4 * PROOF_WINDOW
"""Rows of the replay table outlive freshness by this margin, for steps of the clock."""
NONCE_TTL: Final = 300
ACCESS_TOKEN_TTL: Final = 15 * 60
ASSERTION_TTL: Final = 5 * 60
GRANT_TTL: Final = 12 * 3600
LEASE_TTL: Final = 5 * 60
PRESIGN_BACKDATE: Final = 30
UPLOAD_TTL: Final = 24 * 3600
UPLOAD_URL_TTL: Final = 15 * 60
ENROLMENT_TTL: Final = 3600
ENROLMENT_FAILURES: Final = 5

# -- workload identities --------------------------------------------------------------------------------
MAX_JWKS: Final = 256 * KIB
"""The key set of a foreign issuer."""
MAX_JWKS_KEYS: Final = 100
MAX_DISCOVERY: Final = 64 * KIB
"""The discovery document of a foreign issuer."""
MAX_CA: Final = 64 * KIB
"""The PEM bundle that vouches for a foreign issuer's server."""
MAX_KID: Final = 256
MAX_SPIFFE_ID: Final = 2048
MAX_CLAIM: Final = 1024
"""Characters of a foreign claim that anything is compared with or made from; of an issuer's URL, too."""
MAX_SUBJECT_TTL: Final = 24 * 3600
"""A foreign token that is good for longer than this from now is refused."""
JWKS_TTL: Final = 10 * 60
JWKS_STALE: Final = 3600
"""Keys older than this are not used, even while their issuer does not answer."""
JWKS_COOLDOWN: Final = 60
"""A kid that nobody knows makes the broker ask its issuer again at most once in this time."""
JWKS_RETRY: Final = 5
"""An issuer that did not answer is not asked again before this time has passed."""
ISSUER_WAITERS: Final = 4
"""Requests of one process that wait for issuers at once: a slow one must not hold every thread."""
ISSUER_SECONDS: Final = 10
"""All that one document of a foreign issuer may take."""
MAX_MAPPING: Final = 64 * KIB
MAX_MAP_RULES: Final = 64
MAX_MAP_CLAIMS: Final = 16
"""Claims that one rule of a mapping looks at."""
MAX_MAP_VALUES: Final = 64
"""Values or patterns that one rule has for one claim."""
MAX_MAP_PATTERN: Final = 256
MAX_ATTRIBUTES: Final = 16
MAX_ATTRIBUTE: Final = 256

# -- names ----------------------------------------------------------------------------------------------
MAX_PATH: Final = 1024
MAX_PURPOSE: Final = 512
MAX_PRINCIPAL: Final = 256
MAX_NAME_IN_LEDGER: Final = 256
"""Names that are not in the catalogue are cut to this many bytes before they are recorded."""
MAX_LABELS: Final = 32
MAX_LABEL: Final = 128
MAX_QUERY: Final = 1 * KIB
MAX_QUERY_TERMS: Final = 16
MAX_GROUPS: Final = 64
MAX_GROUP_DEPTH: Final = 16

# -- artifacts --------------------------------------------------------------------------------------------
SEGMENT_SIZE: Final = 1 * MIB
DEFAULT_EXTENT_SIZE: Final = 32 * MIB
MIN_EXTENT_SIZE: Final = 1 * MIB
MAX_EXTENT_SIZE: Final = 1 * GIB
MAX_FILES: Final = 100_000
MAX_FILE_SIZE: Final = 5 * 1024 * GIB
MAX_VERSION_BYTES: Final = 2**53 - 1
MAX_MANIFEST: Final = 32 * MIB
MAX_LEASE_EXTENTS: Final = 1024
MAX_LEASE_BYTES: Final = 16 * GIB
DEFAULT_LEASE_WINDOW: Final = 128 * MIB
"""Plaintext bytes that one lease opens unless the operator says otherwise (at most MAX_LEASE_BYTES)."""

# -- ledger -------------------------------------------------------------------------------------------------
MAX_ENTRY: Final = 65_535
MAX_PAGE: Final = 1000
MAX_QUESTION: Final = 10_000
"""Milliseconds that the database may look for the answer to an auditor's question."""
DEFAULT_PAGE: Final = 100
MAX_BATCH: Final = 256
"""Drafts that one group commit takes."""
MAX_TREE_SIZE: Final = 2**53 - 1
"""Entries that one log can hold."""
MAX_ORIGIN: Final = 256
"""A log's name, which is also the name of the key that signs its tree heads."""
MAX_NOTE: Final = 64 * KIB
"""A signed note; witnesses add a signature each, post-quantum ones of nearly 5 kB."""
MAX_NOTE_SIGNATURES: Final = 64
MAX_WITNESS_ANSWER: Final = 16 * KIB
"""What a witness answers: a few signature lines, or a size."""
WITNESS_SECONDS: Final = 10
"""All that one answer of a witness may take."""
MAX_PROOF_HASHES: Final = 63
MAX_RECEIPT: Final = 4 * (MAX_ENTRY + 2) // 3 + 48 * MAX_PROOF_HASHES + MAX_NOTE + KIB
"""A receipt: an entry in base64, a proof, a signed tree head."""
DENIALS_PER_MINUTE: Final = 60
"""Authenticated denials recorded one by one, for each principal; then 429 and a summary."""

# -- policy -------------------------------------------------------------------------------------------------
MAX_POLICY_TEXT: Final = 256 * KIB
MAX_POLICY_NESTING: Final = 40
"""Brackets, and likewise ``if``, inside each other in one policy; the parser's stack holds far more."""
MAX_POLICY_OPERATORS: Final = 250
"""Operators in one policy: a chain of them is a tree just as deep."""
MAX_POLICY_FILES: Final = 64
MAX_SCHEMA_DECLARATIONS: Final = 500
MAX_SLICE_GROUPS: Final = 1024
"""Groups that one decision may have to look at."""
MAX_POLICIES: Final = 1000
POLICY_PARSE_SECONDS: Final = 10
POLICY_PARSE_MEMORY: Final = 512 * MIB
MAX_CAPPED_OUTPUT: Final = 1 * MIB
"""What a capped child process may answer."""

# -- forwarding ---------------------------------------------------------------------------------------
MAX_FORWARD_BATCH: Final = 1 * MIB
"""Bytes of the entries that are held in memory, and sent at once, for one destination."""
MAX_FORWARD_ENTRIES: Final = 1_000
MAX_FORWARD_TIMEOUT: Final = 60
"""Seconds that one delivery may take."""
MAX_FORWARD_LEASE: Final = 2 * MAX_FORWARD_TIMEOUT + 10
"""Seconds that a destination may be held by a forwarder that says nothing."""
MAX_FORWARD_ANSWER: Final = 64 * KIB
"""Of a webhook's answer; nothing in it is used."""
MAX_FORWARD_PAUSE: Final = 60
"""Seconds between two tries at most, unless the receiver asks for more."""
MAX_FORWARD_RETRY_AFTER: Final = 3_600
MAX_FORWARD_ERROR: Final = 200
"""Characters of what went wrong last that are kept."""
