//! What the tests across the crates share: where fixtures lie and how the command is started.

pub mod zoo;

use niwaki_convert::build::{BuildError, Weights, build};
use std::path::{Path, PathBuf};

/// The folder that holds the workspace.
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// The demo model's export folder.
pub fn demo_export() -> PathBuf {
    workspace().join("tools/demo-model/onnx")
}

/// Text that the demo model did not see in training.
pub fn demo_held_out_text() -> PathBuf {
    workspace().join("tools/demo-model/texts/held-out.txt")
}

/// The `niwaki` command, ready for arguments, free of what the developer's environment sets.
#[macro_export]
macro_rules! niwaki {
    ($($argument:expr),* $(,)?) => {{
        let mut command = assert_cmd::cargo::cargo_bin_cmd!("niwaki-under-test");
        for variable in ["NIWAKI_ISA", "COLUMNS", "NO_COLOR", "CLICOLOR_FORCE", "NIWAKI_CLOUD_API_KEY"] {
            command.env_remove(variable);
        }
        $(command.arg($argument);)*
        command
    }};
}

/// Builds the demo model into a bundle at `path`.
///
/// # Errors
/// As [`niwaki_convert::build::build`].
pub fn build_demo(path: &Path, weights: Weights) -> Result<(), BuildError> {
    build(&demo_export(), None, path, weights, &mut |_| ()).map(drop)
}
