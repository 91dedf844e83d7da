//! How many threads to use when the caller does not say.

/// Most threads that compute. A token's work is split over a few dozen at best; thousands end at the system's limits,
/// where starting one more ends the process.
pub(super) const MAX_THREADS: usize = 256;

/// The number of fast cores: on big.LITTLE chips a slow core would hold up all others at every step.
pub(super) fn default_threads() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match fast_cores(&core_capacities()) {
        0 => available,
        fast => fast.min(available),
    };
    threads.min(MAX_THREADS)
}

/// Cores with at least half of the capacity of the fastest.
fn fast_cores(capacities: &[u32]) -> usize {
    let fastest = capacities.iter().copied().max().unwrap_or(0);
    capacities
        .iter()
        .filter(|capacity| capacity.saturating_mul(2) >= fastest)
        .count()
}

/// Relative speed of each core as Linux and Android tell it, or the highest frequency of each where there is no
/// speed; empty where the system says neither.
fn core_capacities() -> Vec<u32> {
    let capacities = of_each_core("cpu_capacity");
    if capacities.is_empty() {
        of_each_core("cpufreq/cpuinfo_max_freq")
    } else {
        capacities
    }
}

fn of_each_core(file: &str) -> Vec<u32> {
    let number = |cpu: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/{file}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    (0..1024).map_while(number).collect()
}

#[cfg(test)]
mod tests {
    use super::fast_cores;

    #[test]
    fn slow_cores_do_not_count() {
        assert_eq!(fast_cores(&[250, 250, 250, 250, 760, 760, 760, 1024]), 4);
        assert_eq!(fast_cores(&[1024; 4]), 4);
        assert_eq!(fast_cores(&[]), 0);
    }
}
