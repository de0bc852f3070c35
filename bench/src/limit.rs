//! Requests through a layer that limits them by address, beside `tower_governor`; and by Redis, beside a plain `SET` on the same connection.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::routing::get;
use db_axum::{Limit, RateLimit};
use db_layer::redis::client::AsyncCommands;
use db_layer::redis::{Redis, RedisConfig};
use db_layer::{Options, PoolOptions};
use tokio::runtime::Runtime;
use tower_governor::GovernorLayer;
use tower_governor::governor::GovernorConfigBuilder;
use tower_service::Service;

use crate::load::{Load, Work};
use crate::report::Report;
use crate::rounds::{Arm, interleave, narrow};
use crate::server::Database;

const TASKS: u32 = 10;

const SLICE: Duration = Duration::from_secs(2);

/// None is refused.
const A_SECOND: u32 = 20_000;

/// Different clients.
const CLIENTS: i64 = 10_000;

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(runtime: &Runtime, rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    let redis = runtime.block_on(db_testkit::Redis::start())?;
    Database::with(runtime, |database| {
        let _inside = runtime.enter();
        let options = Options::new(database.config()?).backend(PoolOptions::backend().max(1));
        let db = runtime.block_on(db_layer::open(options.redis(RedisConfig::from_url(&redis.url())?)))?;

        let limit = || RateLimit::new("bench", [Limit::per_second(A_SECOND)]);
        let silent = GovernorConfigBuilder::default().per_nanosecond(50_000).burst_size(A_SECOND).finish();
        let with_headers = GovernorConfigBuilder::default()
            .per_nanosecond(50_000)
            .burst_size(A_SECOND)
            .use_headers()
            .finish();
        let shared = limit()?.shared_by(&db).answer_within(Duration::from_secs(1));
        let mut arms = vec![
            arm(runtime, "limit.memory.none", through(routes())),
            arm(runtime, "limit.memory.ours", through(routes().layer(limit()?))),
            arm(
                runtime,
                "limit.memory.tower_governor_silent",
                through(routes().layer(GovernorLayer::new(silent.context("a limit")?))),
            ),
            arm(
                runtime,
                "limit.memory.tower_governor",
                through(routes().layer(GovernorLayer::new(with_headers.context("a limit")?))),
            ),
            arm(runtime, "limit.redis.ours", through(routes().layer(shared))),
            arm(runtime, "limit.redis.set", Set(db.redis().context("a connection")?.clone())),
        ];
        let what = database.what().to_owned();
        if narrow(&mut arms, only)? {
            return Ok(interleave(&arms, rounds)?.report(what, Vec::new()));
        }
        let measured = interleave(&arms, rounds)?;
        ensure!(db.redis().is_some_and(|redis| redis.health().without == 0), "Redis was not always asked");
        let ours = "limit.memory.ours";
        let rows = vec![
            measured.rates("limit.memory.vs_tower_governor", ours, "limit.memory.tower_governor"),
            measured.rates(
                "limit.memory.vs_tower_governor_silent",
                ours,
                "limit.memory.tower_governor_silent",
            ),
            measured.rates("limit.redis.vs_set", "limit.redis.ours", "limit.redis.set"),
        ];
        Ok(measured.report(what, rows))
    })
}

fn routes() -> Router {
    Router::new().route("/", get(async || "here"))
}

/// As it is served: without a state of its own, a router would make its layers anew for each request.
fn through(routes: Router) -> Through {
    Through(routes.with_state(()))
}

fn arm<'a>(runtime: &'a Runtime, name: &str, work: impl Work + 'static) -> Arm<'a> {
    let work = Arc::new(work);
    Arm::new(name, SLICE, move |slice| Load { tasks: TASKS, slice, timed: false }.run(runtime, &work))
}

fn client(n: i64) -> anyhow::Result<Ipv4Addr> {
    Ok(Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(n.rem_euclid(CLIENTS))?))
}

/// A request from one client after the other, without a network.
struct Through(Router);

impl Work for Through {
    async fn once(&self, _: u32, n: i64) -> anyhow::Result<()> {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from((client(n)?, 80))));
        let answer = self.0.clone().call(request).await?;
        ensure!(answer.status() == 200, "{}", answer.status());
        Ok(())
    }
}

/// A plain write of the same size, with an end.
struct Set(Redis);

impl Work for Set {
    async fn once(&self, _: u32, n: i64) -> anyhow::Result<()> {
        let key = format!("bench:set:{}", client(n)?);
        self.0.clone().pset_ex::<_, _, ()>(key, "1790000000000000", 1000).await?;
        Ok(())
    }
}
