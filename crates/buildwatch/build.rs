//! `sqlx::migrate!` reads a folder, which cargo does not know of.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
