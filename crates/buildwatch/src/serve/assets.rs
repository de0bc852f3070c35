//! The pages, built into the program.

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName};
use axum::response::IntoResponse;
use axum::routing::get;
use db_axum::{Api, Path, Result, no_such_address};

use crate::serve::{App, api};

const INDEX: &str = include_str!("../../assets/index.html");
const BUILD: &str = include_str!("../../assets/build.html");
const STYLE: &str = include_str!("../../assets/style.css");
const COMMON_SCRIPT: &str = include_str!("../../assets/common.js");
const INDEX_SCRIPT: &str = include_str!("../../assets/index.js");
const BUILD_SCRIPT: &str = include_str!("../../assets/build.js");
const ICON: &str = include_str!("../../assets/icon.svg");

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(async || html(INDEX)))
        .route("/builds/{id}", get(build))
        .route("/assets/style.css", get(async || asset("text/css; charset=utf-8", STYLE)))
        .route("/assets/common.js", get(async || asset("text/javascript; charset=utf-8", COMMON_SCRIPT)))
        .route("/assets/index.js", get(async || asset("text/javascript; charset=utf-8", INDEX_SCRIPT)))
        .route("/assets/build.js", get(async || asset("text/javascript; charset=utf-8", BUILD_SCRIPT)))
        .route("/assets/icon.svg", get(async || asset("image/svg+xml", ICON)))
        .fallback(no_such_address)
}

async fn build(
    State(app): State<App>,
    Api(db): Api,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<impl IntoResponse> {
    // A browser that opens an address sends no token. The page's later requests do, and then say whether the build exists.
    if app.guard.check_read(&headers).is_ok() {
        api::log_of(&db, &id).await?;
    } else if id.parse::<i64>().is_err() {
        return Err(api::missing());
    }
    Ok(html(BUILD))
}

fn html(text: &'static str) -> impl IntoResponse {
    asset("text/html; charset=utf-8", text)
}

fn asset(kind: &'static str, text: &'static str) -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(CONTENT_TYPE, kind)], text)
}
