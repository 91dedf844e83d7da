//! The `niwaki` command as the tests run it.

use std::process::ExitCode;

fn main() -> ExitCode {
    niwaki_cli::commands::main()
}
