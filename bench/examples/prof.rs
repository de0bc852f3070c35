use db_core::{Config, Pool, PoolOptions, Tracking};
use sqlx::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let url = std::env::args().nth(1).unwrap();
    let what = std::env::args().nth(2).unwrap();
    let tasks: usize = std::env::args().nth(3).unwrap().parse().unwrap();
    let secs: u64 = std::env::args().nth(4).unwrap().parse().unwrap();
    let config = Config::from_url(&url).unwrap();
    let mut o = PoolOptions { max: 10, ..PoolOptions::api() };
    if std::env::var("OFF").is_ok() {
        o.tracker = Tracking::Off;
    }
    let pool = Pool::new(&config, o);
    let over = Arc::new(AtomicBool::new(false));
    let n = Arc::new(AtomicU64::new(0));
    let mut h = vec![];
    for _ in 0..tasks {
        let (pool, over, n, what) = (pool.clone(), over.clone(), n.clone(), what.clone());
        let url = url.clone();
        h.push(tokio::spawn(async move {
            let mut lat = Vec::new();
            let mut bare =
                if what == "bare" { Some(sqlx::PgConnection::connect(&url).await.unwrap()) } else { None };
            while !over.load(Ordering::Relaxed) {
                let t = std::time::Instant::now();
                let v: i64 = if let Some(c) = &mut bare {
                    sqlx::query_scalar("select $1::int8").bind(7i64).fetch_one(c).await.unwrap()
                } else {
                    sqlx::query_scalar("select $1::int8").bind(7i64).fetch_one(pool.handle()).await.unwrap()
                };
                assert_eq!(v, 7);
                lat.push(t.elapsed().as_nanos() as u32);
            }
            n.fetch_add(lat.len() as u64, Ordering::Relaxed);
            lat
        }));
    }
    std::thread::sleep(std::time::Duration::from_secs(secs));
    over.store(true, Ordering::Relaxed);
    let mut all = vec![];
    for x in h {
        all.extend(x.await.unwrap());
    }
    all.sort();
    println!(
        "{what} {tasks}: {} ops/s p50 {} us p99 {} us",
        n.load(Ordering::Relaxed) / secs,
        all[all.len() / 2] / 1000,
        all[all.len() * 99 / 100] / 1000
    );
}
