# Lists the recipes.
default:
    @just --list

# The page with one build running.
run:
    cargo run -p buildwatch

# One test of a crate, or those whose path begins with NAME: `just t db-core cancelling:: --nocapture`.
t CRATE NAME="" *ARGS:
    cargo test -p {{ CRATE }} --test it -- {{ NAME }} {{ ARGS }}

# What can be said of the code without running it.
check:
    .ci/run format clippy alone docs arrows links words

# The tests: on compose PostgreSQL where Docker runs, else on a server of their own.
test *ARGS:
    #!/usr/bin/env bash
    set -euo pipefail
    if [ -f .env ] && docker info >/dev/null 2>&1; then
        set -a; . ./.env; set +a
        docker compose up --detach --wait postgres
        export DATABASE_URL=$COMPOSE_DATABASE_URL
    fi
    cargo test {{ ARGS }}

# The tests on each PostgreSQL that is supported, or on those that are named.
matrix *MAJORS="14 15 16 17 18":
    #!/usr/bin/env bash
    set -euo pipefail
    for major in {{ MAJORS }}; do
        programs=$(.ci/postgres "$major")
        env -u DATABASE_URL DB_EMBEDDED_PGBIN="$programs" cargo test
    done

# Writes the libraries' public API to dev/api/, and prints what is different now.
api:
    cargo run -q -p api

# What decides whether a change may land, or some of its steps (`.ci/run --list`).
ci *STEPS:
    .ci/run {{ STEPS }}

# Writes .sqlx/ anew, from a fresh database.
prepare:
    cargo run -q -p db-embedded --example with_postgres -- sh -c 'cargo sqlx migrate run && cargo sqlx prepare --workspace -- -p buildwatch'

# A topic of the benchmarks, beside the peers.
bench TOPIC *ARGS:
    cargo build --release -p buildwatch -p bench
    cargo run --release -p bench -- {{ TOPIC }} {{ ARGS }}

# Stops compose PostgreSQL.
down:
    docker compose --profile pgbouncer down
