//! How clients get into a script: by a password, and by TLS.

use std::sync::Arc;
use std::time::Duration;

use db_testkit::script::{Reply, Rows, Rule, Script};
use db_testkit::until;
use sqlx::postgres::{PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const PATIENCE: Duration = Duration::from_secs(20);

/// The message that asks for TLS: its length and its number.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// The first message of a client: version 3.0, and the user `me`.
const STARTUP: &[u8] = b"\0\0\0\x11\0\x03\0\0user\0me\0\0";

fn code(error: &sqlx::Error) -> String {
    error.as_database_error().unwrap_or_else(|| panic!("{error}")).code().unwrap().into_owned()
}

async fn dial(script: &Script) -> TcpStream {
    TcpStream::connect(("127.0.0.1", script.options().get_port())).await.unwrap()
}

/// What the script sends until it closes the connection.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut rest = Vec::new();
    // A script ends without a farewell of TLS, which is an error here.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the script closes");
    String::from_utf8_lossy(&rest).into_owned()
}

#[tokio::test]
async fn a_password_lets_in_and_another_one_does_not() {
    let script = Script::builder().password("p@ss/wörd").start().unwrap();

    script.options().connect().await.unwrap().ping().await.unwrap();
    let wrong = script.options().password("wrong").connect().await.unwrap_err();
    let empty = script.options().password("").connect().await.unwrap_err();

    let words = "password authentication failed for user \"script\"";
    assert_eq!((code(&wrong).as_str(), wrong.as_database_error().unwrap().message()), ("28P01", words));
    assert_eq!(code(&empty), "28P01");
    assert_eq!(script.accepted(), 1);
    script.finish();
}

#[tokio::test]
async fn a_password_in_clear_text_is_refused() {
    let script = Script::builder().password("secret").start().unwrap();
    let mut stream = dial(&script).await;
    stream.write_all(STARTUP).await.unwrap();
    let mut offer = [0; 24];
    stream.read_exact(&mut offer).await.unwrap();

    stream.write_all(b"p\0\0\0\x0bsecret\0").await.unwrap();

    assert_eq!(&offer, b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0");
    let rest = rest(&mut stream).await;
    assert!(rest.contains("08P01") && rest.contains("invalid SASL authentication mechanism"), "{rest}");
    script.finish();
}

#[test]
fn a_builder_does_not_show_its_password() {
    let builder = Script::builder().password("s3cret");

    assert!(!format!("{builder:?}").contains("s3cret"));
}

#[tokio::test]
async fn a_pool_connects_by_tls_that_is_verified_and_a_password() {
    let rule = Rule::statement("select 1").reply(Rows::new(["n"]).row((1_i32,)));
    let script = Script::builder().rule(rule).password("secret").tls().start().unwrap();
    let named = script.options().host("localhost");

    for options in [script.options(), named] {
        let pool = PgPoolOptions::new().connect_with(options).await.unwrap();
        let one: i32 = sqlx::query_scalar("select 1").fetch_one(&pool).await.unwrap();
        assert_eq!(one, 1);
        pool.close().await;
    }

    assert!(script.url().contains("sslmode=verify-full&sslrootcert="), "{}", script.url());
    let certificate = script.certificate().unwrap().to_owned();
    script.finish();
    assert!(!certificate.exists(), "{} is left", certificate.display());
}

#[tokio::test]
async fn a_client_that_trusts_another_certificate_does_not_connect() {
    let (script, other) =
        (Script::builder().tls().start().unwrap(), Script::builder().tls().start().unwrap());

    let refused = script.options().ssl_root_cert(other.certificate().unwrap()).connect().await.unwrap_err();
    script.options().ssl_mode(PgSslMode::Require).connect().await.unwrap();
    script.options().ssl_mode(PgSslMode::Disable).connect().await.unwrap();

    assert!(refused.to_string().contains("certificate"), "{refused}");
    assert_eq!(script.accepted(), 2);
    script.finish();
    other.finish();
}

#[tokio::test]
async fn without_tls_a_client_that_requires_it_does_not_connect() {
    let script = Script::start([]).unwrap();

    let refused = script.options().ssl_mode(PgSslMode::Require).connect().await.unwrap_err();
    script.options().ssl_mode(PgSslMode::Prefer).connect().await.unwrap();

    assert!(matches!(refused, sqlx::Error::Tls(_)), "{refused:?}");
    assert_eq!(script.certificate(), None);
    script.finish();
}

#[tokio::test]
async fn bytes_ahead_of_tls_end_the_connection() {
    let script = Script::builder().tls().start().unwrap();
    let mut stream = dial(&script).await;

    stream.write_all(&[&SSL_REQUEST, STARTUP].concat()).await.unwrap();

    assert_eq!(rest(&mut stream).await, "S");
    assert_eq!(script.accepted(), 0);
    script.finish();
}

#[tokio::test]
async fn a_client_that_has_tls_does_not_get_it_again() {
    let script = Script::builder().tls().start().unwrap();
    let mut client = encrypted(&script).await;

    send(&mut client, &SSL_REQUEST).await;

    assert_eq!(rest(&mut client).await, "");
    script.finish();
}

#[tokio::test]
async fn a_cancel_request_ends_a_statement_with_tls_and_without() {
    let silence = || Rule::statement("select silence").reply(Reply::silence());
    let plain = Script::start([silence()]).unwrap();
    let (mut session, canceller) = (dial(&plain).await, dial(&plain).await);
    cancel(&plain, &mut session, canceller).await;
    plain.finish();

    let script = Script::builder().rule(silence()).tls().start().unwrap();
    let (mut session, canceller) = (encrypted(&script).await, encrypted(&script).await);
    cancel(&script, &mut session, canceller).await;
    script.finish();
}

async fn cancel<S: AsyncRead + AsyncWrite + Unpin>(script: &Script, session: &mut S, mut canceller: S) {
    send(session, STARTUP).await;
    let (pid, secret) = key(session).await;
    send(session, b"Q\0\0\0\x13select silence\0").await;
    until("the statement runs", async || !script.asked().is_empty()).await;

    send(&mut canceller, &[&[0, 0, 0, 16, 4, 210, 22, 46], &pid[..], &secret[..]].concat()).await;

    let answer = timeout(PATIENCE, session.read_u8()).await.expect("an answer").unwrap();
    assert_eq!(answer, b'E');
    assert_eq!(script.cancels(), [i32::from_be_bytes(pid)]);
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

/// A client's connection, after the handshake.
async fn encrypted(script: &Script) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(script.certificate().unwrap()).unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut plain = dial(script).await;
    plain.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(plain.read_u8().await.unwrap(), b'S');
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, plain).await.unwrap()
}

/// What a client needs to cancel, after which the script is ready.
async fn key(session: &mut (impl AsyncRead + Unpin)) -> ([u8; 4], [u8; 4]) {
    let mut key = None;
    loop {
        let kind = session.read_u8().await.unwrap();
        let length = usize::try_from(session.read_u32().await.unwrap() - 4).unwrap();
        let mut body = vec![0; length];
        session.read_exact(&mut body).await.unwrap();
        match kind {
            b'K' => key = Some((body[..4].try_into().unwrap(), body[4..].try_into().unwrap())),
            b'Z' => return key.expect("a key"),
            _ => {}
        }
    }
}
