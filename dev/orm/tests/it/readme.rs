//! The README of `SeaORM`, from the first example to the last, on a handle's `orm()` and on that of a transaction. `raw_sql!` names PostgreSQL
//! here. The schema registry runs on `pool.sea_orm()`: it asks for a trait of sea-schema, which `SeaORM` implements for its own connections
//! only. The synchronous crate has another driver.

use db_core::Error;
use db_testkit::TestDb;
use orm::blog::{bob, post, profile, tag, user};
use orm::cakes::{bakery, cake, cake_filling, filling, fruit};
use sea_orm::ActiveValue::{NotSet, Set, Unchanged};
use sea_orm::prelude::*;
use sea_orm::{
    DerivePartialModel, EntityLoaderTrait, FromQueryResult, StreamTrait, TransactionTrait, TryInsertResult,
    raw_sql,
};

use crate::support;

struct Item<'a> {
    name: &'a str,
}

/// Users, profiles, posts and tags.
async fn first_half<C: TransactionTrait + ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let saved = bob("bob@sea-ql.org").save(db).await?;
    assert_eq!(saved.id, Unchanged(1));

    let user = user::Entity::load()
        .filter_by_id(1)
        .with(profile::Entity)
        .with((post::Entity, tag::Entity))
        .one(db)
        .await?
        .expect("Bob");
    assert_eq!((user.name.as_str(), user.email.as_str()), ("Bob", "bob@sea-ql.org"));
    assert_eq!(user.profile.as_ref().expect("a profile").picture, "image.jpg");
    assert_eq!(user.posts[0].title, "Nice weather");
    assert_eq!(user.posts[0].tags[0].tag, "sunny for bob@sea-ql.org");

    let user = Item { name: "Bob" };
    let ids = [1, 2, 3];
    let found: Option<user::Model> = user::Entity::find()
        .from_raw_sql(raw_sql!(
            Postgres,
            r#"SELECT "id", "name", "email" FROM "user"
               WHERE "name" LIKE {user.name}
               AND "id" in ({..ids})
            "#
        ))
        .one(db)
        .await?;
    assert_eq!(found.map(|user| user.id), Some(1));

    let gone = user::Entity::load().filter_by_id(1).one(db).await?.expect("Bob").delete(db).await?;
    assert_eq!(gone.rows_affected, 4, "user, profile, post and the tag's link");
    Ok(())
}

#[derive(Debug, DerivePartialModel)]
#[sea_orm(entity = "cake::Entity")]
struct CakeWithFruit {
    id: i32,
    name: String,
    #[sea_orm(nested)]
    fruit: Option<fruit::Model>,
}

#[derive(Debug, FromQueryResult)]
struct CakeWithBakery {
    name: String,
    #[sea_orm(nested)]
    bakery: Option<Bakery>,
}

#[derive(Debug, FromQueryResult)]
struct Bakery {
    #[sea_orm(alias = "bakery_name")]
    name: String,
}

/// Selects, inserts, updates, saves and deletes of cakes.
async fn second_half<C: TransactionTrait + ConnectionTrait + StreamTrait>(db: &C) -> Result<(), DbErr> {
    insert(db).await?;
    select(db).await?;
    update_and_save(db).await?;
    delete(db).await
}

async fn insert<C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let bakery =
        bakery::ActiveModel { name: Set("Seaside".to_owned()), ..Default::default() }.insert(db).await?;
    for name in ["Cheese", "Chocolate"] {
        let cake = cake::ActiveModel {
            name: Set(name.to_owned()),
            bakery_id: Set(Some(bakery.id)),
            ..Default::default()
        };
        cake.insert(db).await?;
    }
    let filling =
        filling::ActiveModel { name: Set("Cream".to_owned()), ..Default::default() }.insert(db).await?;
    cake_filling::ActiveModel { cake_id: Set(1), filling_id: Set(filling.id) }.insert(db).await?;

    let [apple, pear] = ["Apple", "Pear"].map(|name| fruit::ActiveModel {
        name: Set(name.to_owned()),
        cake_id: Set(Some(1)),
        ..Default::default()
    });
    assert_eq!(apple.clone().insert(db).await?.id, 1);
    assert_eq!(fruit::Entity::insert(apple.clone()).exec(db).await?.last_insert_id, 2);
    let many = fruit::Entity::insert_many([apple.clone(), pear.clone()]).exec(db).await?;
    assert_eq!(many.last_insert_id, Some(4));
    let models = fruit::Entity::insert_many([apple, pear]).exec_with_returning(db).await?;
    assert_eq!(models.iter().map(|fruit| fruit.name.as_str()).collect::<Vec<_>>(), ["Apple", "Pear"]);

    let again = bakery::ActiveModel { id: Set(1), name: Set("Seaside".to_owned()) };
    let result = bakery::Entity::insert_many([again]).on_conflict_do_nothing().exec(db).await?;
    assert!(matches!(result, TryInsertResult::Conflicted), "{result:?}");
    Ok(())
}

async fn select<C: ConnectionTrait + StreamTrait>(db: &C) -> Result<(), DbErr> {
    assert_eq!(cake::Entity::find().all(db).await?.len(), 2);
    let chocolate = cake::Entity::find().filter(cake::COLUMN.name.contains("Chocolate")).all(db).await?;
    assert_eq!(chocolate[0].id, 2);
    let cheese = cake::Entity::find_by_id(1).one(db).await?.expect("the first cake");
    let fruit = cheese.find_related(fruit::Entity).one(db).await?;
    assert!(fruit.is_some());
    let with_fruit = cake::Entity::find().find_also_related(fruit::Entity).all(db).await?;
    assert_eq!(with_fruit.len(), 7, "six with the first cake, and one row for the other");
    let with_fillings = cake::Entity::find().find_with_related(filling::Entity).all(db).await?;
    let fillings =
        |at: usize| with_fillings[at].1.iter().map(|filling| filling.name.as_str()).collect::<Vec<_>>();
    assert_eq!([fillings(0), fillings(1)], [vec!["Cream"], vec![]]);

    let cakes: Vec<CakeWithFruit> =
        cake::Entity::find().left_join(fruit::Entity).into_partial_model().all(db).await?;
    assert_eq!(
        cakes.iter().filter(|cake| cake.id == 1 && cake.name == "Cheese" && cake.fruit.is_some()).count(),
        6
    );

    let cake_ids = [1, 2, 3];
    let cake: CakeWithBakery = CakeWithBakery::find_by_statement(raw_sql!(
        Postgres,
        r#"SELECT "cake"."name", "bakery"."name" AS "bakery_name"
           FROM "cake"
           LEFT JOIN "bakery" ON "cake"."bakery_id" = "bakery"."id"
           WHERE "cake"."id" IN ({..cake_ids}) ORDER BY "cake"."id""#
    ))
    .one(db)
    .await?
    .expect("a cake");
    assert_eq!((cake.name.as_str(), cake.bakery.expect("its bakery").name.as_str()), ("Cheese", "Seaside"));

    let mut names = fruit::Entity::find().stream(db).await?;
    let mut streamed = 0;
    while futures_util::TryStreamExt::try_next(&mut names).await?.is_some() {
        streamed += 1;
    }
    drop(names);
    assert_eq!(streamed, 6);
    let mut pages = fruit::Entity::find().paginate(db, 4);
    assert_eq!(pages.num_pages().await?, 2);
    assert_eq!(pages.fetch_and_next().await?.expect("a page").len(), 4);
    Ok(())
}

async fn update_and_save<C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let pear = fruit::Entity::find().filter(fruit::COLUMN.name.eq("Pear")).one(db).await?;
    let mut pear: fruit::ActiveModel = pear.expect("a pear").into();
    pear.name = Set("Sweet pear".to_owned());
    assert_eq!(pear.update(db).await?.name, "Sweet pear");
    fruit::Entity::update_many()
        .col_expr(fruit::COLUMN.cake_id, fruit::COLUMN.cake_id.add(1))
        .filter(fruit::COLUMN.name.contains("Apple"))
        .exec(db)
        .await?;
    assert_eq!(fruit::Entity::find().filter(fruit::COLUMN.cake_id.eq(2)).all(db).await?.len(), 4);

    let banana = fruit::ActiveModel { id: NotSet, name: Set("Banana".to_owned()), ..Default::default() };
    let mut banana = banana.save(db).await?;
    assert_eq!(banana.id, Unchanged(7));
    banana.name = Set("Banana Mongo".to_owned());
    assert_eq!(banana.save(db).await?.name, Unchanged("Banana Mongo".to_owned()));
    Ok(())
}

async fn delete<C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let first = fruit::Entity::find_by_id(1).one(db).await?.expect("the first fruit");
    first.delete(db).await?;
    let second = fruit::ActiveModel { id: Set(2), ..Default::default() };
    fruit::Entity::delete(second).exec(db).await?;
    let rest = fruit::Entity::delete_many().filter(fruit::COLUMN.name.contains("Apple")).exec(db).await?;
    assert_eq!(rest.rows_affected, 2);
    Ok(())
}

#[db_testkit::test]
async fn the_graph_of_the_readme_is_saved_loaded_and_deleted_by_a_handle(db: TestDb) {
    let pool = support::blog(&db, 1).await;

    first_half(&pool.handle().orm()).await.expect("all of it");
}

#[db_testkit::test]
async fn the_graph_of_the_readme_is_saved_loaded_and_deleted_in_a_transaction(db: TestDb) {
    let pool = support::blog(&db, 1).await;

    pool.handle().tx(async |tx| Ok::<_, Error>(first_half(&tx.orm()).await?)).await.expect("all of it");
}

#[db_testkit::test]
async fn the_cakes_of_the_readme_are_found_changed_and_deleted_by_a_handle(db: TestDb) {
    let pool = support::bakery(&db, 1).await;

    second_half(&pool.handle().orm()).await.expect("all of it");
}

#[db_testkit::test]
async fn the_cakes_of_the_readme_are_found_changed_and_deleted_in_a_transaction(db: TestDb) {
    let pool = support::bakery(&db, 1).await;

    pool.handle().tx(async |tx| Ok::<_, Error>(second_half(&tx.orm()).await?)).await.expect("all of it");
}

#[db_testkit::test]
async fn the_cakes_of_the_readme_are_found_changed_and_deleted_on_a_connection_and_in_a_savepoint(
    db: TestDb,
) {
    let pool = support::bakery(&db, 1).await;
    let mut conn = pool.handle().acquire().await.expect("a connection");

    // On a connection, the part is a transaction.
    let mut part = conn.savepoint().await.expect("a part");
    second_half(&part.orm()).await.expect("all of it");
    part.rollback().await.expect("undone");

    assert_eq!(sqlx::query_scalar("select count(*) from cake").fetch_one(&mut conn).await.ok(), Some(0_i64));
    sqlx::raw_sql("truncate bakery, cake, fruit, filling, cake_filling restart identity")
        .execute(&mut conn)
        .await
        .expect("empty");
    second_half(&conn.orm()).await.expect("all of it");
}

#[db_testkit::test]
async fn the_schema_registry_of_the_readme_makes_the_tables_and_adds_what_is_missing_on_sea_orms_own_connection(
    db: TestDb,
) {
    let pool = support::pool(&db, 1);
    let sea_orm = pool.sea_orm();

    sea_orm.get_schema_registry("orm::blog::*").sync(&sea_orm).await.expect("tables");
    sqlx::raw_sql("alter table post drop column title").execute(pool.handle()).await.expect("altered");
    sea_orm.get_schema_registry("orm::blog::*").sync(&sea_orm).await.expect("a column");

    first_half(&pool.handle().orm()).await.expect("all of it");
}
