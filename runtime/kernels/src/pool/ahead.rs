//! What waiting threads fetch into their caches.
//!
//! Decoding is bound by memory, which has nothing to do while one thread computes what cannot be shared. The others,
//! which wait for the next matrix, fetch the beginning of their share of it.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What a thread fetches at most: what the second-level cache of a fast core holds beside other things. Measured on
/// x86-64 only.
const FETCHED_BYTES: usize = 256 * 1024;

const LINE_BYTES: usize = 64;

/// The bytes that will be read. An address only, which nobody dereferences: they may be gone by then, and its parts may
/// be of different announcements.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    address: AtomicUsize,
    items: AtomicUsize,
    item_bytes: AtomicUsize,
}

impl Ahead {
    pub(super) fn set(&self, bytes: &[u8], items: usize, item_bytes: usize) {
        self.items.store(items, Ordering::Relaxed);
        self.item_bytes.store(item_bytes, Ordering::Relaxed);
        self.address.store(bytes.as_ptr().addr(), Ordering::Relaxed);
    }
}

/// Where one thread is in its share of them.
#[derive(Default)]
pub(super) struct Cursor {
    announced: usize,
    next: usize,
    end: usize,
}

impl Cursor {
    /// Begins with the share of `thread` of `threads`, if something else was announced since.
    pub(super) fn follow(&mut self, ahead: &Ahead, thread: usize, threads: usize) {
        let address = ahead.address.load(Ordering::Relaxed);
        if address == self.announced {
            return;
        }
        let items = ahead.items.load(Ordering::Relaxed);
        let item_bytes = ahead.item_bytes.load(Ordering::Relaxed);
        let start = |thread: usize| {
            let item = items.wrapping_mul(thread) / threads;
            address.wrapping_add(item.wrapping_mul(item_bytes))
        };
        let share_bytes = start(thread + 1).wrapping_sub(start(thread));
        self.announced = address;
        self.next = start(thread);
        self.end = self.next.wrapping_add(share_bytes.min(FETCHED_BYTES));
    }

    /// Fetches a line, if there is one left.
    pub(super) fn fetch(&mut self) -> bool {
        if self.next >= self.end {
            return false;
        }
        fetch_line(self.next);
        self.next = self.next.saturating_add(LINE_BYTES);
        true
    }
}

/// Asks for a cache line in the second-level cache.
fn fetch_line(address: usize) {
    #[cfg(target_arch = "x86_64")]
    crate::x86_64::prefetch(std::ptr::without_provenance(address), LINE_BYTES);
    #[cfg(target_arch = "aarch64")]
    crate::aarch64::prefetch(address);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets that `thread` fetches of `bytes`.
    fn fetched(bytes: &[u8], items: usize, item_bytes: usize, thread: usize) -> Vec<usize> {
        let ahead = Ahead::default();
        ahead.set(bytes, items, item_bytes);
        let mut cursor = Cursor::default();
        cursor.follow(&ahead, thread, 2);
        let mut offsets = Vec::new();
        loop {
            let next = cursor.next;
            if !cursor.fetch() {
                break;
            }
            offsets.push(next - bytes.as_ptr().addr());
        }
        cursor.follow(&ahead, thread, 2);
        assert!(!cursor.fetch(), "the same twice");
        offsets
    }

    #[test]
    fn each_thread_fetches_its_own_share() {
        let bytes = [0; 10 * 64];
        assert_eq!(fetched(&bytes, 5, 128, 0), [0, 64, 128, 192]);
        assert_eq!(fetched(&bytes, 5, 128, 1), [256, 320, 384, 448, 512, 576]);
    }

    #[test]
    fn no_more_than_a_cache_holds_is_fetched() {
        let bytes = vec![0; 4 * FETCHED_BYTES];
        let offsets = fetched(&bytes, 4, FETCHED_BYTES, 1);
        assert_eq!(offsets.first(), Some(&(2 * FETCHED_BYTES)));
        assert_eq!(offsets.len() * LINE_BYTES, FETCHED_BYTES);
    }

    #[test]
    fn what_is_gone_may_be_fetched() {
        let ahead = Ahead::default();
        {
            let bytes = vec![0; 1 << 20];
            ahead.set(&bytes, 2, 1 << 19);
        }
        let mut cursor = Cursor::default();
        cursor.follow(&ahead, 1, 2);
        while cursor.fetch() {}
    }

    /// What the parts of different announcements may come to.
    #[test]
    fn any_numbers_end() {
        for numbers in [
            [usize::MAX; 3],
            [usize::MAX - 100, 1, 50],
            [64, usize::MAX, 3],
        ] {
            let [address, items, item_bytes] = numbers.map(AtomicUsize::new);
            let ahead = Ahead {
                address,
                items,
                item_bytes,
            };
            for thread in 0..3 {
                let mut cursor = Cursor::default();
                cursor.follow(&ahead, thread, 3);
                let most = FETCHED_BYTES / LINE_BYTES;
                assert!((0..=most).any(|_| !cursor.fetch()), "{numbers:?}");
            }
        }
    }
}
