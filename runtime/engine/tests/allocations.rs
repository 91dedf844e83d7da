//! Decoding a token allocates next to nothing.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

#[path = "../../bundle/tests/synthetic/mod.rs"]
mod synthetic;

use niwaki::{Engine, LogitsFor, OpenOptions};
use niwaki_kernels::PAGE_TOKENS;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use synthetic::{Decoder, Random};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The allocations of each token and their bytes, while the tokens of one page of the cache are decoded.
fn allocations_by_token(layers: usize) -> Vec<(usize, usize)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    let decoder = Decoder {
        layers,
        ..Decoder::TINY
    };
    decoder.write(&path, 1);
    let options = OpenOptions::default().with_threads(2);
    let engine = Engine::open(&path, &options).unwrap();
    let mut session = engine.session().unwrap();
    let counts = || {
        let allocations = ALLOCATIONS.load(Ordering::Relaxed);
        (allocations, BYTES.load(Ordering::Relaxed))
    };
    let tokens = Random(1).tokens(PAGE_TOKENS, engine.token_ids());
    let decode = |token: &u32| {
        let before = counts();
        session.append(&[*token], LogitsFor::LastToken).unwrap();
        let after = counts();
        (after.0 - before.0, after.1 - before.1)
    };
    tokens.iter().map(decode).collect()
}

/// What tract and the session need for a run is all there is: nothing per operator, and no value.
#[test]
fn decoding_allocates_the_same_few_bytes_however_large_the_model() {
    let usual = |layers| {
        // The first token makes the buffers.
        let mut counts = allocations_by_token(layers).split_off(1);
        counts.sort_unstable();
        counts[counts.len() / 2]
    };
    let (allocations, bytes) = usual(2);
    assert!(
        allocations <= 8 && bytes <= 1024,
        "{allocations} allocations of {bytes} bytes per token"
    );
    assert_eq!(usual(8), (allocations, bytes), "of a deeper model");
}
