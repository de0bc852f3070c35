//! What `SeaORM` shows of its transactions, on a handle and inside one of ours: committed, rolled back, dropped, nested, by closures, with
//! options.

use std::time::{Duration, Instant};

use db_core::{Error, Pool};
use db_testkit::TestDb;
use orm::cakes::bakery;
use sea_orm::ActiveValue::Set;
use sea_orm::prelude::*;
use sea_orm::{AccessMode, IsolationLevel, TransactionError, TransactionOptions, TransactionTrait};

use crate::support;

async fn open(db: &impl ConnectionTrait, name: &str) -> Result<(), DbErr> {
    bakery::ActiveModel { name: Set(name.to_owned()), ..Default::default() }.insert(db).await?;
    Ok(())
}

async fn count(db: &impl ConnectionTrait) -> Result<u64, DbErr> {
    bakery::Entity::find().count(db).await
}

/// Begun by hand.
async fn by_hand<C: TransactionTrait + ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    use sea_orm::TransactionSession;

    let kept = db.begin().await?;
    open(&kept, "kept").await?;
    kept.commit().await?;
    assert_eq!(count(db).await?, 1, "committed");

    let undone = db.begin().await?;
    open(&undone, "undone").await?;
    assert_eq!(count(&undone).await?, 2);
    undone.rollback().await?;
    assert_eq!(count(db).await?, 1, "rolled back");

    {
        let dropped = db.begin().await?;
        open(&dropped, "dropped").await?;
        assert_eq!(count(&dropped).await?, 2);
    }
    assert_eq!(count(db).await?, 1, "dropped");
    Ok(())
}

/// Begun while another one that was dropped is still to be undone.
async fn after_a_drop<C: TransactionTrait + ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    use sea_orm::TransactionSession;

    let dropped = db.begin().await?;
    open(&dropped, "dropped").await?;
    drop(dropped);
    let kept = db.begin().await?;
    open(&kept, "kept").await?;
    kept.commit().await?;
    assert_eq!(count(db).await?, 7);
    Ok(())
}

/// By closures, which commit on `Ok` and undo on `Err`.
async fn by_closures<C: TransactionTrait + ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let name = "closed over".to_owned();
    db.transaction::<_, _, DbErr>(|tx| {
        Box::pin(async move {
            open(tx, &name).await?;
            assert_eq!(count(tx).await?, 2);
            Ok(())
        })
    })
    .await
    .expect("committed");

    let failed = db
        .transaction::<_, (), DbErr>(|tx| {
            Box::pin(async move {
                open(tx, "undone").await?;
                Err(DbErr::Custom("enough".to_owned()))
            })
        })
        .await;
    assert!(
        matches!(&failed, Err(TransactionError::Transaction(DbErr::Custom(said))) if said == "enough"),
        "{failed:?}"
    );
    assert_eq!(count(db).await?, 2);
    Ok(())
}

/// Several levels, of which some are undone.
async fn nested<C: TransactionTrait + ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    use sea_orm::TransactionSession;

    let outer = db.begin().await?;
    open(&outer, "outer").await?;
    {
        let kept = outer.begin().await?;
        open(&kept, "inner").await?;
        let undone = kept.begin().await?;
        open(&undone, "innermost, undone").await?;
        assert_eq!(count(&undone).await?, 5);
        undone.rollback().await?;
        let dropped = kept.begin().await?;
        open(&dropped, "innermost, dropped").await?;
        drop(dropped);
        let innermost = kept.begin().await?;
        open(&innermost, "innermost, kept").await?;
        innermost.commit().await?;
        assert_eq!(count(&kept).await?, 5);
        kept.commit().await?;
    }
    {
        let undone = outer.begin().await?;
        open(&undone, "inner, undone").await?;
        let kept_in_vain = undone.begin().await?;
        open(&kept_in_vain, "innermost, in vain").await?;
        kept_in_vain.commit().await?;
        assert_eq!(count(&undone).await?, 7);
        undone.rollback().await?;
    }
    assert_eq!(count(&outer).await?, 5);
    outer.commit().await?;
    assert_eq!(count(db).await?, 5);
    Ok(())
}

/// A statement that fails in an inner one leaves the outer one as it was.
async fn failing<C: TransactionTrait + ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    use sea_orm::TransactionSession;

    let outer = db.begin().await?;
    let inner = outer.begin().await?;
    let twice = bakery::ActiveModel { id: Set(1), name: Set("again".to_owned()) };
    let refused = twice.insert(&inner).await.expect_err("there is one of that id");
    assert!(matches!(refused.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))), "{refused:?}");
    drop(inner);
    open(&outer, "after a failure").await?;
    outer.commit().await?;
    assert_eq!(count(db).await?, 6);
    Ok(())
}

async fn all_of_it<C: TransactionTrait + ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    by_hand(db).await?;
    by_closures(db).await?;
    nested(db).await?;
    failing(db).await?;
    after_a_drop(db).await
}

async fn tables(db: &TestDb, max: u32) -> Pool {
    support::bakery(db, max).await
}

#[db_testkit::test]
async fn transactions_of_a_handle_end_as_those_of_sea_orm_do(db: TestDb) {
    let pool = tables(&db, 2).await;

    all_of_it(&pool.handle().orm()).await.expect("all of it");
}

#[db_testkit::test]
async fn transactions_inside_of_ours_end_as_those_of_sea_orm_do(db: TestDb) {
    let pool = tables(&db, 1).await;

    pool.handle().tx(async |tx| Ok::<_, Error>(all_of_it(&tx.orm()).await?)).await.expect("committed");

    assert_eq!(support::count(pool.handle(), "bakery").await, 7);
}

#[db_testkit::test]
async fn transactions_of_a_connection_end_as_those_of_sea_orm_do(db: TestDb) {
    let pool = tables(&db, 2).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");

    all_of_it(&conn.orm()).await.expect("all of it");
}

#[db_testkit::test]
async fn transactions_of_sea_orms_own_connection_on_the_reserve_end_in_the_same_way(db: TestDb) {
    let pool = tables(&db, 4).await;

    all_of_it(&pool.sea_orm()).await.expect("all of it");
}

#[db_testkit::test]
async fn a_closure_that_fails_rolls_back_itself_and_needs_no_repair(db: TestDb) {
    let pool = tables(&db, 1).await;

    let failed = pool
        .handle()
        .orm()
        .transaction_async::<_, (), DbErr>(async |tx| {
            open(tx, "undone").await?;
            Err(DbErr::Custom("enough".to_owned()))
        })
        .await;

    assert!(matches!(failed, Err(TransactionError::Transaction(_))), "{failed:?}");
    assert_eq!(support::count(pool.handle(), "bakery").await, 0);
    assert_eq!(pool.stats().totals.repaired, 0, "{:?}", pool.stats());
}

#[db_testkit::test]
async fn a_transaction_has_the_isolation_and_the_access_that_it_is_begun_with(db: TestDb) {
    let pool = tables(&db, 1).await;
    let orm = pool.handle().orm();

    let levels = [
        (IsolationLevel::ReadUncommitted, "read committed"),
        (IsolationLevel::ReadCommitted, "read committed"),
        (IsolationLevel::RepeatableRead, "repeatable read"),
        (IsolationLevel::Serializable, "serializable"),
    ];
    for (level, name) in levels {
        for (access, read_only) in [(AccessMode::ReadOnly, "on"), (AccessMode::ReadWrite, "off")] {
            let options = TransactionOptions {
                isolation_level: Some(level),
                access_mode: Some(access),
                ..TransactionOptions::default()
            };
            let tx = orm.begin_with_options(options).await.expect("begun");
            let mut session = tx.session().await.expect("its session");
            let sql =
                "select current_setting('transaction_isolation'), current_setting('transaction_read_only')";
            let found: (String, String) =
                sqlx::query_as(sql).fetch_one(&mut *session).await.expect("an answer");
            assert_eq!((found.0.as_str(), found.1.as_str()), (name, read_only));
            drop(session);
            tx.rollback().await.expect("rolled back");
        }
    }
}

#[db_testkit::test]
async fn a_savepoint_may_read_only_and_has_the_isolation_of_its_transaction(db: TestDb) {
    let pool = tables(&db, 1).await;
    let tx = pool.handle().orm().begin().await.expect("begun");

    let reads = tx.begin_with_config(None, Some(AccessMode::ReadOnly)).await.expect("a savepoint");
    let refused = Error::from(open(&reads, "refused").await.expect_err("it only reads"));
    assert_eq!(refused.sqlstate().as_deref(), Some("25006"));
    reads.rollback().await.expect("undone");
    let other = tx.begin_with_config(Some(IsolationLevel::Serializable), None).await.expect_err("too late");
    assert_eq!(Error::from(other).sqlstate().as_deref(), Some("25001"));
    open(&tx, "goes on").await.expect("an insert");
    tx.commit().await.expect("committed");

    assert_eq!(support::count(pool.handle(), "bakery").await, 1);
}

#[db_testkit::test]
async fn a_transaction_begun_to_write_does_so_for_a_role_that_reads_only_by_default(db: TestDb) {
    let pool = tables(&db, 2).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");
    sqlx::query("set default_transaction_read_only = on").execute(&mut conn).await.expect("set");
    let orm = conn.orm();

    let reads = orm.begin().await.expect("begun");
    open(&reads, "refused").await.expect_err("it only reads");
    reads.rollback().await.expect("rolled back");
    let writes = orm.begin_with_config(None, Some(AccessMode::ReadWrite)).await.expect("begun");
    open(&writes, "taken").await.expect("an insert");
    writes.commit().await.expect("committed");

    assert_eq!(support::count(pool.handle(), "bakery").await, 1);
}

#[db_testkit::test]
async fn the_deadline_of_a_handle_counts_in_a_transaction_and_again_after_it(db: TestDb) {
    let pool = tables(&db, 1).await;
    let soon = Instant::now() + Duration::from_secs(1);
    let mut conn = pool.handle().deadline(soon).acquire().await.expect("a connection");
    let orm = conn.orm();
    let kept = orm.begin().await.expect("begun");
    open(&kept, "kept").await.expect("in time");
    kept.commit().await.expect("committed");
    let late = orm.begin().await.expect("begun");
    let is_callers =
        |error: DbErr| matches!(Error::from(error), Error::Deadline(error) if error.is_callers());

    tokio::time::sleep_until(soon.into()).await;

    assert!(is_callers(open(&late, "late").await.expect_err("in a transaction")));
    drop(late);
    assert!(is_callers(open(&orm, "late").await.expect_err("after the last one")));
    drop(orm);
    drop(conn);
    assert_eq!(support::count(pool.handle(), "bakery").await, 1);
}
