//! How the library that apps ship is linked, whoever calls cargo.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "android") {
        for option in [
            // Android 15 and later have devices with pages of 16 KiB; older NDKs align for 4.
            "-Wl,-z,max-page-size=16384",
            // A sixth of the bytes for relocations; the loader understands them since API 23.
            "-Wl,--pack-dyn-relocs=android",
            // Rust's generic code has many functions that are equal instruction for instruction.
            "-Wl,--icf=all",
            // What another library that links with this one would ask the loader for.
            "-Wl,-soname,libniwaki_bindings.so",
        ] {
            println!("cargo::rustc-link-arg-cdylib={option}");
        }
    }
}
