use db_testkit::TestDb;

#[db_testkit::test]
async fn a_row_is_read_back(db: TestDb) -> Result<(), sqlx::Error> {
    sqlx::query("create table word (t text)").execute(&db.pool()).await?;
    sqlx::query("insert into word values ('hello')").execute(&db.pool()).await?;

    let word: String = sqlx::query_scalar("select t from word").fetch_one(&db.pool()).await?;

    assert_eq!(word, "hello");
    Ok(())
}
