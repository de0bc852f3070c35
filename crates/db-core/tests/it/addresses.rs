//! Addresses in the forms that people paste: from providers' pages, from libpq's manual, from other drivers.

use db_core::{Config, Pooler};

/// The expected result for an address.
enum Then {
    /// Accepted: the address without its secrets, and sqlx's TLS mode.
    To(&'static str, &'static str),
    /// Refused: a part of the error.
    No(&'static str),
}
use Then::{No, To};

const ADDRESSES: &[(&str, Then)] = &[
    // Neon's console.
    (
        "postgresql://alex:AbC123dEf@ep-cool-darkness-a1b2c3d4.us-east-2.aws.neon.tech/dbname?sslmode=require&channel_binding=require",
        To("alex@ep-cool-darkness-a1b2c3d4.us-east-2.aws.neon.tech:5432/dbname", "VerifyFull"),
    ),
    (
        "postgresql://alex:hunter2@ep-cool.neon.tech/db?sslmode=require&options=endpoint%3Dep-cool",
        No("`options`"),
    ),
    ("postgresql://alex:hunter2@ep-cool.neon.tech/db?options=project%3Dep-cool", No("-c name=value")),
    // Supabase.
    (
        "postgresql://postgres.abcdefghij:[YOUR-PASSWORD]@aws-0-us-west-1.pooler.supabase.com:6543/postgres?pgbouncer=true",
        To("postgres.abcdefghij@aws-0-us-west-1.pooler.supabase.com:6543/postgres", "VerifyFull"),
    ),
    (
        "postgres://postgres.abc:hunter2@aws-0-us-east-1.pooler.supabase.com:6543/postgres?sslmode=require&supa=base-pooler.x",
        To("postgres.abc@aws-0-us-east-1.pooler.supabase.com:6543/postgres", "Require"),
    ),
    (
        "postgres://postgres.abc:hunter2@aws-0.pooler.supabase.com:6543/postgres?workaround=supabase-pooler.vercel",
        No("an unknown parameter `workaround`"),
    ),
    // Amazon RDS, Google Cloud SQL, Azure.
    (
        "postgresql://app:hunter2@shop.c6.us-east-1.rds.amazonaws.com:5432/shop?sslmode=verify-full&sslrootcert=global-bundle.pem",
        No("`sslrootcert` in the database address must be PEM, or the path of a file that can be read"),
    ),
    (
        "postgres://app:hunter2@/shop?host=/cloudsql/project:region:instance",
        To("app@/cloudsql/project:region:instance:5432/shop", "Disable"),
    ),
    (
        "postgresql+asyncpg://app:hunter2@/shop?host=/cloudsql/project:region:instance",
        No("must begin with postgres:// or postgresql://"),
    ),
    (
        "postgres://myadmin@mydemoserver:hunter2@mydemoserver.postgres.database.azure.com:5432/postgres?sslmode=require",
        To("myadmin@mydemoserver@mydemoserver.postgres.database.azure.com:5432/postgres", "Require"),
    ),
    (
        "host=demo.postgres.database.azure.com port=5432 dbname=shop user=app password=hunter2 sslmode=require",
        To("app@demo.postgres.database.azure.com:5432/shop", "Require"),
    ),
    (
        "Server=demo.postgres.database.azure.com;Database=shop;Port=5432;User Id=app;Password=hunter2;Ssl Mode=Require;",
        No("it has no `://`"),
    ),
    ("jdbc:postgresql://db.example:5432/shop?user=app&password=hunter2", No("must begin with postgres://")),
    // Heroku, Railway, Render, Aiven, DigitalOcean, Timescale, Fly, Crunchy Bridge, Prisma.
    (
        "postgres://u1abc:p2def@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d3ghi",
        To("u1abc@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d3ghi", "VerifyFull"),
    ),
    (
        "postgres://u:hunter2@ec2.compute.amazonaws.com:5432/d?sslmode=no-verify",
        No("one of disable, allow, prefer"),
    ),
    (
        "postgres://u:hunter2@ec2.compute.amazonaws.com:5432/d?ssl=true",
        No("`ssl` in the database address is not supported: use sslmode"),
    ),
    (
        "postgresql://postgres:hunter2@postgres.railway.internal:5432/railway",
        To("postgres@postgres.railway.internal:5432/railway", "VerifyFull"),
    ),
    ("postgresql://app:hunter2@dpg-abc-a/shop_x1y2", To("app@dpg-abc-a:5432/shop_x1y2", "VerifyFull")),
    (
        "postgres://avnadmin:AVNS_hunter2@pg-1-shop.aivencloud.com:12691/defaultdb?sslmode=require",
        To("avnadmin@pg-1-shop.aivencloud.com:12691/defaultdb", "Require"),
    ),
    (
        "postgresql://doadmin:hunter2@db-postgresql-nyc1-1-do-user-1-0.b.db.ondigitalocean.com:25060/defaultdb?sslmode=require",
        To("doadmin@db-postgresql-nyc1-1-do-user-1-0.b.db.ondigitalocean.com:25060/defaultdb", "Require"),
    ),
    (
        "postgres://tsdbadmin:hunter2@x1.y2.tsdb.cloud.timescale.com:37412/tsdb?sslmode=require",
        To("tsdbadmin@x1.y2.tsdb.cloud.timescale.com:37412/tsdb", "Require"),
    ),
    (
        "postgres://postgres:hunter2@shop-db.flycast:5432/shop?sslmode=disable",
        To("postgres@shop-db.flycast:5432/shop", "Disable"),
    ),
    (
        "postgres://application:hunter2@p.x1.db.postgresbridge.com:5432/postgres",
        To("application@p.x1.db.postgresbridge.com:5432/postgres", "VerifyFull"),
    ),
    ("postgres://tenant:sk_hunter2@db.prisma.io:5432/?sslmode=require", No("has no database")),
    ("prisma+postgres://accelerate.prisma-data.net/?api_key=hunter2", No("must begin with postgres://")),
    // CockroachDB Cloud, YugabyteDB, Xata, Yandex Cloud.
    (
        "postgresql://maxroach:hunter2@free-tier.gcp-us-central1.cockroachlabs.cloud:26257/defaultdb?sslmode=verify-full&options=--cluster%3Dshop-123",
        To("maxroach@free-tier.gcp-us-central1.cockroachlabs.cloud:26257/defaultdb", "VerifyFull"),
    ),
    (
        "postgresql://maxroach:hunter2@free-tier.cockroachlabs.cloud:26257/defaultdb?sslmode=verify-full&sslrootcert=$HOME/.postgresql/root.crt",
        No("the path of a file that can be read"),
    ),
    ("postgresql://app:hunter2@x.aws.yugabyte.cloud:5433/yugabyte?ssl=true&sslmode=verify-full", No("`ssl`")),
    (
        "postgresql://ws:hunter2@us-east-1.sql.xata.sh:5432/db:main?sslmode=require",
        No("write the characters"),
    ),
    (
        "host=rc1a.mdb.yandexcloud.net,rc1b.mdb.yandexcloud.net port=6432 dbname=shop user=app password=hunter2 target_session_attrs=read-write",
        No("a list, but only one host is supported"),
    ),
    // libpq's manual, and its own parameters.
    (
        "postgresql://host1:123,host2:456/somedb?target_session_attrs=any&application_name=myapp",
        No("a list, but only one host is supported"),
    ),
    (
        "postgresql://app@db.example/shop?target_session_attrs=any",
        To("app@db.example:5432/shop", "VerifyFull"),
    ),
    ("postgresql://app@db.example/shop?target_session_attrs=read-write", No("`target_session_attrs`")),
    (
        "postgresql://app@db.example/shop?gssencmode=disable&sslnegotiation=postgres&sslsni=1",
        To("app@db.example:5432/shop", "VerifyFull"),
    ),
    ("postgresql://app@db.example/shop?gssencmode=require", No("GSSAPI is not supported")),
    ("postgresql://app@db.example/shop?sslnegotiation=direct&sslmode=require", No("`sslnegotiation`")),
    (
        "postgresql://app@db.example/shop?keepalives=1&keepalives_idle=30",
        To("app@db.example:5432/shop", "VerifyFull"),
    ),
    (
        "postgresql://app@db.example/shop?keepalives=1&keepalives_idle=30&keepalives_interval=10",
        No("`keepalives_interval`"),
    ),
    ("postgresql://app@db.example/shop?passfile=/home/app/.pgpass", No("write the values in the address")),
    ("postgresql://app@db.example/shop?sslrootcert=system", To("app@db.example:5432/shop", "VerifyFull")),
    (
        "postgresql://app@db.example/shop?sslrootcert=system&sslmode=verify-ca",
        No("`sslmode` in the database address must be verify-full"),
    ),
    (
        "postgresql://app@db.example/shop?channel_binding=require&sslmode=prefer",
        No("`sslmode` in the database address must be verify-full"),
    ),
    (
        "postgresql://app@db.example/shop?channel_binding=prefer&sslmode=require",
        To("app@db.example:5432/shop", "Require"),
    ),
    (
        "postgresql://%2Fvar%2Flib%2Fpostgresql/shop?user=app",
        To("app@/var/lib/postgresql:5432/shop", "Disable"),
    ),
    (
        "postgresql://app@/shop?host=%2Fvar%2Frun%2Fpostgresql&sslmode=require",
        To("app@/var/run/postgresql:5432/shop", "Disable"),
    ),
    ("postgresql://app@[2001:db8::1234]/shop", To("app@[2001:db8::1234]:5432/shop", "VerifyFull")),
    (
        "host=localhost port=5432 dbname=mydb user=app connect_timeout=10",
        To("app@localhost:5432/mydb", "Prefer"),
    ),
    (
        "dbname = 'my db'  user = 'o\\'hara' host=db.example password='a b\\\\c'",
        To("o'hara@db.example:5432/my db", "VerifyFull"),
    ),
    ("host=db.example dbname='shop", No("as keyword=value pairs")),
    ("host=db.example dbname", No("as keyword=value pairs")),
    // Other drivers' parameters.
    (
        "postgresql://app@db.example/shop?schema=public&connection_limit=5&pool_timeout=2",
        To("app@db.example:5432/shop", "VerifyFull"),
    ),
    (
        "postgresql://app@db.example/shop?schema=public&pgbouncer=true",
        No("`schema` in the database address is not supported: a pooler"),
    ),
    ("postgresql://app@db.example/shop?sslaccept=accept_invalid_certs", No("`sslaccept`")),
    ("postgresql://app@db.example/shop?pool_max_conns=10", To("app@db.example:5432/shop", "VerifyFull")),
    ("postgresql://app@db.example/shop?statement_cache_size=0", No("`statement_cache_size`")),
    (
        "postgresql://app@db.example/shop?uselibpqcompat=true&sslmode=require",
        To("app@db.example:5432/shop", "Require"),
    ),
    ("postgresql://app@db.example/shop?ssl-mode=verify-ca", To("app@db.example:5432/shop", "VerifyCa")),
    (
        "postgresql://app@db.example/shop?statement_timeout=30000&search_path=a,b",
        To("app@db.example:5432/shop", "VerifyFull"),
    ),
    ("postgresql://app@db.example/shop?options=-c%20timezone%3DUTC", No("the driver sets timezone itself")),
    ("postgresql://app@db.example/shop?options=-e", No("-c name=value")),
    ("postgresql://app@db.example/shop?sslmode=require&sslmode=disable", No("the parameter `sslmode` twice")),
    (
        "postgresql://app@db.example/shop?sslmode=require&ssl-mode=require",
        To("app@db.example:5432/shop", "Require"),
    ),
    ("postgresql://app@db.example/shop?hunter2=1", No("an unknown parameter with an unusual name")),
    // White space that editors add, and control characters that are mistakes.
    ("  postgresql://app@db.example/shop\r\n", To("app@db.example:5432/shop", "VerifyFull")),
    ("postgresql://app:hunt\ner2@db.example/shop", No("a line break or another control character")),
    ("postgresql://app%00x@db.example/shop", No("a zero byte")),
    ("postgresql://app:crab%F0%9F%A6%80@db.example/shop", No("SASLprep")),
    ("postgresql://a%2Cb:hunter2@db.example/shop", No("the role cannot be used with SCRAM")),
    ("postgresql://a%2Cb@db.example/shop", To("a,b@db.example:5432/shop", "VerifyFull")),
    ("postgresql://app@db.example", No("has no database")),
];

#[test]
fn pasted_addresses_are_accepted_or_refused_with_the_reason() {
    for (address, then) in ADDRESSES {
        match (Config::from_url(address), then) {
            (Ok(config), To(to, mode)) => {
                assert_eq!(config.to_string(), *to, "{address}");
                assert_eq!(format!("{:?}", config.as_sqlx().get_ssl_mode()), *mode, "{address}");
            }
            (Err(error), No(reason)) => {
                let error = error.to_string();
                assert!(error.contains(reason), "{address}: {error}");
                for secret in ["hunter2", "er2", "🦀"] {
                    assert!(!error.contains(secret), "{address}: {error}");
                }
            }
            (Ok(config), No(reason)) => panic!("{address} leads to {config}, and should not: {reason}"),
            (Err(error), To(to, _)) => panic!("{address} should lead to {to}: {error}"),
        }
    }
}

#[test]
fn the_session_settings_of_an_address_reach_the_driver() {
    for (parameters, options) in [
        ("options=-csearch_path%3Dmine", "-c search_path=mine"),
        ("options=-c%20geqo%3Doff%20--jit%3Doff", "-c geqo=off -c jit=off"),
        ("options=-c%20search_path%3Da%5C%20b", r"-c search_path=a\ b"),
        ("options[search_path]=x&options[lock_timeout]=5s", "-c search_path=x -c lock_timeout=5s"),
        ("schema=my%20own", r#"-c search_path="my\ own""#),
        ("statement_timeout=7000&search_path=a,b", "-c statement_timeout=7000 -c search_path=a,b"),
    ] {
        let config = Config::from_url(&format!("postgres://app@db/shop?{parameters}")).expect(parameters);

        assert_eq!(config.as_sqlx().get_options(), Some(options), "{parameters}");
    }
    let twice = Config::from_url("postgres://app@db/shop?schema=a&options[search_path]=b")
        .expect_err("a parameter given twice");
    assert!(twice.to_string().contains("the parameter `search_path` twice"), "{twice}");
}

#[test]
fn other_drivers_names_and_limits_are_accepted() {
    let config = |parameters: &str| {
        Config::from_url(&format!("postgres://app@db/shop?{parameters}")).expect(parameters)
    };

    let limited = config("pool_max_conns=3&keepalives_idle=40").apply_to(db_core::PoolOptions::api());
    assert_eq!((limited.max, limited.keepalive.as_secs()), (3, 40));
    let name = |parameters| config(parameters).as_sqlx().get_application_name().map(str::to_owned);
    assert_eq!(name("fallback_application_name=a").as_deref(), Some("a"));
    assert_eq!(name("application_name=b&fallback_application_name=a").as_deref(), Some("b"));
    assert_eq!(config("pgbouncer=true&supa=base-pooler.x").pooler(), Pooler::Transaction);
}

#[test]
fn without_a_host_the_socket_of_a_local_server_is_used() {
    // A port of this test's own, on which no server listens.
    let port = 20_000 + std::process::id() % 10_000;
    let socket = format!("/tmp/.s.PGSQL.{port}");
    let shown = || {
        let config = Config::from_url(&format!("postgres://app@:{port}/shop")).expect("an address");
        config.to_string()
    };

    assert_eq!(shown(), format!("app@localhost:{port}/shop"));
    std::fs::write(&socket, "").expect("written");
    let with_socket = shown();
    std::fs::remove_file(&socket).expect("removed");
    assert_eq!(with_socket, format!("app@/tmp:{port}/shop"));
}

#[test]
fn without_a_role_the_environments_or_the_operating_systems_user_is_used() {
    let config = Config::from_url("postgres://db.example/shop").expect("an address");

    assert!(!config.user().is_empty());
}
