//! Nested saves that are dropped wherever they wait.

use db_core::{Error, Pool};
use db_testkit::{TestDb, poll_then_drop, until};
use orm::blog::bob;
use tokio::task::JoinSet;

use crate::support;

const TASKS: u32 = 4;

/// Of each task.
const CANCELLED: u32 = 250;

/// Saves graphs by a handle, each dropped one wait later than the one before, until `CANCELLED` were. Returns the number of those that
/// came to their end.
async fn by_a_handle(pool: Pool, task: u32) -> u32 {
    let (mut cancelled, mut done, mut polls) = (0, 0, 0);
    while cancelled < CANCELLED {
        polls += 1;
        let orm = pool.handle().orm();
        let save = bob(&format!("{task}/{cancelled}/{done}@handle")).save(&orm);
        match poll_then_drop(save, polls).await {
            Some(saved) => {
                saved.expect("saved");
                (done, polls) = (done + 1, 0);
            }
            None => cancelled += 1,
        }
    }
    done
}

/// The same in a transaction that goes on, saves another one, and is committed.
async fn in_a_transaction(pool: Pool, task: u32) -> u32 {
    let (mut cancelled, mut done, mut polls) = (0, 0, 0);
    while cancelled < CANCELLED {
        polls += 1;
        let mut tx = pool.handle().begin().await.expect("begun");
        let orm = tx.orm();
        let save = bob(&format!("{task}/{cancelled}/{done}@transaction")).save(&orm);
        match poll_then_drop(save, polls).await {
            Some(saved) => {
                saved.expect("saved");
                (done, polls) = (done + 1, 0);
            }
            None => cancelled += 1,
        }
        sqlx::query("insert into note values (1)").execute(&mut *tx).await.expect("it goes on");
        tx.commit().await.expect("committed");
    }
    done
}

#[db_testkit::test]
async fn two_thousand_saves_that_are_dropped_at_every_wait_leave_nothing_half_done(db: TestDb) {
    let pool = support::blog(&db, TASKS).await;
    sqlx::query("create table note (n int8)").execute(pool.handle()).await.expect("a table");
    let (mut of_handles, mut of_transactions) = (JoinSet::new(), JoinSet::new());
    for task in 0..TASKS {
        of_handles.spawn(by_a_handle(pool.clone(), task));
        of_transactions.spawn(in_a_transaction(pool.clone(), task));
    }
    let by_handles: u32 = of_handles.join_all().await.into_iter().sum();
    let in_transactions: u32 = of_transactions.join_all().await.into_iter().sum();

    until("all connections are back", async || {
        let stats = pool.stats();
        stats.in_use == 0 && stats.repairing == 0 && stats.waiting == 0
    })
    .await;
    assert!(by_handles > 0 && in_transactions > 0, "{by_handles} and {in_transactions} came to their end");
    let users = support::count(pool.handle(), "user").await;
    for table in ["profile", "post", "post_tag", "tag"] {
        assert_eq!(support::count(pool.handle(), table).await, users, "{table}");
    }
    let whole = r#"select count(*) from "user" u join profile on profile.user_id = u.id join post on post.user_id = u.id
                   join post_tag on post_id = post.id join tag on tag.id = tag_id and tag = 'sunny for ' || u.email"#;
    let whole: i64 = sqlx::query_scalar(whole).fetch_one(pool.handle()).await.expect("a count");
    assert_eq!(whole, users);
    // What was dropped in a transaction of ours is undone; by a handle, a commit may have been on its way.
    let kept = r#"select count(*) from "user" where email like '%@transaction'"#;
    let kept: i64 = sqlx::query_scalar(kept).fetch_one(pool.handle()).await.expect("a count");
    assert_eq!(kept, i64::from(in_transactions));
    assert_eq!(support::count(pool.handle(), "note").await, i64::from(TASKS * CANCELLED + in_transactions));
    let open: Vec<_> = db
        .sessions()
        .await
        .expect("the sessions")
        .into_iter()
        .filter(db_testkit::Session::is_in_transaction)
        .collect();
    assert!(open.is_empty(), "{open:?}");
    let mut conns = Vec::new();
    for _ in 0..TASKS {
        conns.push(pool.handle().acquire().await.expect("no slot is stuck"));
    }
}

#[db_testkit::test]
async fn a_begin_and_a_commit_that_are_dropped_at_every_wait_leave_the_session_as_it_was(db: TestDb) {
    use sea_orm::{ConnectionTrait, TransactionTrait};
    let pool = support::pool(&db, 1);
    sqlx::query("create table note (n int8)").execute(pool.handle()).await.expect("a table");
    let mut conn = pool.handle().acquire().await.expect("a connection");

    for polls in 1.. {
        let orm = conn.orm();
        let work = async {
            let whole = orm.begin().await?;
            whole.execute_unprepared("insert into note values (1)").await?;
            let part = whole.begin().await?;
            part.execute_unprepared("insert into note values (2)").await?;
            part.commit().await?;
            whole.rollback().await?;
            Ok::<_, Error>(())
        };
        let done = poll_then_drop(work, polls).await;
        let notes: i64 =
            sqlx::query_scalar("select count(*) from note").fetch_one(&mut conn).await.expect("a count");
        assert_eq!(notes, 0, "after {polls} polls");
        let in_transaction: bool = sqlx::query_scalar("select pg_current_xact_id_if_assigned() is not null")
            .fetch_one(&mut conn)
            .await
            .expect("an answer");
        assert!(!in_transaction, "after {polls} polls");
        if let Some(done) = done {
            done.expect("all of it");
            break;
        }
    }
}
