//! How long a cluster takes to be ready, and a standby to be promoted after the primary was killed.
//!
//! `cargo run --example cluster_times [ROUNDS] [STANDBYS]`: 50 rounds and 1 standby unless given. Prints the median and the
//! longest, in milliseconds, and how many folders of clusters are left.

use std::time::Instant;

use db_testkit::{Cluster, Stop};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let (rounds, standbys) = (arguments.next().unwrap_or(Ok(50))?, arguments.next().unwrap_or(Ok(1))?);
    let [mut ready, mut promoted, mut ended] = [const { Vec::new() }; 3];
    let mut folder = None;
    for _ in 0..rounds.max(1) {
        let begun = Instant::now();
        let mut cluster = Cluster::builder().standbys(standbys).start().await?;
        ready.push(begun.elapsed().as_millis());
        let (old, new) = (cluster.primary(), cluster.standby(0));

        let begun = Instant::now();
        cluster.stop(&old, Stop::Immediate).await?;
        cluster.promote(&new).await?;
        promoted.push(begun.elapsed().as_millis());

        folder = new.socket_dir().parent().and_then(|home| home.parent()).map(ToOwned::to_owned);
        let begun = Instant::now();
        drop(cluster);
        ended.push(begun.elapsed().as_millis());
    }
    for (name, mut figures) in [("ready", ready), ("promote", promoted), ("drop", ended)] {
        figures.sort_unstable();
        let (median, longest) = (figures[figures.len() / 2], figures[figures.len() - 1]);
        println!(
            "cluster.{name}_ms {median:>6} median {longest:>6} longest of {rounds}, {standbys} standbys"
        );
    }
    let left = std::fs::read_dir(folder.expect("there was a round"))?.flatten();
    let left = left.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"db-testkit-cluster-"));
    println!("{} folders are left", left.count());
    Ok(())
}
