//! `sqlx::migrate!` reads a folder that cargo does not watch. The page's tests need Chromium and chromedriver, so they are
//! compiled only if the environment asks for them.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");

    println!("cargo:rerun-if-env-changed=BUILDWATCH_PAGE_TESTS");
    println!("cargo:rustc-check-cfg=cfg(page_tests)");
    if std::env::var_os("BUILDWATCH_PAGE_TESTS").is_some() {
        println!("cargo:rustc-cfg=page_tests");
    }
}
