//! The page, asked by a client as a browser would.

use db_testkit::TestDb;
use reqwest::{Client, Response, StatusCode};

struct Page {
    client: Client,
    address: String,
}

impl Page {
    async fn open(db: &TestDb) -> Self {
        let config = db_layer::Config::from_url(&db.url()).expect("the test database's address");
        let db = db_layer::open(db_layer::Options::new(config)).await.expect("opened");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, admin::router(db)).await });
        Self { client: Client::new(), address }
    }

    async fn get(&self, path: &str) -> String {
        let answer = self.client.get(format!("{}{path}", self.address)).send().await.expect("an answer");
        answer.text().await.expect("a text")
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Response {
        self.client.post(format!("{}{path}", self.address)).form(form).send().await.expect("an answer")
    }
}

#[db_testkit::test(migrations = "migrations")]
async fn a_book_is_added_with_its_copies_and_edited_and_each_is_noted(db: TestDb) {
    let page = Page::open(&db).await;

    let form = [("title", "Emma & <Co>"), ("author", "Jane Austen"), ("shelves", "A1, A2")];
    let added = page.post("/", &form).await.text().await.expect("a text");
    assert!(added.contains("<h1>Emma &amp; &lt;Co></h1>"), "{added}");
    assert!(added.contains("On shelf A1") && added.contains("On shelf A2"), "{added}");
    let edited =
        page.post("/1", &[("title", "Emma"), ("author", "Jane Austen")]).await.text().await.expect("a text");
    assert!(edited.contains("<h1>Emma</h1>"), "{edited}");

    let changes: Vec<String> = sqlx::query_scalar("select what from change order by id")
        .fetch_all(&db.pool())
        .await
        .expect("the changes");
    assert_eq!(changes, ["added", "was Emma & <Co> by Jane Austen"]);
}

#[db_testkit::test(migrations = "migrations")]
async fn a_book_with_a_copy_whose_shelf_is_taken_is_not_added_at_all(db: TestDb) {
    let page = Page::open(&db).await;
    page.post("/", &[("title", "Emma"), ("author", "Jane Austen"), ("shelves", "A1")]).await;

    let refused =
        page.post("/", &[("title", "Ivanhoe"), ("author", "Walter Scott"), ("shelves", "B1, A1")]).await;

    assert_eq!(refused.status(), StatusCode::CONFLICT);
    for (table, rows) in [("book", 1), ("copy", 1), ("change", 1)] {
        let sql = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
        let found: i64 = sqlx::query_scalar(sql).fetch_one(&db.pool()).await.expect("a count");
        assert_eq!(found, rows, "{table}");
    }
}

#[db_testkit::test(migrations = "migrations")]
async fn books_are_searched_for_and_shown_page_by_page(db: TestDb) {
    let page = Page::open(&db).await;
    let sql = "insert into book (title, author) select 'Volume ' || to_char(n, 'fm00'), 'Nobody' from generate_series(1, 25) n";
    sqlx::query(sql).execute(&db.pool()).await.expect("books");

    let first = page.get("/").await;
    assert!(
        first.contains("Volume 01") && first.contains("Volume 10") && !first.contains("Volume 11"),
        "{first}"
    );
    let last = page.get("/?page=3").await;
    assert!(last.contains("Page 3 of 3") && last.contains("Volume 25") && !last.contains("After"), "{last}");
    let found = page.get("/?search=e+2").await;
    assert!(
        found.contains("Volume 20") && found.contains("Page 1 of 1") && !found.contains("Volume 19"),
        "{found}"
    );
    let beyond = page.get("/?page=99").await;
    assert!(beyond.contains("Page 3 of 3"), "{beyond}");
}

#[db_testkit::test(migrations = "migrations")]
async fn the_next_page_has_the_same_search(db: TestDb) {
    let page = Page::open(&db).await;
    let sql = "insert into book (title, author) select 'R&D ' || n, 'Nobody' from generate_series(1, 12) n";
    sqlx::query(sql).execute(&db.pool()).await.expect("books");

    let first = page.get("/?search=R%26D").await;

    let (_, link) = first.split_once("<a href=\"/?").expect("a link to the next page");
    let (link, _) = link.split_once('"').expect("its end");
    let second = page.get(&format!("/?{}", link.replace("&amp;", "&"))).await;
    assert!(second.contains("value=\"R&amp;D\"") && second.contains("Page 2 of 2"), "{link}: {second}");
}

#[db_testkit::test(migrations = "migrations")]
async fn a_book_that_is_not_there_is_not_found(db: TestDb) {
    let page = Page::open(&db).await;

    let shown = page.client.get(format!("{}/1", page.address)).send().await.expect("an answer");
    let edited = page.post("/1", &[("title", "Emma"), ("author", "Jane Austen")]).await;

    assert_eq!([shown.status(), edited.status()], [StatusCode::NOT_FOUND; 2]);
}
