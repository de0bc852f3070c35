# Lists the recipes.
default:
    @just --list

# Stages six incidents, and prints what an on-call person sees of each.
incidents:
    cargo test -q -p db-axum --test it -- incidents:: --nocapture --test-threads 1

# A service of which more is asked than it can do, for a minute, and which is replaced in the middle.
overload:
    DB_AXUM_OVERLOAD_SECONDS=60 cargo test -q -p db-axum --test it -- overload:: --nocapture

# Serves the page with one running build.
run:
    cargo run -p buildwatch

# Runs the integration tests of a crate whose path begins with NAME: `just t db-core cancelling:: --nocapture`.
t CRATE NAME="" *ARGS:
    cargo test -p {{ CRATE }} --test it -- {{ NAME }} {{ ARGS }}

# Runs the checks that need no database.
check:
    .ci/run format clippy alone docs arrows links words

# Runs all tests: on compose PostgreSQL where Docker runs, else on a server of their own.
test *ARGS:
    #!/usr/bin/env bash
    set -euo pipefail
    if [ -f .env ] && docker info >/dev/null 2>&1; then
        set -a; . ./.env; set +a
        docker compose up --detach --wait postgres
        export DATABASE_URL=$COMPOSE_DATABASE_URL
    fi
    cargo test {{ ARGS }}

# Runs all tests on each supported PostgreSQL, or on the named versions: `just matrix 14 18`.
matrix *MAJORS="14 15 16 17 18":
    #!/usr/bin/env bash
    set -euo pipefail
    for major in {{ MAJORS }}; do
        programs=$(.ci/postgres "$major")
        env -u DATABASE_URL DB_EMBEDDED_PGBIN="$programs" cargo test
    done

# Writes the libraries' public API to dev/api/, and prints the difference.
api:
    cargo run -q -p api

# Runs every step of CI, or the named steps (`.ci/run --list`).
ci *STEPS:
    .ci/run {{ STEPS }}

# Writes .sqlx/ from a fresh database, and that of the tests in dev/orm.
prepare:
    cargo run -q -p db-embedded --example with_postgres -- sh -c 'cargo sqlx migrate run && cargo sqlx prepare --workspace -- -p buildwatch'
    cd dev/orm && cargo run -q -p db-embedded --example with_postgres -- cargo sqlx prepare -- --tests

# Runs a topic of the benchmarks, beside other libraries.
bench TOPIC *ARGS:
    cargo build --release -p buildwatch -p bench
    cargo run --release -p bench -- {{ TOPIC }} {{ ARGS }}

# Runs a fuzz target for some seconds. Needs cargo-fuzz and a nightly compiler.
fuzz TARGET="sealed" SECONDS="600":
    cargo +nightly fuzz run {{ TARGET }} --sanitizer none -- -max_total_time={{ SECONDS }}

# Stops compose PostgreSQL.
down:
    docker compose --profile pgbouncer down
