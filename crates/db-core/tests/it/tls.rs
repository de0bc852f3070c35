//! TLS with valid, expired, foreign and untrusted server certificates.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, process};

use db_core::{Config, ConnectError, ConnectFailure, ConnectRetry, Pool, PoolOptions, connect};
use db_embedded::Server;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use sqlx::postgres::PgSslMode;
use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;

use crate::support::PATIENCE;

/// The kind of a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certificate {
    Good,
    Expired,
}

/// A server that accepts TLS connections only, on an address of its own, with its clients' files.
struct TlsServer {
    server: Server,
    port: u16,
    /// The address in the certificate. The server also listens on the next address.
    named: Ipv4Addr,
    files: TempDir,
    authority: String,
}

impl TlsServer {
    /// `login` is the end of the line in `pg_hba.conf`, for example to require client certificates.
    async fn start(certificate: Certificate, login: &str) -> Self {
        // An address of the test's own, since all of 127.0.0.0/8 is this machine.
        let [_, _, high, low] = process::id().to_be_bytes();
        let named = Ipv4Addr::new(127, high.max(1), low, 2 * turn(100) + 1);
        let port = free_port(named);
        let listen = format!("{named},{}", next(named));
        let builder =
            Server::throwaway().setting("listen_addresses", listen).setting("port", port.to_string());
        let server =
            tokio::task::spawn_blocking(move || builder.start()).await.expect("no panic").expect("a server");

        let authority = authority();
        let mut params = CertificateParams::new(vec![named.to_string()]).expect("parameters");
        if certificate == Certificate::Expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &authority).expect("a certificate");
        let client_key = KeyPair::generate().expect("a key");
        let client = CertificateParams::new(vec!["postgres".to_owned()]).expect("parameters");
        let client = client.signed_by(&client_key, &authority).expect("a certificate");

        let files = tempfile::tempdir().expect("a folder");
        for (name, text) in [
            ("authority.pem", authority.pem()),
            ("client.pem", client.pem()),
            ("client.key", client_key.serialize_pem()),
            ("stranger.pem", self::authority().pem()),
        ] {
            fs::write(files.path().join(name), text).expect("written");
        }
        let authority = authority.pem();
        give(&server, "server.pem", &signed.pem());
        give(&server, "server.key", &key.serialize_pem());
        give(&server, "authority.pem", &authority);
        let local = fs::read_to_string(server.data_dir().join("pg_hba.conf")).expect("pg_hba.conf");
        give(&server, "pg_hba.conf", &format!("{local}hostssl all all 127.0.0.0/8 trust {login}\n"));

        let admin = Config::from_url(&server.url("postgres")).expect("an address");
        let mut admin = connect::connect(&admin, ConnectRetry::default()).await.expect("a connection");
        for setting in [
            "ssl_cert_file = 'server.pem'",
            "ssl_key_file = 'server.key'",
            "ssl_ca_file = 'authority.pem'",
            "ssl = on",
        ] {
            admin.execute(sqlx::AssertSqlSafe(format!("alter system set {setting}"))).await.expect("set");
        }
        admin.execute("select pg_reload_conf()").await.expect("reloaded");
        admin.close().await.expect("closed");
        let server = Self { server, port, named, files, authority };
        server.until_it_has_tls().await;
        server
    }

    /// Waits until the server uses TLS: the postmaster reloads its files with a delay.
    async fn until_it_has_tls(&self) {
        let probe = self.files.path().join("client");
        let by = format!("sslmode=require&sslcert={0}.pem&sslkey={0}.key", probe.display());
        db_testkit::until("the server has TLS", async || {
            self.connect(self.named, &by, Duration::ZERO).await.is_ok()
        })
        .await;
    }

    async fn connect(
        &self,
        host: Ipv4Addr,
        parameters: &str,
        deadline: Duration,
    ) -> Result<PgConnection, ConnectError> {
        let config = self.config(host, parameters);
        let retry = ConnectRetry::default().deadline(deadline);
        connect::connect(&config, retry).await
    }

    async fn is_encrypted(&self, host: Ipv4Addr, parameters: &str) -> bool {
        let mut connection = self.connect(host, parameters, PATIENCE).await.expect(parameters);
        let encrypted = sqlx::query_scalar("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            .fetch_one(&mut connection)
            .await
            .expect("an answer");
        connection.close().await.expect("closed");
        encrypted
    }

    fn config(&self, host: Ipv4Addr, parameters: &str) -> Config {
        let url = format!("postgres://{}@{host}:{}/postgres?{parameters}", self.server.user(), self.port);
        Config::from_url(&url).expect("an address")
    }

    /// Replaces the line of `pg_hba.conf` for TCP logins.
    async fn admit(&self, line: &str) {
        give(&self.server, "pg_hba.conf", &format!("local all all trust\n{line}\n"));
        let admin = Config::from_url(&self.server.url("postgres")).expect("an address");
        let mut admin = connect::connect(&admin, ConnectRetry::default()).await.expect("a connection");
        admin.execute("select pg_reload_conf()").await.expect("reloaded");
        admin.close().await.expect("closed");
    }

    /// Whether the connections of a pool, and of its sqlx pool, are encrypted.
    async fn pools(&self, parameters: &str) -> [bool; 2] {
        const ENCRYPTED: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        let pool = Pool::new(&self.config(self.named, parameters), PoolOptions::api());
        let own = sqlx::query_scalar(ENCRYPTED).fetch_one(pool.handle()).await.expect(parameters);
        let beside = sqlx::query_scalar(ENCRYPTED).fetch_one(pool.sqlx()).await.expect(parameters);
        [own, beside]
    }

    /// Checks that an abandoned statement is cancelled, and its connection kept.
    async fn cancels(&self, parameters: &str) {
        let statement_timeout = Duration::from_millis(50);
        let options = PoolOptions::api().max(1).statement_timeout(statement_timeout);
        let pool = Pool::new(&self.config(self.named, parameters), options);
        let slow = sqlx::query("select pg_sleep(60)").execute(pool.handle());

        slow.await.expect_err("a timeout");

        db_testkit::until("the statement is cancelled", async || pool.stats().repairing == 0).await;
        let totals = pool.stats().totals;
        assert_eq!((totals.cancelled, totals.repair_failed), (1, 0), "{parameters}: {totals:?}");
    }

    /// Asserts that connecting fails permanently after one attempt. Returns the failure.
    async fn refuses(&self, host: Ipv4Addr, parameters: &str) -> ConnectFailure {
        let error = self.connect(host, parameters, PATIENCE).await.expect_err(parameters);
        assert_eq!(error.attempts(), 1, "{error}");
        error.failure().clone()
    }

    fn file(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }
}

fn turn(max: u8) -> u8 {
    // Tests of one process run in parallel.
    static NEXT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % max
}

fn next(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() + 1)
}

fn free_port(address: Ipv4Addr) -> u16 {
    let listener = TcpListener::bind((address, 0)).expect("an address of this machine");
    listener.local_addr().expect("an address").port()
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    // Its name differs from that of the certificates it signs, which would otherwise look self-signed.
    params.distinguished_name.push(DnType::CommonName, "an authority of these tests");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

/// Writes a file that only the server may read.
fn give(server: &Server, name: &str, text: &str) -> PathBuf {
    let path = server.data_dir().join(name);
    let owner = fs::metadata(server.data_dir()).expect("the data folder");
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permissions");
    chown(&path, Some(owner.uid()), Some(owner.gid())).expect("a new owner");
    path
}

fn is_tls(failure: &ConnectFailure) -> bool {
    matches!(failure, ConnectFailure::Tls(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_valid_certificate_is_accepted_and_another_hosts_is_refused() {
    let server = TlsServer::start(Certificate::Good, "").await;
    let (named, other) = (server.named, next(server.named));
    let file = server.file("authority.pem");
    let pem = percent_encoded(&server.authority);

    for authority in [&file, &pem] {
        assert!(server.is_encrypted(named, &format!("sslmode=verify-full&sslrootcert={authority}")).await);
    }
    assert!(
        server.is_encrypted(other, &format!("sslmode=verify-ca&sslrootcert={file}")).await,
        "the host name is not checked"
    );
    assert!(server.is_encrypted(other, "sslmode=require").await, "the certificate is not checked");
    assert!(server.is_encrypted(other, "sslmode=prefer").await);

    let failure = server.refuses(other, &format!("sslmode=verify-full&sslrootcert={file}")).await;
    assert!(is_tls(&failure), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_an_unknown_authority_is_refused() {
    let server = TlsServer::start(Certificate::Good, "").await;
    let stranger = server.file("stranger.pem");

    for parameters in [
        format!("sslmode=verify-full&sslrootcert={stranger}"),
        format!("sslmode=verify-ca&sslrootcert={stranger}"),
        "sslmode=verify-full".to_owned(),
    ] {
        let failure = server.refuses(server.named, &parameters).await;
        assert!(is_tls(&failure), "{parameters}: {failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_refused() {
    let server = TlsServer::start(Certificate::Expired, "").await;
    let authority = server.file("authority.pem");

    let failure = server.refuses(server.named, &format!("sslmode=verify-ca&sslrootcert={authority}")).await;

    assert!(is_tls(&failure) && failure.to_string().contains("expired"), "{failure}");
    assert!(server.is_encrypted(server.named, "sslmode=require").await, "the certificate is not checked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_a_certificate_is_accepted_and_one_without_is_refused_at_once() {
    let server = TlsServer::start(Certificate::Good, "clientcert=verify-ca").await;
    let (certificate, key) = (server.file("client.pem"), server.file("client.key"));
    let inline = |path: &str| percent_encoded(&fs::read_to_string(path).expect("a file"));

    assert!(
        server
            .is_encrypted(server.named, &format!("sslmode=require&sslcert={certificate}&sslkey={key}"))
            .await
    );
    let as_text = format!("sslmode=require&sslcert={}&sslkey={}", inline(&certificate), inline(&key));
    assert!(server.is_encrypted(server.named, &as_text).await);

    // Set in code, without files and without an address.
    let plain = server.config(server.named, "sslmode=disable");
    let text = |path: &str| fs::read_to_string(path).expect("a file");
    let by_code = plain
        .with_tls_mode(PgSslMode::VerifyFull)
        .and_then(|config| config.with_root_certificate(&server.authority))
        .and_then(|config| config.with_client_certificate(&text(&certificate), &text(&key).into()))
        .expect("good");
    let verified = connect::connect(&by_code, ConnectRetry::default().deadline(PATIENCE)).await;
    verified.expect("connected").close().await.expect("closed");
    let unknown = by_code.with_root_certificate(&authority().pem()).expect("good");
    let retry = ConnectRetry::default().deadline(PATIENCE);
    let error = connect::connect(&unknown, retry).await.expect_err("another authority");
    assert!(is_tls(error.failure()), "{error}");

    let failure = server.refuses(server.named, "sslmode=require").await;
    assert!(matches!(&failure, ConnectFailure::LoginRefused { .. }), "{failure:?}");
    let failure = server
        .refuses(server.named, &format!("sslmode=require&sslcert={certificate}&sslkey={certificate}"))
        .await;
    assert!(is_tls(&failure) && failure.to_string().contains("no keys found"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mode_that_requires_tls_never_sends_clear_text() {
    let server = TlsServer::start(Certificate::Good, "").await;
    let admin = Config::from_url(&server.server.url("postgres")).expect("an address");
    let mut admin = connect::connect(&admin, ConnectRetry::default()).await.expect("a connection");
    give(&server.server, "pg_hba.conf", "local all all trust\nhost all all 127.0.0.0/8 trust\n");
    admin.execute("alter system set ssl = off").await.expect("set");
    admin.execute("select pg_reload_conf()").await.expect("reloaded");
    db_testkit::until("the server has no TLS", async || {
        server.connect(server.named, "sslmode=require", Duration::ZERO).await.is_err()
    })
    .await;

    for mode in ["require", "verify-ca", "verify-full"] {
        let failure = server.refuses(server.named, &format!("sslmode={mode}")).await;
        assert!(is_tls(&failure), "{mode}: {failure:?}");
    }
    assert!(!server.is_encrypted(server.named, "sslmode=prefer").await);
    assert!(!server.is_encrypted(server.named, "sslmode=disable").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_turns_require_into_verify_ca_as_in_libpq() {
    let server = TlsServer::start(Certificate::Good, "").await;
    let (own, stranger) = (server.file("authority.pem"), server.file("stranger.pem"));
    let other = next(server.named);

    for authority in [stranger.clone(), percent_encoded(&fs::read_to_string(&stranger).expect("a file"))] {
        let failure = server.refuses(server.named, &format!("sslmode=require&sslrootcert={authority}")).await;
        assert!(is_tls(&failure), "{failure:?}");
    }
    // The host name is not checked, as with verify-ca.
    assert!(server.is_encrypted(other, &format!("sslmode=require&sslrootcert={own}")).await);
    assert!(server.is_encrypted(other, &format!("sslmode=prefer&sslrootcert={own}")).await);
    // `prefer` falls back to clear text, which this server refuses. The error has the reason of the TLS failure.
    for mode in ["prefer", "allow"] {
        let failure = server.refuses(server.named, &format!("sslmode={mode}&sslrootcert={stranger}")).await;
        assert!(is_tls(&failure), "{mode}: {failure:?}");
    }
    server.admit("host all all 127.0.0.0/8 trust").await;
    db_testkit::until("the server takes both", async || {
        server.connect(server.named, "sslmode=disable", Duration::ZERO).await.is_ok()
    })
    .await;
    assert!(!server.is_encrypted(server.named, &format!("sslmode=prefer&sslrootcert={stranger}")).await);
    // channel_binding=require implies a verified host name, since the driver does not support channel binding.
    let failure = server.refuses(other, &format!("channel_binding=require&sslrootcert={own}")).await;
    assert!(is_tls(&failure), "{failure:?}");
    assert!(server.is_encrypted(server.named, &format!("channel_binding=require&sslrootcert={own}")).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allow_and_prefer_connect_to_a_server_that_accepts_only_their_second_mode() {
    let server = TlsServer::start(Certificate::Good, "").await;

    assert!(server.is_encrypted(server.named, "sslmode=allow").await);
    assert_eq!(server.pools("sslmode=allow").await, [true, true]);

    server.admit("hostnossl all all 127.0.0.0/8 trust").await;
    db_testkit::until("the server takes no TLS", async || {
        server.connect(server.named, "sslmode=require", Duration::ZERO).await.is_err()
    })
    .await;
    // On this machine, `prefer` is the default.
    for parameters in ["sslmode=prefer", "", "sslmode=allow"] {
        assert!(!server.is_encrypted(server.named, parameters).await, "{parameters}");
        assert_eq!(server.pools(parameters).await, [false, false], "{parameters}");
    }
    let failure = server.refuses(server.named, "sslmode=require").await;
    assert!(matches!(failure, ConnectFailure::LoginRefused { .. }), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_cancelled_on_a_server_that_accepts_only_the_second_mode() {
    let server = TlsServer::start(Certificate::Good, "").await;
    server.cancels("sslmode=allow").await;

    server.admit("hostnossl all all 127.0.0.0/8 trust").await;
    db_testkit::until("the server takes no TLS", async || {
        server.connect(server.named, "sslmode=require", Duration::ZERO).await.is_err()
    })
    .await;
    server.cancels("sslmode=prefer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_not_sent_again_in_clear_text() {
    let server = TlsServer::start(Certificate::Good, "").await;
    server.admit("hostssl all all 127.0.0.0/8 scram-sha-256\nhostnossl all all 127.0.0.0/8 trust").await;
    db_testkit::until("the server asks for a password", async || {
        server.connect(server.named, "sslmode=require", Duration::ZERO).await.is_err()
    })
    .await;

    let failure = server.refuses(server.named, "sslmode=prefer&password=wrong").await;

    assert!(matches!(failure, ConnectFailure::WrongPassword(_)), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_has_no_tls_whatever_the_mode() {
    let server = TlsServer::start(Certificate::Good, "").await;

    for mode in ["require", "verify-full"] {
        let url = format!("{}&sslmode={mode}", server.server.url("postgres"));
        let config = Config::from_url(&url).expect("an address");
        let connected = connect::connect(&config, ConnectRetry::default().deadline(Duration::ZERO)).await;
        connected.expect(mode).close().await.expect("closed");
    }
}

#[test]
fn an_authority_without_a_certificate_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    for bad in [
        file("empty", b""),
        file("der", &[0x30, 0x82, 0x01]),
        file("key", b"-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n"),
        percent_encoded("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n"),
    ] {
        let error = Config::from_url(&format!("postgres://app@db/shop?sslrootcert={bad}")).expect_err(&bad);
        assert!(
            error.to_string().contains("`sslrootcert`") && !error.to_string().contains("hunter2"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_about_a_bad_authority_does_not_quote_it() {
    let server = TlsServer::start(Certificate::Good, "").await;
    let broken = percent_encoded("-----BEGIN CERTIFICATE-----\nhunter2!\n-----END CERTIFICATE-----\n");

    let failure = server.refuses(server.named, &format!("sslmode=verify-full&sslrootcert={broken}")).await;

    assert!(is_tls(&failure) && !failure.to_string().contains("hunter2"), "{failure}");
}

fn percent_encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
