-- The store of one worker. Ids are 16 bytes, times are milliseconds since 1970, both in UTC and whole.

CREATE TABLE integrations (
    id BLOB NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    tags TEXT NOT NULL, -- a JSON array
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    updated_by TEXT NOT NULL,
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    error TEXT,
    config TEXT NOT NULL, -- a JSON object, credentials replaced by their marks
    credentials BLOB, -- sealed
    credentials_key_id TEXT,
    UNIQUE (tenant, name)
) STRICT;

CREATE INDEX integrations_by_time ON integrations (tenant, created_at, id);

CREATE TABLE webhooks (
    id BLOB NOT NULL PRIMARY KEY,
    integration_id BLOB NOT NULL REFERENCES integrations (id),
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    tags TEXT NOT NULL, -- a JSON array
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    updated_by TEXT NOT NULL,
    events TEXT NOT NULL, -- a JSON array of patterns
    status TEXT NOT NULL,
    error TEXT,
    config TEXT NOT NULL, -- a JSON object, credentials replaced by their marks
    credentials BLOB, -- sealed
    credentials_key_id TEXT,
    UNIQUE (integration_id, name)
) STRICT;

CREATE INDEX webhooks_by_time ON webhooks (tenant, created_at, id);

CREATE TABLE signing_secrets (
    webhook_id BLOB NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    position INTEGER NOT NULL, -- 0 is the newest
    sealed BLOB NOT NULL,
    key_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (webhook_id, position)
) STRICT, WITHOUT ROWID;

-- Endpoints with which something is wrong; no row is a healthy one.
CREATE TABLE endpoint_states (
    webhook_id BLOB NOT NULL PRIMARY KEY REFERENCES webhooks (id) ON DELETE CASCADE,
    failures INTEGER NOT NULL, -- since the last success
    failing_since INTEGER,
    open_until INTEGER, -- while the breaker is open
    opened_times INTEGER NOT NULL,
    probe_until INTEGER -- until when a worker has the right to the one request of this opening
) STRICT, WITHOUT ROWID;

-- Webhooks with a rate limit, and what is left of their tokens.
CREATE TABLE rate_limits (
    webhook_id BLOB NOT NULL PRIMARY KEY REFERENCES webhooks (id) ON DELETE CASCADE,
    requests INTEGER NOT NULL,
    per_ms INTEGER NOT NULL,
    level INTEGER NOT NULL, -- a token is per_ms of it, and each millisecond brings `requests` of it
    refilled_at INTEGER NOT NULL,
    ready_at INTEGER NOT NULL -- from when on it is worth to take tokens
) STRICT, WITHOUT ROWID;

-- How many events of a webhook go out in one request; no row is one.
CREATE TABLE batch_rules (
    webhook_id BLOB NOT NULL PRIMARY KEY REFERENCES webhooks (id) ON DELETE CASCADE,
    max_events INTEGER NOT NULL,
    max_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The tokens that webhooks show to their endpoints (OAuth 2), and who may get a new one.
CREATE TABLE oauth_tokens (
    webhook_id BLOB NOT NULL PRIMARY KEY REFERENCES webhooks (id) ON DELETE CASCADE,
    epoch INTEGER NOT NULL, -- grows with every change
    fetch_until INTEGER, -- until when a worker has the right to get a new token
    sealed BLOB,
    key_id TEXT,
    got_at INTEGER,
    expires_at INTEGER
) STRICT, WITHOUT ROWID;

-- The first attempt stands in the row itself: a delivery that succeeds at once is one row and no more.
-- A rowid table although `id` is unique: ids are name-based, so rows would be written all over the file.
-- No reference to `webhooks`: deliveries outlive their webhook.
CREATE TABLE deliveries (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    webhook_id BLOB NOT NULL,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    correlation_id TEXT,
    source_sequence INTEGER,
    status TEXT NOT NULL,
    attempt_count INTEGER NOT NULL,
    event_version INTEGER NOT NULL,
    budget_base INTEGER NOT NULL,
    next_attempt_at INTEGER,
    due_at INTEGER, -- the later of next_attempt_at and the end of the lease
    lease_epoch INTEGER NOT NULL DEFAULT 0, -- grows with every change but a renewal
    error TEXT,
    created_at INTEGER NOT NULL,
    completed_at INTEGER,
    first_started_at INTEGER,
    first_duration_ms INTEGER,
    first_status_code INTEGER,
    first_error TEXT,
    first_response TEXT,
    -- The place of an ordered delivery: its ordering key, its turn, and whether those behind it wait
    -- although it is exhausted.
    lane_key TEXT,
    lane_turn INTEGER,
    lane_blocks INTEGER NOT NULL DEFAULT 0,
    -- Whether it goes out together with others, and the batch that it belongs to once there is one.
    batched INTEGER NOT NULL DEFAULT 0,
    batch_id BLOB
) STRICT;

-- Every index that is not partial is paid for by each delivery; one on `event_id`, whose values come in
-- no order, more than halves the speed (measured).
-- For lists and pruning.
CREATE INDEX deliveries_by_time ON deliveries (tenant, created_at, id);
-- Replays, and what they count.
CREATE INDEX deliveries_of_webhook ON deliveries (webhook_id, created_at, id);
-- For claims and figures; it costs nothing for a delivery that succeeds at once.
CREATE INDEX deliveries_waiting ON deliveries (webhook_id, due_at, next_attempt_at)
WHERE status = 'pending' AND lane_key IS NULL AND NOT batched;
-- What waits to go out together, and the batches that there are: by when they are due, and by their rows.
CREATE INDEX deliveries_to_batch ON deliveries (webhook_id, due_at, created_at)
WHERE status = 'pending' AND batched AND batch_id IS NULL;
CREATE INDEX deliveries_batches_due ON deliveries (webhook_id, due_at, batch_id)
WHERE status = 'pending' AND batch_id IS NOT NULL;
CREATE INDEX deliveries_of_batch ON deliveries (batch_id)
WHERE status = 'pending' AND batch_id IS NOT NULL;
-- The lanes of ordered deliveries, each with its front first.
CREATE INDEX deliveries_lanes ON deliveries (webhook_id, lane_key, lane_turn)
WHERE lane_key IS NOT NULL AND (status = 'pending' OR lane_blocks);
-- What a former source stream has left in them has the highest turns.
CREATE INDEX deliveries_high_turns ON deliveries (lane_turn)
WHERE lane_key IS NOT NULL AND (status = 'pending' OR lane_blocks);
-- Those of them that stop the ones behind.
CREATE INDEX deliveries_blocking ON deliveries (webhook_id) WHERE lane_blocks;
-- Those that replays have to themselves (`LaneKey::OF_REPLAY`).
CREATE INDEX deliveries_replay_lanes ON deliveries (webhook_id, lane_key, lane_turn)
WHERE status = 'pending' AND substr(lane_key, 1, 7) = 'replay:';
-- The same, also what is done: replays send it again in this order.
CREATE INDEX deliveries_by_turn ON deliveries (webhook_id, lane_turn, id) WHERE lane_key IS NOT NULL;
-- For lists of what was not delivered.
CREATE INDEX deliveries_undelivered ON deliveries (tenant, status, created_at, id)
WHERE status <> 'delivered';

-- Webhooks that are gone, while deliveries still wait for them: those are cancelled in batches.
CREATE TABLE deleted_webhooks (
    id BLOB NOT NULL PRIMARY KEY,
    deleted_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The event of a delivery that may be attempted again. Apart, so that a lease does not write it anew.
CREATE TABLE delivery_events (
    delivery INTEGER PRIMARY KEY REFERENCES deliveries (seq) ON DELETE CASCADE,
    meta TEXT NOT NULL,
    raw BLOB NOT NULL
) STRICT;

-- All attempts but the first.
CREATE TABLE attempts (
    delivery INTEGER NOT NULL REFERENCES deliveries (seq) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    status_code INTEGER,
    error TEXT,
    response TEXT,
    PRIMARY KEY (delivery, number)
) STRICT;

-- Deliveries that go out (again) behind live traffic. No reference to `webhooks`: what was is shown on.
CREATE TABLE replays (
    id BLOB NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    webhook_id BLOB NOT NULL,
    kind TEXT NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER NOT NULL,
    statuses TEXT NOT NULL, -- a JSON array
    event_types TEXT NOT NULL, -- a JSON array of patterns
    status TEXT NOT NULL,
    total INTEGER,
    done INTEGER NOT NULL,
    skipped INTEGER NOT NULL,
    cursor TEXT,
    version INTEGER NOT NULL,
    error TEXT,
    actor TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    causation_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    completed_at INTEGER,
    free_at INTEGER NOT NULL, -- when somebody may work on it (again): the end of a lease, or of a rest
    lease_epoch INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE UNIQUE INDEX replays_one_runs ON replays (webhook_id) WHERE status = 'running';
CREATE INDEX replays_free ON replays (free_at) WHERE status = 'running';
CREATE INDEX replays_of_webhook ON replays (webhook_id, created_at, id);
CREATE INDEX replays_ended ON replays (completed_at) WHERE status <> 'running';

CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    event_type TEXT NOT NULL,
    is_response INTEGER NOT NULL, -- made of an endpoint's answer, and goes to the ERP
    traceparent TEXT,
    tracestate TEXT,
    body BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL DEFAULT 0, -- a response that was refused waits until then
    refusals INTEGER NOT NULL DEFAULT 0,
    published_at INTEGER
) STRICT;

CREATE INDEX outbox_unpublished ON outbox (seq) WHERE published_at IS NULL AND is_response = 0;
CREATE INDEX outbox_due_responses ON outbox (due_at, seq)
    WHERE published_at IS NULL AND is_response = 1;
CREATE INDEX outbox_oldest_responses ON outbox (seq)
    WHERE published_at IS NULL AND is_response = 1;
CREATE INDEX outbox_published ON outbox (published_at) WHERE published_at IS NOT NULL;

CREATE TABLE outbox_lease (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    holder BLOB,
    lease_until INTEGER
) STRICT;

INSERT INTO outbox_lease (only) VALUES (1);

CREATE TABLE idempotency (
    seq INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    action TEXT NOT NULL,
    key TEXT NOT NULL,
    key_id TEXT, -- the encryption key that sealed the reply
    reply BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (tenant, action, key)
) STRICT;

CREATE INDEX idempotency_by_time ON idempotency (created_at);
CREATE INDEX idempotency_by_key ON idempotency (key_id) WHERE key_id IS NOT NULL;

CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    command_id TEXT NOT NULL,
    correlation_id TEXT NOT NULL
) STRICT;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;

CREATE TABLE registry_state (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    version INTEGER NOT NULL,
    pruned_to INTEGER NOT NULL -- changes up to this version are no longer in the log
) STRICT;

INSERT INTO registry_state (only, version, pruned_to) VALUES (1, 0, 0);

CREATE TABLE registry_changes (
    version INTEGER NOT NULL,
    kind TEXT NOT NULL, -- webhook or integration
    id BLOB NOT NULL,
    PRIMARY KEY (version, kind, id)
) STRICT, WITHOUT ROWID;
