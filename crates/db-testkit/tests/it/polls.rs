//! Dropping futures where they wait.

use std::time::Duration;

use db_testkit::{Proxy, TestDb, poll_then_drop};
use sqlx::ConnectOptions;
use tokio::sync::oneshot;

#[tokio::test]
async fn a_future_is_polled_no_more_often_than_allowed() {
    let mut polled = 0;
    let endless = std::future::poll_fn(|cx| {
        polled += 1;
        cx.waker().wake_by_ref();
        std::task::Poll::<()>::Pending
    });

    assert_eq!(poll_then_drop(endless, 3).await, None);
    assert_eq!(polled, 3);
}

#[tokio::test]
async fn without_a_poll_nothing_begins() {
    assert_eq!(poll_then_drop(async { panic!("polled") }, 0).await, None::<()>);
}

#[tokio::test]
async fn another_wake_of_the_task_does_not_poll() {
    let (send, receive) = oneshot::channel::<()>();
    let mut polled = 0;
    let mut receive = Box::pin(receive);
    let waits = std::future::poll_fn(|cx| {
        polled += 1;
        receive.as_mut().poll(cx)
    });
    let disturb = async {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        send.send(()).unwrap();
    };

    let (output, ()) = tokio::join!(poll_then_drop(waits, 100), disturb);

    assert_eq!((output, polled), (Some(Ok(())), 2));
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "nothing woke the future within 20s of its poll 1 of 2")]
async fn a_future_that_nobody_wakes_fails_the_test() {
    poll_then_drop(std::future::pending::<()>(), 2).await;
}

#[db_testkit::test]
async fn each_point_of_a_transaction_can_be_cancelled(db: TestDb) {
    // The proxy delays answers, or one may be there before it is awaited.
    let proxy = Proxy::start(&db).unwrap();
    proxy.latency(Duration::from_millis(2));
    let mut dropped = 0;
    loop {
        let mut connection = proxy.options().connect().await.unwrap();
        let one = async {
            let mut tx = sqlx::Connection::begin(&mut connection).await?;
            sqlx::query("select 1").execute(&mut *tx).await?;
            tx.commit().await
        };
        match poll_then_drop(one, dropped).await {
            Some(done) => break done.unwrap(),
            None => dropped += 1,
        }
    }

    assert!(dropped > 3, "begin, prepare, run and commit each wait: {dropped}");
    db.until_sessions("none", <[_]>::is_empty).await;
}
