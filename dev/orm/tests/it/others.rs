//! Other libraries on sqlx, on our executors, as the guide shows them.

use db_core::{Config, Error, Pool, PoolOptions};
use db_testkit::TestDb;
use ormlite::Model;
use sea_query::{Expr, ExprTrait, Order, PostgresQueryBuilder, Query};
use sea_query_sqlx::SqlxBinder;
use sqlx::AssertSqlSafe;
use sqlx_conditional_queries::conditional_query_as;

#[derive(Debug, Model)]
#[ormlite(table = "shop")]
struct Shop {
    id: i32,
    name: String,
}

async fn shops(db: &TestDb) -> Pool {
    let config = Config::from_url(&db.url()).expect("the test database's address");
    let pool = Pool::new(&config, PoolOptions::api().max(1));
    let sql = "create table shop (id int4 primary key, name text not null)";
    sqlx::query(sql).execute(pool.handle()).await.expect("a table");
    pool
}

#[db_testkit::test]
async fn statements_that_sea_query_builds_run_on_a_handle_and_in_a_transaction(db: TestDb) {
    let pool = shops(&db).await;

    pool.handle()
        .tx(async |tx| {
            let (sql, values) = Query::insert()
                .into_table("shop")
                .columns(["id", "name"])
                .values_panic([1.into(), "Tea".into()])
                .values_panic([2.into(), "Coffee".into()])
                .build_sqlx(PostgresQueryBuilder);
            sqlx::query_with(AssertSqlSafe(sql), values).execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await
        .expect("committed");
    let (sql, values) = Query::select()
        .column("name")
        .from("shop")
        .and_where(Expr::col("id").gt(0))
        .order_by("name", Order::Asc)
        .build_sqlx(PostgresQueryBuilder);
    let names: Vec<String> =
        sqlx::query_scalar_with(AssertSqlSafe(sql), values).fetch_all(pool.handle()).await.expect("names");

    assert_eq!(names, ["Coffee", "Tea"]);
}

#[db_testkit::test]
async fn ormlite_reads_and_changes_on_our_executors_and_inserts_on_the_connection_that_is_lent(db: TestDb) {
    let pool = shops(&db).await;

    let name = pool
        .handle()
        .tx(async |tx| {
            let shop = Shop { id: 1, name: "Tea".to_owned() };
            shop.insert(tx.as_sqlx_without_reset().await?).await.expect("inserted");
            let mut shop = Shop::fetch_one(1, &mut *tx).await.expect("found");
            shop.name.push('!');
            let shop = shop.update_all_fields(&mut *tx).await.expect("updated");
            Ok::<_, Error>(shop.name)
        })
        .await
        .expect("committed");

    assert_eq!(name, "Tea!");
    let found =
        Shop::select().where_("name = $1").bind("Tea!").fetch_all(pool.handle()).await.expect("found");
    assert_eq!(found.len(), 1);
}

struct Number {
    n: i32,
}

#[db_testkit::test]
async fn conditional_queries_that_are_checked_at_compile_time_run_on_a_handle(db: TestDb) {
    let pool = shops(&db).await;

    let mut found = Vec::new();
    for is_ascending in [true, false] {
        let last = 3;
        let numbers = conditional_query_as!(
            Number,
            r#"select n as "n!" from generate_series(1, {last}) n order by n {#order}"#,
            #order = match is_ascending {
                true => "asc",
                false => "desc",
            },
        );
        let numbers: Vec<Number> = numbers.fetch_all(pool.handle()).await.expect("numbers");
        found.push(numbers.iter().map(|number| number.n).collect::<Vec<_>>());
    }

    assert_eq!(found, [[1, 2, 3], [3, 2, 1]]);
}
