//! What each client has used, in Redis.

use std::time::Duration;

use db_layer::Db;
use db_layer::redis::client::{RedisError, RedisResult, Script};
use db_layer::redis::{Redis, WithoutRedis};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use super::client::Client;
use super::limit::{Rule, Verdict};

/// Takes a request out of all buckets, or out of none: one round trip, by the clock of Redis.
///
/// Each bucket of the client is a key, whose value is when the bucket is full again, in microseconds since 1970. For each bucket the arguments are how
/// long it takes to fill what the request takes out, how long it takes to fill as a whole, and after what time it is full as far as the caller
/// knows. The answer is 1 if the request passes, else 0, and then after what time each bucket is full. What the caller knows is stored also when the
/// request is refused: Redis may have been emptied, and the others do not know it.
///
/// `EXPIRY` stands for the time, in milliseconds, after which a key goes by itself. It is a part of the script, and the value is a whole number, since
/// each argument and each fraction that Redis has to write costs a twentieth of the script's time.
///
/// `not (debt >= known)` is also true of what is no number. No bucket owes more than the whole: the clock may have been set back.
const SCRIPT: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answer, learnt = {1}, false
for bucket = 1, #KEYS do
    local takes, whole, known = ARGV[3 * bucket - 2] + 0, ARGV[3 * bucket - 1] + 0, ARGV[3 * bucket] + 0
    local debt = (tonumber(redis.call('GET', KEYS[bucket]) or now) or now) - now
    if not (debt >= known) then
        debt, learnt = known, learnt or known > 0
    end
    if debt > whole then
        debt = whole
    end
    if debt + takes > whole then
        answer[1] = 0
    end
    answer[bucket + 1] = debt
end
if answer[1] == 1 or learnt then
    for bucket = 1, #KEYS do
        local debt = answer[bucket + 1] + answer[1] * ARGV[3 * bucket - 2]
        answer[bucket + 1] = debt
        if debt > 0 then
            redis.call('SET', KEYS[bucket], string.format('%d', now + debt), 'PX', EXPIRY)
        end
    end
end
return answer
";

/// The counts of one rate limit.
#[derive(Debug)]
pub(super) struct Shared {
    redis: Redis,
    instances: u32,
    script: Script,
    /// What the keys of its clients begin with.
    prefix: String,
}

impl Shared {
    /// None if the database has no Redis.
    pub(super) fn new(db: &Db, name: &str, rules: &[Rule]) -> Option<Self> {
        let redis = db.redis()?.clone();
        // Other limits begin anew: what is stored is of these.
        let limits: Vec<String> =
            rules.iter().map(|rule| format!("{}x{:?}", rule.burst(), rule.interval())).collect();
        let digest = const_hex::encode(&Sha256::digest(limits.join(","))[..4]);
        let api = db.api();
        let (database, namespace) = (api.pool().config().database(), db.bus().namespace());
        let prefix = format!("{database}:{namespace}:rate:{name}:{digest}:");
        let longest = rules.iter().map(|rule| rule.whole()).max().unwrap_or_default();
        let script = Script::new(&SCRIPT.replace("EXPIRY", &format!("'{}'", longest.as_millis() + 1)));
        Some(Self { redis, instances: db.instances(), script, prefix })
    }

    pub(super) fn instances(&self) -> u32 {
        self.instances
    }

    /// Decides by Redis, which is told what this process knows: after what time each bucket is full again. The request may be on its way for as long as
    /// `limit`, and the buckets fill up meanwhile: so less than that is told, or each that is late would cost the client its time.
    pub(super) async fn take(
        &self,
        limit: Duration,
        rules: &[Rule],
        client: &Client,
        cost: u32,
        known: &[Duration],
    ) -> Result<Verdict, WithoutRedis> {
        let mut asked = self.script.prepare_invoke();
        let mut times = SmallVec::<[_; 2]>::new();
        for (bucket, (rule, known)) in rules.iter().zip(known).enumerate() {
            let (takes, whole) = (rule.interval() * rule.cells(cost).get(), rule.whole());
            // In braces, by which a cluster would keep the buckets of one client together.
            asked.key(format!("{}{{{client}}}:{bucket}", self.prefix));
            asked.arg(micros(takes)).arg(micros(whole)).arg(micros(known.saturating_sub(limit)));
            times.push((takes, whole));
        }
        let decide = async |mut redis: Redis| -> RedisResult<Verdict> {
            let answer: Vec<i64> = asked.invoke_async(&mut redis).await?;
            verdict(&answer, &times)
        };
        self.redis.within(limit, decide).await
    }
}

/// Microseconds, with a part of one: of a limit of 300 a second, each request takes 3333.333.
fn micros(time: Duration) -> String {
    match time.subsec_nanos() % 1000 {
        0 => time.as_micros().to_string(),
        part => format!("{}.{part:03}", time.as_micros()),
    }
}

/// Reads the answer.
fn verdict(answer: &[i64], times: &[(Duration, Duration)]) -> RedisResult<Verdict> {
    let (passes, debts) = match answer {
        [passes @ (0 | 1), debts @ ..] if debts.len() == times.len() => (*passes == 1, debts),
        _ => return Err(nonsense()),
    };
    let mut all = SmallVec::<[Duration; 2]>::new();
    for (debt, (_, whole)) in debts.iter().zip(times) {
        let debt = Duration::from_micros(u64::try_from(*debt).map_err(|_| nonsense())?);
        // Not later than the bucket is full, whatever Redis says.
        all.push(debt.min(*whole));
    }
    let debts = all;
    let waits = debts.iter().zip(times).map(|(debt, (takes, whole))| (*debt + *takes).saturating_sub(*whole));
    let refused_for = (!passes).then(|| waits.max().unwrap_or_default());
    Ok(Verdict { refused_for, debts })
}

fn nonsense() -> RedisError {
    let kind = db_layer::redis::client::ErrorKind::UnexpectedReturnType;
    (kind, "the script of the rate limit has answered something else").into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use db_layer::redis::client::Client as RedisClient;

    use super::super::limit::{self, Buckets, Limit};
    use super::*;

    /// In histories of hours, the script decides as the rule of a single process does, to the microsecond.
    #[tokio::test]
    async fn the_script_decides_as_one_process_does() {
        let server = db_testkit::Redis::start().await.expect("a Redis");
        let client = RedisClient::open(server.url()).expect("an address");
        let mut redis = client.get_multiplexed_async_connection().await.expect("a connection");
        // Told the time, and with keys that do not go meanwhile.
        let clock = ("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}");
        let expiry = ("EXPIRY", "'86400000'");
        let told_the_time = Script::new(&SCRIPT.replace(expiry.0, expiry.1).replace(clock.0, clock.1));
        let limits = [
            Limit::per_second(10),
            Limit::per_minute(7).burst(3),
            Limit::per_hour(100),
            Limit::per(3, Duration::from_millis(50)),
            Limit::per_day(50).burst(200),
        ];
        let (mut passed, mut refused) = (0, 0);
        for history in 0..150 {
            let mut random = fastrand::Rng::with_seed(history);
            let rules: Vec<Rule> = (0..random.usize(1..=3))
                .map(|_| Rule::new(limits[random.usize(..limits.len())]).expect("a limit"))
                .collect();
            let mut buckets = Buckets::new();
            let mut now = 1_790_000_000_000_000;
            for _ in 0..60 {
                now += [0, 1000, 100_000, 7_000_000, 600_000_000][random.usize(..5)] * random.u64(0..20);
                let cost = [1, 1, 1, 2, 5, 1000][random.usize(..6)];
                let expected = limit::take(&rules, &mut buckets, now * 1000, cost);

                let mut asked = told_the_time.prepare_invoke();
                let mut times = Vec::new();
                for (bucket, rule) in rules.iter().enumerate() {
                    let (takes, whole) = (rule.interval() * rule.cells(cost).get(), rule.whole());
                    asked.key(format!("{history}:{bucket}"));
                    asked.arg(micros(takes)).arg(micros(whole)).arg(micros(Duration::ZERO));
                    times.push((takes, whole));
                }
                asked.arg(now / 1_000_000).arg(now % 1_000_000);
                let answer: Vec<i64> = asked.invoke_async(&mut redis).await.expect("an answer");
                let said = verdict(&answer, &times)
                    .unwrap_or_else(|error| panic!("{error}: {answer:?} for {times:?}"));

                // One of them may have rounded to the other side of the limit, by which the histories would differ from then on.
                let is_close =
                    |one: Duration, other: Duration| one.abs_diff(other) <= Duration::from_micros(60);
                let near = |wait: Option<Duration>| wait.is_none_or(|wait| wait < Duration::from_micros(60));
                if said.refused_for.is_some() != expected.refused_for.is_some() {
                    assert!(near(said.refused_for) && near(expected.refused_for), "{said:?} {expected:?}");
                    break;
                }
                assert!(
                    said.debts.iter().zip(&expected.debts).all(|(one, other)| is_close(*one, *other)),
                    "{said:?} {expected:?}"
                );
                let waits = said.refused_for.unwrap_or_default();
                assert!(is_close(waits, expected.refused_for.unwrap_or_default()), "{said:?} {expected:?}");
                passed += u32::from(said.refused_for.is_none());
                refused += u32::from(said.refused_for.is_some());
            }
        }
        assert!(passed > 1000 && refused > 1000, "both happen often: {passed} {refused}");
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_none() {
        let hour = Duration::from_hours(1);
        let times = [(Duration::from_secs(36), hour)];
        for answer in [&[][..], &[1], &[2, 5], &[0, 5, 5], &[1, -5]] {
            assert!(verdict(answer, &times).is_err(), "{answer:?}");
        }
        let far = verdict(&[0, i64::MAX], &times).expect("a verdict");
        assert_eq!((far.refused_for, far.debts[0]), (Some(Duration::from_secs(36)), hour));
        assert_eq!(micros(Duration::from_nanos(36_000_001_007)), "36000001.007");
        assert_eq!(micros(Duration::from_secs(36)), "36000000");
    }
}
