//! `sqlx::migrate!` reads a folder, which cargo does not know of. And the tests of the page need Chromium and its driver on the
//! machine, so they are built only when the environment asks for them.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");

    println!("cargo:rerun-if-env-changed=BUILDWATCH_PAGE_TESTS");
    println!("cargo:rustc-check-cfg=cfg(page_tests)");
    if std::env::var_os("BUILDWATCH_PAGE_TESTS").is_some() {
        println!("cargo:rustc-cfg=page_tests");
    }
}
