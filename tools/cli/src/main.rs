//! The `niwaki` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    niwaki_cli::commands::main()
}
