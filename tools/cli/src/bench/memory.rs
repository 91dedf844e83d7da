//! Memory of this process, as the system counts it.

use serde::Serialize;

/// Resident memory of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ResidentMemory {
    /// Bytes that only this process has: what counts against an app.
    pub anonymous_bytes: u64,
    /// Bytes of mapped files, which the system takes back when it needs them.
    pub file_bytes: u64,
}

/// What is resident now; `None` where the system does not tell (anything but Linux and Android).
pub fn resident_memory() -> Option<ResidentMemory> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse(status: &str) -> Option<ResidentMemory> {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
        kib.checked_mul(1024)
    };
    Some(ResidentMemory {
        anonymous_bytes: bytes("RssAnon:")?,
        file_bytes: bytes("RssFile:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::{ResidentMemory, parse};

    #[test]
    fn anonymous_and_file_pages_are_told_apart() {
        let status = "VmRSS:\t    4000 kB\nRssAnon:\t    1000 kB\nRssFile:\t    3000 kB\n";
        assert_eq!(
            parse(status),
            Some(ResidentMemory {
                anonymous_bytes: 1_024_000,
                file_bytes: 3_072_000
            })
        );
        assert_eq!(parse("VmRSS:\t 4000 kB\n"), None);
        assert_eq!(parse("RssAnon: many kB\nRssFile: 1 kB\n"), None);
    }
}
