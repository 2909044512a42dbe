# syntax=docker/dockerfile:1

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /build
# The dependencies alone, so that their layer lasts until Cargo.lock changes.
COPY Cargo.toml Cargo.lock LICENSE ./
RUN mkdir -p src benches/pipeline \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs benches/pipeline/main.rs \
    && cargo build --release --locked \
    && rm -rf src
COPY migrations migrations
COPY src src
# Cargo goes by modification times, and the sources may be older than the stand-ins were.
RUN find src migrations -type f -exec touch {} + \
    && cargo build --release --locked \
    && cp target/release/integration-worker /usr/local/bin/

FROM debian:12.11-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home integration
COPY --from=build /usr/local/bin/integration-worker /usr/local/bin/
USER 10001:10001
ENV LOG_FORMAT=json OPS_ADDR=0.0.0.0:9464
EXPOSE 9464
STOPSIGNAL SIGTERM
# Whether the process turns; whether it can work is `/ready`, which an orchestrator asks itself.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9464 && printf 'GET /live HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200'"]
ENTRYPOINT ["integration-worker"]
CMD ["run"]
