-- The authority's store. Times are Unix seconds, but for audit.at_ms. Digests and thumbprints are SHA-256.

CREATE TABLE authority (
    one          INTEGER PRIMARY KEY CHECK (one = 1),
    trust_domain TEXT    NOT NULL,
    -- Number of the snapshot that was handed out last, and the digest of what it holds: a restart that finds the same
    -- content keeps the number.
    generation   INTEGER NOT NULL,
    content      BLOB    NOT NULL,
    -- Grows with every revocation, of whichever process: an authority that runs looks at it.
    revocations  INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Several, so that a rotation can prepare the next one; one at most signs.
CREATE TABLE signing_keys (
    id          TEXT    PRIMARY KEY,
    state       TEXT    NOT NULL CHECK (state IN ('prepared', 'active', 'retired')),
    certificate BLOB    NOT NULL,
    sealed_key  BLOB    NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_signing_key_is_active ON signing_keys (state) WHERE state = 'active';

-- Enrolment keys, by thumbprint. Rows of method 'unix' are shown to the operator and authenticate nobody. A key that is
-- 'unregistered' (its registration ended) may be bound again by a new token; one that was 'evicted' never.
CREATE TABLE agents (
    thumbprint   TEXT    PRIMARY KEY,
    spiffe_id    TEXT    NOT NULL,
    method       TEXT    NOT NULL CHECK (method IN ('join_token', 'unix')),
    first_seen   INTEGER NOT NULL,
    last_seen    INTEGER NOT NULL,
    acknowledged INTEGER NOT NULL DEFAULT 0,
    connected    INTEGER NOT NULL DEFAULT 0,
    revoked_at   INTEGER,
    revoked_for  TEXT    CHECK (revoked_for IN ('unregistered', 'evicted')),
    CHECK ((revoked_at IS NULL) = (revoked_for IS NULL))
) STRICT;

CREATE TABLE join_tokens (
    digest     BLOB    PRIMARY KEY,
    spiffe_id  TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    uses       INTEGER NOT NULL CHECK (uses > 0),
    revoked_at INTEGER
) STRICT;

CREATE TABLE join_token_uses (
    digest     BLOB    NOT NULL REFERENCES join_tokens (digest),
    thumbprint TEXT    NOT NULL,
    used_at    INTEGER NOT NULL,
    PRIMARY KEY (digest, thumbprint)
) STRICT;

CREATE TABLE audit (
    sequence   INTEGER PRIMARY KEY,
    at_ms      INTEGER NOT NULL,
    event      TEXT    NOT NULL,
    reason     TEXT,
    detail     TEXT,
    spiffe_id  TEXT,
    thumbprint TEXT,
    serial     TEXT,
    not_after  INTEGER,
    source     TEXT    NOT NULL,
    previous   BLOB    NOT NULL,
    hash       BLOB    NOT NULL
) STRICT;

CREATE TRIGGER audit_is_never_updated BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit is append-only');
END;

CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit is append-only');
END;

-- INSERT OR REPLACE would take a row away without the trigger above.
CREATE TRIGGER audit_only_grows BEFORE INSERT ON audit
WHEN NEW.sequence <= (SELECT coalesce(max(sequence), 0) FROM audit)
BEGIN
    SELECT RAISE(ABORT, 'the audit is append-only');
END;
