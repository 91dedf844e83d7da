//! `uniffi-bindgen generate LIBRARY --language kotlin|swift --out-dir FOLDER --no-format`

fn main() {
    uniffi::uniffi_bindgen_main();
}
