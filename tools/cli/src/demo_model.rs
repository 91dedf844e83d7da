//! The demo model, inside the binary: `niwaki demo` works wherever the command does.

use std::io;
use std::path::Path;

/// The model's name.
pub const NAME: &str = "folktale-3m";

/// Text that the model did not see in training.
pub const HELD_OUT_TEXT: &str = include_str!("../../demo-model/texts/held-out.txt");

/// The files of the export folder.
const EXPORT: [(&str, &[u8]); 5] = [
    (
        "model.onnx",
        include_bytes!("../../demo-model/onnx/model.onnx"),
    ),
    (
        "config.json",
        include_bytes!("../../demo-model/onnx/config.json"),
    ),
    (
        "generation_config.json",
        include_bytes!("../../demo-model/onnx/generation_config.json"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../../demo-model/onnx/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../../demo-model/onnx/tokenizer_config.json"),
    ),
];

/// Writes the export into `folder`, as the exporter did.
///
/// # Errors
/// When a file cannot be written.
pub fn write_export(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (name, bytes) in EXPORT {
        std::fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}
