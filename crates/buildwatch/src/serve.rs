//! The web page and the API.

mod answers;
mod api;
mod assets;
mod connections;
mod guard;
mod holding;
mod metrics;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::FromRef;
use axum::middleware::{from_fn, from_fn_with_state};
use db_axum::{Deadline, Limit, RateLimit, no_such_method, request_ids};
use db_layer::{AtOpen, Db, Deadlines, Signals};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::builds::Plans;
use crate::cli::{ServeArgs, Site};
use crate::open::{Opened, open};
use crate::reaper;
use crate::run::{self, Running};
use crate::serve::connections::Limits;
use crate::serve::guard::{Guard, Rights};
use crate::signals;
use crate::terminal::{print_out, shown};

/// Limits for requests and builds to end after the first signal, and for the database after them.
const DEADLINES: Deadlines =
    Deadlines { service: Duration::from_secs(8), pools: Duration::from_secs(4), bus: Duration::from_secs(1) };
/// How long a request may take until its answer begins; a live stream then goes on.
const ANSWER: Duration = Duration::from_secs(30);
/// How long requests and builds may still take after a second signal.
const GIVE_UP: Duration = Duration::from_secs(2);

/// The state that every request shares.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) db: Db,
    pub(crate) guard: Arc<Guard>,
    pub(crate) builds: Arc<Builds>,
    pub(crate) plans: Arc<Plans>,
    pub(crate) exporter: PrometheusHandle,
    /// A permit for each live stream.
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) limit: Option<RateLimit>,
}

impl FromRef<App> for Db {
    fn from_ref(app: &App) -> Self {
        app.db.clone()
    }
}

/// The builds that this server runs.
pub(crate) struct Builds {
    running: Mutex<JoinSet<()>>,
    /// The database's token: its shutdown ends the builds.
    closing: CancellationToken,
    killing: CancellationToken,
}

impl Builds {
    fn new(db: &Db) -> Self {
        Self { running: Mutex::default(), closing: db.closing(), killing: CancellationToken::new() }
    }

    pub(crate) async fn start(&self, db: &Db, plans: &Plans, command: Vec<OsString>) -> anyhow::Result<i64> {
        let running = run::start(db, plans, command).await?;
        let id = running.id;
        let see_through = see_through(running, self.closing.clone(), self.killing.clone());
        if self.closing.is_cancelled() {
            // The set is not awaited any more, so the request waits for the build itself.
            see_through.await;
            return Ok(id);
        }
        let mut set = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Removes builds that have ended.
        while set.try_join_next().is_some() {}
        set.spawn(see_through);
        Ok(id)
    }

    /// Waits until all builds have ended, which they do when the database closes. Dropping the future leaves them running.
    async fn ended(&self) {
        let mut set = std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        while set.join_next().await.is_some() {}
    }
}

async fn see_through(mut running: Running, closing: CancellationToken, killing: CancellationToken) {
    let id = running.id;
    let ended = loop {
        tokio::select! {
            ended = running.ended() => break ended,
            () = closing.cancelled(), if !running.is_cancelled() => running.cancel(),
            () = killing.cancelled(), if !running.is_killed() => running.kill(),
        }
    };
    match ended {
        Ok(end) => tracing::info!(build = id, status = end.status.as_str(), "build ended"),
        Err(error) => tracing::error!(build = id, error = format!("{error:#}"), "build failed"),
    }
}

/// `buildwatch serve`.
pub(crate) async fn command(site: &Site, args: ServeArgs) -> anyhow::Result<u8> {
    let remote = !is_this_machine(args.listen.ip());
    if args.allow_start && remote && !args.allow_start_from_anywhere {
        bail!(
            "--allow-start on {} would let other machines run commands here: \
             listen on 127.0.0.1, or say --allow-start-from-anywhere",
            args.listen
        );
    }
    let limit = match args.rate_limit {
        0 => None,
        count => Some(RateLimit::new("requests", [Limit::per_second(count)])?.behind(args.proxies)),
    };
    let mut signals = signals::catch()?;
    site.warn_of_open_secrets();
    let listener = listen(args.listen).await?;
    // With a name, other machines reach the server, through a proxy on this machine.
    let may_read = args.public_read || (!remote && args.host.is_empty());
    let guard = Guard::new(Rights { may_start: args.allow_start, may_read }, args.host)?;
    let server = tokio::select! {
        server = Server::open(site, listener, guard, limit) => server?,
        _ = signals.next() => return Ok(0),
    };
    if args.json {
        print_out(&format!("{}\n", server.as_json()))?;
    } else {
        print_out(&server.banner())?;
    }
    server.run(&mut signals).await
}

/// `buildwatch` without a subcommand: the server, and an example build.
pub(crate) async fn demo(site: &Site) -> anyhow::Result<u8> {
    let mut signals = signals::catch()?;
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let listener = match listen(usual).await {
        Ok(listener) => listener,
        // The port is taken. Take any other, so that a newcomer sees something.
        Err(_) => listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?,
    };
    let guard = Guard::new(Rights { may_start: false, may_read: true }, Vec::new())?;
    let server = tokio::select! {
        server = Server::open(site, listener, guard, None) => server?,
        _ = signals.next() => return Ok(0),
    };
    let first = ["sh", "-c", FIRST_BUILD].map(OsString::from).to_vec();
    let id = server.app.builds.start(&server.app.db, &server.app.plans, first).await?;

    // Under cargo, the program is not on the PATH.
    let program =
        if std::env::var_os("CARGO").is_some() { "cargo run -p buildwatch --" } else { "buildwatch" };
    let flags = site.flags();
    print_out(&format!(
        "{}\
         \n  A build is running:  {}/builds/{id}\
         \n  Try another:         {program}{flags} run -- ls -l\
         \n  Watch from anywhere: {program}{flags} watch {id}\
         \n  Ctrl-C ends it.\n",
        server.banner(),
        server.address(),
    ))?;
    server.run(&mut signals).await
}

/// Lines for a minute, slow enough to watch.
const FIRST_BUILD: &str = r#"echo "Each line is stored in PostgreSQL before you see it. Reload the page: nothing is lost."
i=1
while [ "$i" -le 60 ]; do
    echo "line $i of 60"
    i=$((i + 1))
    sleep 1
done"#;

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (choose another address with --listen)"))
}

struct Server {
    app: App,
    opened: Opened,
    listener: TcpListener,
    local: SocketAddr,
    limits: Limits,
}

impl Server {
    async fn open(
        site: &Site,
        listener: TcpListener,
        guard: Guard,
        limit: Option<RateLimit>,
    ) -> anyhow::Result<Self> {
        let local = listener.local_addr()?;
        let exporter = metrics::install()?;
        let opened = open(site, AtOpen::Run).await?;
        opened.db.measure();
        let builds = Arc::new(Builds::new(&opened.db));
        let limits = Limits::find();
        let app = App {
            db: opened.db.clone(),
            guard: Arc::new(guard),
            builds,
            plans: Arc::clone(&opened.plans),
            exporter,
            streams: Arc::new(Semaphore::new(limits.streams)),
            limit: limit.map(|limit| limit.shared_by(&opened.db)),
        };
        Ok(Self { app, opened, listener, local, limits })
    }

    /// The server's address for a browser on this machine.
    fn address(&self) -> String {
        if self.local.ip().is_unspecified() {
            format!("http://localhost:{}", self.local.port())
        } else {
            format!("http://{}", self.local)
        }
    }

    fn banner(&self) -> String {
        let mut text = format!(
            "buildwatch listens on {}/\n  Database:            {}\n",
            self.address(),
            shown(&self.opened.place)
        );
        if let Some(token) = self.app.guard.token() {
            // After the `#`, which browsers do not send.
            text += &[
                format!(
                    "  {:<21}{}/#token={token}\n",
                    self.app.guard.rights().with_the_token(),
                    self.address()
                ),
                format!("  Token for the API:   {token}\n"),
            ]
            .concat();
        }
        if self.app.guard.rights().may_read && !is_this_machine(self.local.ip()) {
            text += "  Everyone who can reach this address can read all builds, with commands and output.\n";
        }
        text
    }

    fn as_json(&self) -> serde_json::Value {
        serde_json::json!({
            "address": self.address(),
            "token": self.app.guard.token().map(ToString::to_string),
        })
    }

    /// Serves until a signal; a second signal ends it at once.
    async fn run(self, signals: &mut Signals) -> anyhow::Result<u8> {
        let App { db, builds, .. } = &self.app;
        let _keeping_up = AbortOnDropHandle::new(tokio::spawn(metrics::keep_up(self.app.exporter.clone())));
        let _reaper = AbortOnDropHandle::new(tokio::spawn(reaper::run(db.clone())));
        let serving = connections::serve(self.listener, router(self.app.clone()), self.limits, db.closing());
        let service = async {
            serving.await;
            // Also if the server ended by itself, or nobody would end the builds.
            db.closing().cancel();
            // After the server, since requests start builds.
            builds.ended().await;
        };
        let mut service = pin!(service);

        let ended = db.shutdown_on_signal(signals, DEADLINES, service.as_mut()).await;
        if ended.second_signal.is_some() {
            if ended.service.is_none() {
                // At once, but no command is left running.
                builds.killing.cancel();
                timeout(GIVE_UP, service).await.ok();
            }
            return Ok(ended.exit_code());
        }
        self.opened.release().await;
        Ok(0)
    }
}

/// Whether only users of this machine can reach an address.
fn is_this_machine(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// With the token; where there is none, for this machine.
fn monitoring(app: &App) -> Router {
    let routes = db_axum::monitoring(app.db.clone());
    match app.guard.token() {
        Some(_) => routes.guarded_by(from_fn_with_state(app.clone(), guard::check_monitoring)),
        None => routes.for_this_machine(),
    }
}

fn router(app: App) -> Router {
    let mut users = assets::routes().merge(api::routes(&app));
    if let Some(limit) = &app.limit {
        users = users.layer(limit.clone());
    }
    users
        .merge(metrics::routes(&app))
        .with_state(app.clone())
        .merge(db_axum::health::routes(app.db.clone()))
        .nest("/monitoring", monitoring(&app))
        .method_not_allowed_fallback(no_such_method)
        .layer(Deadline::within(ANSWER))
        .layer(from_fn_with_state(app, guard::check))
        .layer(from_fn(request_ids))
}
