-- The registry: integrations and their webhooks.
--
-- `config` is text and not jsonb: keys keep their order and numbers their written form.
-- Credentials stand in the row that they belong to, so that a locked read never pairs a row with
-- the credentials of an older version of it.

CREATE TABLE integrations (
    id                 uuid        PRIMARY KEY,
    tenant             text        NOT NULL,
    name               text        NOT NULL,
    description        text,
    tags               text[]      NOT NULL,
    type               text        NOT NULL,
    status             text        NOT NULL,
    error              text,
    config             text        NOT NULL,
    credentials        bytea,
    credentials_key_id text,
    version            bigint      NOT NULL,
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL,
    created_by         text        NOT NULL,
    updated_by         text        NOT NULL,
    CONSTRAINT integrations_name_key UNIQUE (tenant, name),
    CONSTRAINT integrations_credentials_check
        CHECK ((credentials IS NULL) = (credentials_key_id IS NULL))
);
CREATE INDEX integrations_newest ON integrations (tenant, created_at, id);

CREATE TABLE webhooks (
    id                 uuid        PRIMARY KEY,
    integration_id     uuid        NOT NULL REFERENCES integrations (id),
    tenant             text        NOT NULL,
    name               text        NOT NULL,
    description        text,
    tags               text[]      NOT NULL,
    events             text[]      NOT NULL,
    status             text        NOT NULL,
    error              text,
    config             text        NOT NULL,
    credentials        bytea,
    credentials_key_id text,
    version            bigint      NOT NULL,
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL,
    created_by         text        NOT NULL,
    updated_by         text        NOT NULL,
    CONSTRAINT webhooks_name_key UNIQUE (integration_id, name),
    CONSTRAINT webhooks_credentials_check
        CHECK ((credentials IS NULL) = (credentials_key_id IS NULL))
);
CREATE INDEX webhooks_newest ON webhooks (tenant, created_at, id);

CREATE TABLE signing_secrets (
    webhook_id uuid        NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    -- 0 is the newest.
    position   integer     NOT NULL,
    sealed     bytea       NOT NULL,
    key_id     text        NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    PRIMARY KEY (webhook_id, position)
);

-- Endpoints with which something is wrong; no row is a healthy one.
CREATE TABLE endpoint_states (
    webhook_id    uuid    PRIMARY KEY REFERENCES webhooks (id) ON DELETE CASCADE,
    -- Since the last success.
    failures      bigint  NOT NULL,
    failing_since timestamptz,
    -- While the breaker is open.
    open_until    timestamptz,
    opened_times  bigint  NOT NULL,
    -- Until when a worker has the right to the one request of this opening.
    probe_until   timestamptz
);

-- Webhooks with a rate limit, and what is left of their tokens.
CREATE TABLE rate_limits (
    webhook_id  uuid        PRIMARY KEY REFERENCES webhooks (id) ON DELETE CASCADE,
    requests    bigint      NOT NULL,
    per_ms      bigint      NOT NULL,
    -- A token is per_ms of it, and each millisecond brings `requests` of it.
    level       bigint      NOT NULL,
    refilled_at timestamptz NOT NULL,
    -- From when on it is worth to take tokens.
    ready_at    timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

-- How many events of a webhook go out in one request; no row is one.
CREATE TABLE batch_rules (
    webhook_id uuid    PRIMARY KEY REFERENCES webhooks (id) ON DELETE CASCADE,
    max_events integer NOT NULL,
    max_bytes  integer NOT NULL
);

-- The tokens that webhooks show to their endpoints (OAuth 2), and who may get a new one.
CREATE TABLE oauth_tokens (
    webhook_id  uuid   PRIMARY KEY REFERENCES webhooks (id) ON DELETE CASCADE,
    -- Grows with every change.
    epoch       bigint NOT NULL,
    -- Until when a worker has the right to get a new token.
    fetch_until timestamptz,
    sealed      bytea,
    key_id      text,
    got_at      timestamptz,
    expires_at  timestamptz,
    CONSTRAINT oauth_tokens_check CHECK (num_nulls(sealed, key_id, got_at, expires_at) IN (0, 4))
);

-- One row: its lock puts the versions of the log into the order of the commits.
CREATE TABLE registry_state (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint  NOT NULL
);
INSERT INTO registry_state (version) VALUES (0);

CREATE TABLE registry_changes (
    version   bigint NOT NULL,
    -- `webhook` or `integration`.
    entity    text   NOT NULL,
    entity_id uuid   NOT NULL,
    PRIMARY KEY (version, entity, entity_id)
);

-- One row per event and webhook, written once in the common case: delivered at the first attempt.
-- Every index on it that is not partial is paid for by each delivery.

CREATE TABLE deliveries (
    id                uuid        PRIMARY KEY,
    tenant            text        NOT NULL,
    webhook_id        uuid        NOT NULL,
    event_id          text        NOT NULL,
    event_type        text        NOT NULL,
    correlation_id    text,
    source_sequence   bigint,
    status            text        NOT NULL,
    attempt_count     integer     NOT NULL,
    event_version     bigint      NOT NULL,
    budget_base       integer     NOT NULL,
    next_attempt_at   timestamptz,
    error             text,
    created_at        timestamptz NOT NULL,
    completed_at      timestamptz,
    -- While pending: next_attempt_at, or the end of the lease, whichever is later.
    due_at            timestamptz,
    lease_epoch       bigint      NOT NULL DEFAULT 0,
    -- Attempt 1; the others are in `attempts`.
    first_started_at  timestamptz,
    first_duration_ms bigint,
    first_status_code integer,
    first_error       text,
    first_response    text,
    -- The event, while it may be needed again: until the delivery is made.
    event_meta        text,
    event_raw         bytea,
    -- The place of an ordered delivery: its ordering key, its turn, and whether those behind it wait
    -- although it is exhausted.
    lane_key          text,
    lane_turn         bigint,
    lane_blocks       boolean     NOT NULL DEFAULT false,
    -- Whether it goes out together with others, and the batch that it belongs to once there is one.
    batched           boolean     NOT NULL DEFAULT false,
    batch_id          uuid
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

-- Who is due: by webhook, so that the backlog of one is never in the way of another.
CREATE INDEX deliveries_due ON deliveries (webhook_id, due_at, created_at)
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
CREATE INDEX deliveries_turns ON deliveries (webhook_id, lane_turn, id) WHERE lane_key IS NOT NULL;
-- Lists of what waits or went wrong.
CREATE INDEX deliveries_undelivered ON deliveries (tenant, status, created_at)
    WHERE status <> 'delivered';
-- Lists, and pruning from the oldest. What waits is not in it, so that pruning never has to pass by a
-- long queue; lists take that from the index above. The end is in it for pruning too: what began long ago
-- may have ended just now. Together these three cost 3 µs per row.
CREATE INDEX deliveries_done ON deliveries (tenant, created_at, completed_at)
    WHERE status <> 'pending';
CREATE INDEX deliveries_of_webhook ON deliveries (webhook_id, created_at);
CREATE INDEX deliveries_of_event ON deliveries USING hash (event_id);

-- Webhooks that are gone, while deliveries still wait for them: those are cancelled in batches.
CREATE TABLE deleted_webhooks (
    id uuid PRIMARY KEY
);

CREATE TABLE attempts (
    delivery_id uuid        NOT NULL,
    number      integer     NOT NULL,
    started_at  timestamptz NOT NULL,
    duration_ms bigint      NOT NULL,
    status_code integer,
    error       text,
    response    text,
    PRIMARY KEY (delivery_id, number)
);

-- Deliveries that go out (again) behind live traffic. No reference to `webhooks`: what was is shown on.

CREATE TABLE replays (
    id             uuid        PRIMARY KEY,
    tenant         text        NOT NULL,
    webhook_id     uuid        NOT NULL,
    kind           text        NOT NULL,
    since          timestamptz NOT NULL,
    until          timestamptz NOT NULL,
    -- JSON arrays of texts.
    statuses       text        NOT NULL,
    event_types    text        NOT NULL,
    status         text        NOT NULL,
    total          bigint,
    done           bigint      NOT NULL,
    skipped        bigint      NOT NULL,
    cursor         text,
    version        bigint      NOT NULL,
    error          text,
    actor          text        NOT NULL,
    correlation_id text        NOT NULL,
    causation_id   text        NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    completed_at   timestamptz,
    -- When somebody may work on it (again): the end of a lease, or of a rest.
    free_at        timestamptz NOT NULL,
    lease_epoch    bigint      NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX replays_one_runs ON replays (webhook_id) WHERE status = 'running';
CREATE INDEX replays_free ON replays (free_at) WHERE status = 'running';
CREATE INDEX replays_of_webhook ON replays (webhook_id, created_at, id);
CREATE INDEX replays_running ON replays (tenant) WHERE status = 'running';
CREATE INDEX replays_ended ON replays (completed_at) WHERE status <> 'running';

-- What is committed and waits to be published.

CREATE TABLE outbox (
    -- An entity's events are written one transaction after the other, so this is their order.
    position     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id           uuid        NOT NULL UNIQUE,
    event_type   text        NOT NULL,
    -- Whether it was made of an endpoint's answer, and goes to the ERP.
    is_response  boolean     NOT NULL,
    traceparent  text,
    tracestate   text,
    body         bytea       NOT NULL,
    created_at   timestamptz NOT NULL,
    -- A response that the ERP's stream refused waits until then; nothing else ever does.
    due_at       timestamptz NOT NULL DEFAULT 'epoch',
    refusals     integer     NOT NULL DEFAULT 0,
    published_at timestamptz
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE INDEX outbox_unpublished ON outbox (position)
    WHERE published_at IS NULL AND NOT is_response;
CREATE INDEX outbox_due_responses ON outbox (due_at, position)
    WHERE published_at IS NULL AND is_response;
CREATE INDEX outbox_oldest_responses ON outbox (position)
    WHERE published_at IS NULL AND is_response;
CREATE INDEX outbox_published_responses ON outbox (published_at)
    WHERE published_at IS NOT NULL AND is_response;

CREATE TABLE outbox_relay (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    holder      uuid,
    lease_until timestamptz
) WITH (fillfactor = 10);
INSERT INTO outbox_relay DEFAULT VALUES;

-- The replies of commands, by what makes two commands the same.

CREATE TABLE idempotency (
    tenant     text        NOT NULL,
    action     text        NOT NULL,
    key        text        NOT NULL,
    -- The encryption key that sealed the reply.
    key_id     text,
    reply      bytea       NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, action, key)
);
CREATE INDEX idempotency_oldest ON idempotency (created_at);
CREATE INDEX idempotency_key ON idempotency (key_id) WHERE key_id IS NOT NULL;

-- Rows are added, never changed.

CREATE TABLE audit (
    position       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant         text        NOT NULL,
    at             timestamptz NOT NULL,
    actor          text        NOT NULL,
    action         text        NOT NULL,
    entity_id      text        NOT NULL,
    command_id     text        NOT NULL,
    correlation_id text        NOT NULL
);
