//! Limits of requests for each client.

mod client;
mod headers;
mod limit;
mod memory;
#[cfg(feature = "redis")]
mod script;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
#[cfg(feature = "redis")]
use std::time::Duration;

use axum::extract::Request;
use axum::http::HeaderName;
use axum::response::{IntoResponse, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use self::client::{By, Client, Who};
use self::headers::{Left, Policy};
pub use self::limit::{Limit, RateLimitError};
use self::limit::{Rule, Verdict};
use self::memory::Memory;
#[cfg(feature = "redis")]
use self::script::Shared;
use crate::Error;

/// For the answer of Redis, unless the program says.
#[cfg(feature = "redis")]
const ANSWER: Duration = Duration::from_millis(50);

/// A layer that refuses the requests of a client that has sent too many, before their bodies are read: 429 with `Retry-After`. Every answer has
/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11), so that clients can slow down before.
///
/// Each limit is a bucket that holds its number of requests, and fills up evenly (GCRA): of 100 an hour, 100 may come at once, and then one every 36 s.
/// A request passes if all limits let it, and counts in all of them; one that is refused counts in none. Clones count together.
///
/// A client is an address, unless [`by_header`](Self::by_header) or [`by`](Self::by) says otherwise. An IPv6 address counts by its first 64 bits, since
/// one client has that many of them. The peer's address comes from axum's `into_make_service_with_connect_info::<SocketAddr>()`, and a route
/// without it answers 500, with a line in the log. Behind a proxy every peer is the proxy: then [`behind`](Self::behind) is needed.
///
/// Each process counts by itself, at most 100 000 clients: beyond that, those are forgotten that have used the least. With the feature `redis`,
/// `shared_by` counts for all processes together.
///
/// ```
/// use axum::Router;
/// use axum::routing::{get, post};
/// use db_axum::{Limit, RateLimit};
///
/// # async fn search() {}
/// # async fn login() {}
/// let all = RateLimit::new("all", [Limit::per_second(20), Limit::per_hour(5_000)])?.behind(1);
/// let logins = RateLimit::new("logins", [Limit::per_minute(5)])?.behind(1);
/// let router: Router = Router::new()
///     .route("/search", get(search))
///     .route("/login", post(login).layer(logins))
///     .layer(all);
/// # drop(router);
/// # Ok::<_, db_axum::RateLimitError>(())
/// ```
#[derive(Clone)]
#[must_use = "it is given to `layer`"]
pub struct RateLimit {
    /// A route makes a clone for each request.
    settings: Arc<Settings>,
}

#[derive(Clone)]
struct Settings {
    counted: Arc<Counted>,
    who: Who,
    cost: Option<Cost>,
    #[cfg(feature = "redis")]
    answer: Duration,
    #[cfg(feature = "redis")]
    shared: Option<Arc<Shared>>,
}

type Cost = Arc<dyn Fn(&Request) -> u32 + Send + Sync>;

/// What clones have together.
struct Counted {
    #[cfg(feature = "redis")]
    name: String,
    rules: Vec<Rule>,
    policy: Policy,
    memory: Memory,
}

impl RateLimit {
    /// Limits the requests of each address.
    ///
    /// The name is that of the policy in the headers, and of the counts in Redis: `name`, or `name-1`, `name-2`, … of several limits.
    ///
    /// # Errors
    ///
    /// [`RateLimitError`] for a name that no header can have, and for limits that cannot be kept.
    pub fn new(name: &str, limits: impl IntoIterator<Item = Limit>) -> Result<Self, RateLimitError> {
        let rules = limits.into_iter().map(Rule::new).collect::<Result<Vec<_>, _>>()?;
        let counted = Counted {
            policy: Policy::new(name, &rules)?,
            memory: Memory::default(),
            #[cfg(feature = "redis")]
            name: name.to_owned(),
            rules,
        };
        let settings = Settings {
            counted: Arc::new(counted),
            who: Who::default(),
            cost: None,
            #[cfg(feature = "redis")]
            answer: ANSWER,
            #[cfg(feature = "redis")]
            shared: None,
        };
        Ok(Self { settings: Arc::new(settings) })
    }

    /// This many proxies of yours are in front, each of which appends the address of its peer to `X-Forwarded-For`. The client is the address that
    /// the first of them has appended; what a client has written there itself is left of it, and counts for nothing. With a header that has fewer
    /// addresses, or none that can be read in that place, the client is the peer.
    ///
    /// With 0, the default, the header counts for nothing. A number above that of the proxies lets clients choose their address.
    pub fn behind(mut self, proxies: u8) -> Self {
        self.settings_mut().who.proxies = proxies;
        self
    }

    /// A client is the value of this header, such as an API key. Only a digest of it is kept. It must have been checked before, by a layer around
    /// this one: a client that may choose the value has as many limits as it likes. A request without it is counted by its address, as without this.
    pub fn by_header(mut self, name: HeaderName) -> Self {
        self.settings_mut().who.by = By::Header(name);
        self
    }

    /// A client is what this says, such as the user that a layer around this one has put among the request's extensions. `None` has no limit.
    pub fn by(mut self, client: impl Fn(&Request) -> Option<String> + Send + Sync + 'static) -> Self {
        self.settings_mut().who.by = By::Text(Arc::new(client));
        self
    }

    /// A request counts as this many. 0 has no limit, and what is above a limit's number counts as that number.
    pub fn cost(mut self, cost: impl Fn(&Request) -> u32 + Send + Sync + 'static) -> Self {
        self.settings_mut().cost = Some(Arc::new(cost));
        self
    }

    /// Counts in this database's [Redis](db_layer::Db::redis), for all processes that use the same one for the same database, namespace, name and limits. Each
    /// request costs one round trip, and the time is that of Redis. If the database has no Redis, each process goes on counting by itself.
    ///
    /// When Redis is away, or does not answer within [50 ms](Self::answer_within), no client gets an error. A process goes on by itself with its share, that is the
    /// limit divided by [`Options::instances`](db_layer::Options::instances): each request counts as that many in what the process remembers, of itself and of
    /// what Redis has said last. When Redis is back, even with nothing in it, it is told what the processes remember, but for the last 50 ms. So a client
    /// gets at most its limit once more, as long as the limit is not smaller than the number of instances: a share is one request at least.
    /// [`RedisHealth::without`](db_layer::redis::RedisHealth::without) counts these requests, and an alert tells.
    ///
    /// Redis 5 or later is needed, and the rights to `EVALSHA`, `SCRIPT LOAD`, `TIME`, `GET` and `SET`. A cluster is not.
    #[cfg(feature = "redis")]
    pub fn shared_by(mut self, db: &db_layer::Db) -> Self {
        let Counted { name, rules, .. } = &*self.settings.counted;
        self.settings_mut().shared = Shared::new(db, name, rules).map(Arc::new);
        self
    }

    /// How long Redis may take for its answer (default 50 ms; at most [`RedisConfig::answer`](db_layer::redis::RedisConfig)).
    #[cfg(feature = "redis")]
    pub fn answer_within(mut self, limit: Duration) -> Self {
        self.settings_mut().answer = limit;
        self
    }

    fn settings_mut(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }
}

impl Settings {
    /// The client of a request and what it costs. None if it has no limit.
    fn charge(&self, request: &Request) -> Result<Option<(Client, u32)>, Error> {
        let cost = self.cost.as_ref().map_or(1, |cost| cost(request));
        if cost == 0 {
            return Ok(None);
        }
        Ok(self.who.of(request)?.map(|client| (client, cost)))
    }

    /// By Redis, or else by this process with its share.
    #[cfg(feature = "redis")]
    async fn decide_by(&self, shared: &Shared, client: &Client, cost: u32) -> Verdict {
        let Counted { rules, memory, .. } = &*self.counted;
        // Before Redis counts from its now, so that what is remembered is never more than it has said.
        let asked_at = memory.now();
        let known = memory.debts(client, rules.len(), asked_at);
        match shared.take(self.answer, rules, client, cost, &known).await {
            Ok(verdict) => {
                memory.learn(client, &verdict.debts, asked_at);
                verdict
            }
            Err(why) => {
                let why: &(dyn std::error::Error + 'static) = &why;
                tracing::debug!(why, "a rate limit is counted without redis");
                memory.take(rules, client, cost.saturating_mul(shared.instances()))
            }
        }
    }
}

impl Counted {
    /// What the client is told.
    fn tell(&self, verdict: &Verdict) -> Told {
        let left = self.policy.left(verdict, &self.rules);
        match verdict.refused_for {
            Some(wait) => Told::Refused(left.beside(Error::too_many_requests(wait))),
            None => Told::Passes(left),
        }
    }
}

/// What a client is told.
enum Told {
    Refused(Response),
    /// The headers of the answer.
    Passes(Left),
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit").field("policy", &self.settings.counted.policy).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for RateLimit {
    type Service = RateLimited<S>;

    fn layer(&self, inner: S) -> RateLimited<S> {
        RateLimited { inner, limit: self.clone() }
    }
}

/// The service of [`RateLimit`].
#[derive(Debug, Clone)]
pub struct RateLimited<S> {
    inner: S,
    limit: RateLimit,
}

impl<S> Service<Request> for RateLimited<S>
where
    S: Service<Request, Response: IntoResponse> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Limiting<S::Future, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let settings = &self.limit.settings;
        let (client, cost) = match settings.charge(&request) {
            Ok(Some(charge)) => charge,
            Ok(None) => return Limiting::passes(self.inner.call(request), None),
            Err(error) => return Limiting::refused(error.into_response()),
        };
        #[cfg(feature = "redis")]
        if let Some(shared) = settings.shared.clone() {
            let settings = Arc::clone(settings);
            // The one that was polled until it was ready.
            let next = self.inner.clone();
            let mut inner = std::mem::replace(&mut self.inner, next);
            return Limiting::asks(Box::pin(async move {
                let verdict = settings.decide_by(&shared, &client, cost).await;
                match settings.counted.tell(&verdict) {
                    Told::Refused(refusal) => Ok(refusal),
                    Told::Passes(left) => Ok(left.beside(inner.call(request).await?)),
                }
            }));
        }
        let Counted { rules, memory, .. } = &*settings.counted;
        let verdict = memory.take(rules, &client, cost);
        match settings.counted.tell(&verdict) {
            Told::Refused(refusal) => Limiting::refused(refusal),
            Told::Passes(left) => Limiting::passes(self.inner.call(request), Some(left)),
        }
    }
}

type Asks<E> = Pin<Box<dyn Future<Output = Result<Response, E>> + Send>>;

pin_project! {
    /// The future of [`RateLimited`].
    pub struct Limiting<F, E> {
        #[pin]
        step: Step<F, E>,
    }
}

pin_project! {
    #[project = StepProjection]
    enum Step<F, E> {
        Refused { answer: Option<Response> },
        Passes { #[pin] inner: F, left: Option<Left> },
        Asks { asks: Asks<E> },
    }
}

impl<F, E> Limiting<F, E> {
    fn refused(answer: Response) -> Self {
        Self { step: Step::Refused { answer: Some(answer) } }
    }

    fn passes(inner: F, left: Option<Left>) -> Self {
        Self { step: Step::Passes { inner, left } }
    }

    #[cfg(feature = "redis")]
    fn asks(asks: Asks<E>) -> Self {
        Self { step: Step::Asks { asks } }
    }
}

impl<A: IntoResponse, E, F: Future<Output = Result<A, E>>> Future for Limiting<F, E> {
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().step.project() {
            StepProjection::Refused { answer } => {
                Poll::Ready(Ok(answer.take().expect("it is polled until it is ready")))
            }
            StepProjection::Passes { inner, left } => inner.poll(cx).map_ok(|answer| match left.take() {
                Some(left) => left.beside(answer),
                None => answer.into_response(),
            }),
            StepProjection::Asks { asks } => asks.as_mut().poll(cx),
        }
    }
}

impl<F, E> fmt::Debug for Limiting<F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiting").finish_non_exhaustive()
    }
}
