//! An admin page for the books of a library: it lists, filters, pages, adds and edits.
//!
//! The tables are read and written through `SeaORM`, on the connections of `db-layer`. What is changed is noted in the table `change`, by
//! sqlx, in the same transaction.
#![expect(
    missing_docs,
    reason = "entities are their columns, and the derive macros write code without documentation"
)]

use axum::Router;
use axum::extract::{Form, Path, Query, State};
use axum::response::{Html, Redirect};
use axum::routing::get;
use db_layer::{Db, Session};
use sea_orm::ActiveValue::Set;
use sea_orm::prelude::*;
use sea_orm::{Condition, EntityLoaderTrait, QueryOrder};
use serde::Deserialize;

pub mod entities;
mod page;

use entities::{book, copy};

/// Books on a page.
const PAGE: u64 = 10;

pub fn router(db: Db) -> Router {
    Router::new().route("/", get(list).post(add)).route("/{id}", get(show).post(edit)).with_state(db)
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    search: String,
    /// Counted from 1.
    page: Option<u64>,
}

/// One page of the books whose title or author has the words that are searched for.
async fn list(
    State(db): State<Db>,
    Query(Listed { search, page }): Query<Listed>,
) -> db_axum::Result<Html<String>> {
    let orm = db.api().orm();
    let mut books = book::Entity::find().order_by_asc(book::COLUMN.title).order_by_asc(book::COLUMN.id);
    if !search.is_empty() {
        let is_meant = Condition::any()
            .add(book::COLUMN.title.contains(&search))
            .add(book::COLUMN.author.contains(&search));
        books = books.filter(is_meant);
    }
    let pages = books.paginate(&orm, PAGE);
    let last = pages.num_pages().await?.max(1);
    let page = page.unwrap_or(1).clamp(1, last);
    let books = pages.fetch_page(page - 1).await?;
    Ok(Html(page::list(&books, &search, page, last)))
}

/// A book and its copies.
async fn show(State(db): State<Db>, Path(id): Path<i32>) -> db_axum::Result<Html<String>> {
    let book = book::Entity::load().filter_by_id(id).with(copy::Entity).one(&db.api().orm()).await?;
    let book = book.ok_or_else(no_book)?;
    Ok(Html(page::book(&book)))
}

#[derive(Deserialize)]
struct Added {
    title: String,
    author: String,
    /// Of the copies, separated by commas.
    #[serde(default)]
    shelves: String,
}

/// Saves a book and its copies, all of them or none: a shelf may be taken.
async fn add(State(db): State<Db>, Form(added): Form<Added>) -> db_axum::Result<Redirect> {
    let mut book = book::ActiveModel::builder().set_title(added.title).set_author(added.author);
    for shelf in added.shelves.split(',').map(str::trim).filter(|shelf| !shelf.is_empty()) {
        book = book.add_copy(copy::ActiveModel::builder().set_shelf(shelf));
    }
    let id = db
        .api()
        .tx(async |tx| {
            let id = book.save(&tx.orm()).await?.id.unwrap();
            note(tx, id, "added").await?;
            Ok::<_, db_axum::Error>(id)
        })
        .await?;
    Ok(Redirect::to(&format!("/{id}")))
}

#[derive(Deserialize)]
struct Edited {
    title: String,
    author: String,
}

/// Changes what is different, and notes it.
async fn edit(
    State(db): State<Db>,
    Path(id): Path<i32>,
    Form(edited): Form<Edited>,
) -> db_axum::Result<Redirect> {
    db.api()
        .tx(async |tx| {
            let orm = tx.orm();
            let found = book::Entity::find_by_id(id).one(&orm).await?.ok_or_else(no_book)?;
            let what = format!("{} by {}", found.title, found.author);
            let mut book: book::ActiveModel = found.into();
            book.title = Set(edited.title);
            book.author = Set(edited.author);
            book.update(&orm).await?;
            note(tx, id, &format!("was {what}")).await
        })
        .await?;
    Ok(Redirect::to(&format!("/{id}")))
}

/// Notes what was changed, in the transaction of the change.
async fn note(session: &mut Session, book: i32, what: &str) -> db_axum::Result<()> {
    let sql = "insert into change (book_id, what) values ($1, $2)";
    sqlx::query(sql).bind(book).bind(what).execute(&mut *session).await?;
    Ok(())
}

fn no_book() -> db_axum::Error {
    db_axum::Error::not_found("There is no such book.")
}
