//! What a driver meets at a script, without a pool.

use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use db_testkit::script::{Reply, Rows, Rule, Script, ScriptBuilder, ServerError};
use db_testkit::{Error, until};
use futures_util::StreamExt;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{
    PgArgumentBuffer, PgConnection, PgDatabaseError, PgListener, PgPoolOptions, PgSeverity, PgTypeInfo,
    Postgres,
};
use sqlx::types::time::{OffsetDateTime, Time};
use sqlx::{ConnectOptions, Connection, Encode, Executor, Row};
use tokio::time::timeout;

/// Long enough for an answer that comes, where the test is that none does.
const SILENCE: Duration = Duration::from_millis(300);

async fn connect(script: &Script) -> PgConnection {
    script.options().connect().await.unwrap()
}

/// Why the script fails its test.
fn failure(script: Script) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| script.finish())).expect_err("the test fails");
    *panic.downcast::<String>().unwrap()
}

fn code(error: &sqlx::Error) -> String {
    error.as_database_error().unwrap_or_else(|| panic!("{error}")).code().unwrap().into_owned()
}

fn is_gone<T>(result: Result<T, sqlx::Error>) -> bool {
    matches!(result.err(), Some(sqlx::Error::Io(_)))
}

#[tokio::test]
async fn rows_have_the_types_of_their_values_in_both_protocols() {
    // The driver cannot read the text of a whole second.
    let moment = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_250_000_000).unwrap();
    let rows = Rows::new(["id", "name", "at", "tags", "none"]).row((
        7_i64,
        "first",
        moment,
        vec!["a".to_owned(), "b c".to_owned()],
        None::<bool>,
    ));
    let script = Script::start([Rule::statement("select * from shop").reply(rows)]).unwrap();
    let mut connection = connect(&script).await;

    let prepared = sqlx::query("select * from shop").fetch_one(&mut connection).await.unwrap();
    let simple = connection.fetch_one(sqlx::raw_sql("select *\n from shop;")).await.unwrap();

    for row in [prepared, simple] {
        assert_eq!(row.get::<i64, _>("id"), 7);
        assert_eq!(row.get::<String, _>("name"), "first");
        assert_eq!(row.get::<OffsetDateTime, _>("at"), moment);
        assert_eq!(row.get::<Vec<String>, _>("tags"), ["a", "b c"]);
        assert_eq!(row.get::<Option<bool>, _>("none"), None);
    }
    script.finish();
}

#[tokio::test]
async fn a_rule_is_chosen_by_text_values_and_time() {
    let by_id = || Rule::statement("select name from shop where id = $1");
    let name = |name: &'static str| Rows::new(["name"]).row((name,));
    let script = Script::start([
        by_id().bound((1_i64,)).nth(2).reply(name("again")),
        by_id().bound((1_i64,)).reply(name("first")),
        by_id().reply(name("any")),
    ])
    .unwrap();
    let mut connection = connect(&script).await;

    let mut names = Vec::new();
    for id in [1_i64, 1, 1, 2] {
        let query = sqlx::query_scalar::<_, String>("select name from shop where id = $1").bind(id);
        names.push(query.fetch_one(&mut connection).await.unwrap());
    }

    assert_eq!(names, ["first", "again", "first", "any"]);
    assert_eq!(script.asked().len(), 4);
    script.finish();
}

#[tokio::test]
async fn rules_in_order_are_used_one_after_the_other() {
    let step = |n: &'static str| Rule::statement("select step").reply(Rows::new(["step"]).row((n,)));
    let script =
        Script::builder().in_order([step("one"), step("two").times(2), step("three")]).start().unwrap();
    let mut connection = connect(&script).await;
    let mut steps = Vec::new();
    for _ in 0..4 {
        steps.push(sqlx::query_scalar::<_, String>("select step").fetch_one(&mut connection).await.unwrap());
    }

    let error = sqlx::query("select step").fetch_one(&mut connection).await.unwrap_err();

    assert_eq!(steps, ["one", "two", "two", "three"]);
    assert!(error.to_string().contains("rule 1 has been used 1 times"), "{error}");
    failure(script);
}

#[tokio::test]
async fn a_tag_says_how_many_rows_were_affected() {
    let script = Script::start([Rule::beginning("delete").reply(Reply::tag("DELETE 7"))]).unwrap();

    let done = sqlx::query("delete from shop").execute(&mut connect(&script).await).await.unwrap();

    assert_eq!(done.rows_affected(), 7);
    script.finish();
}

#[tokio::test]
async fn an_error_has_all_its_fields() {
    let error = ServerError::new("23505", "duplicate key")
        .detail("Key (name)=(a) already exists.")
        .hint("Take another.")
        .position(3)
        .context("in a function")
        .schema("public")
        .table("shop")
        .column("name")
        .data_type("text")
        .constraint("shop_name")
        .source("nbtinsert.c", 666, "_bt_check_unique");
    let script = Script::start([Rule::beginning("insert").reply(error)]).unwrap();

    let met = sqlx::query("insert into shop").execute(&mut connect(&script).await).await.unwrap_err();

    assert_eq!(met.as_database_error().unwrap().kind(), sqlx::error::ErrorKind::UniqueViolation);
    let met = met.as_database_error().unwrap().downcast_ref::<PgDatabaseError>();
    assert_eq!((met.code(), met.message(), met.severity()), ("23505", "duplicate key", PgSeverity::Error));
    assert_eq!((met.detail(), met.hint()), (Some("Key (name)=(a) already exists."), Some("Take another.")));
    assert_eq!((met.schema(), met.table(), met.column()), (Some("public"), Some("shop"), Some("name")));
    assert_eq!((met.data_type(), met.constraint()), (Some("text"), Some("shop_name")));
    assert_eq!(
        (met.r#where(), met.file(), met.line()),
        (Some("in a function"), Some("nbtinsert.c"), Some(666))
    );
    assert_eq!(met.routine(), Some("_bt_check_unique"));
    script.finish();
}

#[tokio::test]
async fn a_statement_without_a_rule_shows_itself_and_the_rules_and_fails_the_test() {
    let script = Script::start([Rule::statement("select $1").bound((1_i32,)).optional()]).unwrap();
    let mut connection = connect(&script).await;

    let unknown =
        sqlx::query("select n from secret where m = $1").bind("s3cret").execute(&mut connection).await;
    let other = sqlx::query("select $1").bind(2_i32).execute(&mut connection).await;

    let (unknown, other) = (unknown.unwrap_err(), other.unwrap_err());
    assert_eq!(code(&unknown), "TK000");
    let expected = "no rule of the script answers `select n from secret where m = $1`\nThe rules:\n  1. the statement `select $1`";
    assert!(unknown.to_string().contains(expected), "{unknown}");
    assert!(other.to_string().contains("rule 1 has another value of $1"), "{other}");
    let failure = failure(script);
    assert!(failure.contains(expected) && failure.contains("another value"), "{failure}");
    assert!(!failure.contains("s3cret"), "{failure}");
}

#[tokio::test]
async fn a_rule_that_was_not_used_or_not_often_enough_fails_the_test() {
    let once = Rule::statement("select once").reply(Reply::tag("SELECT 0")).times(2);
    let script =
        Script::start([once, Rule::containing("never"), Rule::containing("maybe").optional()]).unwrap();
    connect(&script).await.execute("select once").await.unwrap();

    let failure = failure(script);

    assert!(failure.contains("rule 1 was used 1 times: the statement `select once`, 2 times"), "{failure}");
    assert!(failure.contains("rule 2 was used 0 times"), "{failure}");
    assert!(!failure.contains("rule 3"), "{failure}");
}

#[test]
fn a_script_that_is_dropped_fails_its_test_as_well() {
    let script = Script::start([Rule::containing("never")]).unwrap();

    let panic = catch_unwind(AssertUnwindSafe(|| drop(script))).unwrap_err();

    assert!(panic.downcast::<String>().unwrap().contains("rule 1 was used 0 times"));
}

#[test]
fn rules_that_cannot_be_followed_are_named_at_the_start() {
    let wrong = |rules: Vec<Rule>| match Script::start(rules) {
        Err(Error::Rules { why }) => why,
        other => panic!("{other:?}"),
    };
    let always = || Rule::statement("select 1").reply(Reply::tag("SELECT 0"));

    let contradiction = wrong(vec![always(), Rule::containing("x"), always()]);
    let columns = wrong(vec![
        always().nth(1).reply(Rows::new(["n"]).row((1_i32,))),
        always().nth(2).reply(Rows::new(["n"]).row((1_i64,))),
    ]);
    let sqlstate = wrong(vec![always().reply(ServerError::new("4000", "short"))]);
    let never = wrong(vec![always().times(0)]);
    let unreadable = wrong(vec![always().reply(Rows::new(["mood"]).row((Mood,)))]);

    assert!(contradiction.starts_with("rules 1 and 3 contradict each other"), "{contradiction}");
    assert!(columns.contains("different columns"), "{columns}");
    assert!(sqlstate.contains("\"4000\" is no SQLSTATE"), "{sqlstate}");
    assert!(never.contains("no time"), "{never}");
    assert!(unreadable.contains("the type mood has no number"), "{unreadable}");
}

/// A type that has no number without a database.
struct Mood;

impl sqlx::Type<Postgres> for Mood {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("mood")
    }
}

impl Encode<'_, Postgres> for Mood {
    fn encode_by_ref(&self, _: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Ok(IsNull::No)
    }
}

#[tokio::test]
async fn the_transaction_is_as_the_protocol_has_it() {
    let script =
        Script::start([Rule::statement("select fails").reply(ServerError::new("22012", "zero"))]).unwrap();
    let mut connection = connect(&script).await;

    connection.execute("begin").await.unwrap();
    connection.execute("savepoint a").await.unwrap();
    assert_eq!(code(&connection.execute("select fails").await.unwrap_err()), "22012");
    assert_eq!(code(&connection.execute("select fails").await.unwrap_err()), "25P02");
    connection.execute("rollback to a").await.unwrap();
    connection.execute("commit").await.unwrap();
    assert_eq!(code(&connection.execute("savepoint a").await.unwrap_err()), "25P01");

    let mut tx = connection.begin().await.unwrap();
    assert_eq!(code(&tx.execute("rollback to nothing").await.unwrap_err()), "3B001");
    tx.rollback().await.unwrap();
    assert_eq!(script.asked().iter().filter(|it| it.eq_ignore_ascii_case("begin")).count(), 2);
    script.finish();
}

#[tokio::test]
async fn several_statements_of_one_message_end_at_the_first_error() {
    let script = Script::start([
        Rule::statement("select ';'").reply(Rows::new(["text"]).row((";",))),
        Rule::statement("nonsense").reply(ServerError::new("42601", "syntax error")),
        Rule::statement("select never").optional(),
    ])
    .unwrap();
    let mut connection = connect(&script).await;

    let error = connection.execute("begin; select ';'; nonsense; select never").await.unwrap_err();

    assert_eq!(code(&error), "42601");
    assert_eq!(script.asked(), ["begin", "select ';'", "nonsense"]);
    connection.execute("rollback").await.unwrap();
    script.finish();
}

#[tokio::test]
async fn a_commit_can_be_refused_and_its_answer_lost() {
    let script = Script::builder()
        .in_order([
            Rule::statement("COMMIT").reply(ServerError::new("40001", "could not serialize access")),
            Rule::statement("COMMIT").reply(Reply::usual().lost()),
        ])
        .start()
        .unwrap();
    let mut connection = connect(&script).await;

    let refused = connection.begin().await.unwrap().commit().await;
    connection.execute("savepoint a").await.expect_err("the transaction has ended");
    let lost = connection.begin().await.unwrap().commit().await;

    assert_eq!(code(&refused.unwrap_err()), "40001");
    assert!(is_gone(lost));
    script.finish();
}

#[tokio::test]
async fn half_a_message_and_a_cut_end_the_connection() {
    let row = || Reply::from(Rows::new(["text"]).row(("x".repeat(1000),)));
    let script = Script::start([
        Rule::statement("select half").reply(row().half()),
        Rule::statement("select lost").reply(row().lost()),
        Rule::statement("select cut").reply(Reply::cut()),
        Rule::statement("select fatal").reply(ServerError::new("57P01", "going down").severity("FATAL")),
    ])
    .unwrap();

    for sql in ["select half", "select lost", "select cut"] {
        // The driver hands out a row as soon as it is there.
        let first = connect(&script).await.fetch(sql).next().await.expect("an answer or an error");
        assert!(is_gone(first), "{sql}");
    }
    let mut connection = connect(&script).await;
    assert_eq!(code(&connection.execute("select fatal").await.unwrap_err()), "57P01");
    assert!(is_gone(connection.ping().await));
    until("all sessions have ended", async || script.open_sessions() == 0).await;
    script.finish();
}

#[tokio::test]
async fn a_delay_and_silence_end_when_they_are_cancelled() {
    let late = Reply::tag("SELECT 0").delay(Duration::from_mins(10));
    let script = Script::start([
        Rule::statement("select late").reply(late),
        Rule::statement("select silence").reply(Reply::silence()),
        Rule::statement("select soon").reply(Reply::tag("SELECT 0").delay(Duration::from_millis(1))),
    ])
    .unwrap();
    let mut connection = connect(&script).await;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
    connection.execute("select soon").await.unwrap();

    for sql in ["select late", "select silence"] {
        let mut waiting = Box::pin(connection.execute(sql));
        assert!(timeout(SILENCE, &mut waiting).await.is_err(), "{sql}");
        cancel(&script, pid).await;
        assert_eq!(code(&waiting.await.unwrap_err()), "57014", "{sql}");
    }

    assert_eq!(script.cancels(), [pid, pid]);
    script.finish();
}

/// As the pools of db-core do it.
async fn cancel(script: &Script, pid: i32) {
    let began = format!("2000-01-01 00:00:00.{pid:06}+00");
    let sql = "select asked.n, case when asked.ends then pg_catalog.pg_terminate_backend(there.pid) \
               else pg_catalog.pg_cancel_backend(there.pid) end from …";
    let mut connection = connect(script).await;
    let row =
        sqlx::query(sql).bind([pid]).bind([began]).bind([false]).fetch_one(&mut connection).await.unwrap();
    assert_eq!((row.get::<i64, _>(0), row.get::<bool, _>(1)), (1, true));
}

#[tokio::test]
async fn a_client_that_closes_in_the_middle_or_at_once_fails_nothing() {
    let rules = [
        Rule::statement("select silence").reply(Reply::silence()),
        Rule::statement("select 1").reply(Rows::new(["n"]).row((1_i32,))),
    ];
    let script = rules.into_iter().fold(Script::builder(), ScriptBuilder::rule).tls().start().unwrap();
    let address = ("127.0.0.1", script.options().get_port());

    let (ask_for_tls, half_a_start) =
        (&[0, 0, 0, 8, 4, 210, 22, 47][..], &[0, 0, 0, 40, 0, 3, 0, 0, b'u'][..]);
    for beginning in [&[][..], ask_for_tls, half_a_start] {
        std::net::TcpStream::connect(address).unwrap().write_all(beginning).unwrap();
    }
    let mut connection = connect(&script).await;
    assert!(timeout(SILENCE, connection.execute("select silence")).await.is_err());
    drop(connection);
    until("both have gone", async || script.open_sessions() == 0).await;

    connect(&script).await.execute("select 1").await.unwrap();
    script.finish();
}

#[tokio::test]
async fn notifications_arrive_after_the_commit_and_at_listeners() {
    let script = Script::start([]).unwrap();
    let pool = PgPoolOptions::new().connect_with(script.options()).await.unwrap();
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("News").await.unwrap();

    let mut undone = pool.begin().await.unwrap();
    undone.execute("notify \"News\", 'undone'").await.unwrap();
    undone.rollback().await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    sqlx::query("select pg_notify($1, $2)").bind("News").bind("done").execute(&mut *tx).await.unwrap();
    assert!(timeout(SILENCE, listener.recv()).await.is_err());
    tx.commit().await.unwrap();
    let first = listener.recv().await.unwrap();
    assert_eq!((script.listeners("News"), script.listeners("news")), (1, 0));
    script.notify("news", "to nobody");
    script.notify("News", "from outside");
    let second = listener.recv().await.unwrap();

    assert_eq!((first.channel(), first.payload()), ("News", "done"));
    assert_eq!(second.payload(), "from outside");
    script.finish();
}

#[tokio::test]
async fn notices_and_notifications_come_ahead_of_an_answer() {
    let reply = Reply::tag("SELECT 0").notice("be careful").notification("chan", "hello");
    let script = Script::start([Rule::statement("select noisy").reply(reply)]).unwrap();

    let mut listener = PgListener::connect(&script.url()).await.unwrap();

    listener.execute("select noisy").await.unwrap();

    let heard = listener.recv().await.unwrap();
    assert_eq!((heard.channel(), heard.payload()), ("chan", "hello"));
    drop(listener);
    script.finish();
}

#[tokio::test]
async fn a_query_that_is_fetched_row_by_row_goes_on_where_it_was() {
    let rows = (0..100).fold(Rows::new(["n"]), |rows, n: i32| rows.row((n,)));
    let script = Script::start([Rule::statement("select n").reply(rows)]).unwrap();
    let mut connection = connect(&script).await;

    let first: Option<i32> = sqlx::query_scalar("select n").fetch_optional(&mut connection).await.unwrap();
    let all: Vec<i32> = sqlx::query_scalar("select n").fetch_all(&mut connection).await.unwrap();

    assert_eq!(first, Some(0));
    assert_eq!(all, (0..100).collect::<Vec<_>>());
    script.finish();
}

#[tokio::test]
async fn a_message_that_a_script_does_not_know_ends_its_session_and_fails_nothing() {
    let script = Script::start([]).unwrap();
    // A length of four is an empty message. The first letter is that of a piece of a COPY, the second one of no message.
    for (message, answer) in [(b"d\0\0\0\x04", "08P01"), (b"!\0\0\0\x04", "")] {
        let mut client = std::net::TcpStream::connect(("127.0.0.1", script.options().get_port())).unwrap();

        client.write_all(b"\0\0\0\x11\0\x03\0\0user\0me\0\0").unwrap();
        client.write_all(message).unwrap();

        let mut answers = Vec::new();
        client.read_to_end(&mut answers).unwrap();
        assert!(String::from_utf8_lossy(&answers).contains(answer), "{answers:?}");
    }
    until("both have ended", async || script.open_sessions() == 0).await;
    assert_eq!(script.accepted(), 2);
    script.finish();
}

#[tokio::test]
async fn columns_that_differ_from_the_described_ones_are_named() {
    // The rules overlap by their texts, which is seen only when a statement comes.
    let script = Script::start([
        Rule::beginning("select n").bound((1_i32,)).reply(Rows::new(["n"]).row((1_i32,))),
        Rule::containing("from t").reply(Rows::new(["n"]).row((2_i64,))),
    ])
    .unwrap();
    let mut connection = connect(&script).await;
    let mut ask = async |id: i32| {
        let query = sqlx::query("select n from t where id = $1").bind(id);
        query.fetch_one(&mut connection).await
    };

    ask(1).await.unwrap();
    let refused = ask(2).await.unwrap_err();

    assert_eq!(code(&refused), "TK000");
    let expected = "rule 2 answers with the columns";
    assert!(refused.to_string().contains(expected), "{refused}");
    assert!(failure(script).contains(expected));
}

#[tokio::test]
async fn a_type_whose_text_is_not_known_is_readable_by_a_prepared_statement_only() {
    let noon = Time::from_hms(12, 0, 0).unwrap();
    let script =
        Script::start([Rule::statement("select noon").reply(Rows::new(["noon"]).row((noon,)))]).unwrap();
    let mut connection = connect(&script).await;

    let prepared: Time = sqlx::query_scalar("select noon").fetch_one(&mut connection).await.unwrap();
    let simple = connection.fetch_one(sqlx::raw_sql("select noon")).await.unwrap_err();

    assert_eq!(prepared, noon);
    let expected = "rule 1 answers column noon with type 1083, whose text form the script does not know";
    assert!(simple.to_string().contains(expected), "{simple}");
    assert!(failure(script).contains(expected));
}

#[tokio::test]
async fn a_value_of_another_type_than_is_read_is_the_drivers_error() {
    let script =
        Script::start([Rule::statement("select n").reply(Rows::new(["n"]).row(("seven",)))]).unwrap();

    let read = sqlx::query_scalar::<_, i64>("select n").fetch_one(&mut connect(&script).await).await;

    assert!(matches!(read, Err(sqlx::Error::ColumnDecode { .. })), "{read:?}");
    script.finish();
}
