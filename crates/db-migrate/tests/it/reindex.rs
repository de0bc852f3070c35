//! Blind indexes whose key changes while others read and write.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use db_core::encryption::{BlindIndex, Column, Columns, KeyType, Keyring};
use db_migrate::batches::Pace;
use db_migrate::rekey::Reindex;
use db_testkit::{TestDb, until};
use sqlx::PgPool;

use crate::batches::{count, sql};
use crate::config;
use crate::rekey::{key, keyring};

/// The emails that writers insert again and again.
const EMAILS: i64 = 300;

struct People {
    email: Column<String>,
    old: BlindIndex,
    new: BlindIndex,
}

/// A column with an index under the old key, and one under the new key in a column of its own.
fn people(keyring: &Arc<Keyring>) -> People {
    let columns = Columns::default();
    let index = |stored, first| {
        columns.index("people", "email").stored_in("people", stored).unique().under(key(first).id()).build()
    };
    let people = People {
        email: columns.declare("people", "email").key("id", KeyType::BigInt).text(),
        old: index("email_index", 1),
        new: index("email_index_2", 2),
    };
    columns.unlock(keyring.clone()).expect("no keys yet");
    people
}

fn reindex(people: &People, index: &BlindIndex, keyring: &Arc<Keyring>) -> Reindex {
    Reindex::new(people.email.declared().clone(), index.clone(), keyring.clone()).pace(Pace::flat_out())
}

/// Inserts an email, and returns whether it is new.
async fn insert(pool: &PgPool, people: &People, email: &str, also_new: bool) -> Result<bool, sqlx::Error> {
    let id: i64 = sqlx::query_scalar("select nextval('people_id')").fetch_one(pool).await?;
    let inserted =
        sqlx::query("insert into people (id, email, email_index, email_index_2) values ($1, $2, $3, $4)")
            .bind(id)
            .bind(people.email.seal(id, &email.to_owned()).expect("sealed"))
            .bind(people.old.of(email).expect("a key"))
            .bind(also_new.then(|| people.new.of(email).expect("a key")))
            .execute(pool)
            .await;
    match inserted {
        Ok(_) => Ok(true),
        Err(error)
            if error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

async fn finds(pool: &PgPool, stored: &str, index: &BlindIndex, email: &str) -> bool {
    let find = format!("select count(*) from people where {stored} = any((select $1::bytea[])::bytea[])");
    let found: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(find))
        .bind(index.any(email).expect("a key"))
        .fetch_one(pool)
        .await
        .expect("looked up");
    assert!(found <= 1, "{email} is there {found} times");
    found == 1
}

#[db_testkit::test]
async fn a_unique_index_changes_its_key_while_writers_insert_duplicates(db: TestDb) {
    let (config, pool) = (config(&db), db.pool());
    let keyring = keyring(&[2, 1]);
    let people = Arc::new(people(&keyring));
    sql(&pool, "create table people (id bigint primary key, email bytea, email_index bytea unique, email_index_2 bytea)").await;
    sql(&pool, "create sequence people_id").await;
    let email = |n: i64| format!("person {n}");
    for n in 0..EMAILS / 3 {
        assert!(insert(&pool, &people, &email(n), false).await.expect("stored"), "it is new");
    }
    sql(&pool, "create unique index concurrently on people (email_index_2)").await;

    let (stop, added, refused) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let writers: Vec<_> = (0..3_i64)
        .map(|writer| {
            let (pool, people, stop) = (pool.clone(), Arc::clone(&people), Arc::clone(&stop));
            let (added, refused) = (Arc::clone(&added), Arc::clone(&refused));
            tokio::spawn(async move {
                for n in (0..).map(|turn| (turn * 7 + writer * 100) % EMAILS) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // A look-up by the old column finds each email that was inserted, at any time.
                    let was_there = finds(&pool, "email_index", &people.old, &format!("person {n}")).await;
                    let is_new = insert(&pool, &people, &format!("person {n}"), true)
                        .await
                        .expect("stored or refused");
                    assert!(!(was_there && is_new), "a duplicate of person {n}");
                    (if is_new { &added } else { &refused }).fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    until("writers insert and are refused", async || {
        added.load(Ordering::Relaxed) > 20 && refused.load(Ordering::Relaxed) > 20
    })
    .await;

    let fill = reindex(&people, &people.new, &keyring);
    let run = tokio::time::timeout(Duration::from_mins(1), fill.run(&config, pending())).await;
    let report = run.expect("in time").expect("filled");

    until("each email was inserted", async || {
        added.load(Ordering::Relaxed) >= u32::try_from(EMAILS - EMAILS / 3).expect("few")
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("no duplicate");
    }
    assert!(report.is_finished && report.refused == 0 && report.written >= 1, "{report:?}");
    assert_eq!(count(&pool, "select count(*) from people").await, EMAILS);
    assert_eq!(count(&pool, "select count(*) from people where email_index_2 is null").await, 0);
    // Swapped and dropped.
    sql(&pool, "alter table people drop column email_index").await;
    for n in 0..EMAILS {
        assert!(finds(&pool, "email_index_2", &people.new, &email(n)).await, "person {n}");
    }
}

#[db_testkit::test]
async fn an_index_that_follows_the_primary_key_is_filled_anew_and_found_throughout(db: TestDb) {
    let (config, pool) = (config(&db), db.pool());
    sql(&pool, "create table people (id bigint primary key, email bytea, email_index bytea)").await;
    let under = |keys: &[u8]| {
        let (columns, keyring) = (Columns::default(), keyring(keys));
        let email: Column<String> = columns.declare("people", "email").key("id", KeyType::BigInt).text();
        let index = columns.index("people", "email").stored_in("people", "email_index").build();
        columns.unlock(keyring.clone()).expect("no keys yet");
        (email, index, keyring)
    };
    let (email, before, _) = under(&[1]);
    for id in 1..=50_i64 {
        let text = format!("person {id}");
        sqlx::query("insert into people values ($1, $2, $3)")
            .bind(id)
            .bind(email.seal(id, &text).expect("sealed"))
            .bind(before.of(&text).expect("a key"))
            .execute(&pool)
            .await
            .expect("stored");
    }
    sql(&pool, "insert into people values (51, null, '\\x00'), (52, 'plain', null)").await;

    let (email, index, keyring) = under(&[2, 1]);
    assert!(finds(&pool, "email_index", &index, "person 7").await, "under the old key");
    let fill = Reindex::new(email.declared().clone(), index.clone(), keyring).pace(Pace::flat_out());
    let report = fill.run(&config, pending()).await.expect("filled");

    assert_eq!((report.written, report.refused), (51, 1), "{report:?}");
    let (_, alone, _) = under(&[2]);
    for id in 1..=50 {
        assert!(finds(&pool, "email_index", &alone, &format!("person {id}")).await, "person {id}");
    }
    assert_eq!(fill.run(&config, pending()).await.expect("nothing to do").written, 0);
}
