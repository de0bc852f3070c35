# Lists the recipes.
default:
    @just --list

# The page with one build running.
run:
    cargo run -p buildwatch

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

# Everything that decides whether a change may land.
ci:
    bash .ci/run

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
