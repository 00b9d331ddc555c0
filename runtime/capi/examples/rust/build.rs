// Finds libdithead: DITHEAD_LIB_DIR, or where the linker looks.
fn main() {
    println!("cargo:rerun-if-env-changed=DITHEAD_LIB_DIR");
    if let Ok(folder) = std::env::var("DITHEAD_LIB_DIR") {
        println!("cargo:rustc-link-search=native={folder}");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
    println!("cargo:rustc-link-lib=dithead");
}
